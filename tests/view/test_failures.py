from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.view.failures import group_failures, shorten, shorten_path, summary, trace_lines
from nbdist.wire import CellError, Frame, RankOutput
from tests.view.build import failed, in_cell, in_torch, ok, stderr, stdout, value_error, waited

KILLED = CellError("RankDied", "killed by SIGKILL\nits log ends with:\n  step 3")
STOPPED = CellError("KeyboardInterrupt", "", (in_cell(2, "time.sleep(60)"),))


def trace(error: CellError) -> list[str]:
    cause = group_failures([failed(0, error)]).causes[0]
    return [line.text for line in trace_lines(cause)]


def test_the_root_cause_comes_before_the_ranks_that_waited_for_it() -> None:
    ranks = [failed(rank, waited(2)) for rank in (0, 1, 3)] + [failed(2, value_error("bad"))]

    failures = group_failures(ranks)

    assert [cause.ranks for cause in failures.causes] == [(2,)]
    assert [w.headline() for w in failures.waiting] == ["ranks 0, 1, 3 waited for rank 2 (In[3]:6)"]


def test_messages_that_differ_in_the_number_of_their_rank_alone_are_one() -> None:
    said = "unused: rank {0} [rank{0}] Rank {0}: 1{0} 7"
    ranks = [failed(rank, value_error(said.format(rank))) for rank in range(4)]

    [cause] = group_failures(ranks).causes

    assert [message.text for message in cause.messages] == [said.format(r) for r in range(4)]

    said = "unused: rank {0} [rank{0}] Rank {0}: 1 7 of rank 9"
    ranks = [failed(rank, value_error(said.format(rank))) for rank in range(4)]

    [cause] = group_failures(ranks).causes

    assert [(m.ranks, m.text) for m in cause.messages] == [
        ((0, 1, 2, 3), "unused: rank 0–3 [rank0–3] Rank 0–3: 1 7 of rank 9")
    ]


def test_the_number_of_another_rank_tells_messages_apart() -> None:
    ranks = [failed(0, value_error("rank 1 is late")), failed(1, value_error("rank 0 is late"))]

    [cause] = group_failures(ranks).causes

    assert [m.text for m in cause.messages] == ["rank 1 is late", "rank 0 is late"]


def test_what_all_say_of_one_rank_stays_as_it_is() -> None:
    ranks = [failed(rank, value_error("rank 0 is late")) for rank in range(3)]

    [cause] = group_failures(ranks).causes

    assert [(m.ranks, m.text) for m in cause.messages] == [((0, 1, 2), "rank 0 is late")]


def test_ranks_that_waited_at_different_places_get_a_line_each() -> None:
    failures = group_failures([failed(0, waited(2, 5)), failed(1, waited(2, 7))])

    assert [w.headline() for w in failures.waiting] == [
        "rank 0 waited for rank 2 (In[3]:5): rank 2 raised",
        "rank 1 waited for rank 2 (In[3]:7): rank 2 raised",
    ]


def test_the_collective_in_which_ranks_waited_is_named() -> None:
    said = (
        "rank 2 raised ValueError: bad\n"
        "This rank waited for it in all_reduce(float32[10], sum) (#17 of group 0) at In[3]:6.\n"
        "All variables of this rank are kept; the next cell works with the same groups."
    )
    error = CellError("PeerFailed", said, (in_cell(6),), waited_for=2)

    failures = group_failures([failed(0, error), failed(1, error), failed(2, value_error("bad"))])

    assert [w.headline() for w in failures.waiting] == [
        "ranks 0, 1 waited for rank 2 in all_reduce (In[3]:6)"
    ]


def test_ranks_that_waited_in_different_collectives_get_a_line_each() -> None:
    errors = [
        CellError("PeerFailed", f"gone\nThis rank was in {op}() (#1)", waited_for=2)
        for op in ("barrier", "send")
    ]

    failures = group_failures([failed(rank, error) for rank, error in enumerate(errors)])

    assert [waiting.call for waiting in failures.waiting] == ["barrier", "send"]


def test_the_reason_of_a_rank_that_is_not_shown_is_told_in_one_line() -> None:
    error = CellError("PeerFailed", "rank 2 died: killed\nThis rank …", waited_for=2)

    failures = group_failures([failed(0, error)])

    assert failures.waiting[0].headline() == "rank 0 waited for rank 2: rank 2 died: killed"


def test_what_others_waited_for_comes_before_other_causes() -> None:
    ranks = [failed(0, value_error("late")), failed(1, waited(2)), failed(2, KILLED, status="dead")]

    assert [cause.ranks for cause in group_failures(ranks).causes] == [(2,), (0,)]


def test_a_wait_without_a_place_is_said_without_one() -> None:
    failures = group_failures([failed(0, CellError("PeerFailed", "", waited_for=1))])

    assert failures.waiting[0].headline() == "rank 0 waited for rank 1"


def test_equal_errors_are_one_cause() -> None:
    failures = group_failures([failed(rank, value_error("bad")) for rank in range(4)])

    assert [cause.ranks for cause in failures.causes] == [(0, 1, 2, 3)]
    assert [message.text for message in failures.causes[0].messages] == ["bad"]


def test_errors_from_one_line_with_different_messages_are_one_cause() -> None:
    failures = group_failures([failed(rank, value_error(f"bad {rank // 2}")) for rank in range(4)])

    (cause,) = failures.causes
    assert [(m.ranks, m.text) for m in cause.messages] == [((0, 1), "bad 0"), ((2, 3), "bad 1")]


def test_errors_from_different_lines_are_different_causes() -> None:
    other = CellError("ValueError", "bad", (in_cell(5),))

    assert len(group_failures([failed(0, value_error("bad")), failed(1, other)]).causes) == 2


def test_stops_come_after_errors() -> None:
    ranks = [failed(0, STOPPED, status="stopped"), failed(1, value_error("bad"))]

    assert [cause.name for cause in group_failures(ranks).causes] == ["ValueError", "stopped"]


def test_of_stopped_ranks_those_that_held_up_the_others_come_first() -> None:
    asleep = CellError("KeyboardInterrupt", "", (in_cell(4, "time.sleep(60)"),))
    ranks = [failed(rank, asleep if rank == 1 else STOPPED, status="stopped") for rank in range(3)]

    assert [cause.ranks for cause in group_failures(ranks).causes] == [(0, 2), (1,)]
    held_up = group_failures(ranks, held_up_by=frozenset({1}))
    assert [cause.ranks for cause in held_up.causes] == [(1,), (0, 2)]


def test_a_rank_that_did_well_is_no_failure() -> None:
    assert group_failures([ok(0)]).causes == ()


def test_unfolded_every_rank_is_told_by_itself() -> None:
    ranks = [failed(rank, value_error("bad")) for rank in range(3)]

    assert len(group_failures(ranks, is_folded=False).causes) == 3


def test_cell_frames_are_shown_with_their_code() -> None:
    assert trace(value_error("bad")) == [
        "In[3]:9  in <module>",
        "train()",
        "In[3]:4  in step",
        "raise ValueError(message)",
    ]


def test_library_frames_are_counted_but_for_the_last() -> None:
    torch = [in_torch(line) for line in range(1, 6)]
    frames = [in_cell(1), *torch, in_cell(2), *torch[:3]]

    assert shorten(frames) == [
        in_cell(1),
        "… 5 frames in torch …",
        in_cell(2),
        "… 2 frames in torch …",
        torch[2],
    ]


def test_all_packages_of_left_out_frames_are_named() -> None:
    numpy = Frame("/v/site-packages/numpy/core.py:1", "f", "", is_library=True)
    threading = Frame("/usr/lib/python3.11/threading.py:1", "f", "", is_library=True)

    assert shorten([in_torch(1), numpy, threading, in_torch(2), in_cell(1)]) == [
        "… 4 frames in torch, numpy, threading …",
        in_cell(1),
    ]


def test_one_library_frame_is_one_frame() -> None:
    assert shorten([in_torch(1), in_cell(1)])[0] == "… 1 frame in torch …"


def test_modules_of_the_user_are_always_shown() -> None:
    module = Frame("model.py:3", "forward", "x @ w")

    assert shorten([module, in_cell(1)]) == [module, in_cell(1)]


def test_endless_recursion_is_short() -> None:
    assert shorten([in_cell(1), *[in_cell(2)] * 1000]) == [
        in_cell(1),
        in_cell(2),
        "… the same 999 times more …",
    ]


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("/v/lib/python3.11/site-packages/torch/nn.py:3", "torch/nn.py:3"),
        ("/usr/lib/python3/dist-packages/numpy/core.py:3", "numpy/core.py:3"),
        ("/usr/lib/python3.12/json/decoder.py:3", "json/decoder.py:3"),
        ("/home/me/model.py:3", "/home/me/model.py:3"),
        ("In[3]:4", "In[3]:4"),
    ],
)
def test_paths_start_at_their_package(path: str, short: str) -> None:
    assert shorten_path(path) == short


def test_the_error_before_is_told_after() -> None:
    before = CellError("KeyError", "'x'", (in_cell(1),))
    error = CellError("RuntimeError", "no x", (in_cell(2),), cause=before)

    assert trace(error) == [
        "In[3]:2  in <module>",
        "caused by KeyError: 'x'",
        "In[3]:1  in <module>",
    ]


def test_an_error_while_handling_another_is_told_so() -> None:
    first = CellError("OSError", "")
    second = CellError("KeyError", "'x'", cause=first, link="context")
    third = CellError("RuntimeError", "no x", cause=second)

    assert trace(third) == ["caused by KeyError: 'x'", "while handling OSError"]


def test_errors_before_that_say_different_things_are_told_by_rank() -> None:
    errors = [
        CellError("E", "", (in_cell(2),), cause=CellError("KeyError", key, (in_cell(1),)))
        for key in ("'a'", "'b'", "'a'")
    ]

    [cause] = group_failures([failed(rank, error) for rank, error in enumerate(errors)]).causes

    assert [(line.ranks, line.text) for line in trace_lines(cause)] == [
        ((), "In[3]:2  in <module>"),
        ((0, 2), "caused by KeyError: 'a'"),
        ((1,), "caused by KeyError: 'b'"),
        ((), "In[3]:1  in <module>"),
    ]


def test_errors_that_came_another_way_are_different_causes() -> None:
    plain = CellError("E", "x")
    caused = CellError("E", "x", cause=CellError("KeyError", "'a'"))
    met = CellError("E", "x", cause=CellError("KeyError", "'a'"), link="context")

    ranks = [failed(rank, error) for rank, error in enumerate((plain, caused, met))]

    assert len(group_failures(ranks).causes) == 3


def test_the_last_lines_of_a_dead_rank_are_told() -> None:
    outputs = (stdout("step 1\nstep 2\n"), stderr("careful\n"), stdout("step 3\n\n"))

    [cause] = group_failures([failed(1, KILLED, *outputs, status="dead")]).causes

    assert [line.text for line in trace_lines(cause)] == [
        "its last lines:",
        "step 2\ncareful\nstep 3",
    ]


def test_dead_ranks_have_their_own_last_lines() -> None:
    ranks = [failed(rank, KILLED, stdout(f"step {rank}"), status="dead") for rank in range(2)]

    [cause] = group_failures(ranks).causes

    assert [(line.ranks, line.text) for line in trace_lines(cause)] == [
        ((0,), "its last lines:"),
        ((0,), "step 0"),
        ((1,), "its last lines:"),
        ((1,), "step 1"),
    ]


def test_a_dead_rank_without_a_word_has_no_last_lines() -> None:
    [cause] = group_failures([failed(1, KILLED, status="dead")]).causes

    assert list(trace_lines(cause)) == []


def test_a_rank_that_lives_has_no_last_lines() -> None:
    [cause] = group_failures([failed(1, value_error("bad"), stdout("step 1"))]).causes

    assert cause.last_lines == ()


class TestSummary:
    """The one line that the notebook raises."""

    def test_nothing_failed(self) -> None:
        assert summary([ok(0), ok(1)]) == ""

    def test_one_rank_failed_and_others_waited(self) -> None:
        ranks = [failed(0, waited(1)), failed(1, value_error("bad batch")), failed(2, waited(1))]

        assert summary(ranks) == "ValueError on rank 1 at In[3]:4: bad batch"

    def test_all_ranks_failed_alike(self) -> None:
        ranks = [failed(rank, value_error("bad")) for rank in range(4)]

        assert summary(ranks) == "ValueError on ranks 0–3 at In[3]:4: bad"

    def test_the_messages_differ(self) -> None:
        ranks = [failed(rank, value_error(f"bad {rank}")) for rank in range(4)]

        assert summary(ranks) == (
            "ValueError on ranks 0–3 at In[3]:4: bad 0 (rank 0; the messages differ)"
        )

    def test_different_errors_are_counted(self) -> None:
        ranks = [
            failed(0, value_error("bad")),
            failed(1, CellError("KeyError", "'x'", (in_cell(5),))),
            failed(2, CellError("KeyError", "'x'", (in_cell(5),))),
        ]

        assert summary(ranks) == (
            "2 different errors on 3 ranks: "
            "ValueError on rank 0 at In[3]:4: bad; KeyError on ranks 1, 2 at In[3]:5: 'x'"
        )

    def test_more_than_three_errors_are_cut(self) -> None:
        ranks = [failed(rank, CellError(f"E{rank}", "")) for rank in range(5)]

        assert summary(ranks) == (
            "5 different errors on 5 ranks: E0 on rank 0; E1 on rank 1; E2 on rank 2; …"
        )

    def test_stopped_wherever_the_ranks_were(self) -> None:
        elsewhere = CellError("KeyboardInterrupt", "", (in_cell(3),))
        ranks = [failed(rank, STOPPED, status="stopped") for rank in range(3)]
        ranks.append(failed(3, elsewhere, status="stopped"))

        assert summary(ranks) == "stopped on ranks 0–3"

    def test_a_rank_died(self) -> None:
        ranks = [failed(0, waited(1)), failed(1, KILLED, status="dead")]

        assert summary(ranks) == "rank 1 died: killed by SIGKILL"

    def test_a_rank_died_and_nobody_knows_why(self) -> None:
        assert summary([failed(1, None, status="dead")]) == "rank 1 died"

    def test_an_error_and_a_stop(self) -> None:
        ranks = [failed(0, STOPPED, status="stopped"), failed(1, value_error("bad"))]

        assert summary(ranks) == "ValueError on rank 1 at In[3]:4: bad; stopped on rank 0"

    def test_only_waiting_ranks(self) -> None:
        ranks = [failed(rank, waited(1)) for rank in (0, 2, 3)]

        assert summary(ranks) == "ranks 0, 2, 3 waited for rank 1 (In[3]:6): rank 1 raised"

    def test_only_the_first_line_of_a_message_and_not_all_of_a_long_one(self) -> None:
        assert summary([failed(0, CellError("E", "one\ntwo"))]) == "E on rank 0: one"
        assert len(summary([failed(0, CellError("E", "x" * 1000))])) < 250

    def test_an_error_without_cell_frames_names_its_last_line(self) -> None:
        error = CellError("OSError", "gone", (in_torch(7),))

        assert summary([failed(0, error)]) == (
            "OSError on rank 0 at torch/nn/modules/linear.py:7: gone"
        )

    def test_colours_are_taken_out(self) -> None:
        assert summary([failed(0, CellError("E", "\x1b[31mred\x1b[0m"))]) == "E on rank 0: red"

    def test_an_unknown_error(self) -> None:
        assert summary([failed(0, None)]) == "error on rank 0"


ERRORS = st.sampled_from([value_error("a"), value_error("b"), waited(7), KILLED, None])
RANKS = st.lists(
    st.builds(
        RankOutput,
        rank=st.integers(0, 6),
        status=st.sampled_from(["ok", "error", "stopped", "dead"]),
        error=ERRORS,
    ),
    unique_by=lambda output: output.rank,
)


@given(RANKS)
def test_every_failed_rank_is_told_exactly_once(ranks: list[RankOutput]) -> None:
    failures = group_failures(ranks)

    told = [rank for cause in failures.causes for rank in cause.ranks]
    told += [rank for waiting in failures.waiting for rank in waiting.ranks]
    assert sorted(told) == sorted(output.rank for output in ranks if output.status != "ok")


@given(RANKS)
def test_the_order_of_the_ranks_does_not_matter(ranks: list[RankOutput]) -> None:
    assert summary(ranks) == summary(list(reversed(ranks)))
    assert group_failures(ranks) == group_failures(list(reversed(ranks)))
