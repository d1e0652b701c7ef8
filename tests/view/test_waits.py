from __future__ import annotations

import pytest

from nbdist.view.waits import Collective, Straggler, Wait, collectives, joined, stragglers
from nbdist.wire import RankTrace
from tests.view.traces import (
    START,
    given_up,
    held,
    issued,
    rank_trace,
    site,
    unheld,
    waiting,
)

PAIR = site(ranks=(0, 1))


def waits_of(*traces: RankTrace) -> list[tuple[int, int, float, float]]:
    """Return who waited for whom, from when until when."""
    return [
        (wait.rank, wait.for_rank, round(wait.began - START, 6), round(wait.ended - START, 6))
        for collective in collectives(traces)
        for wait in collective.waits
    ]


def only(*traces: RankTrace) -> Collective:
    [found] = collectives(traces)
    return found


# Which calls meet --------------------------------------------------------------------------------


def test_calls_meet_by_their_number_in_the_group() -> None:
    first = rank_trace(0, held(PAIR, 1, 0, 0.5, 0.6), held(PAIR, 2, 1, 1, 1.1))
    second = rank_trace(1, held(PAIR, 1, 0.5, 0.5, 0.6), held(PAIR, 2, 0.9, 1, 1.1))

    found = collectives([first, second])

    assert [(one.seq, sorted(one.calls)) for one in found] == [(1, [0, 1]), (2, [0, 1])]


def test_equal_numbers_of_different_groups_do_not_meet() -> None:
    again = site(ranks=(0, 1), incarnation=1)
    other = site(ranks=(0, 1), group="3")
    trace = rank_trace(0, *(held(at, 1, 0.1, 0.1, 0.2) for at in (PAIR, again, other)))

    assert len(collectives([trace])) == 3


def test_a_message_is_named_after_its_sender_whoever_came_first() -> None:
    send = site("send", ranks=(1, 0), kind="p2p", line=3)
    receive = site("recv", ranks=(1, 0), kind="p2p", line=5)

    found = only(
        rank_trace(0, held(receive, 1, 0.1, 0.5, 0.6)), rank_trace(1, held(send, 1, 0.5, 0.5, 0.6))
    )

    assert found.site.op == "send"


def test_messages_without_a_number_meet_nobody() -> None:
    anybody = site("recv", ranks=(0,), kind="p2p")
    trace = rank_trace(0, unheld(anybody, 0, 0.1, 0.2), unheld(anybody, 0, 0.3, 0.4))

    assert len(collectives([trace])) == 2
    assert waits_of(trace) == []


def test_collectives_come_in_the_order_in_which_they_began() -> None:
    late = rank_trace(0, unheld(site(line=1, group="1"), 9, 1.0, 1.1))
    early = rank_trace(1, unheld(site(line=2, group="2"), 9, 0.5, 0.6))

    assert [one.site.source for one in collectives([late, early])] == ["In[12]:2", "In[12]:1"]


# Who waits for whom ------------------------------------------------------------------------------


def test_who_came_last_is_who_was_waited_for() -> None:
    calls = [held(site(), 1, began, 0.9, 1.0) for began in (0.1, 0.2, 0.9, 0.4)]

    assert waits_of(*(rank_trace(rank, call) for rank, call in enumerate(calls))) == [
        (0, 2, 0.1, 0.9),
        (1, 2, 0.2, 0.9),
        (3, 2, 0.4, 0.9),
    ]


def test_the_guard_need_not_have_waited() -> None:
    assert waits_of(
        rank_trace(0, unheld(PAIR, 1, 0.1, 1.0)), rank_trace(1, unheld(PAIR, 1, 0.9, 1.0))
    ) == [(0, 1, 0.1, 0.9)]


def test_an_asynchronous_call_waits_only_while_it_is_waited_for() -> None:
    early = issued(PAIR, 1, 0.1, wait_began=0.6, wait_ended=1.0)
    late = issued(PAIR, 1, 0.9, wait_began=0.9, wait_ended=1.0)

    assert waits_of(rank_trace(0, early), rank_trace(1, late)) == [(0, 1, 0.6, 0.9)]


def test_an_asynchronous_call_that_was_over_in_time_waits_for_nobody() -> None:
    early = issued(PAIR, 1, 0.1, wait_began=1.5, wait_ended=1.5)
    late = issued(PAIR, 1, 0.9, wait_began=1.5, wait_ended=1.5)

    assert waits_of(rank_trace(0, early), rank_trace(1, late)) == []


def test_a_backward_waits_from_its_last_call_on() -> None:
    early = rank_trace(0, issued(PAIR, 1, 0.1, done=1.0), issued(PAIR, 2, 0.3, done=1.1))
    late = rank_trace(1, issued(PAIR, 1, 0.8, done=1.0), issued(PAIR, 2, 0.9, done=1.1))

    assert waits_of(early, late) == [(0, 1, 0.3, 0.9)]


def test_a_rank_that_a_broadcast_did_not_need_was_not_waited_for() -> None:
    at = site("broadcast", data="float32[1000], root 0", ranks=(0, 1, 2))
    root, quick, slow = (
        held(at, 1, 0.5, 0.5, 0.6),
        held(at, 1, 0.1, 0.5, 0.6),
        held(at, 1, 1, 1, 1.1),
    )

    assert waits_of(rank_trace(0, root), rank_trace(1, quick), rank_trace(2, slow)) == [
        (1, 0, 0.1, 0.5)
    ]


def test_a_rank_that_never_came_was_waited_for_in_vain() -> None:
    gone = rank_trace(1)

    assert waits_of(rank_trace(0, given_up(PAIR, 1, 0.2, 1.2)), gone) == [(0, 1, 0.2, 1.2)]
    assert waits_of(rank_trace(0, waiting(PAIR, 1, 0.2), now=2.5), gone) == [(0, 1, 0.2, 2.5)]


def test_a_call_that_went_well_was_not_in_vain_though_the_other_is_not_known() -> None:
    assert waits_of(rank_trace(0, held(PAIR, 1, 0.2, 0.9, 1.0)), rank_trace(1)) == []


# Time inside -------------------------------------------------------------------------------------


def test_inside_begins_when_the_last_rank_has_come() -> None:
    found = only(rank_trace(0, unheld(PAIR, 1, 0.1, 1.0)), rank_trace(1, unheld(PAIR, 1, 0.9, 1.0)))

    assert found.inside_s == pytest.approx(0.1)


def test_inside_leaves_out_what_the_guard_took() -> None:
    found = only(
        rank_trace(0, held(PAIR, 1, 0.1, 0.92, 1.0)), rank_trace(1, held(PAIR, 1, 0.9, 0.96, 1.0))
    )

    assert found.inside_s == pytest.approx(0.06)


def test_inside_is_the_median_of_the_ranks() -> None:
    ends = (1.1, 1.2, 1.9, 1.2)
    traces = [rank_trace(rank, unheld(site(), 1, 1.0, end)) for rank, end in enumerate(ends)]

    assert only(*traces).inside_s == pytest.approx(0.2)


def test_inside_of_a_call_that_was_over_when_it_was_waited_for_is_not_known() -> None:
    calls = [issued(PAIR, 1, 0.1, wait_began=1.5, wait_ended=1.5) for _ in range(2)]

    assert only(*(rank_trace(rank, call) for rank, call in enumerate(calls))).inside_s is None


def test_inside_of_a_backward_ends_when_its_data_has_come() -> None:
    calls = [issued(PAIR, 1, 0.1, done=0.4), issued(PAIR, 1, 0.3, done=0.4)]

    found = only(*(rank_trace(rank, call) for rank, call in enumerate(calls)))

    assert found.inside_s == pytest.approx(0.1)


def test_inside_of_calls_that_failed_or_are_not_over_is_not_known() -> None:
    assert only(rank_trace(0, given_up(PAIR, 1, 0.2, 1.2))).inside_s is None
    assert only(rank_trace(0, waiting(PAIR, 1, 0.2))).inside_s is None


# Stragglers --------------------------------------------------------------------------------------


def wait(rank: int, for_rank: int, began: float, ended: float, line: int = 7) -> Wait:
    return Wait(rank, for_rank, began, ended, f"In[12]:{line}")


def test_ranks_that_wait_at_the_same_time_are_counted_once() -> None:
    [found] = stragglers([wait(0, 2, 0, 1), wait(1, 2, 0.5, 1.5), wait(3, 2, 4, 5)])

    assert found == Straggler(2, 2.5, (0, 1, 3), "In[12]:7")


def test_the_one_that_was_waited_for_longest_comes_first() -> None:
    found = stragglers([wait(0, 1, 0, 1), wait(0, 2, 1, 3), wait(1, 3, 0, 0.5)])

    assert [one.rank for one in found] == [2, 1, 3]


def test_who_waited_little_is_not_named() -> None:
    [found] = stragglers([wait(0, 2, 0, 1), wait(1, 2, 0.95, 1)])

    assert found.waiting == (0,)


def test_the_line_is_that_of_the_most_waiting() -> None:
    [found] = stragglers([wait(0, 2, 0, 1, line=4), wait(0, 2, 2, 5, line=9), wait(1, 2, 0, 1, 4)])

    assert found.source == "In[12]:9"


def test_nobody_waited_for_is_nobody() -> None:
    assert stragglers([]) == []


def test_spans_that_touch_are_one() -> None:
    assert joined([(3, 4), (0, 1), (1, 2), (0.5, 0.7)]) == [(0, 2), (3, 4)]
