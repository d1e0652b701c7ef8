"""Keep the last calls of this rank, with the times at which they began, waited and were over.

    guard ──post──▶ Entry ──issue──▶ native call ──▶ Work ──▶ work.wait()     `entry_of(work)`
                      ▼
                 ring of 10,000 ──▶ RankTrace ──▶ session (control thread)

The times are those of the CPU, on the clock that all processes of a host share. That tells who came
last, and so who was waited for; the guard need not wait for it.

Not covered: a call is over when its `wait` returns, so one that nobody waits for in Python has no
end here, but for DDP's; NCCL's `wait` only queues work, and so do its calls; groups of one rank and
others that are not guarded; what was called while the guard was off; ranks of other hosts have
other clocks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from nbdist.runtime import torch_private
from nbdist.runtime.signature import Signature
from nbdist.runtime.slots import GroupKey
from nbdist.wire import CallSite, RankTrace, TracedCall, TracedCell

NUM_CALLS = 10_000
NUM_CELLS = 1000
NUM_KNOWN = 20
MAX_SITES = 2000  # then the cache begins anew

Native = Callable[[], Any]
_T = TypeVar("_T")


UNKNOWN = contextlib.nullcontext()  # stands for a call that nobody can say more of


class Entry:
    """One call, while its times are still coming in; see `nbdist.wire.TracedCall`.

    Attributes:
        call: What is to be known of it while it is waited for.
    """

    __slots__ = (
        "began",
        "call",
        "cell_id",
        "done",
        "is_failed",
        "returned",
        "seq",
        "site",
        "wait_began",
        "wait_ended",
        "waited_s",
    )

    def __init__(self, site: CallSite, cell_id: str, seq: int, began: float) -> None:
        self.site = site
        self.cell_id = cell_id
        self.seq = seq
        self.began = began
        self.waited_s = self.returned = self.wait_began = self.wait_ended = self.done = 0.0
        self.is_failed = False
        self.call: contextlib.AbstractContextManager[None] = UNKNOWN

    def may_go(self) -> None:
        """Note that the guard lets it go on to the native call."""
        self.waited_s = time.monotonic() - self.began

    def fail(self) -> None:
        """Note that it ended with an error before it was issued, or in the native call."""
        self.returned = time.monotonic()
        self.waited_s = self.waited_s or self.returned - self.began
        self.is_failed = True

    def __enter__(self) -> None:
        """Note that the rank waits for it; what is waited for twice counts once."""
        if not self.wait_ended:
            self.wait_began = time.monotonic()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Note that the wait is over."""
        if not self.wait_ended:
            self.wait_ended = time.monotonic()
            self.is_failed |= error is not None
        if error is None:
            self.call = UNKNOWN  # nobody will wait for it any more
        _latest.work = None

    def finish(self) -> None:
        """Note that its data has arrived; any thread may."""
        self.done = time.monotonic()
        self.call = UNKNOWN

    def frozen(self) -> TracedCall:
        """Return it as it is now."""
        times = self.began, self.waited_s, self.returned, self.wait_began, self.wait_ended
        return TracedCall(self.site, self.cell_id, self.seq, *times, self.done, self.is_failed)


# One `Work` of torch has one Python object only as long as somebody holds that. So the latest of
# each thread is held until its caller has it; older ones live as long as the caller wants.
_entries: WeakKeyDictionary[Any, Entry] = WeakKeyDictionary()
_latest = threading.local()
_UNRECORDED = Entry(CallSite("", "", "", "", ()), "", 0, 0.0)


def entry_of(work: Any) -> Entry:
    """Return the call that *work* came from; one that nobody looks at where it is not recorded."""
    return _entries.get(work, _UNRECORDED)


class CallTrace:
    """The ring of one rank."""

    def __init__(self, num_calls: int = NUM_CALLS) -> None:
        self._entries: deque[Entry] = deque(maxlen=num_calls)
        self._cells: deque[_Cell] = deque(maxlen=NUM_CELLS)
        self._cell: _Cell | None = None
        self._sites: dict[tuple[object, ...], tuple[CallSite, GroupKey]] = {}

    def __repr__(self) -> str:
        return f"<CallTrace of {len(self._entries)} calls>"

    def begin_cell(self, cell_id: str, label: str) -> None:
        """Take what is called from now on for calls of this cell."""
        self._cell = _Cell(cell_id, label)
        self._cells.append(self._cell)

    def end_cell(self) -> None:
        """Note that the cell is over; what comes then belongs to none."""
        if self._cell is not None:
            self._cell.ended = time.monotonic()
            self._cell = None
        _latest.work = None

    def post(
        self,
        group: GroupKey,
        signature: Signature,
        source: str,
        *,
        began: float,
        seq: int = 0,
        is_async: bool = False,
        ends: tuple[int, ...] = (),
    ) -> Entry:
        """Record a call.

        Args:
            group: Where.
            signature: What.
            source: From which line.
            began: When this rank came to it, before any other could know: peers may be done with it
                before this one runs on.
            seq: Its number.
            is_async: It returns before it is over.
            ends: Sender and receiver of a message, in the world.
        """
        cell = self._cell
        # By its identity: hashing the ranks of a large group takes longer than all the rest.
        name = (signature.text, source, id(group), signature.size_bytes, is_async, ends)
        found = self._sites.get(name)
        if found is None:
            site = CallSite(
                op=signature.op,
                text=signature.text,
                source=source,
                group=group.name,
                ranks=ends or group.ranks,
                kind="p2p" if ends else "group",
                incarnation=group.incarnation,
                size_bytes=signature.size_bytes,
                is_async=is_async,
            )
            if len(self._sites) >= MAX_SITES:
                self._sites.clear()
            # The group is held, so that no other one gets its identity.
            found = self._sites[name] = (site, group)
        if cell is not None:
            cell.num_calls += 1
        entry = Entry(found[0], "" if cell is None else cell.cell_id, seq, began)
        self._entries.append(entry)
        return entry

    def issue(self, entry: Entry, through: Callable[[Native], Any], native: Native) -> Any:
        """Make the native call of *entry* by way of *through*, and note when it returns."""
        try:
            result = through(native)
        except BaseException:
            entry.fail()
            raise
        entry.returned = time.monotonic()
        boxed = result[-1] if isinstance(result, tuple) else result
        work = torch_private.unbox_work(boxed)
        if work is not None:
            _entries[work] = entry
            _latest.work = work
        return result

    # Telling: any thread --------------------------------------------------------------------------

    def told(
        self, rank: int, mode: str, cells: Sequence[str] | Literal["last"] | None = None
    ) -> RankTrace:
        """Return what is known; the main thread may go on meanwhile.

        Args:
            rank: This one.
            mode: The guard's.
            cells: Labels of the cells wanted; ``"last"`` for the last that called any, with those
                that came after it; all when ``None``.
        """
        now, known = time.monotonic(), _copied(self._cells)
        wanted = _chosen(known, cells)
        ids = {cell.cell_id for cell in wanted}
        calls = [
            entry.frozen()
            for entry in _copied(self._entries)
            if cells is None or entry.cell_id in ids
        ]
        labels = dict.fromkeys(cell.label for cell in known if cell.num_calls)
        return RankTrace(
            rank=rank,
            mode=mode,
            now=now,
            cells=tuple(cell.frozen() for cell in wanted),
            calls=tuple(calls),
            known=tuple(labels)[-NUM_KNOWN:],
        )


class _Cell:
    """One cell, while it runs; see `nbdist.wire.TracedCell`."""

    __slots__ = ("began", "cell_id", "ended", "label", "num_calls")

    def __init__(self, cell_id: str, label: str) -> None:
        self.cell_id = cell_id
        self.label = label
        self.began = time.monotonic()
        self.ended = 0.0
        self.num_calls = 0

    def frozen(self) -> TracedCell:
        return TracedCell(self.cell_id, self.label, self.began, self.ended, self.num_calls)


def _chosen(known: list[_Cell], cells: Sequence[str] | Literal["last"] | None) -> list[_Cell]:
    if cells is None:
        return known
    if cells != "last":
        return [cell for cell in known if cell.label in cells]
    last = max((index for index, cell in enumerate(known) if cell.num_calls), default=0)
    return known[last:]


def _copied(items: deque[_T]) -> list[_T]:
    while True:
        with contextlib.suppress(RuntimeError):  # the main thread has added one meanwhile
            return list(items)
