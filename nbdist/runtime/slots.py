"""One group's part of the table: how it is laid out, and what its members write there.

    slot ─┬─ head      key of the group, futex word
          ├─ member 0  sequence number, phase, ... and a ring of records (signature, source line)
          └─ member 1

A member writes only its own part, so nobody needs a lock to post, and anybody can read what a rank
waits for without its help.
"""

from __future__ import annotations

import json
import mmap
import struct
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nbdist.runtime.futex import Futex

PAGE = 4096
SLOT_BYTES = 2**20  # a slot's rings shrink so that it stays about this small
MAX_RECORDS = 64

TEXT_BYTES = 288
SOURCE_BYTES = 160

ASYNC, WENT_ON, ABANDONED, VOID = 1, 2, 4, 8  # flags of a record
IDLE, WAITING, ISSUED = 0, 1, 2  # phases of a member

Phase = Literal["idle", "waiting", "issued"]
_PHASES: tuple[Phase, ...] = ("idle", "waiting", "issued")

SLOT_MARK, FILLER_MARK = 0x51_07, 0xF1_11  # the first word of a slot, and of room that is none

# Slot: what it is, number of members, size, futex word, records per ring, length of the key.
SLOT_HEAD = struct.Struct("=IIQIII")
_WAKE = 16
# Member: sequence number, calls issued, futex flag, released, phase, any source, since; beyond it
# when the member has lost count, and key and number of its latest call that torch has refused.
_MEMBER = struct.Struct("=QQIIIId")
_MEMBER_BYTES = 64
_SEQ, _ISSUED, _IS_WAITING, _RELEASED, _PHASE, _ANY_SOURCE, _SINCE = 0, 8, 16, 20, 24, 28, 32
_LOST, _VOID_KEY, _VOID_SEQ = 40, 48, 56
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
        incarnation: How many groups of these ranks were made before this one; names come again.
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


class Record(NamedTuple):  # which takes a third of the time of a frozen dataclass to make
    """One call as its rank has posted it.

    Attributes:
        key: Hash of what must be equal on every rank.
        text: The call for people: ``all_reduce(float32[10], sum)``.
        source: Where it was called: ``In[12]:7``.
        size_bytes: Size of the tensors that this rank puts in.
        flags: ``ASYNC``, ``WENT_ON`` (into the native call without having seen all peers),
            ``ABANDONED`` (will never enter the native call) and ``VOID`` (torch has refused it).
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


class Slot:
    """One group's part of the table. A member writes only what is its own."""

    def __init__(self, chunk: mmap.mmap, offset: int) -> None:
        _, num_members, size, _, num_records, _ = SLOT_HEAD.unpack_from(chunk, offset)
        self.num_members = int(num_members)
        self.num_records = int(num_records)
        self.size_bytes = int(size)
        self._bytes = memoryview(chunk)[offset : offset + size]
        self._u64 = self._bytes.cast("Q")
        self._u32 = self._bytes.cast("I")
        self._f64 = self._bytes.cast("d")
        self._word = Futex(chunk, offset + _WAKE)
        layout = SlotLayout(self.num_members, self.num_records, 0)
        self._record_bytes = layout.record_bytes
        self._members = [
            size - (self.num_members - index) * layout.member_bytes
            for index in range(self.num_members)
        ]
        self._waiting = [(base + _IS_WAITING) >> 2 for base in self._members]
        self.key = self._read_key()

    def __repr__(self) -> str:
        return f"<Slot of group {self.key.name!r}, ranks {list(self.key.ranks)}>"

    def _read_key(self) -> GroupKey:
        length = SLOT_HEAD.unpack_from(self._bytes)[5]
        start = SLOT_HEAD.size
        return GroupKey.from_text(bytes(self._bytes[start : start + length]).decode())

    # Posting and reading ----------------------------------------------------------------------

    def post(self, member: int, record: Record, *, phase: int = WAITING) -> int:
        """Publish the next call of *member* and wake who waits for it; return its number.

        A call that was taken back has not been made: the next one has its number.
        """
        base = self._members[member]
        seq = int(self._u64[base >> 3])
        seq += not (seq and self._is_void(base, seq))
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

    def take_back(self, member: int, seq: int) -> None:
        """Say that torch has refused the latest call of *member*, *seq*, before it sent anything.

        Its key is kept: a peer that makes the same call may look for it only after the next post.
        """
        base = self._members[member]
        self._u64[(base + _VOID_KEY) >> 3] = self._u64[(self._record_at(base, seq) + 8) >> 3]
        self._u64[(base + _VOID_SEQ) >> 3] = seq
        self.flag(member, seq, VOID)

    def void_key(self, member: int, seq: int) -> int | None:
        """Return the key of the call that *member* has taken back as number *seq*, if any."""
        base = self._members[member]
        if self._u64[(base + _VOID_SEQ) >> 3] != seq:
            return None
        return int(self._u64[(base + _VOID_KEY) >> 3])

    def _is_void(self, base: int, seq: int) -> bool:
        if self._u64[(base + _VOID_SEQ) >> 3] != seq:
            return False
        return bool(self._u32[(self._record_at(base, seq) + _FLAGS) >> 2] & VOID)

    def set_phase(self, member: int, phase: int) -> None:
        """Say what *member* does now with its latest call."""
        base = self._members[member]
        self._u32[(base + _PHASE) >> 2] = phase
        self._f64[(base + _SINCE) >> 3] = time.time()

    def phase(self, member: int) -> int:
        """Return where a member is with its latest call."""
        return int(self._u32[(self._members[member] + _PHASE) >> 2])

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

    def lost_at(self, member: int) -> int:
        """Return the number up to which messages had come when *member* lost count; 0 if never."""
        return int(self._u64[(self._members[member] + _LOST) >> 3])

    def lose_count(self, member: int) -> None:
        """Say that *member* cannot tell any more which message meets which."""
        self._u64[(self._members[member] + _LOST) >> 3] = max(map(self.seq, (0, 1)))
        self.nudge()

    # Waiting ----------------------------------------------------------------------------------

    @property
    def word(self) -> int:
        """A number that changes with every post; read it before looking, hand it to `wait`."""
        return self._word.value

    def wait(self, member: int, word: int, timeout_s: float) -> None:
        """Sleep until somebody posts after *word* was read, or *timeout_s* is over.

        A signal ends it too, and its handler may raise here.
        """
        flag = self._waiting[member]
        self._u32[flag] += 1
        try:
            self._word.wait(word, timeout_s)
        finally:
            self._u32[flag] -= 1

    def wake(self, word: int) -> None:
        """Let all who wait in this slot look again; *word* must differ from the last one."""
        self._word.value = word
        if any(map(self._u32.__getitem__, self._waiting)):
            self._word.wake(word)

    def nudge(self) -> None:
        """Let all who wait in this slot look again, though nobody has posted."""
        self.wake(self.word ^ 0x4000_0000)

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
        if len(key.ranks) != self.num_members or SLOT_HEAD.size + len(text) > self._members[0]:
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
        text = cut_text(record.text, TEXT_BYTES)
        source = cut_text(record.source, SOURCE_BYTES)
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
        head_bytes = pages(SLOT_HEAD.size + key_bytes + 64)  # room for a longer key in its place
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
        return pages(self.head_bytes + self.num_members * self.member_bytes)

    def write(self, chunk: mmap.mmap, offset: int, key: GroupKey) -> None:
        """Write the head of a new slot; the rest of it is zero already."""
        SLOT_HEAD.pack_into(
            chunk, offset, SLOT_MARK, self.num_members, self.size_bytes, 0, self.num_records, 0
        )
        _write_key(memoryview(chunk)[offset : offset + self.head_bytes], key.to_text().encode())


def _write_key(head: memoryview, text: bytes) -> None:
    struct.pack_into("=I", head, SLOT_HEAD.size - 4, len(text))
    head[SLOT_HEAD.size : SLOT_HEAD.size + len(text)] = text


def pages(size: int) -> int:
    """Return *size* in bytes, rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def cut_text(text: str, size: int) -> bytes:
    """Return *text* in at most *size* bytes."""
    data = text.encode(errors="replace")
    return data if len(data) <= size else data[: size - 3].decode(errors="ignore").encode() + b"..."
