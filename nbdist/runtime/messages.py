"""Compare messages from rank to rank, and let a receiver wait in Python for its sender.

    sender ──post──▶ ring of the pair ◀──post── receiver      k-th of a tag meets k-th of that tag

Not covered: who receives from anybody; nobody can say which message that will be.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NoReturn

from nbdist.errors import CollectiveMismatch
from nbdist.runtime.calls import record_of
from nbdist.runtime.hooks import Call, Issue
from nbdist.runtime.known_groups import KnownGroup, issue_counted
from nbdist.runtime.outlook import Outlook
from nbdist.runtime.signature import Signature
from nbdist.runtime.slots import ABANDONED, ASYNC, IDLE, ISSUED, WAITING, GroupKey, Record, Slot
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
    mine: dict[int, deque[tuple[int, Record]]] = field(default_factory=dict)
    theirs: dict[int, deque[tuple[int, Record]]] = field(default_factory=dict)
    is_lost: bool = False

    @property
    def peer(self) -> int:
        """The other end."""
        return 1 - self.me

    def issue(self, issue: Issue) -> Any:
        """Make the native call, and count it; see `KnownGroup.issue`."""
        return issue_counted(self.slot, self.me, issue)

    def go_on_after(self, seq: int) -> None:
        """Forget what has not met: the ranks have agreed to go on after number *seq*."""
        self.num_absorbed = seq
        self.mine, self.theirs, self.is_lost = {}, {}, False


class Messages:
    """The channels of one rank."""

    def __init__(self, table: Table, outlook: Outlook) -> None:
        self._table = table
        self._outlook = outlook
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
        self, group: KnownGroup, call: Call, signature: Signature, source: str, *, may_wait: bool
    ) -> Channel | None:
        """Post a message, compare it with its counterpart and wait as long as it has to.

        Args:
            group: Within which it is sent.
            call: Of the operator.
            signature: Of the call.
            source: Line it was called from.
            may_wait: Whoever called it waits for the peer anyway.

        Returns:
            Where it was posted; `Channel.issue` goes on from there. ``None`` where
            nothing can be compared.

        Raises:
            CollectiveMismatch: The peer sends or receives something else.
            PeerFailed: The peer will not come.
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
        if channel.is_lost or group.slot.takes_from_any(receiver):
            return None
        self._outlook.raise_if_cancelled(group, record, channel.slot.seq(channel.me) + 1)
        self._meet(group, channel, record, receiver, waits=waits)
        return channel

    def _meet(
        self, group: KnownGroup, channel: Channel, record: Record, receiver: int, *, waits: bool
    ) -> None:
        slot, tag = channel.slot, record.tag
        seq = slot.post(channel.me, record, phase=WAITING if waits else ISSUED)
        channel.mine.setdefault(tag, deque()).append((seq, record))
        patience = Patience(self._outlook, group, record, seq)
        try:
            while True:
                word = slot.word
                met = _absorb(channel, tag, seq)
                if met is not None and met.key != record.key:
                    self._message_mismatch(channel, record, met, group.name)
                if met is not None and met.flags & ABANDONED:
                    patience.wait_for_reason()
                is_over = met is not None or channel.is_lost or group.slot.takes_from_any(receiver)
                if is_over or not waits:
                    return
                patience.check()
                patience.sleep(slot, channel.me, word)
        except BaseException:
            slot.flag(channel.me, seq, ABANDONED)
            slot.set_phase(channel.me, IDLE)
            raise

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


def _absorb(channel: Channel, tag: int, seq: int) -> Record | None:
    """Take in what the peer has posted; return what message *seq* with *tag* meets, once there."""
    slot, last = channel.slot, channel.slot.seq(channel.peer)
    for number in range(channel.num_absorbed + 1, last + 1):
        record = slot.record(channel.peer, number)
        if record is None:
            channel.is_lost = True  # too far behind to know which meets which
            return None
        channel.theirs.setdefault(record.tag, deque()).append((number, record))
    # Never back: a peer that is not done with the latest agreement is still at an older number.
    channel.num_absorbed = max(channel.num_absorbed, last)
    mine, theirs = channel.mine.get(tag), channel.theirs.get(tag)
    while mine and theirs:
        own, _ = mine.popleft()
        number, record = theirs.popleft()
        if own == seq:
            _forget_empty(channel, tag)
            entry = slot.peek(channel.peer, number)
            flags = record.flags if entry is None else entry[1]
            return Record(**{**record.__dict__, "flags": flags})
    return None


def _forget_empty(channel: Channel, tag: int) -> None:
    for queues in (channel.mine, channel.theirs):
        if tag in queues and not queues[tag]:
            del queues[tag]
