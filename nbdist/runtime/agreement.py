"""Let the ranks agree to go on after a failure.

    every rank: its numbers, how many of its calls went native, ──▶ store ──▶ the highest numbers,
                how many groups it has made,                                  which groups differ
                how often it has met others by rpc

Uses no process group. What was cancelled before is over afterwards.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbdist.errors import CollectiveTimeout, RebuildError
from nbdist.runtime import torch_private, torch_rpc
from nbdist.runtime.known_groups import KnownGroups, Making
from nbdist.runtime.meeting import StoreLike, wait_for_key
from nbdist.runtime.messages import Messages
from nbdist.runtime.outlook import Outlook, error_of
from nbdist.runtime.slots import GroupKey
from nbdist.runtime.table import Table

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Resync:
    """What the ranks found when they agreed to go on.

    Attributes:
        damaged: Names of the groups whose native calls do not match any more: one rank has started
            a call that another never will.
        is_broken: The groups of some rank were cut off.
        group_count: How many groups were made so far; torch names the next one after it.
    """

    damaged: tuple[str, ...] = ()
    is_broken: bool = False
    group_count: int = 0

    @property
    def needs_rebuild(self) -> bool:
        """Whether the groups have to be made anew before they are used again."""
        return self.is_broken or bool(self.damaged)


class Agreement:
    """One rank's part in it."""

    def __init__(
        self, table: Table, rank: int, groups: KnownGroups, messages: Messages, outlook: Outlook
    ) -> None:
        self._table, self._rank = table, rank
        self._groups, self._messages, self._outlook = groups, messages, outlook

    def reach(
        self, store: StoreLike, tag: str, *, is_broken: bool = False, is_fresh: bool = False
    ) -> Resync:
        """Agree with the other ranks to go on: on the next numbers, and that what failed is over.

        Uses no process group, and comes before a rebuild: from here on what was cancelled is over.
        To be called on all ranks outside of any collective, in the main thread, by a fresh rank
        before it has a group as well; SIGINT ends it.

        Args:
            store: Where the ranks meet.
            tag: Names this meeting, alike on all ranks and never used before.
            is_broken: The groups of this rank were cut off.
            is_fresh: It has none yet.

        Raises:
            RebuildError: A rank has no groups any more.
            PeerFailed: One of them has died meanwhile.
            CollectiveTimeout: One of them has not come within `PATIENCE_S`.
        """
        has_lost_groups = not is_fresh and not torch_private.living_groups()
        mine = {**self._state(), "broken": is_broken, "lost": has_lost_groups}
        store.set(f"{tag}/{self._rank}", json.dumps(mine))
        ranks = range(self._table.world_size)
        states = [self._read(store, f"{tag}/{rank}", rank, mine["cut"]) for rank in ranks]
        if lost := [rank for rank in ranks if states[rank]["lost"]]:
            raise RebuildError(_lost_text(lost))
        damaged = self._adopt(states)
        group_count = max(state["groups"] for state in states)
        if torch_private.living_groups():  # a fresh rank's first is the world, named as theirs was
            torch_private.set_group_count(group_count)
        torch_rpc.go_on_after([state["rpc"] for state in states])
        self._outlook.agree(max(state["cut"] for state in states))
        return Resync(damaged, any(state["broken"] for state in states), group_count)

    def _state(self) -> dict[str, Any]:
        self._groups.release_destroyed()
        slots = [(group.key, group.slot, group.me) for group in self._groups.guarded()]
        slots += [(c.slot.key, c.slot, c.me) for c in self._messages.channels()]
        entries = {key.to_text(): [slot.seq(me), slot.issued(me)] for key, slot, me in slots}
        return {
            "cut": self._table.epoch,
            "slots": entries,
            "groups": torch_private.group_count(),
            "made": self._groups.made().to_json(),
            "rpc": torch_rpc.counts(),
        }

    def _read(self, store: StoreLike, key: str, rank: int, cut: int) -> dict[str, Any]:
        def look() -> None:
            died = self._table.cancellation([rank], cut)
            if died is not None and died.kind == "died":
                raise error_of(died, "the agreement of the ranks to go on")

        if not wait_for_key(store, key, time.monotonic() + PATIENCE_S, look):
            raise CollectiveTimeout(
                f"rank {rank} did not come within {PATIENCE_S:g} s to agree to go on.\n"
                "`%dist status` says what it does; `%dist restart` starts all ranks anew."
            )
        state: dict[str, Any] = json.loads(store.get(key))
        return state

    def _adopt(self, states: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Go on after the highest numbers of all; return the groups whose native calls differ."""
        found: dict[str, list[list[int]]] = {}
        for state in states:
            for text, entry in state["slots"].items():
                found.setdefault(text, []).append(entry)
        self._groups.go_on_with(Making.from_json(state["made"]) for state in states)
        damaged = set()
        for text, entries in found.items():
            key = GroupKey.from_text(text)
            issued = {entry[1] for entry in entries}
            if len(entries) < len(key.ranks):
                issued.add(0)  # a rank that has never used it
            if len(issued) > 1:
                damaged.add(key.name)
            if self._rank in key.ranks:
                self._go_on_after(key, max(entry[0] for entry in entries))
        return tuple(sorted(damaged))

    def _go_on_after(self, key: GroupKey, seq: int) -> None:
        me = key.ranks.index(self._rank)
        slot = self._table.slot(key, me)
        slot.set_seq(me, seq)
        if key.kind == "group":
            slot.set_takes_from_any(me, False)
            return
        for channel in self._messages.channels():
            if channel.slot is slot:
                channel.go_on_after(seq)


def _lost_text(ranks: Sequence[int]) -> str:
    who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
    return (
        f"The process groups of {who} are gone, "
        "and not by dist.destroy_process_group(), which leaves them to the session.\n"
        "Cells without collectives run on, and `%dist pull` saves variables.\n"
        "`%dist restart --ranks` makes these ranks anew; `%dist restart` starts all anew."
    )
