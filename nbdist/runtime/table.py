"""What every rank of one host is about to do, in memory that all of them share.

    rank 0 ──post──▶ ┌ header  epoch, who will not come any more and why, who  ┐
                     │         has left which cell without a group, which      │
                     │         calls nobody can come to                        │
    rank 1 ──post──▶ │ slot    one per group: per member a sequence number and │ ◀── agent: cancel
    guard  ◀──wait── └         a ring of records (signature, source line)      ┘ ──▶ diagnosis

The file has room for any number of groups: a slot (`slots`) is appended under a lock when a group
is first used, and taken over by another group of the same size once every member has released it.

Knows nothing of torch. Each process opens the file itself; a table must not be used across a fork.

Not covered: ranks on other hosts (their slots would have to live in a store); a member that lags
more than a ring of records behind is no longer compared with.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbdist import private
from nbdist.errors import Kind
from nbdist.runtime.futex import Futex
from nbdist.runtime.slots import (
    FILLER_MARK,
    PAGE,
    SLOT_HEAD,
    SLOT_MARK,
    GroupKey,
    GroupView,
    Slot,
    SlotLayout,
    cut_text,
    pages,
)

CHUNK_BYTES = 2**26  # mapped at a time; what is never touched takes no memory
PATIENCE_S = 0.05  # for a process that was stopped while it wrote a cancellation
REASON_BYTES = 944
ENDING_TEXT_BYTES = 2000

_KINDS: tuple[Kind, ...] = ("failed", "died", "stopped", "mismatch")
_MAGIC = 0x6E62_6469_7374_0001  # "nbdist", version 1

# File header: magic, world size, _, end of the last slot, epoch, agreed cut, futex word.
_HEADER = struct.Struct("=QIIQQQI")
_END, _EPOCH, _CUT = 2, 3, 4  # as indices of 8 bytes
_EPOCH_WORD = 40
_CANCELS = 64
# One of the reasons: stamp, culprit, kind, length of the text.
_CANCEL = struct.Struct("=QiII")
_CANCEL_BYTES = _CANCEL.size + REASON_BYTES + 4
# One of the endings: stamp, number of the call, length of the text.
_ENDING = struct.Struct("=QQI")
_ENDING_BYTES = _ENDING.size + ENDING_TEXT_BYTES + 4


@dataclass(frozen=True)
class Cancellation:
    """Why a rank will not come to the collectives that others wait in.

    Attributes:
        stamp: When, on the host's monotonic clock in ns; orders cancellations.
        reason: ``rank 1 raised ValueError: …``.
        culprit: The rank at which it began; -1 for nobody's.
        kind: What it was.
        of: The rank that will not come; ``None`` for all.
    """

    stamp: int
    reason: str
    culprit: int
    kind: Kind
    of: int | None


@dataclass(frozen=True)
class Ending:
    """The word that nobody can come to a call of a rank any more.

    Attributes:
        stamp: When, as of a `Cancellation`; 0 where it was never told.
        number: Of the call, as the rank counts its calls.
        reason: For people.
    """

    stamp: int
    number: int
    reason: str


class Table:
    """The shared file of one host, as one process sees it."""

    def __init__(self, path: Path) -> None:
        """Open the table at *path*.

        Raises:
            ValueError: That file is no table of this version.
            NotPrivate: It is another user's, or open to others.
        """
        self.path = path
        self._lock = threading.RLock()
        self._fd = private.open_file(path, os.O_RDWR)
        self._chunks: list[mmap.mmap] = []
        self._slots: dict[int, Slot] = {}
        self._walked = 0
        header = self._chunk(0)
        self._bytes = memoryview(header)
        self._words = self._bytes.cast("Q")
        if self._words[0] != _MAGIC:
            self.close()
            raise ValueError(f"{path} is no table of this version of nbdist.")
        self.world_size = int(_HEADER.unpack_from(header)[1])
        self._epoch_word = Futex(header, _EPOCH_WORD)
        left = _CANCELS + (self.world_size + 1) * _CANCEL_BYTES
        self._left = left // 8  # as an index of words
        self._endings = left + 8 * self.world_size

    @classmethod
    def create(cls, path: Path, world_size: int) -> Table:
        """Make the file, readable by this user only, and open it."""
        fd = private.create_file(path)
        try:
            end = pages(_head_bytes(world_size))
            os.ftruncate(fd, CHUNK_BYTES)
            # Without it a full /dev/shm would be a SIGBUS in some rank, later.
            os.posix_fallocate(fd, 0, end)
            os.pwrite(fd, _HEADER.pack(_MAGIC, world_size, 0, end, 0, 0, 0), 0)
        finally:
            os.close(fd)
        return cls(path)

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"{len(self._slots)} groups"
        return f"<Table {self.path.name}, {state}>"

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; it stays on disk."""
        with self._lock:
            if self._fd < 0:
                return
            os.close(self._fd)
            self._fd = -1
            # Views that somebody still holds keep the memory mapped; nothing can crash.
            self._slots.clear()
            self._chunks.clear()

    # Slots ------------------------------------------------------------------------------------

    def slot(self, key: GroupKey, member: int) -> Slot:
        """Return the slot of *key* for its *member*, a new one where there is none yet."""
        with self._lock, self._file_lock():
            slots = self._all_slots()
            for slot in slots:
                slot.refresh()
            same = (slot for slot in slots if slot.key == key and not slot.is_free)
            free = (slot for slot in slots if slot.is_free and slot.reuse(key))
            slot = next(same, None) or next(free, None) or self._append(key)
            slot.hold(member)
            return slot

    def slots(self) -> list[Slot]:
        """Return all slots there are now, of groups that this process is not in as well."""
        with self._lock:
            return self._all_slots()

    def view(self) -> tuple[GroupView, ...]:
        """Return what every rank does in every group; needs no help of the ranks."""
        return tuple(slot.view() for slot in self.slots() if not slot.is_free)

    def _all_slots(self) -> list[Slot]:
        end = self._words[_END]
        offset = self._walked or pages(_head_bytes(self.world_size))
        while offset < end:
            chunk = self._chunk(offset // CHUNK_BYTES)
            what, _, size, *_ = SLOT_HEAD.unpack_from(chunk, offset % CHUNK_BYTES)
            if what == SLOT_MARK:
                self._slots[offset] = Slot(chunk, offset % CHUNK_BYTES)
            offset += size
        self._walked = offset
        return list(self._slots.values())

    def _append(self, key: GroupKey) -> Slot:
        layout = SlotLayout.of(len(key.ranks), len(key.to_text()))
        offset = self._words[_END]
        room = CHUNK_BYTES - offset % CHUNK_BYTES
        if layout.size_bytes > room:  # no slot lies across two chunks
            os.posix_fallocate(self._fd, offset, PAGE)
            chunk, start = self._chunk(offset // CHUNK_BYTES), offset % CHUNK_BYTES
            SLOT_HEAD.pack_into(chunk, start, FILLER_MARK, 0, room, 0, 0, 0)
            offset += room
        if (whole := (offset // CHUNK_BYTES + 1) * CHUNK_BYTES) > os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, whole)
        os.posix_fallocate(self._fd, offset, layout.size_bytes)
        layout.write(self._chunk(offset // CHUNK_BYTES), offset % CHUNK_BYTES, key)
        self._words[_END] = offset + layout.size_bytes
        self._all_slots()
        return self._slots[offset]

    def _chunk(self, number: int) -> mmap.mmap:
        while len(self._chunks) <= number:
            start = len(self._chunks) * CHUNK_BYTES
            self._chunks.append(mmap.mmap(self._fd, CHUNK_BYTES, offset=start))
        return self._chunks[number]

    @contextlib.contextmanager
    def _file_lock(self, patience_s: float = math.inf) -> Iterator[None]:
        """Keep other processes out; without the lock after *patience_s*: who has it is stopped."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                how = fcntl.LOCK_EX | (0 if patience_s == math.inf else fcntl.LOCK_NB)
                fcntl.flock(self._fd, how)
            except BlockingIOError:
                time.sleep(0.0005)
            else:
                break
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    # Leaving ----------------------------------------------------------------------------------

    def leave(self, rank: int, cell: int) -> None:
        """Say that *rank* has destroyed its groups in *cell*, and will not come there any more."""
        self._words[self._left + rank] = cell

    def leavers(self, cell: int) -> list[int]:
        """Return the ranks that have destroyed their groups in *cell*, and ended it so."""
        return [rank for rank in range(self.world_size) if self._words[self._left + rank] == cell]

    # Cancelling -------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Stamp of the latest cancellation; 0 before the first."""
        return self._words[_EPOCH]

    @property
    def cut(self) -> int:
        """Cancellations up to this stamp are over: the ranks have agreed to go on after them."""
        return self._words[_CUT]

    def agree(self, cut: int) -> None:
        """Say that what was cancelled up to *cut* is over."""
        self._words[_CUT] = max(cut, self._words[_CUT])

    def cancel(
        self,
        reason: str,
        culprit: int = -1,
        *,
        of: int | None = None,
        kind: Kind = "failed",
    ) -> None:
        """Free those who wait for a rank that will not come. Any thread and process may call.

        The first reason since the ranks agreed to go on is kept: what follows is a consequence.

        Args:
            reason: For people: ``rank 1 raised ValueError: …``.
            culprit: The rank at which it began; -1 for nobody's (the stop button).
            of: The rank that will not come; ``None`` for all.
            kind: What it was. A death is told in place of what was told before it.
        """
        with self._lock, self._file_lock(PATIENCE_S):
            self._write_cancel(reason, culprit, of, kind)
        self._wake_all()

    def end_calls(self, numbers: Mapping[int, int], reason: str) -> None:
        """Tell ranks that nobody can come any more to what they wait in; any process may call.

        All are told before the first one can go on and fail of it.

        Args:
            numbers: By rank, the number of the call; a rank that waits in it no more goes on.
            reason: For people.
        """
        with self._lock, self._file_lock(PATIENCE_S):
            stamp, text = self._next_stamp(), cut_text(reason, ENDING_TEXT_BYTES)
            for rank, number in numbers.items():
                offset = self._endings + rank * _ENDING_BYTES
                start = offset + _ENDING.size
                self._bytes[start : start + len(text)] = text
                _ENDING.pack_into(self._bytes, offset, stamp, number, len(text))
            self._words[_EPOCH] = stamp
        self._wake_all()

    def ending(self, rank: int) -> Ending:
        """Return what *rank* was told last of a call that nobody can come to."""
        offset = self._endings + rank * _ENDING_BYTES
        stamp, number, length = _ENDING.unpack_from(self._bytes, offset)
        start = offset + _ENDING.size
        text = bytes(self._bytes[start : start + length]).decode(errors="replace")
        return Ending(stamp, number, text)

    def _next_stamp(self) -> int:
        return max(time.monotonic_ns(), self.epoch + 1)

    def _wake_all(self) -> None:
        self._epoch_word.wake(self.epoch & 0xFFFF_FFFF)
        for slot in self.slots():
            slot.wake(self.epoch & 0xFFFF_FFFF)

    def _write_cancel(self, reason: str, culprit: int, of: int | None, kind: Kind) -> None:
        index = self.world_size if of is None else of
        offset = _CANCELS + index * _CANCEL_BYTES
        stamp, *_ = _CANCEL.unpack_from(self._bytes, offset)
        if stamp <= self.cut or kind == "died":  # each death is told once: of another process
            text = cut_text(reason, REASON_BYTES)
            start = offset + _CANCEL.size
            self._bytes[start : start + len(text)] = text
            _CANCEL.pack_into(
                self._bytes,
                offset,
                self._next_stamp(),
                culprit,
                _KINDS.index(kind),
                len(text),
            )
        self._words[_EPOCH] = max(_CANCEL.unpack_from(self._bytes, offset)[0], self.epoch)

    def cancellation(self, ranks: Sequence[int], after: int) -> Cancellation | None:
        """Return the first reason later than *after* why one of *ranks* will not come, if any."""
        if self.epoch <= after:
            return None
        found = [self._read_cancel(index) for index in (*ranks, self.world_size)]
        return min(
            (cancel for cancel in found if cancel.stamp > after),
            key=lambda cancel: (cancel.kind != "died", cancel.stamp),
            default=None,
        )

    def wait_for_cancel(self, after: int, timeout_s: float) -> bool:
        """Wait until something is cancelled later than *after*; say whether it was."""
        deadline = time.monotonic() + timeout_s
        while self.epoch <= after:
            rest = deadline - time.monotonic()
            if rest <= 0:
                return False
            word = self._epoch_word.value
            if self.epoch <= after:
                self._epoch_word.wait(word, rest)
        return True

    def _read_cancel(self, index: int) -> Cancellation:
        offset = _CANCELS + index * _CANCEL_BYTES
        stamp, culprit, kind, length = _CANCEL.unpack_from(self._bytes, offset)
        start = offset + _CANCEL.size
        reason = bytes(self._bytes[start : start + length]).decode(errors="replace")
        of = None if index == self.world_size else index
        return Cancellation(stamp, reason, culprit, _KINDS[kind % len(_KINDS)], of)


def _head_bytes(world_size: int) -> int:
    """Return the size of all that comes before the slots."""
    return _CANCELS + (world_size + 1) * _CANCEL_BYTES + (8 + _ENDING_BYTES) * world_size
