"""Which message meets which; no process, no torch group."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdist.runtime.messages import Channel
from nbdist.runtime.slots import ISSUED, VOID, GroupKey, Record
from nbdist.runtime.table import Table

SENDER, RECEIVER = 0, 1


@pytest.fixture
def channel(tmp_path: Path) -> Channel:
    """The sender's end."""
    table = Table.create(tmp_path / "table", 2)
    slot = table.slot(GroupKey("0", (0, 1), kind="p2p"), SENDER)
    slot.hold(RECEIVER)
    return Channel(slot, SENDER, num_absorbed=0)


def send(channel: Channel, tag: int = 0) -> int:
    return channel.post(Record(1, f"send tag {tag}", tag=tag), phase=ISSUED)


def receive(channel: Channel, text: str, tag: int = 0) -> int:
    return channel.slot.post(RECEIVER, Record(1, text, tag=tag))


def met(channel: Channel, seq: int, tag: int = 0) -> str | None:
    record = channel.meet(seq, tag)
    return None if record is None else record.text


def test_the_first_of_a_tag_meets_the_first_of_that_tag(channel: Channel) -> None:
    receive(channel, "two", tag=2)
    receive(channel, "one", tag=1)

    assert met(channel, send(channel, tag=1), tag=1) == "one"
    assert met(channel, send(channel, tag=2), tag=2) == "two"


def test_who_has_not_come_is_not_met(channel: Channel) -> None:
    seq = send(channel)

    assert met(channel, seq) is None
    receive(channel, "late")
    assert met(channel, seq) == "late"


def test_a_peer_that_adopts_the_agreed_number_later_is_not_lost(channel: Channel) -> None:
    channel.slot.set_seq(SENDER, 7)
    channel.go_on_after(7)
    seq = send(channel)

    assert met(channel, seq) is None  # the peer is still at an older number
    channel.slot.set_seq(RECEIVER, 7)
    receive(channel, "first after the agreement")

    assert met(channel, seq) == "first after the agreement"
    assert not channel.is_lost


def test_a_peer_that_is_a_ring_ahead_is_lost_and_not_compared(channel: Channel) -> None:
    seq = send(channel)
    for number in range(channel.slot.num_records + 1):
        receive(channel, str(number))

    assert met(channel, seq) is None
    assert channel.is_lost


def test_who_has_lost_count_tells_the_other_end_until_the_ranks_agree(channel: Channel) -> None:
    other = Channel(channel.slot, RECEIVER, num_absorbed=0)
    for _ in range(channel.slot.num_records + 1):
        seq = send(channel)

    other.meet(other.post(Record(1, "receive"), phase=ISSUED), tag=0)

    assert [end.is_lost for end in (channel, other)] == [True, True]
    for end in (channel, other):
        channel.slot.set_seq(end.me, seq)
        end.go_on_after(seq)
    assert [end.is_lost for end in (channel, other)] == [False, False]


def test_a_message_that_torch_has_refused_meets_nothing(channel: Channel) -> None:
    channel.take_back(send(channel), tag=0)
    refused = receive(channel, "refused")
    channel.slot.flag(RECEIVER, refused, VOID)
    seq = send(channel)

    assert met(channel, seq) is None
    receive(channel, "first that counts")

    assert met(channel, seq) == "first that counts"


def test_threads_that_send_at_once_each_learn_what_they_have_met(channel: Channel) -> None:
    first, second = send(channel), send(channel)
    receive(channel, "one")
    receive(channel, "two")

    assert met(channel, second) == "two"
    assert met(channel, first) == "one"
