"""Who waits in vain, as far as that is certain: one line per condition that makes it doubtful."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from nbdist.sessions.certainty import RankOutlook, hopeless, may_wait_in_vain
from nbdist.wire import BlockedCall, GroupCall, Prospect
from tests.sessions.scenes import NOW, call, calls_of, message

CELL = "c-0.7"
OTHER = "c-0.6"  # of `%%dist -a`, or of a program that the prompt does not wait for


def gone(rank: int, **more: Any) -> RankOutlook:
    """Return a rank that has ended the cell, or was not given it."""
    return RankOutlook(rank, prospect=Prospect(rank, is_idle=True, **more))


def waiting(
    rank: int,
    *missing: int,
    number: int = 5,
    timeout_s: float | None = 1800.0,
    used_ns: int | None = None,
    members: Sequence[int] = (0, 1),
    cell_id: str | None = CELL,
    **more: Any,
) -> RankOutlook:
    """Return a rank whose main thread waits for *missing*."""
    where = call(rank, 4, "waiting", ranks=members)
    blocked = BlockedCall(number, where, missing, timeout_s, used_ns)
    return RankOutlook(rank, prospect=Prospect(rank, cell_id, blocked=blocked, **more))


def running(rank: int, **more: Any) -> RankOutlook:
    """Return a rank that computes."""
    return RankOutlook(rank, has_more=True, prospect=Prospect(rank, CELL, **more))


def ended(*outlooks: RankOutlook, again: Sequence[RankOutlook] | None = None) -> list[int]:
    """Return the ranks whose calls are ended, as nothing has changed until the second look."""
    return sorted(hopeless(CELL, outlooks, outlooks if again is None else again))


# Nobody can come ----------------------------------------------------------------------------------

CERTAIN = {
    "all others have ended": ([waiting(0, 1, 2), gone(1), gone(2)], [0]),
    "one has ended": ([waiting(0, 2), waiting(1, 2), gone(2)], [0, 1]),
    "no time-out": ([waiting(0, 1, timeout_s=None), gone(1)], [0]),
    "a time-out of a minute": ([waiting(0, 1, timeout_s=60.0), gone(1)], [0]),
    "a thread where it is waited": ([waiting(0, 1, callers=("thread t",)), gone(1)], [0]),
    "two wait for each other": ([waiting(0, 1), waiting(1, 0)], [0, 1]),
    "three in a circle": ([waiting(0, 1), waiting(1, 2), waiting(2, 0)], [0, 1, 2]),
    "two that may be computing wait for each other": (
        [waiting(0, 1, used_ns=5), waiting(1, 0, used_ns=5)],
        [0, 1],
    ),
    "two for each other and one that has ended": (
        [waiting(0, 1, 2), waiting(1, 0, 2), gone(2)],
        [0, 1],
    ),
    # These two fail when the first is ended, unless it goes on after that.
    "one waits for one that waits in vain": ([waiting(0, 1), waiting(1, 2), gone(2)], [1]),
    "one waits for two in a circle": ([waiting(0, 1), waiting(1, 2), waiting(2, 1)], [1, 2]),
}


@pytest.mark.parametrize(("outlooks", "expected"), CERTAIN.values(), ids=CERTAIN.keys())
def test_nobody_can_come(outlooks: list[RankOutlook], expected: list[int]) -> None:
    assert ended(*outlooks) == expected


# Somebody may -------------------------------------------------------------------------------------

DOUBTFUL = {
    "it still runs": [waiting(0, 1), running(1)],
    "one of two still runs": [waiting(0, 1, 2), gone(1), running(2)],
    "something is queued there": [waiting(0, 1), replace(gone(1), has_more=True)],
    "it does not answer": [waiting(0, 1), RankOutlook(1)],
    "it has not been asked": [waiting(0, 1)],
    "it runs another cell": [waiting(0, 1), RankOutlook(1, prospect=Prospect(1, OTHER))],
    "its main thread is busy": [waiting(0, 1), RankOutlook(1, prospect=Prospect(1))],
    "a thread there": [waiting(0, 1), gone(1, callers=("thread Thread-3",))],
    "a task there": [waiting(0, 1), gone(1, callers=("task Task-9",))],
    "rpc there": [waiting(0, 1), gone(1, callers=("rpc",))],
    "the wait is that of a cell in the background": [waiting(0, 1, cell_id=OTHER), gone(1)],
    "the wait is nobody's cell": [waiting(0, 1, cell_id=None), gone(1)],
    "who is missing is not known": [waiting(0), gone(1)],
    "it ends by itself": [waiting(0, 1, timeout_s=20.0), gone(1)],
    "an alarm ends it": [waiting(0, 1, has_alarm=True), gone(1)],
    "a thread of one in the circle": [waiting(0, 1), waiting(1, 0, callers=("thread t",))],
    "one in the circle is in another cell": [waiting(0, 1), waiting(1, 0, cell_id=OTHER)],
    "one in the circle ends by itself": [waiting(0, 1), waiting(1, 0, timeout_s=2.0)],
    "one in the circle waits for one that runs": [waiting(0, 1), waiting(1, 0, 2), running(2)],
    "nobody waits": [gone(0), gone(1)],
}


@pytest.mark.parametrize("outlooks", DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_somebody_may_come(outlooks: list[RankOutlook]) -> None:
    assert ended(*outlooks) == []


# The second look ----------------------------------------------------------------------------------

CHANGES = {
    "it waits in another call": [waiting(0, 1, number=6), gone(1)],
    "it waits no more": [running(0), gone(1)],
    "another is missing": [waiting(0, 2), gone(1), gone(2)],
    "the other has begun something": [waiting(0, 1), running(1)],
    "a thread has appeared": [waiting(0, 1), gone(1, callers=("thread t",))],
}


@pytest.mark.parametrize("again", CHANGES.values(), ids=CHANGES.keys())
def test_what_has_changed_since_is_doubtful(again: list[RankOutlook]) -> None:
    assert ended(waiting(0, 1), gone(1), again=again) == []
    assert ended(*again, again=[waiting(0, 1), gone(1)]) == []


def test_one_that_may_compute_waits_once_it_does_not() -> None:
    first, calm, busy = (waiting(0, 1, used_ns=used) for used in (5, 1_000_005, 90_000_005))

    assert ended(first, gone(1), again=[calm, gone(1)]) == [0]
    assert ended(first, gone(1), again=[busy, gone(1)]) == []
    assert ended(first, gone(1), again=[waiting(0, 1), gone(1)]) == []


def test_a_native_call_may_be_on_its_way_to_a_rank_that_does_not_answer() -> None:
    group = [waiting(0, 1, used_ns=5, members=range(4)), gone(1), running(2), running(3)]

    assert ended(*group) == [0]
    assert ended(*group[:3], RankOutlook(3)) == []


# Whom to ask --------------------------------------------------------------------------------------

WORLD = frozenset(range(4))
TABLES: dict[str, tuple[list[GroupCall], frozenset[int]]] = {
    "all are at the same call": (calls_of(range(4), 4, "issued"), frozenset()),
    "one waits in the guard": ([call(0, 4, "waiting"), *calls_of([1, 2, 3], 3, "issued")], WORLD),
    "one is ahead natively": ([call(0, 4, "issued"), *calls_of([1, 2, 3], 3, "issued")], WORLD),
    "one was never there": (calls_of([0, 1, 2], 1, "issued"), WORLD),
    "one gave up": (
        [*calls_of([0, 1, 2], 4, "issued"), call(3, 4, "idle", issued=3)],
        WORLD,
    ),
    "it gave the call up itself": (
        [call(0, 4, "idle"), *calls_of([1, 2, 3], 3, "issued")],
        frozenset(),
    ),
    "a message": ([message(0, "recv", 1, 0)], frozenset({0, 1})),
    "a small group": ([call(1, 1, "waiting", ranks=(1, 2), group="3")], frozenset({1, 2})),
}


@pytest.mark.parametrize(("calls", "expected"), TABLES.values(), ids=TABLES.keys())
def test_only_who_has_to_do_with_a_wait_is_asked(
    calls: list[GroupCall], expected: frozenset[int]
) -> None:
    assert may_wait_in_vain(calls, [0, 1, 2, 3], NOW) == expected


def test_nobody_is_asked_for_the_sake_of_another_cell() -> None:
    calls = [call(0, 4, "waiting"), *calls_of([1, 2, 3], 3, "issued")]

    assert may_wait_in_vain(calls, [1, 2, 3], NOW) == frozenset()


def test_ranks_that_have_come_a_moment_ago_are_not_disturbed() -> None:
    calls = [call(0, 4, "waiting", age=0.05), *calls_of([1, 2, 3], 3, "issued")]

    assert may_wait_in_vain(calls, [0, 1, 2, 3], NOW) == frozenset()
    assert may_wait_in_vain(calls, [0, 1, 2, 3], NOW + 1) == WORLD
