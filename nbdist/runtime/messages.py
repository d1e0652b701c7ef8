"""Compare messages from rank to rank, and let a receiver wait in Python for its sender.

    sender ──post──▶ ring of the pair ◀──post── receiver      k-th of a tag meets k-th of that tag

Not covered: who receives from anybody, since nobody can say which message that will be; messages
of a pair after one end was a whole ring ahead of the other, until the ranks agree to go on. Who has
lost count says so in the slot, so that nobody waits here for what cannot be seen to come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from nbdist.errors import CollectiveMismatch
from nbdist.runtime.calls import record_of
from nbdist.runtime.hooks import Call, Issue
from nbdist.runtime.known_groups import KnownGroup, issue_counted
from nbdist.runtime.open_calls import OpenCall, OpenCalls
from nbdist.runtime.outlook import Outlook
from nbdist.runtime.signature import Signature
from nbdist.runtime.slots import (
    ABANDONED,
    ASYNC,
    IDLE,
    ISSUED,
    VOID,
    WAITING,
    GroupKey,
    Record,
    Slot,
)
from nbdist.runtime.table import Table
from nbdist.runtime.turn import Patience
from nbdist.runtime.wording import message_mismatch_text

OPS = frozenset({"send", "recv_", "recv_any_source_"})


@dataclass
class Channel:
    """Messages from one rank to another, as one of the two sees them.

    The k-th message sent with a tag meets the k-th received with it.
    """

    slot: Slot
    me: int
    num_absorbed: int
    mine: dict[int, deque[int]] = field(default_factory=dict)
    theirs: dict[int, deque[tuple[int, Record]]] = field(default_factory=dict)
    met: dict[int, tuple[int, Record] | None] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._agreed = self.num_absorbed

    @property
    def peer(self) -> int:
        """The other end."""
        return 1 - self.me

    @property
    def is_lost(self) -> bool:
        """Whether either end cannot tell any more which message meets which."""
        return max(map(self.slot.lost_at, (0, 1))) > self._agreed

    def post(self, record: Record, *, phase: int) -> int:
        """Post a message; return its number."""
        with self.lock:
            seq = self.slot.post(self.me, record, phase=phase)
            if not self.is_lost:
                self.mine.setdefault(record.tag, deque()).append(seq)
                self.met[seq] = None
            return seq

    def meet(self, seq: int, tag: int) -> Record | None:
        """Take in what the peer has posted; return what message *seq* has met, once it has."""
        with self.lock:
            if not self.is_lost:
                self._absorb()
            self._pair(tag)
            found = self.met.get(seq)
            if found is None:
                return None
            number, record = found
            entry = self.slot.peek(self.peer, number)
            return record if entry is None else record._replace(flags=entry[1])

    def is_open(self, seq: int, tag: int) -> bool:
        """Take in what the peer has posted; say whether nothing of it can be what *seq* meets."""
        with self.lock:
            if not self.is_lost:
                self._absorb()
            self._pair(tag)
            return not self.is_lost and seq in self.mine.get(tag, ())

    def forget(self, seq: int) -> None:
        """Look no more for what message *seq* meets."""
        with self.lock:
            self.met.pop(seq, None)

    def take_back(self, seq: int, tag: int) -> None:
        """Say that torch has refused message *seq*."""
        with self.lock:
            self.slot.flag(self.me, seq, VOID)
            if seq in self.mine.get(tag, ()):
                self.mine[tag].remove(seq)

    def go_on_after(self, seq: int) -> None:
        """Forget what has not met: the ranks have agreed to go on after number *seq*."""
        with self.lock:
            self.num_absorbed = self._agreed = seq
            self.mine, self.theirs, self.met = {}, {}, {}

    def _absorb(self) -> None:
        last = self.slot.seq(self.peer)
        for number in range(self.num_absorbed + 1, last + 1):
            record = self.slot.record(self.peer, number)
            if record is None:  # too far behind to know which meets which
                self.slot.lose_count(self.me)
                return
            self.theirs.setdefault(record.tag, deque()).append((number, record))
        # Never back: a peer that is not done with the latest agreement is still at an older number.
        self.num_absorbed = max(self.num_absorbed, last)

    def _pair(self, tag: int) -> None:
        mine, theirs = self.mine.get(tag), self.theirs.get(tag)
        while mine and theirs:
            number, record = theirs.popleft()
            entry = self.slot.peek(self.peer, number)
            if entry is not None and entry[1] & VOID:
                continue
            seq = mine.popleft()
            if seq in self.met:
                self.met[seq] = number, record
        for queues in (self.mine, self.theirs):
            if tag in queues and not queues[tag]:
                del queues[tag]


class OpenMessage(OpenCall):
    """A message whose other end is waited for."""

    __slots__ = ("_channel", "_receiver")

    def __init__(
        self,
        calls: OpenCalls,
        group: KnownGroup,
        channel: Channel,
        receiver: int,
        record: Record,
        seq: int,
    ) -> None:
        super().__init__(calls, group, channel.slot, channel.me, record, seq)
        self._channel, self._receiver = channel, receiver

    def missing(self) -> tuple[int, ...]:
        """Return the peer while nothing of it can be what this meets; any thread may."""
        channel = self._channel
        if self.group.slot.takes_from_any(self._receiver):
            return ()
        is_open = channel.is_open(self.seq, self.record.tag)
        return (self.slot.key.ranks[channel.peer],) if is_open else ()


@dataclass(frozen=True)
class Message:
    """A message that was posted."""

    channel: Channel
    seq: int
    tag: int
    call: OpenMessage

    def issue(self, issue: Issue) -> Any:
        """Make the native call, and count it; see `KnownGroup.issue`."""
        channel = self.channel
        return issue_counted(
            channel.slot, channel.me, issue, lambda: channel.take_back(self.seq, self.tag)
        )


class Messages:
    """The channels of one rank."""

    def __init__(self, table: Table, outlook: Outlook, calls: OpenCalls) -> None:
        self._table = table
        self._outlook = outlook
        self._calls = calls
        self._channels: dict[tuple[GroupKey, int, int], Channel] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Messages, {len(self._channels)} channels>"

    def channels(self) -> list[Channel]:
        """Return all there are."""
        with self._lock:
            return list(self._channels.values())

    def release(self, key: GroupKey) -> None:
        """Give back the slots of a group that was destroyed."""
        with self._lock:
            for ends in [ends for ends in self._channels if ends[0] == key]:
                channel = self._channels.pop(ends)
                channel.slot.hold(channel.me, is_held=False)

    def enter(
        self,
        group: KnownGroup,
        call: Call,
        signature: Signature,
        source: str,
        timeout: Callable[[], float],
        *,
        may_wait: bool,
    ) -> Message | None:
        """Post a message, compare it with its counterpart and wait as long as it has to.

        Args:
            group: Within which it is sent.
            call: Of the operator.
            signature: Of the call.
            source: Line it was called from.
            timeout: How long the group lets it wait, in seconds.
            may_wait: Whoever called it waits for the peer anyway.

        Returns:
            What was posted; its `issue` goes on from there. ``None`` where nothing can be
            compared.

        Raises:
            CollectiveMismatch: The peer sends or receives something else.
            PeerFailed: The peer will not come.
            CollectiveTimeout: It has not come in time.
        """
        if call.op == "recv_any_source_":
            group.slot.set_takes_from_any(group.me, True)
            return None
        is_sender = call.op == "send"
        peer = int(call.args["dst" if is_sender else "src"])
        receiver = peer if is_sender else group.me
        if not 0 <= peer < group.size or peer == group.me:
            return None  # torch says so
        waits = (
            may_wait
            and group.backends.get("cpu") == "gloo"  # its sends end when the receiver has come
            and call.args["tensors"][0].device.type == "cpu"
        )
        record = record_of(signature, source, 0 if waits else ASYNC, tag=int(call.args["tag"]))
        with self._lock:
            channel = self._channel(group, peer, is_sender=is_sender)
        if group.slot.takes_from_any(receiver):
            return None
        self._outlook.raise_if_cancelled(group, record, channel.slot.seq(channel.me) + 1)
        seq = channel.post(record, phase=WAITING if waits else ISSUED)
        open_call = OpenMessage(self._calls, group, channel, receiver, record, seq)
        with Patience(self._outlook, open_call, timeout) as patience:
            self._meet(channel, open_call, patience, receiver, waits=waits)
        return Message(channel, seq, record.tag, open_call)

    def _meet(
        self, channel: Channel, call: OpenCall, patience: Patience, receiver: int, *, waits: bool
    ) -> None:
        group, slot, record, seq = call.group, call.slot, call.record, call.seq
        try:
            while True:
                word = slot.word
                met = channel.meet(seq, record.tag)
                if met is not None and met.key != record.key:
                    self._message_mismatch(channel, record, met, group.name)
                if met is not None and met.flags & ABANDONED:
                    patience.wait_for_reason()
                is_over = met is not None or channel.is_lost or group.slot.takes_from_any(receiver)
                if is_over or not waits:
                    return
                patience.check()
                patience.sleep(word)
        except BaseException:
            slot.flag(channel.me, seq, ABANDONED)
            slot.set_phase(channel.me, IDLE)
            raise
        finally:
            channel.forget(seq)

    def _message_mismatch(
        self, channel: Channel, mine: Record, theirs: Record, group: str
    ) -> NoReturn:
        sent, received = (mine, theirs) if channel.me == 0 else (theirs, mine)
        text = message_mismatch_text(channel.slot, sent, received, group)
        if theirs.flags & ASYNC:  # it is in the native call already
            rank = channel.slot.key.ranks[channel.me]
            self._table.cancel(text, rank, of=rank, kind="mismatch")
        raise CollectiveMismatch(text)

    def _channel(self, group: KnownGroup, peer: int, *, is_sender: bool) -> Channel:
        ends = (group.me, peer) if is_sender else (peer, group.me)
        channel = self._channels.get((group.key, *ends))
        if channel is None:
            ranks = tuple(group.key.ranks[end] for end in ends)
            key = GroupKey(group.name, ranks, group.key.incarnation, "p2p")
            me = 0 if is_sender else 1
            slot = self._table.slot(key, me)
            # The peer may have posted already: those are to be met. What lies before the latest
            # agreement was marked as met by `resync`, which knows every channel there is.
            channel = Channel(slot, me, num_absorbed=slot.seq(me))
            self._channels[(group.key, *ends)] = channel
        return channel
