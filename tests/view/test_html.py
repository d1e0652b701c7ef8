from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.view import render
from nbdist.view.ansi import strip_ansi
from nbdist.view.html import MAX_OPEN_OBJECTS, render_html
from nbdist.view.page import lay_out
from nbdist.view.stream import settle
from nbdist.wire import CallCount, CellError, Display, Dropped, RankOutput, Text
from tests.view.build import (
    failed,
    in_cell,
    in_torch,
    lost_rules,
    ok,
    png,
    result,
    shown,
    stderr,
    stdout,
    value_error,
    waited,
)

FRAME = "<table><tr><td>{}</td></tr></table>"


def html_of(*ranks: RankOutput) -> str:
    return render_html(lay_out(ranks))


def words(html: str) -> str:
    """Return what is read; inline elements do not separate words."""
    return unescape(re.sub("<[^>]*>", " ", re.sub("</?(b|span|code)( [^>]*)?>", "", html)))


def lines(html: str) -> list[str]:
    """Return what is read, cell by cell and line by line."""
    texts = "\n".join(map(words, re.split("</(?:td|pre|div|summary)>", html)))
    return [" ".join(line.split()) for line in texts.split("\n") if line.strip()]


def steps(rank: int, num_lines: int) -> RankOutput:
    return ok(rank, stdout("".join(f"rank {rank} step {i}\n" for i in range(num_lines))))


def figure(name: int) -> Display:
    return shown({"image/png": png(f"AA{name}A"), "text/plain": "<Figure>"})


CALLS = {0: [CallCount("all_reduce", "0", (0, 1), 3, 1200)]}
MANY_KINDS = [
    ok(0, stdout("a <b> \x1b[1;31;42mred\x1b[0m\n" * 200), stderr("careful\n"), Dropped(7)),
    ok(1, shown({"image/png": png("AAAA")}), result("1", 1)),
    failed(2, value_error("x < y"), stdout("b\n")),
    failed(3, waited(2)),
    failed(4, CellError("KeyboardInterrupt", "", (in_cell(1),)), status="stopped"),
    failed(5, CellError("E", "", (in_torch(1), in_torch(2)), CellError("F", "g")), status="dead"),
]
ALIKE = [
    ok(
        rank,
        stdout(f"a <b>\nloss {rank} & 1\nb\n"),
        stderr(f"slow {rank * 2}\n"),
        figure(rank),
    )
    for rank in range(2)
]
LONG = [steps(rank, 200) for rank in range(8)]
SCALARS = [ok(rank, result(str(rank), rank)) for rank in range(40)]
MESSAGES = [failed(rank, value_error(f"bad <{rank * 3}>")) for rank in range(12)]
CELLS = {
    "many kinds": MANY_KINDS,
    "alike": ALIKE,
    "long": LONG,
    "scalars": SCALARS,
    "messages": MESSAGES,
}
every_cell = pytest.mark.parametrize("ranks", CELLS.values(), ids=CELLS.keys())


class TestGutter:
    """Whose something is stands on its left, whatever it is."""

    def test_equal_ranks_are_named_once(self) -> None:
        html = html_of(*[ok(rank, stdout("hello\n")) for rank in range(4)])

        assert lines(html) == ["ranks 0–3", "hello"]
        assert html.count("<tr") == 1

    def test_a_single_rank_is_named_too(self) -> None:
        assert lines(html_of(ok(0, stdout("hello\n")))) == ["rank 0", "hello"]

    def test_one_line_of_each_rank_is_read_with_its_rank(self) -> None:
        html = html_of(*[ok(rank, stdout(f"has {rank * 10}\n")) for rank in range(3)])

        assert lines(html) == ["rank 0 has 0", "rank 1 has 10", "rank 2 has 20"]

    def test_a_line_that_differs_stands_in_its_place(self) -> None:
        html = html_of(*[ok(rank, stdout(f"a\nloss {rank}.5\nb\n")) for rank in range(2)])

        assert lines(html) == [
            "ranks 0, 1",
            "a",
            "rank 0 loss 0.5",
            "rank 1 loss 1.5",
            "ranks 0, 1",
            "b",
        ]

    def test_it_is_as_wide_as_the_longest_name_within_reason(self) -> None:
        def width(*ranks: RankOutput) -> int:
            found = re.search(r'<col style="width:(\d+)px">', html_of(*ranks))
            assert found
            return int(found[1])

        alone = width(ok(0, stdout("a")))
        apart = [0, 2, 3, 7, 8, 11, 13, 20, 30, 40, 42, 43]
        assert alone < width(ok(0, stdout("a")), ok(1, stdout("a"))) < 100
        assert width(*[ok(rank, stdout("a")) for rank in apart]) < 150

    def test_a_failed_rank_is_marked_with_a_word(self) -> None:
        html = html_of(
            ok(0, stdout("a\nb\nc\n")), failed(1, value_error("bad"), stdout("d\ne\nf\n"))
        )

        assert "rank 1 failed" in lines(html)


class TestMarks:
    """What differs is marked."""

    def test_a_value_that_differs_is_marked(self) -> None:
        html = html_of(*[ok(rank, stdout(f"a\nloss {2 + rank}.5 <\n")) for rank in range(2)])

        assert re.findall("<b [^>]*>([^<]*)</b>", html) == ["2.5", "3.5"]
        assert "loss <b" in html
        assert "</b> &lt;" in html

    def test_lines_with_colours_keep_them(self) -> None:
        html = html_of(*[ok(rank, stdout(f"a\n\x1b[31mred {rank}\x1b[0m\n")) for rank in range(2)])

        assert html.count('<span style="color:#e0453f">red') == 2

    def test_stderr_is_marked_by_a_word_in_lines_that_differ(self) -> None:
        html = html_of(*[ok(rank, stderr(f"slow {rank}\n")) for rank in range(2)])

        assert words(html).count("stderr") == 1


class TestManyRanks:
    """Eight ranks read as easily as one, and 64 stay usable."""

    def test_eight_short_outputs_take_eight_lines_and_nothing_to_open(self) -> None:
        html = html_of(*[steps(rank, 1) for rank in range(8)])

        assert len(lines(html)) == 8
        assert "<details" not in html

    def test_many_short_lines_stand_in_columns(self) -> None:
        html = html_of(*[ok(rank, stdout(f"loss {rank}\n")) for rank in range(64)])

        assert html.count("<pre") == 5  # a label and four columns
        assert "rank 17  loss 17" in words(html)

    def test_many_long_lines_stand_in_one_column(self) -> None:
        html = html_of(*[ok(rank, stdout(f"{rank * 2} {'word ' * 12}\n")) for rank in range(64)])

        assert html.count("<pre") == 1

    def test_lines_that_would_wrap_have_a_row_each(self) -> None:
        html = html_of(*[ok(rank, stdout(f"{rank * 2} {'word ' * 40}\n")) for rank in range(3)])

        assert html.count("<tr") == 3

    def test_more_than_four_long_outputs_are_closed_but_the_first(self) -> None:
        html = html_of(*[steps(rank, 20) for rank in range(8)])

        assert html.count("<details>") == 7
        assert html.index("rank 0 step 19") < html.index("<details>")
        assert "20 lines · 290 B" in words(html)
        assert "rank 7 step 0 … rank 7 step 19" in words(html)

    def test_a_block_of_few_lines_is_not_closed_even_among_long_ones(self) -> None:
        html = html_of(steps(0, 20), steps(1, 2), *[steps(rank, 20) for rank in range(2, 8)])

        assert html.count("<details") == 6

    def test_the_first_failed_rank_is_open(self) -> None:
        ranks = [steps(rank, 20) for rank in range(8)]
        ranks[5] = failed(5, value_error("bad"), *ranks[5].outputs)

        html = html_of(*ranks)

        closed = re.findall("<details>.*?</details>", html, re.DOTALL)
        assert len(closed) == 7
        assert not any("rank 5 step 0" in block for block in closed)

    def test_figures_make_outputs_high(self) -> None:
        outputs = [(stdout(f"{rank}\n" * (rank + 1)), figure(0)) for rank in range(5)]

        html = html_of(*[ok(rank, *shown) for rank, shown in enumerate(outputs)])

        assert words(html).count("object") == 4
        assert "5 lines · 1 object · 10 B" in words(html)


class TestObjects:
    """Figures and tables of several ranks stand side by side."""

    def test_objects_that_differ_have_their_ranks_above_them(self) -> None:
        frames = [
            ok(rank, result("1"), shown({"text/html": FRAME.format(rank)})) for rank in range(2)
        ]

        html = html_of(*frames)

        assert html.count("display:inline-block;vertical-align:top;margin") == 2
        assert lines(html)[2:] == ["ranks 0, 1", "rank 0", "0", "rank 1", "1"]

    def test_equal_objects_are_shown_once(self) -> None:
        frames = [ok(rank, shown({"text/html": FRAME.format(rank // 2)})) for rank in range(4)]

        seen = words(html_of(*frames))

        assert "ranks 0, 1 " in seen
        assert "ranks 2, 3 " in seen

    @pytest.mark.parametrize(("number", "width"), [(2, 48), (3, 31), (4, 48), (6, 31), (8, 23)])
    def test_images_share_the_width(self, number: int, width: int) -> None:
        html = html_of(*[ok(rank, figure(rank)) for rank in range(number)])

        assert html.count("<img") == html.count(f"max-width:{width}%") == number

    def test_more_than_fit_are_closed(self) -> None:
        num_closed = 3
        frames = [
            ok(rank, shown({"text/html": FRAME.format(rank)}))
            for rank in range(MAX_OPEN_OBJECTS + num_closed)
        ]

        first, rest = html_of(*frames).split("<details>")

        assert first.count("inline-block") == MAX_OPEN_OBJECTS
        assert "3 more" in rest
        assert rest.count("inline-block") == num_closed

    def test_html_of_the_user_cannot_break_the_table(self) -> None:
        html = html_of(
            ok(0, shown({"text/html": "</table></div>broken", "text/plain": "whole"})),
            ok(1, shown({"text/html": "<div><b>open", "text/plain": "open"})),
        )

        assert "broken" not in html
        assert "whole" in html
        assert "<b>open</b></div>" in html


def test_scalars_become_a_table() -> None:
    html = html_of(ok(0, result("1.5", 1.5)), ok(1, result("20.0", 20.0)))

    assert "rank 0  1.5\nrank 1 20.0" in words(html).replace("  rank", "rank")
    assert lines(html)[2:] == ["min 1.5 (rank 0)", "mean 10.75", "max 20.0 (rank 1)"]


def test_there_is_room_between_what_was_printed_and_the_table() -> None:
    def num_rows(*printed: Text) -> int:
        ranks = [ok(rank, *printed, result(f"{rank}.5", rank + 0.5)) for rank in range(2)]
        return html_of(*ranks).count("<tr")

    assert num_rows() == 2  # values and totals
    assert num_rows(stdout("begin\n")) == 4
    assert "padding:7px" in html_of(ok(0, stdout("a"), result("1", 1)), ok(1, result("2", 2)))


def test_errors_come_first_then_who_waited_then_the_output() -> None:
    ranks = [failed(0, waited(1)), failed(1, value_error("bad"), stdout("step 1"))]

    seen = " ".join(lines(html_of(*ranks)))

    assert seen.index("ValueError") < seen.index("rank 0 waited for rank 1") < seen.index("step 1")


def test_collectives_are_the_last_line() -> None:
    html = render_html(lay_out([failed(0, value_error("bad"))], calls=CALLS))

    assert lines(html)[-1] == "3 × all_reduce (1.2 KiB) · group world"


@every_cell
def test_nothing_in_it_needs_a_script_or_a_style_sheet(ranks: list[RankOutput]) -> None:
    html = html_of(*ranks)

    assert not re.search(r"<(script|style|svg|iframe|link)|\son\w+=|javascript:|var\(", html)


@every_cell
def test_every_style_survives_the_sanitiser(ranks: list[RankOutput]) -> None:
    assert lost_rules(html_of(*ranks)) == []


# A colour comes whole: half of one hides what follows it, in a terminal too.
COLOURED = st.lists(st.sampled_from([*"ab 1<&\n[3m", "\x1b[3m"])).map("".join)
WRITTEN = COLOURED.map(stdout) | st.text("ab 1\n").map(stderr)
OUTPUT = (
    WRITTEN
    | st.text("ab 1<&\n", min_size=1).map(result)
    | st.sampled_from([result("1", 1), result("2", 2), figure(0), figure(1), Dropped(1)])
)
RANKS = st.lists(
    st.builds(
        RankOutput,
        rank=st.integers(0, 99),
        status=st.sampled_from(["ok", "error", "stopped", "dead"]),
        outputs=st.lists(OUTPUT, max_size=4).map(tuple),
        error=st.sampled_from([None, value_error("a\nb"), value_error("<c>"), waited(0)]),
    ),
    unique_by=lambda output: output.rank,
)


@given(RANKS)
def test_whatever_ranks_put_out_can_be_shown(ranks: list[RankOutput]) -> None:
    bundle = render(ranks)

    assert bundle == render(ranks[::-1])
    html = bundle.get("text/html", "")
    for output in (output for rank in ranks for output in rank.outputs):
        if isinstance(output, Text):
            for word in re.findall("[ab]+", strip_ansi(settle(output.text))):
                assert word in words(html)


@every_cell
def test_tags_are_closed(ranks: list[RankOutput]) -> None:
    html = html_of(*ranks)

    for tag in ("div", "table", "tbody", "tr", "td", "pre", "span", "details", "summary", "b"):
        assert len(re.findall(f"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag


@every_cell
def test_both_forms_say_the_same(ranks: list[RankOutput]) -> None:
    bundle = render(ranks)

    said = " ".join(words(bundle["text/html"]).replace(": ", " ").split())
    for line in bundle["text/plain"].split("\n"):
        fact = re.sub(r"^\[rank[^]]*\] (stderr: )?\s*", "", line).replace(": ", " ")
        if not re.fullmatch("<(image/png|Figure)>", fact):
            assert " ".join(fact.split()) in said
