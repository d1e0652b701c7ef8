from __future__ import annotations

import re
from typing import Any

import pytest

from nbdist.view import render
from nbdist.view.consolidate import Left, consolidate
from nbdist.view.lines import LineStreamer
from nbdist.view.progress import Bar, count_text, live_text, remark_text, unite
from nbdist.wire import Clear, Output, Progress, RankOutput
from tests.view.build import failed, ok, result, stderr, stdout, value_error


def bar(done: float, text: str = "epoch", number: int = 0, **fields: Any) -> Progress:
    return Progress(number, text, done, **{"total": 100, **fields})


def over(done: float, text: str = "epoch", number: int = 0, **fields: Any) -> Progress:
    return bar(done, text, number, is_over=True, **fields)


def left_of(*outputs: Output) -> tuple[Left, ...]:
    return consolidate(outputs)


def text_of(*ranks: RankOutput) -> str:
    return render(ranks).get("text/plain", "")


def html_of(*ranks: RankOutput) -> str:
    return render(ranks)["text/html"]


def seen(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


# What is left of the records of one rank ----------------------------------------------------------


def test_only_the_last_record_of_a_bar_is_left() -> None:
    assert left_of(bar(1), bar(2), over(3)) == (over(3),)


def test_a_bar_stands_where_it_began() -> None:
    outputs: list[Output] = [stdout("a\n"), bar(0), stdout("b\n"), over(100), stdout("c\n")]

    assert consolidate(outputs) == (stdout("a\n"), over(100), stdout("b\nc\n"))


def test_a_bar_that_is_not_to_stay_splits_no_text() -> None:
    outputs: list[Output] = [
        stdout("a\n"),
        bar(1, is_kept=False),
        stdout("b\n"),
        over(5, is_kept=False),
    ]

    assert consolidate(outputs) == (stdout("a\nb\n"),)


def test_a_bar_may_change_its_mind_about_staying() -> None:
    assert left_of(bar(1, is_kept=False), over(5)) == (over(5),)
    assert left_of(bar(1), over(5, is_kept=False)) == ()


def test_a_bar_that_is_over_goes_with_a_clear() -> None:
    assert left_of(over(3), Clear(), stdout("a\n")) == (stdout("a\n"),)


def test_a_bar_that_goes_on_outlives_a_clear() -> None:
    outputs: list[Output] = [stdout("a\n"), bar(3), Clear(), stdout("b\n"), over(5)]

    assert consolidate(outputs) == (over(5), stdout("b\n"))


def test_a_step_of_a_bar_is_no_output_that_a_waiting_clear_waits_for() -> None:
    outputs: list[Output] = [stdout("a\n"), bar(3), Clear(wait=True), bar(4)]

    assert consolidate(outputs) == (stdout("a\n"), bar(4))


def test_a_new_bar_is_output_that_a_waiting_clear_waits_for() -> None:
    assert left_of(stdout("a\n"), Clear(wait=True), bar(4)) == (bar(4),)


# One line for all ranks ---------------------------------------------------------------------------


def test_ranks_that_came_equally_far_are_told_once() -> None:
    assert text_of(*(ok(rank, over(100)) for rank in range(4))) == "[ranks 0–3] epoch 100/100"


def test_the_rank_furthest_behind_is_named_first() -> None:
    ranks = [ok(rank, over(41 if rank == 2 else 100)) for rank in range(4)]

    assert text_of(*ranks) == "[ranks 0–3] epoch 41/100 (rank 2), 100/100 (ranks 0, 1, 3)"


def test_time_and_rate_make_no_difference() -> None:
    quick, slow = (
        over(100, seconds=0.1, rate="1,000.0 it/s"),
        over(100, seconds=90.0, rate="1 it/s"),
    )

    assert text_of(ok(0, quick), ok(1, slow)) == "[ranks 0, 1] epoch 100/100"
    assert render([ok(0, quick)]) == render([ok(0, slow)])


def test_whether_it_was_closed_makes_no_difference() -> None:
    assert text_of(ok(0, over(7)), ok(1, bar(7))) == "[ranks 0, 1] epoch 7/100"


def test_a_bar_that_only_some_ranks_have_says_whose_it_is() -> None:
    first = ok(0, over(5, "download", total=5), over(9, number=1))

    assert text_of(first, ok(1, over(9))) == ("[rank0] download 5/5\n[ranks 0, 1] epoch 9/100")


def test_bars_of_one_name_are_matched_in_their_order() -> None:
    ranks = [ok(rank, over(3), stdout("-\n"), over(5 + rank, number=7)) for rank in range(2)]

    assert text_of(*ranks).splitlines() == [
        "[ranks 0, 1] epoch 3/100",
        "[ranks 0, 1] -",
        "[ranks 0, 1] epoch 5/100 (rank 0), 6/100 (rank 1)",
    ]


def test_a_bar_is_one_also_where_its_name_tells_of_the_rank() -> None:
    ranks = [ok(rank, over(100, f"rank {rank}")) for rank in range(2)]

    assert text_of(*ranks) == "[ranks 0, 1] rank 0 100/100 (rank 0), rank 1 100/100 (rank 1)"


def test_different_totals_are_different() -> None:
    ranks = [ok(rank, over(50, total=50 * (rank + 1))) for rank in range(2)]

    assert text_of(*ranks) == "[ranks 0, 1] epoch 50/100 (rank 1), 50/50 (rank 0)"


def test_what_stands_behind_a_bar_is_told_after_a_dot() -> None:
    assert text_of(ok(0, over(9, postfix="loss=0.3"))) == "[rank0] epoch 9/100 · loss=0.3"


def test_different_words_behind_a_bar_do_not_make_two_of_its_count() -> None:
    ranks = [ok(rank, over(9, postfix=f"loss={rank // 2}")) for rank in range(3)]

    assert text_of(*ranks) == "[ranks 0–2] epoch 9/100 · loss=0 (ranks 0, 1), loss=1 (rank 2)"


def test_equal_bars_in_a_row_are_counted() -> None:
    inner = [over(938, "", number, total=938) for number in range(5)]

    assert text_of(ok(0, *inner), ok(1, *inner)) == "[ranks 0, 1] 938/938 · 5 times"


def test_bars_in_a_row_that_differ_are_not() -> None:
    assert text_of(ok(0, over(3), over(4, number=1))) == "[rank0] epoch 3/100\n[rank0] epoch 4/100"


def test_a_bar_stays_one_line_where_the_ranks_printed_different_things() -> None:
    ranks = [
        ok(rank, over(100), stdout("".join(f"{rank} {i}\n" for i in range(3 + rank))))
        for rank in range(3)
    ]

    assert [line for line in text_of(*ranks).splitlines() if "epoch" in line] == [
        "[ranks 0–2] epoch 100/100"
    ]


def test_a_block_of_its_own_tells_of_its_own_ranks_only() -> None:
    ranks = [ok(0, stdout("a\n"), over(4)), ok(1, over(5), stdout("b\n"), stderr("c\n"))]

    lines = text_of(*ranks).splitlines()

    assert [line for line in lines if "epoch" in line] == [
        "[rank0] epoch 4/100",
        "[rank1] epoch 5/100",
    ]


def test_unfolded_each_rank_has_its_line() -> None:
    bundle = render([ok(0, over(4)), ok(1, over(4))], fold=False)

    assert bundle["text/plain"] == "[rank0] epoch 4/100\n[rank1] epoch 4/100"


def test_a_failed_rank_shows_how_far_it_came() -> None:
    ranks = [ok(0, over(100)), failed(1, value_error("bad"), bar(41))]

    assert text_of(*ranks).splitlines()[-1] == (
        "[ranks 0, 1] epoch 41/100 (rank 1), 100/100 (rank 0)"
    )


def test_bars_leave_the_table_of_numbers_alone() -> None:
    ranks = [ok(rank, over(9), result(f"{rank}", rank)) for rank in range(2)]

    assert text_of(*ranks).splitlines()[:2] == ["[ranks 0, 1] epoch 9/100", "[rank0] 0"]


def test_where_lines_were_streamed_the_bars_are_not_told_again() -> None:
    assert render([ok(0, over(9), stdout("a\n"))], has_text=False) == {}


def test_colours_and_line_breaks_in_a_name_are_not_shown() -> None:
    assert text_of(ok(0, over(1, "\x1b[31mred\x1b[0m\n name\r"))) == "[rank0] red name 1/100"


def test_unite_leaves_the_rest_as_it_is() -> None:
    outputs: dict[int, tuple[Left, ...]] = {0: (stdout("a"), bar(1)), 1: ()}

    united = unite(outputs)

    assert united[0][0] == stdout("a")
    assert isinstance(united[0][1], Bar)
    assert united[1] == ()


# Numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (bar(41), "41/100"),
        (bar(0), "0/100"),
        (bar(120), "120/100"),
        (bar(3, unit="files"), "3/100 files"),
        (bar(3, total=None), "3 it"),
        (bar(3, total=None, unit="files"), "3 files"),
        (bar(0, total=0), "0/0"),
        (bar(0.5, total=1.0), "0.5/1"),
        (bar(2**21, total=3 * 2**20, unit="B", divisor=1024), "2.0/3.0 MB"),
        (bar(1500, total=None, unit="it", divisor=1000), "1.5 kit"),
        (bar(12, total=20, unit="B", divisor=1000), "12/20 B"),
    ],
)
def test_counts(progress: Progress, said: str) -> None:
    assert count_text(progress) == said


def test_while_it_runs_the_rate_is_told() -> None:
    moving = bar(41, postfix="loss=1", rate="9.0 it/s")

    assert live_text(moving) == "epoch 41/100 · loss=1 · 9.0 it/s"
    assert remark_text(moving) == "epoch · loss=1 · 9.0 it/s"


# As HTML ------------------------------------------------------------------------------------------


def test_html_and_text_say_the_same() -> None:
    ranks = [ok(rank, over(41 + rank // 3, postfix=f"loss={rank}")) for rank in range(4)]
    said = text_of(*ranks).removeprefix("[ranks 0–3] ")

    assert seen(html_of(*ranks)) == f"ranks 0–3 {said}"


def test_a_thin_bar_is_as_long_as_its_share() -> None:
    html = html_of(ok(0, over(41)), ok(1, over(250)), ok(2, over(0)))

    assert re.findall(r"width:([\d.]+)%\"></span>", html) == ["0", "41", "100"]


def test_without_a_total_there_is_no_thin_bar() -> None:
    assert '%"></span>' not in html_of(ok(0, over(41, total=None)))


def test_a_name_is_no_html() -> None:
    assert "<b>&amp;" not in html_of(ok(0, over(1, "<b>&")))
    assert "&lt;b&gt;&amp; " in html_of(ok(0, over(1, "<b>&")))


# As lines while the cell runs ---------------------------------------------------------------------


def lines_of(*outputs: Output) -> list[str]:
    streamer = LineStreamer()
    return [line for output in outputs for line in streamer.feed(0, output).splitlines()]


def test_a_bar_gives_a_line_now_and_then_and_at_its_end() -> None:
    steps = [bar(done, seconds=done / 10) for done in range(100)]

    assert lines_of(*steps, over(100, seconds=10.0)) == [
        "[rank0] epoch 20/100",
        "[rank0] epoch 40/100",
        "[rank0] epoch 60/100",
        "[rank0] epoch 80/100",
        "[rank0] epoch 100/100",
    ]


def test_a_short_bar_gives_its_end_only() -> None:
    assert lines_of(bar(0), bar(50, seconds=1.0), over(100, seconds=1.5)) == [
        "[rank0] epoch 100/100"
    ]


def test_a_bar_that_is_not_to_stay_gives_no_end() -> None:
    long = bar(50, is_kept=False, seconds=3.0), over(100, is_kept=False, seconds=3.0)

    assert lines_of(*long) == ["[rank0] epoch 50/100"]


def test_a_bar_that_was_reset_goes_on_giving_lines() -> None:
    assert lines_of(bar(90, seconds=9.0), bar(1, seconds=0.0), bar(30, seconds=3.0)) == [
        "[rank0] epoch 90/100",
        "[rank0] epoch 30/100",
    ]


def test_a_bar_that_never_ended_gives_its_last_state_at_the_end() -> None:
    streamer = LineStreamer()
    streamer.feed(1, bar(41))
    streamer.feed(0, stdout("no end"))

    assert streamer.flush() == "[rank0] no end\n[rank1] epoch 41/100\n"
    assert streamer.flush() == ""
