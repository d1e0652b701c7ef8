"""Whom a call waits for, and how it is told that nobody comes; with slots of a real table."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbdist.errors import CollectiveError
from nbdist.runtime.known_groups import KnownGroup
from nbdist.runtime.messages import Channel, OpenMessage
from nbdist.runtime.open_calls import OpenCalls, OpenCollective, needed
from nbdist.runtime.outlook import Outlook
from nbdist.runtime.signature import Signature
from nbdist.runtime.slots import ABANDONED, ISSUED, GroupKey, Record
from nbdist.runtime.table import Table

GROUP = GroupKey("0", (0, 2, 3))  # its member 1 is rank 2
REASON = "rank 0 waits in all_reduce #1; ranks 2, 3 have ended this cell"


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    with Table.create(tmp_path / "table", 4) as table:
        yield table


@pytest.fixture
def calls(table: Table) -> OpenCalls:
    return OpenCalls(table, 0, Outlook(table), lambda _: 1800.0)


def group_of(table: Table) -> KnownGroup:
    nothing: Any = set()
    return KnownGroup(GROUP, table.slot(GROUP, 0), 0, weakref.ref(nothing), {"cpu": "gloo"})


def opened(calls: OpenCalls, table: Table, *, timeout_ms: int = -1) -> OpenCollective:
    """Return the first call of rank 0; the others have not come."""
    group, record = group_of(table), Record(1, "all_reduce(float32[1], sum)", "In[3]:2")
    seq = group.slot.post(0, record)
    return OpenCollective(calls, group, Signature("all_reduce", "", 1), record, seq, timeout_ms)


# Whom it needs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "root", "rank", "pending", "expected"),
    [
        ("all_reduce", None, 0, [1, 2], [1, 2]),
        ("all_reduce", None, 0, [], []),
        ("broadcast", 0, 1, [0, 2], [0]),  # the other receiver is served by the root
        ("broadcast", 0, 1, [2], []),
        ("broadcast", 0, 0, [1, 2], [1, 2]),
        ("broadcast", 0, 0, [2], []),  # it may have passed the data on
        ("scatter", 0, 2, [0], [0]),
        ("reduce", 0, 0, [2], [2]),
        ("gather", 0, 0, [2], [2]),
        ("reduce", 0, 1, [2], []),
        ("gather", 0, 1, [0, 2], [0]),
    ],
)
def test_a_rank_needs_those_without_whom_it_cannot_end(
    op: str, root: int | None, rank: int, pending: list[int], expected: list[int]
) -> None:
    assert list(needed(op, root, rank, pending, 3)) == expected


def test_who_has_posted_the_call_has_come(calls: OpenCalls, table: Table) -> None:
    call = opened(calls, table)
    before = call.missing()

    call.slot.post(1, Record(1, "all_reduce(float32[1], sum)"))

    assert before == (2, 3)
    assert call.missing() == (3,)


@pytest.mark.parametrize("how", ["gave up", "was refused"])
def test_who_has_left_the_call_has_not_come(calls: OpenCalls, table: Table, how: str) -> None:
    call = opened(calls, table)
    seq = call.slot.post(1, Record(1, "all_reduce(float32[1], sum)"), phase=ISSUED)

    if how == "gave up":
        call.slot.flag(1, seq, ABANDONED)
    else:
        call.slot.take_back(1, seq)

    assert call.missing() == (2, 3)


def test_a_message_misses_its_other_end_until_one_of_its_tag_comes(
    calls: OpenCalls, table: Table
) -> None:
    key = GroupKey("0", (0, 2), kind="p2p")
    channel = Channel(table.slot(key, 1), 1, num_absorbed=0)
    record = Record(1, "recv(float32[1])", tag=7)
    call = OpenMessage(calls, group_of(table), channel, 0, record, channel.post(record, phase=1))
    before = call.missing()

    channel.slot.post(0, Record(1, "send(float32[1])", tag=8))
    of_another_tag = call.missing()
    channel.slot.post(0, Record(1, "send(float32[1])", tag=7))

    assert (before, of_another_tag, call.missing()) == ((0,), (0,), ())


# What is said of it -------------------------------------------------------------------------------


def test_it_is_described_with_its_own_time_out(calls: OpenCalls, table: Table) -> None:
    short, plain = opened(calls, table, timeout_ms=2500), opened(calls, table)

    assert (short.described().timeout_s, plain.described().timeout_s) == (2.5, 1800.0)
    assert plain.described().call.source == "In[3]:2"
    assert plain.described().used_ns is None
    assert plain.described(may_compute=True).used_ns is not None
    assert plain.number != short.number


def test_only_what_the_main_thread_waits_in_is_current(calls: OpenCalls, table: Table) -> None:
    call = opened(calls, table)

    with call:
        inside = calls.current

    assert inside is call
    assert calls.current is None


# Nobody comes -------------------------------------------------------------------------------------


def test_who_waits_in_that_call_is_told(calls: OpenCalls, table: Table) -> None:
    call, other = opened(calls, table), opened(calls, table)

    table.end_calls({0: call.number}, REASON)

    other.raise_if_hopeless()
    with pytest.raises(CollectiveError, match="ranks 2, 3 have ended"):
        call.raise_if_hopeless()


def test_what_ends_a_native_wait_is_told_by_its_cause(calls: OpenCalls, table: Table) -> None:
    call = opened(calls, table)
    table.end_calls({0: call.number}, REASON)

    with pytest.raises(RuntimeError, match="ranks 2, 3 have ended") as caught, call:
        raise RuntimeError("Connection closed by peer")

    assert isinstance(caught.value, CollectiveError)
    assert str(caught.value.__cause__) == "Connection closed by peer"


def test_the_stop_button_is_not_taken_for_it(calls: OpenCalls, table: Table) -> None:
    call = opened(calls, table)
    table.end_calls({0: call.number}, REASON)

    with pytest.raises(KeyboardInterrupt), call:
        raise KeyboardInterrupt


def test_what_was_told_before_the_ranks_agreed_is_over(table: Table) -> None:
    outlook = Outlook(table)
    calls = OpenCalls(table, 0, outlook, lambda _: 1800.0)
    table.end_calls({0: 1}, REASON)
    told = calls.hopeless()

    outlook.agree(table.epoch)

    assert told == (1, REASON)
    assert calls.hopeless() is None


def test_a_failure_is_waited_for_although_calls_were_ended(table: Table) -> None:
    outlook = Outlook(table)
    table.end_calls({1: 1}, REASON)

    assert not outlook.wait(0.01)
    table.cancel("rank 1 raised CollectiveError: …", 1, of=1)
    assert outlook.wait(10)
