"""The groups of torch that this process has called something in, and their slots in the table.

    process group ──▶ name, ranks, incarnation ──▶ slot

torch gives a name again when the world was destroyed. So groups are counted when they are made,
which all their ranks do alike, whether they ever call anything in them or not; a fresh rank is told
by the others how many there were.

Nothing to guard: groups of one rank, of fake backends, of ranks outside the session, and groups
that torch does not list.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nbdist.errors import CollectiveError
from nbdist.runtime import torch_private
from nbdist.runtime.call_kinds import CallKinds, first_tensors
from nbdist.runtime.hooks import Call, Issue
from nbdist.runtime.slots import ISSUED, GroupKey, Slot
from nbdist.runtime.table import Table
from nbdist.runtime.torch_private import ProcessGroup

_FAKES = frozenset({"fake", "threaded", "undefined"})


@dataclass(eq=False)
class KnownGroup:
    """A group as this process sees it."""

    key: GroupKey
    slot: Slot
    me: int
    reference: weakref.ref[ProcessGroup]
    backends: Mapping[str, str]
    lock: threading.RLock = field(default_factory=threading.RLock)
    hurried: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kinds = CallKinds(self.me, self.size, self.backends.keys())

    @property
    def size(self) -> int:
        """Number of its ranks."""
        return len(self.key.ranks)

    @property
    def name(self) -> str:
        """Its name in torch."""
        return self.key.name

    def turn(self, *, may_wait: bool) -> contextlib.AbstractContextManager[object]:
        """Keep the calls of several threads in the order of their numbers.

        Args:
            may_wait: This call may wait for its peers in Python. One that may not does not wait
                for another thread's either: that one goes on to its native call at once.
        """
        return self.lock if may_wait else self._turn_at_once()

    @contextlib.contextmanager
    def _turn_at_once(self) -> Iterator[None]:
        if not self.lock.acquire(blocking=False):
            self.hurried.append(0)
            self.slot.nudge()
            try:
                self.lock.acquire()
            finally:
                self.hurried.pop()
        try:
            yield
        finally:
            self.lock.release()

    def issue(self, seq: int, issue: Issue) -> Any:
        """Make the native call that was posted as *seq*, and count it."""
        return issue_counted(self.slot, self.me, issue, lambda: self.slot.take_back(self.me, seq))


#: What torch raises where it refuses a call: nothing was sent.
REFUSALS = (RuntimeError, ValueError, TypeError)


def issue_counted(slot: Slot, me: int, issue: Issue, take_back: Callable[[], None]) -> Any:
    """Make a native call, and count it as one that the peers have to make as well.

    Counted before it is made, and not any more where it was refused: a signal that comes in between
    must never leave a call that nobody knows of; the ranks would go on with groups that differ.
    """
    count = slot.issued(me)
    slot.set_issued(me, count + 1)
    slot.set_phase(me, ISSUED)
    try:
        return issue()
    except REFUSALS as exc:
        if not isinstance(exc, CollectiveError):
            slot.set_issued(me, count)
            take_back()
        raise


_Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Making:
    """How many groups one rank has made.

    Attributes:
        counts: By their ranks.
        living: Incarnations of those there are, by name and ranks.
    """

    counts: Mapping[_Ranks, int]
    living: Mapping[tuple[str, _Ranks], int]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return {
            "counts": [[ranks, count] for ranks, count in self.counts.items()],
            "living": [[*group, incarnation] for group, incarnation in self.living.items()],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Making:
        """Turn what `to_json` has returned back into it."""
        return cls(
            counts={tuple(ranks): count for ranks, count in content["counts"]},
            living={(name, tuple(ranks)): number for name, ranks, number in content["living"]},
        )


class KnownGroups:
    """The groups; counted when made, met at their first call, released once they were destroyed."""

    def __init__(self, table: Table, rank: int, released: Callable[[GroupKey], None]) -> None:
        self.lock = threading.RLock()
        self._table = table
        self._rank = rank
        self._released = released
        self._groups: dict[int, KnownGroup | None] = {}
        self._references: dict[int, weakref.ref[ProcessGroup]] = {}
        self._counts: dict[_Ranks, int] = {}
        self._incarnations: dict[tuple[str, _Ranks], int] = {}
        self._to_join: set[tuple[str, _Ranks]] = set()  # those that only the other ranks have yet

    def __repr__(self) -> str:
        return f"<KnownGroups of rank {self._rank}, {len(self.guarded())} guarded>"

    def guarded(self) -> list[KnownGroup]:
        """Return those that are guarded."""
        with self.lock:
            return [group for group in self._groups.values() if group is not None]

    def note_made(self, name: str, ranks: _Ranks) -> None:
        """Count a group that is about to be made; all its ranks make it, and in the same order."""
        if self._rank not in ranks:
            return
        with self.lock:
            if (name, ranks) in self._to_join:
                self._to_join.remove((name, ranks))
                return
            self._counts[ranks] = self._counts.get(ranks, 0) + 1
            self._incarnations = {**self.made().living} | {(name, ranks): self._counts[ranks] - 1}

    def num_made(self, ranks: _Ranks) -> int:
        """Return how many groups of *ranks* were made so far, alike on all of them."""
        with self.lock:
            return self._counts.get(ranks, 0)

    def made(self) -> Making:
        """Return how many groups this rank has made, and which of them live."""
        living = {
            (group.group_name, ranks)
            for group in torch_private.living_groups()
            if (ranks := torch_private.group_ranks(group)) is not None
        }
        with self.lock:
            return Making(
                dict(self._counts),
                {group: n for group, n in self._incarnations.items() if group in living},
            )

    def go_on_with(self, others: Iterable[Making]) -> None:
        """Count on from what all ranks have made; as a fresh one, from what the others have."""
        with self.lock:
            is_fresh = not self._counts
            for making in others:
                for ranks, count in making.counts.items():
                    self._counts[ranks] = max(count, self._counts.get(ranks, 0))
                if is_fresh:
                    self._incarnations |= making.living
            self._to_join = set(self._incarnations) if is_fresh else set()

    def find(self, call: Call) -> KnownGroup | None:
        """Return what is known of the call's group; ``None`` where there is nothing to guard."""
        reference = self._references.get(id(call.group))
        if reference is None or reference() is not call.group:
            with self.lock:
                self._groups[id(call.group)] = self._meet_group(call.group)
                self._references[id(call.group)] = weakref.ref(call.group)
        return self._groups[id(call.group)]

    def _meet_group(self, group: ProcessGroup) -> KnownGroup | None:
        ranks = torch_private.group_ranks(group)
        backends = torch_private.group_backends(group)
        if ranks is None or len(ranks) < 2 or self._rank not in ranks:
            return None
        if _FAKES & set(backends.values()) or max(ranks) >= self._table.world_size:
            return None
        self.release_destroyed()
        incarnation = self._incarnations.get((group.group_name, ranks), 0)
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
                self._released(group.key)
                del self._groups[number], self._references[number]


def device_of(args: Mapping[str, Any]) -> torch.device:
    """Return the device of the tensors that are handed to an operator."""
    return next((tensor.device for tensor in first_tensors(args)), torch.device("cpu"))
