"""The calls that this rank has posted and may wait in, and the word that nobody will come to one.

    guard, messages ──▶ OpenCall ◀── the main thread waits in it: in the guard, or natively
                          │  ▲
      who has not come ◀──┘  └── `raise_if_hopeless` ◀── table ◀── agent ◀── session, once certain

Whether somebody can still come is decided beside the notebook, which knows what every rank runs and
has queued. Here it is only said who has not come, and the one who waits is told.

Not covered: waits for another thread's turn in the same group, for a store, and while a group is
made.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence

from nbdist.errors import CollectiveError
from nbdist.runtime.known_groups import KnownGroup
from nbdist.runtime.outlook import Outlook
from nbdist.runtime.signature import Signature, has_to_wait
from nbdist.runtime.slots import ABANDONED, VOID, Record, Slot
from nbdist.runtime.table import Table
from nbdist.wire import BlockedCall, GroupCall

# Operations whose root needs something of everybody.
_TAKE_FROM_ALL = frozenset({"reduce", "gather"})


class OpenCalls:
    """Those of one rank.

    Attributes:
        current: The one that the main thread waits in.
        timeout_of: Returns after how many seconds the calls of a group fail.
    """

    def __init__(
        self, table: Table, rank: int, outlook: Outlook, timeout_of: Callable[[KnownGroup], float]
    ) -> None:
        self.current: OpenCall | None = None
        self.timeout_of = timeout_of
        self._table, self._rank, self._outlook = table, rank, outlook
        self._numbers = itertools.count(1)
        self._main = threading.main_thread().ident

    def __repr__(self) -> str:
        return f"<OpenCalls of rank {self._rank}, in {self.current}>"

    def next_number(self) -> int:
        """Return a number that no call of this process had."""
        return next(self._numbers)

    def is_main_thread(self) -> bool:
        """Say whether the main thread asks: what other threads wait in is nobody's cell."""
        return threading.get_ident() == self._main

    def hopeless(self) -> tuple[int, str] | None:
        """Return number and reason of the call that nobody comes to, as far as it was told."""
        if self._table.epoch <= self._outlook.cut:
            return None
        ending = self._table.ending(self._rank)
        return (ending.number, ending.reason) if ending.stamp > self._outlook.cut else None

    def raise_if_hopeless(self, number: int) -> None:
        """Raise if it was told that nobody can come to call *number* any more.

        Raises:
            CollectiveError: It was.
        """
        told = self.hopeless()
        if told is not None and told[0] == number:
            raise CollectiveError(told[1])


class OpenCall:
    """One call that was posted; a context manager around a native wait for it.

    Args:
        calls: Of this rank.
        group: Within which.
        slot: Of the group, or of the messages between two of its ranks.
        me: This rank among the slot's members.
        record: What was posted.
        seq: Under which number.
        own_timeout_ms: What the call itself was given; below zero for the group's.

    Attributes:
        number: Of this call among all of this process.
        is_native: Whether who waits for it waits natively.
    """

    __slots__ = (
        "_calls",
        "_own_timeout_ms",
        "group",
        "is_native",
        "me",
        "number",
        "record",
        "seq",
        "slot",
    )

    def __init__(
        self,
        calls: OpenCalls,
        group: KnownGroup,
        slot: Slot,
        me: int,
        record: Record,
        seq: int,
        own_timeout_ms: int = -1,
    ) -> None:
        self._calls, self._own_timeout_ms = calls, own_timeout_ms
        self.group, self.slot, self.me = group, slot, me
        self.record, self.seq = record, seq
        self.number = calls.next_number()
        self.is_native = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number}: {self.record.text} #{self.seq}>"

    def missing(self) -> tuple[int, ...]:
        """Return the ranks that have not come and that it cannot end without; any thread may."""
        return ()

    def begin(self) -> None:
        """Note that the thread that asks waits for it from now on."""
        if self._calls.is_main_thread():
            self._calls.current = self

    def end(self) -> None:
        """Note that this wait is over."""
        if self._calls.current is self:
            self._calls.current = None

    def __enter__(self) -> None:
        """Note that it is waited for natively."""
        self.is_native = True
        self.begin()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Note that the wait is over; raise what it was ended for in place of what that led to."""
        self.end()
        if isinstance(error, Exception):
            try:
                self.raise_if_hopeless()
            except CollectiveError as reason:
                raise reason from error

    def raise_if_hopeless(self) -> None:
        """Raise if it was told that nobody can come to it any more."""
        self._calls.raise_if_hopeless(self.number)

    def late(self) -> tuple[int, ...]:
        """Return the ranks that have not come; natively it may wait for any of them."""
        return ()

    def described(self, *, may_compute: bool = False) -> BlockedCall:
        """Return it as the session asks for it; any thread may.

        Args:
            may_compute: Nobody knows whether it is waited for already.
        """
        slot, record, missing = self.slot, self.record, self.missing()
        is_sure = not may_compute and bool(missing or not self.is_native)
        call = GroupCall(
            rank=slot.key.ranks[self.me],
            group=slot.key.name,
            ranks=slot.key.ranks,
            kind=slot.key.kind,
            seq=self.seq,
            issued=slot.issued(self.me),
            phase="issued" if self.is_native else "waiting",
            since=0.0,
            text=record.text,
            source=record.source,
        )
        timeout_s = self._timeout_s()
        return BlockedCall(
            number=self.number,
            call=call,
            missing=missing if is_sure or may_compute else self.late(),
            timeout_s=None if math.isinf(timeout_s) else timeout_s,
            used_ns=None if is_sure else time.process_time_ns(),
        )

    def _timeout_s(self) -> float:
        """Return after how long it ends by itself."""
        own = self._own_timeout_ms
        return own / 1000 if own >= 0 else self._calls.timeout_of(self.group)


class OpenCollective(OpenCall):
    """A collective of a group."""

    __slots__ = ("_op", "_root")

    def __init__(
        self,
        calls: OpenCalls,
        group: KnownGroup,
        signature: Signature,
        record: Record,
        seq: int,
        own_timeout_ms: int = -1,
    ) -> None:
        super().__init__(calls, group, group.slot, group.me, record, seq, own_timeout_ms)
        self._op, self._root = signature.op, signature.root

    def missing(self) -> tuple[int, ...]:
        """Return the ranks that have not come and that it cannot end without; any thread may."""
        wanted = needed(self._op, self._root, self.me, self._pending(), self.slot.num_members)
        return tuple(self.slot.key.ranks[member] for member in wanted)

    def late(self) -> tuple[int, ...]:
        """Return the ranks that have not come; natively it may wait for any of them."""
        return tuple(self.slot.key.ranks[member] for member in self._pending())

    def _pending(self) -> list[int]:
        slot, me = self.slot, self.me
        members = range(slot.num_members)
        return [m for m in members if m != me and not _has_come(slot, m, self.seq)]


def needed(
    op: str, root: int | None, rank: int, pending: Sequence[int], size: int
) -> Sequence[int]:
    """Return those of *pending* that *rank* cannot end an operation without; pure.

    Args:
        op: Name of the operation.
        root: The root's rank in the group, where there is one.
        rank: This rank's rank in the group.
        pending: The ranks that have not come.
        size: Number of ranks in the group.
    """
    if rank == root and op in _TAKE_FROM_ALL:
        return pending
    if not has_to_wait(root, rank, pending, size):
        return ()
    return pending if root is None or rank == root else (root,)


def _has_come(slot: Slot, member: int, seq: int) -> bool:
    """Say whether *member* has made call *seq*, and not left it, nor been refused it by torch."""
    if slot.seq(member) < seq:
        return False
    entry = slot.peek(member, seq)  # the ring has forgotten what passed long ago
    return entry is None or not entry[1] & (ABANDONED | VOID)
