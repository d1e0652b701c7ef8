"""What every rank of one host is about to do, in memory that all of them share.

    rank 0 ──post──▶ ┌ header  epoch, who will not come any more and why       ┐
    rank 1 ──post──▶ │ slot    one per group: per member a sequence number and │ ◀── agent: cancel
    guard  ◀──wait── └         a ring of records (signature, source line)      ┘ ──▶ diagnosis

The file has room for any number of groups: a slot is appended under a lock when a group is first
used, and taken over by another group of the same size once every member has released it. A member
writes only its own part, so nobody needs a lock to post, and anybody can read what a rank waits
for without its help. Waiting is a futex: no CPU time, a few microseconds from the wake-up to here.

Knows nothing of torch. Each process opens the file itself; a table must not be used across a fork.

Not covered: ranks on other hosts (their slots would have to live in a store); a member that lags
more than a ring of records behind is no longer compared with.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import math
import mmap
import os
import platform
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nbdist.errors import Kind

PAGE = 4096
CHUNK_BYTES = 2**26  # mapped at a time; what is never touched takes no memory
SLOT_BYTES = 2**20  # a slot's rings shrink so that it stays about this small
MAX_RECORDS = 64
SPIN_S = 50e-6  # a peer that is about to come needs no system call
PATIENCE_S = 0.05  # for a process that was stopped while it wrote a cancellation
SLICE_S = 0.05  # a signal that came just before the system call is seen after this

TEXT_BYTES = 288
SOURCE_BYTES = 160
REASON_BYTES = 944

ASYNC, WENT_ON, ABANDONED = 1, 2, 4  # flags of a record
IDLE, WAITING, ISSUED = 0, 1, 2  # phases of a member

Phase = Literal["idle", "waiting", "issued"]
_KINDS: tuple[Kind, ...] = ("failed", "died", "stopped", "mismatch")
_PHASES: tuple[Phase, ...] = ("idle", "waiting", "issued")

_MAGIC = 0x6E62_6469_7374_0001  # "nbdist", version 1
_SLOT, _FILLER = 0x51_07, 0xF1_11

# File header: magic, world size, _, end of the last slot, epoch, agreed cut, futex word.
_HEADER = struct.Struct("=QIIQQQI")
_END, _EPOCH, _CUT = 2, 3, 4  # as indices of 8 bytes
_EPOCH_WORD = 40
_CANCELS = 64
# One of the reasons: stamp, culprit, kind, length of the text.
_CANCEL = struct.Struct("=QiII")
_CANCEL_BYTES = _CANCEL.size + REASON_BYTES + 4
# Slot: what it is, number of members, size, futex word, records per ring, length of the key.
_SLOT_HEAD = struct.Struct("=IIQIII")
_WAKE = 16
# Member: sequence number, calls issued, futex flag, released, phase, any source, since.
_MEMBER = struct.Struct("=QQIIIId")
_MEMBER_BYTES = 64
_SEQ, _ISSUED, _IS_WAITING, _RELEASED, _PHASE, _ANY_SOURCE, _SINCE = 0, 8, 16, 20, 24, 28, 32
# Record: sequence number, key, bytes moved, flags, tag, has amounts, lengths of text and source.
_RECORD = struct.Struct("=QQqIiIHH")
_FLAGS = 24
_RECORD_BYTES = 496  # without the amounts, 16 bytes a member


@dataclass(frozen=True)
class GroupKey:
    """Names a group on all its ranks alike.

    Attributes:
        name: torch's name of the process group.
        ranks: Its ranks in the world, in the group's order.
        incarnation: How often a group of this name and ranks was made before this one.
        kind: ``group``, or ``p2p`` for messages from the first to the second of two ranks.
    """

    name: str
    ranks: tuple[int, ...]
    incarnation: int = 0
    kind: Literal["group", "p2p"] = "group"

    def to_text(self) -> str:
        """Write the key as one line."""
        return json.dumps([self.name, self.ranks, self.incarnation, self.kind])

    @classmethod
    def from_text(cls, text: str) -> GroupKey:
        """Read what `to_text` wrote."""
        name, ranks, incarnation, kind = json.loads(text)
        return cls(name, tuple(ranks), incarnation, kind)


@dataclass(frozen=True)
class Record:
    """One call as its rank has posted it.

    Attributes:
        key: Hash of what must be equal on every rank.
        text: The call for people: ``all_reduce(float32[10], sum)``.
        source: Where it was called: ``In[12]:7``.
        size_bytes: Size of the tensors that this rank puts in.
        flags: ``ASYNC``, ``WENT_ON`` (into the native call without having seen all peers) and
            ``ABANDONED`` (will never enter the native call).
        tag: Of a message from rank to rank.
        gives: Elements for each member, -1 where that does not matter; empty where none does.
        takes: Elements expected from each member, likewise.
    """

    key: int
    text: str
    source: str = ""
    size_bytes: int = 0
    flags: int = 0
    tag: int = 0
    gives: tuple[int, ...] = ()
    takes: tuple[int, ...] = ()


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
class MemberView:
    """What one rank does in one group.

    Attributes:
        rank: In the world.
        seq: Number of its latest call, from 1 on; 0 before the first.
        phase: ``waiting`` for its peers in the guard, ``issued`` to the native group (which may be
            over by now), or ``idle``: it gave the call up.
        since: Begin of the phase, in seconds since the epoch.
        text: The latest call.
        source: Where it was called.
        issued: How many of its calls have reached the native group.
    """

    rank: int
    seq: int
    phase: Phase
    since: float
    text: str
    source: str
    issued: int


@dataclass(frozen=True)
class GroupView:
    """What the ranks of one group do."""

    key: GroupKey
    members: tuple[MemberView, ...]


class Table:
    """The shared file of one host, as one process sees it."""

    def __init__(self, path: Path) -> None:
        """Open the table at *path*.

        Raises:
            ValueError: That file is no table of this version.
        """
        self.path = path
        self._lock = threading.RLock()
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
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
        self._epoch_word = _Futex(header, _EPOCH_WORD)

    @classmethod
    def create(cls, path: Path, world_size: int) -> Table:
        """Make the file, readable by this user only, and open it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            end = _pages(_CANCELS + (world_size + 1) * _CANCEL_BYTES)
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
        offset = self._walked or _pages(_CANCELS + (self.world_size + 1) * _CANCEL_BYTES)
        while offset < end:
            chunk = self._chunk(offset // CHUNK_BYTES)
            what, _, size, *_ = _SLOT_HEAD.unpack_from(chunk, offset % CHUNK_BYTES)
            if what == _SLOT:
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
            _SLOT_HEAD.pack_into(
                self._chunk(offset // CHUNK_BYTES), offset % CHUNK_BYTES, _FILLER, 0, room, 0, 0, 0
            )
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
        self._epoch_word.wake(self.epoch & 0xFFFF_FFFF)
        for slot in self.slots():
            slot.wake(self.epoch & 0xFFFF_FFFF)

    def _write_cancel(self, reason: str, culprit: int, of: int | None, kind: Kind) -> None:
        index = self.world_size if of is None else of
        offset = _CANCELS + index * _CANCEL_BYTES
        stamp, *_ = _CANCEL.unpack_from(self._bytes, offset)
        if stamp <= self.cut or kind == "died":  # each death is told once: of another process
            text = _cut_text(reason, REASON_BYTES)
            start = offset + _CANCEL.size
            self._bytes[start : start + len(text)] = text
            _CANCEL.pack_into(
                self._bytes,
                offset,
                max(time.monotonic_ns(), self.epoch + 1),
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


class Slot:
    """One group's part of the table. A member writes only what is its own."""

    def __init__(self, chunk: mmap.mmap, offset: int) -> None:
        _, num_members, size, _, num_records, _ = _SLOT_HEAD.unpack_from(chunk, offset)
        self.num_members = int(num_members)
        self.num_records = int(num_records)
        self.size_bytes = int(size)
        self._bytes = memoryview(chunk)[offset : offset + size]
        self._u64 = self._bytes.cast("Q")
        self._u32 = self._bytes.cast("I")
        self._f64 = self._bytes.cast("d")
        self._word = _Futex(chunk, offset + _WAKE)
        layout = SlotLayout(self.num_members, self.num_records, 0)
        self._record_bytes = layout.record_bytes
        self._members = [
            size - (self.num_members - index) * layout.member_bytes
            for index in range(self.num_members)
        ]
        self.key = self._read_key()

    def __repr__(self) -> str:
        return f"<Slot of group {self.key.name!r}, ranks {list(self.key.ranks)}>"

    def _read_key(self) -> GroupKey:
        length = _SLOT_HEAD.unpack_from(self._bytes)[5]
        start = _SLOT_HEAD.size
        return GroupKey.from_text(bytes(self._bytes[start : start + length]).decode())

    # Posting and reading ----------------------------------------------------------------------

    def post(self, member: int, record: Record, *, phase: int = WAITING) -> int:
        """Publish the next call of *member* and wake who waits for it; return its number."""
        base = self._members[member]
        seq = int(self._u64[base >> 3]) + 1
        self._write_record(base, seq, record)
        self._f64[(base + _SINCE) >> 3] = time.time()
        self._u32[(base + _PHASE) >> 2] = phase
        self._u64[base >> 3] = seq  # last: who sees the number finds the record
        self.wake((seq * self.num_members + member) & 0xFFFF_FFFF)
        return seq

    def seq(self, member: int) -> int:
        """Return the number of the latest call of *member*."""
        return int(self._u64[self._members[member] >> 3])

    def record(self, member: int, seq: int) -> Record | None:
        """Return call *seq* of *member*, or ``None`` where the ring has forgotten it."""
        offset = self._record_at(self._members[member], seq)
        stored, key, size, flags, tag, has_amounts, text, source = _RECORD.unpack_from(
            self._bytes, offset
        )
        if stored != seq:
            return None
        start = offset + _RECORD.size
        amounts = self._read_amounts(offset) if has_amounts else ((), ())
        record = Record(
            key,
            bytes(self._bytes[start : start + text]).decode(errors="replace"),
            bytes(self._bytes[start + text : start + text + source]).decode(errors="replace"),
            size,
            flags,
            tag,
            *amounts,
        )
        return record if self._u64[offset >> 3] == seq else None

    def peek(self, member: int, seq: int) -> tuple[int, int] | None:
        """Return key and flags of call *seq* of *member*; all that equal calls need to compare."""
        offset = self._record_at(self._members[member], seq)
        if self._u64[offset >> 3] != seq:
            return None
        return self._u64[(offset + 8) >> 3], self._u32[(offset + _FLAGS) >> 2]

    def flag(self, member: int, seq: int, flags: int) -> None:
        """Add *flags* to call *seq* of *member*, and wake who looks at it."""
        offset = self._record_at(self._members[member], seq)
        self._u32[(offset + _FLAGS) >> 2] |= flags
        self.wake((seq * self.num_members + member + 0x8000_0000) & 0xFFFF_FFFF)

    def set_phase(self, member: int, phase: int) -> None:
        """Say what *member* does now with its latest call."""
        base = self._members[member]
        self._u32[(base + _PHASE) >> 2] = phase
        self._f64[(base + _SINCE) >> 3] = time.time()

    def issued(self, member: int) -> int:
        """Return how many calls of *member* have reached the native group."""
        return int(self._u64[(self._members[member] + _ISSUED) >> 3])

    def set_issued(self, member: int, count: int) -> None:
        """Say how many calls of *member* have reached the native group."""
        self._u64[(self._members[member] + _ISSUED) >> 3] = count

    def set_seq(self, member: int, seq: int) -> None:
        """Go on counting after *seq*, as the ranks have agreed."""
        self._u64[self._members[member] >> 3] = seq
        self._u32[(self._members[member] + _PHASE) >> 2] = IDLE

    def takes_from_any(self, member: int) -> bool:
        """Whether *member* has received from whoever came first: nobody can say who is next."""
        return bool(self._u32[(self._members[member] + _ANY_SOURCE) >> 2])

    def set_takes_from_any(self, member: int, value: bool) -> None:
        """Say that *member* receives from whoever comes first."""
        self._u32[(self._members[member] + _ANY_SOURCE) >> 2] = int(value)
        self.wake(0xFFFF_FFFF - member)

    # Waiting ----------------------------------------------------------------------------------

    @property
    def word(self) -> int:
        """A number that changes with every post; read it before looking, hand it to `wait`."""
        return self._word.value

    def wait(self, member: int, word: int, timeout_s: float) -> None:
        """Sleep until somebody posts after *word* was read, or *timeout_s* is over.

        A signal ends it too, and its handler may raise here.
        """
        flag = (self._members[member] + _IS_WAITING) >> 2
        self._u32[flag] += 1
        try:
            self._word.wait(word, timeout_s)
        finally:
            self._u32[flag] -= 1

    def wake(self, word: int) -> None:
        """Let all who wait in this slot look again; *word* must differ from the last one."""
        self._word.value = word
        if any(self._u32[(base + _IS_WAITING) >> 2] for base in self._members):
            self._word.wake(word)

    # Coming and going -------------------------------------------------------------------------

    @property
    def is_free(self) -> bool:
        """Whether every member has released the slot."""
        return all(self._u32[(base + _RELEASED) >> 2] for base in self._members)

    def hold(self, member: int, *, is_held: bool = True) -> None:
        """Say that *member* uses the slot, or does not any more."""
        self._u32[(self._members[member] + _RELEASED) >> 2] = int(not is_held)

    def reuse(self, key: GroupKey) -> bool:
        """Give the slot to another group if that fits in. Only under the table's lock."""
        text = key.to_text().encode()
        if len(key.ranks) != self.num_members or _SLOT_HEAD.size + len(text) > self._members[0]:
            return False
        for base in self._members:
            self._bytes[base : base + _MEMBER_BYTES] = bytes(_MEMBER_BYTES)
            for index in range(self.num_records):
                self._u64[(base + _MEMBER_BYTES + index * self._record_bytes) >> 3] = 0
        _write_key(self._bytes, text)
        self.key = key
        return True

    def refresh(self) -> None:
        """Read the key again: another process may have given the slot to another group."""
        self.key = self._read_key()

    def view(self) -> GroupView:
        """Return what the members do."""
        return GroupView(self._read_key(), tuple(map(self._view_of, range(self.num_members))))

    def _view_of(self, member: int) -> MemberView:
        seq, issued, _, _, phase, _, since = _MEMBER.unpack_from(self._bytes, self._members[member])
        record = self.record(member, seq) if seq else None
        return MemberView(
            rank=self._read_key().ranks[member],
            seq=seq,
            phase=_PHASES[phase % len(_PHASES)],
            since=since,
            text="" if record is None else record.text,
            source="" if record is None else record.source,
            issued=issued,
        )

    def _record_at(self, base: int, seq: int) -> int:
        return base + _MEMBER_BYTES + (seq % self.num_records) * self._record_bytes

    def _write_record(self, base: int, seq: int, record: Record) -> None:
        offset = self._record_at(base, seq)
        text = _cut_text(record.text, TEXT_BYTES)
        source = _cut_text(record.source, SOURCE_BYTES)
        self._u64[offset >> 3] = 0  # nobody reads half of it
        start = offset + _RECORD.size
        self._bytes[start : start + len(text) + len(source)] = text + source
        if record.gives or record.takes:
            self._write_amounts(offset, record)
        _RECORD.pack_into(
            self._bytes,
            offset,
            seq,
            record.key,
            record.size_bytes,
            record.flags,
            record.tag,
            int(bool(record.gives or record.takes)),
            len(text),
            len(source),
        )

    def _write_amounts(self, offset: int, record: Record) -> None:
        unknown = (-1,) * self.num_members
        amounts = (*(record.gives or unknown), *(record.takes or unknown))
        struct.pack_into(f"={len(amounts)}q", self._bytes, offset + _RECORD_BYTES, *amounts)

    def _read_amounts(self, offset: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        count = self.num_members
        amounts = struct.unpack_from(f"={2 * count}q", self._bytes, offset + _RECORD_BYTES)
        return amounts[:count], amounts[count:]


@dataclass(frozen=True)
class SlotLayout:
    """How large the parts of a slot are."""

    num_members: int
    num_records: int
    head_bytes: int

    @classmethod
    def of(cls, num_members: int, key_bytes: int) -> SlotLayout:
        """Choose the parts for a group of *num_members*; rings are shorter in large groups."""
        record_bytes = cls(num_members, 0, 0).record_bytes
        num_records = SLOT_BYTES // (num_members * record_bytes)
        head_bytes = _pages(_SLOT_HEAD.size + key_bytes + 64)  # room for a longer key in its place
        return cls(num_members, min(MAX_RECORDS, max(8, num_records)), head_bytes)

    @property
    def record_bytes(self) -> int:
        """Size of one record with an amount for and from each member."""
        return _RECORD_BYTES + 16 * self.num_members

    @property
    def member_bytes(self) -> int:
        """Size of all that one member writes."""
        return _MEMBER_BYTES + self.num_records * self.record_bytes

    @property
    def size_bytes(self) -> int:
        """Size of the slot, a multiple of the page size."""
        return _pages(self.head_bytes + self.num_members * self.member_bytes)

    def write(self, chunk: mmap.mmap, offset: int, key: GroupKey) -> None:
        """Write the head of a new slot; the rest of it is zero already."""
        _SLOT_HEAD.pack_into(
            chunk, offset, _SLOT, self.num_members, self.size_bytes, 0, self.num_records, 0
        )
        _write_key(memoryview(chunk)[offset : offset + self.head_bytes], key.to_text().encode())


def _write_key(head: memoryview, text: bytes) -> None:
    struct.pack_into("=I", head, _SLOT_HEAD.size - 4, len(text))
    head[_SLOT_HEAD.size : _SLOT_HEAD.size + len(text)] = text


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _cut_text(text: str, size: int) -> bytes:
    data = text.encode(errors="replace")
    return data if len(data) <= size else data[: size - 3].decode(errors="ignore").encode() + b"..."


# Futex -----------------------------------------------------------------------------------------


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_FUTEX_CALL = {"x86_64": 202, "aarch64": 98, "ppc64le": 221, "riscv64": 98, "s390x": 238}
_FUTEX_WAIT, _FUTEX_WAKE = 0, 1
_EVERYBODY = 2**31 - 1


class _Futex:
    """A 32-bit word in shared memory on which processes can sleep.

    Where the system call is not there, a wait is a short sleep: it wakes late, never wrongly.
    """

    def __init__(self, chunk: mmap.mmap, offset: int) -> None:
        self._word = ctypes.c_uint32.from_buffer(chunk, offset)
        self._address = ctypes.c_void_p(ctypes.addressof(self._word))
        self._number = _FUTEX_CALL.get(platform.machine())
        self._libc = ctypes.CDLL(None, use_errno=True)  # releases the GIL while it waits

    @property
    def value(self) -> int:
        return self._word.value

    @value.setter
    def value(self, value: int) -> None:
        self._word.value = value

    def wait(self, expected: int, timeout_s: float) -> None:
        """Sleep while the word is *expected*, at most `SLICE_S`."""
        seconds = min(timeout_s, SLICE_S)
        if self._number is None:
            time.sleep(min(seconds, 0.001))
            return
        spec = _TimeSpec(0, int(seconds * 1e9))
        self._libc.syscall(
            ctypes.c_long(self._number),
            self._address,
            ctypes.c_int(_FUTEX_WAIT),
            ctypes.c_uint32(expected),
            ctypes.byref(spec),
            None,
            0,
        )

    def wake(self, value: int) -> None:
        """Change the word to *value* and wake everybody."""
        self._word.value = value
        if self._number is not None:
            self._libc.syscall(
                ctypes.c_long(self._number),
                self._address,
                ctypes.c_int(_FUTEX_WAKE),
                ctypes.c_int(_EVERYBODY),
                None,
                None,
                0,
            )
