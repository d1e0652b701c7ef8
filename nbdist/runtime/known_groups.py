"""The groups of torch that this process has called something in, and their slots in the table.

    process group ──▶ name, ranks, incarnation ──▶ slot

Nothing to guard: groups of one rank, of fake backends, of ranks outside the session, and groups
that torch does not list.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nbdist.runtime import torch_private
from nbdist.runtime.hooks import Call, Issue
from nbdist.runtime.slots import ISSUED, GroupKey, Slot
from nbdist.runtime.table import Table
from nbdist.runtime.torch_private import ProcessGroup

_FAKES = frozenset({"fake", "threaded", "undefined"})


@dataclass
class KnownGroup:
    """A group as this process sees it."""

    key: GroupKey
    slot: Slot
    me: int
    reference: weakref.ref[ProcessGroup]
    backends: Mapping[str, str]
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def size(self) -> int:
        """Number of its ranks."""
        return len(self.key.ranks)

    @property
    def name(self) -> str:
        """Its name in torch."""
        return self.key.name

    def issue(self, issue: Issue) -> Any:
        """Make the native call, and count it."""
        return issue_counted(self.slot, self.me, issue)


def issue_counted(slot: Slot, me: int, issue: Issue) -> Any:
    """Make a native call, and count it as one that the peers have to make as well.

    Counted before it is made, and not any more where it was refused: a signal that comes in between
    must never leave a call that nobody knows of; the ranks would go on with groups that differ.
    """
    count = slot.issued(me)
    slot.set_issued(me, count + 1)
    slot.set_phase(me, ISSUED)
    try:
        return issue()
    except RuntimeError:
        slot.set_issued(me, count)
        raise


class KnownGroups:
    """The groups; met at their first call, released once they were destroyed."""

    def __init__(self, table: Table, rank: int, released: Callable[[GroupKey], None]) -> None:
        self.lock = threading.RLock()
        self._table = table
        self._rank = rank
        self._released = released
        self._groups: dict[int, KnownGroup | None] = {}
        self._references: dict[int, weakref.ref[ProcessGroup]] = {}
        self._incarnations: dict[tuple[str, tuple[int, ...]], int] = {}

    def __repr__(self) -> str:
        return f"<KnownGroups of rank {self._rank}, {len(self.guarded())} guarded>"

    def guarded(self) -> list[KnownGroup]:
        """Return those that are guarded."""
        with self.lock:
            return [group for group in self._groups.values() if group is not None]

    def go_on_with(self, key: GroupKey) -> None:
        """Take note that some rank is at this incarnation of a group."""
        name = (key.name, key.ranks)
        self._incarnations[name] = max(key.incarnation, self._incarnations.get(name, 0))

    def find(self, call: Call) -> KnownGroup | None:
        """Return what is known of the call's group; ``None`` where there is nothing to guard."""
        reference = self._references.get(id(call.group))
        if reference is None or reference() is not call.group:
            with self.lock:
                self._groups[id(call.group)] = self._meet_group(call.group)
                self._references[id(call.group)] = weakref.ref(call.group)
        group = self._groups[id(call.group)]
        return group if group is not None and _is_real(call.args) else None

    def _meet_group(self, group: ProcessGroup) -> KnownGroup | None:
        ranks = torch_private.group_ranks(group)
        backends = torch_private.group_backends(group)
        if ranks is None or len(ranks) < 2 or self._rank not in ranks:
            return None
        if _FAKES & set(backends.values()) or max(ranks) >= self._table.world_size:
            return None
        self.release_destroyed()
        name = (group.group_name, ranks)
        known = [g for g in self._groups.values() if g and (g.key.name, g.key.ranks) == name]
        incarnation = self._incarnations.get(name, 0) + bool(known)
        self._incarnations[name] = incarnation
        key = GroupKey(group.group_name, ranks, incarnation)
        me = ranks.index(self._rank)
        return KnownGroup(key, self._table.slot(key, me), me, weakref.ref(group), backends)

    def release_destroyed(self) -> None:
        """Give back the slots of groups that were destroyed."""
        with self.lock:
            for number, group in list(self._groups.items()):
                alive = None if group is None else group.reference()
                if group is None or (alive is not None and torch_private.is_living(alive)):
                    continue
                group.slot.hold(group.me, is_held=False)
                name = (group.key.name, group.key.ranks)
                self._incarnations[name] = group.key.incarnation + 1
                self._released(group.key)
                del self._groups[number], self._references[number]


def device_of(args: Mapping[str, Any]) -> torch.device:
    """Return the device of the tensors that are handed to an operator."""
    return next((tensor.device for tensor in _first_tensors(args)), torch.device("cpu"))


def _is_real(args: Mapping[str, Any]) -> bool:
    """Say whether the call moves data: not while a compiler traces it."""
    return all(torch_private.is_real(tensor) for tensor in _first_tensors(args))


def _first_tensors(args: Mapping[str, Any]) -> list[torch.Tensor]:
    found = []
    for value in args.values():
        while isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, torch.Tensor):
            found.append(value)
    return found
