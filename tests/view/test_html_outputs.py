from __future__ import annotations

import re
from html import unescape

from nbdist.view.fold import Block
from nbdist.view.html_outputs import (
    FIRST_LINES,
    LAST_LINES,
    MAX_LINES,
    closed_html,
    height,
    outputs_html,
)
from nbdist.wire import Dropped
from tests.view.build import png, result, shown, stderr, stdout

FIGURE = shown({"image/png": png("AAAA"), "text/plain": "<Figure>"})


def html_of(*outputs: object) -> str:
    return outputs_html(Block((0,), outputs))  # type: ignore[arg-type]  # any Shown will do


def steps(number: int) -> str:
    return "".join(f"step {i}\n" for i in range(number))


def words(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", html))


def test_text_is_shown_as_it_is() -> None:
    assert words(html_of(stdout("a <b>\n  c\n"))) == "a <b>\n  c"


def test_a_line_break_at_the_beginning_is_kept() -> None:
    assert ">\n\na</pre>" in html_of(stdout("\na"))


def test_stderr_is_marked_by_a_word_and_not_by_colour_alone() -> None:
    assert words(html_of(stderr("careful\n"))) == "stderr careful"


def test_the_middle_of_a_long_output_is_closed_and_nothing_is_lost() -> None:
    html = html_of(stdout(steps(500)))

    first, closed, last = re.split("</?details>", html)
    assert words(first).split("\n") == steps(FIRST_LINES).splitlines()
    assert words(last).split("\n") == steps(500).splitlines()[-LAST_LINES:]
    assert "480 of 500 lines · 4.1 KiB" in closed
    assert closed.count("step") == 500 - FIRST_LINES - LAST_LINES


def test_an_output_of_just_the_most_lines_is_open() -> None:
    assert "<details" not in html_of(stdout(steps(MAX_LINES)))
    assert "<details" in html_of(stdout(steps(MAX_LINES + 1)))


def test_a_long_stderr_is_marked_in_all_its_pieces() -> None:
    assert words(html_of(stderr(steps(200)))).count("stderr") == 3


def test_colours_go_on_where_a_long_output_is_cut() -> None:
    html = html_of(stdout("\x1b[31m" + "red\n" * 200))

    assert html.count('<span style="color:#e0453f">') == 3


def test_a_colour_that_ends_in_the_middle_does_not_go_on() -> None:
    html = html_of(stdout("\x1b[31m" + "red\n" * 50 + "\x1b[0m" + "plain\n" * 50 + "\n"))

    assert html.count('<span style="color:#e0453f">') == 2


def test_a_gap_is_counted() -> None:
    assert words(html_of(Dropped(1000))) == "… 1,000 bytes of output are left out here …"


def test_the_height_is_that_of_what_stands_open() -> None:
    assert height(Block((0,), (stdout("a\nb\n"), Dropped(1), result("c")))) == 4
    assert height(Block((0,), (stdout(steps(1000)),))) == FIRST_LINES + LAST_LINES + 1
    assert height(Block((0,), (FIGURE,))) > 10


def test_a_closed_block_says_how_much_it_holds_and_how_it_begins_and_ends() -> None:
    html = closed_html(Block((0,), (stdout(steps(2000)),)))

    title, rest = html.split("</summary>")
    assert words(title) == "2,000 lines · 18 KiBstep 0 … step 1999"
    assert words(rest) == steps(2000).removesuffix("\n")
    assert html.count("<details") == 1


def test_a_closed_block_counts_objects() -> None:
    title = closed_html(Block((0,), (stdout("a\n"), FIGURE, FIGURE))).split("</summary>")[0]

    assert words(title) == "1 line · 2 objects · 2 Ba"


def test_a_closed_figure_has_no_lines_and_no_size() -> None:
    assert words(closed_html(Block((0,), (FIGURE,)))) == "1 object"


def test_a_preview_is_escaped_cut_and_without_colours() -> None:
    text = stdout("\n\x1b[31m<b>\x1b[0m\n" + "y" * 200 + "\n\n")

    title = closed_html(Block((0,), (text,))).split("</summary>")[0]

    assert "&lt;b&gt; … yyy" in title
    assert title.endswith("y…</code>")
