from __future__ import annotations

import re
from html import unescape

from nbdist.view import render
from nbdist.view.html import render_html
from nbdist.view.html_outputs import FIRST_LINES, LAST_LINES, MAX_LINES
from nbdist.view.page import lay_out
from nbdist.wire import CellError, Dropped, RankOutput
from tests.view.build import (
    failed,
    in_cell,
    in_torch,
    ok,
    result,
    shown,
    stderr,
    stdout,
    value_error,
    waited,
)

# What JupyterLab's sanitiser keeps of inline styles; it knows no var(), rgba() or inherit.
SAFE_VALUE = re.compile(r"#[0-9a-f]{6}([0-9a-f]{2})?|-?[\d.]+(px|%)?|[a-z-]+")
PRE = (
    "margin:0;padding:0;border:0;background:transparent;"
    "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;"
)


def html_of(*ranks: RankOutput) -> str:
    return render_html(lay_out(ranks))


def words(html: str) -> str:
    return unescape(re.sub("<[^>]*>", " ", html))


def steps(rank: int, num_lines: int) -> RankOutput:
    return ok(rank, stdout("".join(f"rank {rank} step {i}\n" for i in range(num_lines))))


MANY_KINDS = [
    ok(0, stdout("a <b> \x1b[1;31;42mred\x1b[0m\n" * 200), stderr("careful\n"), Dropped(7)),
    ok(1, shown({"image/png": "AAAA"}), result("1", 1)),
    failed(2, value_error("x < y"), stdout("b\n")),
    failed(3, waited(2)),
    failed(4, CellError("KeyboardInterrupt", "", (in_cell(1),)), status="stopped"),
    failed(5, CellError("E", "", (in_torch(1), in_torch(2)), CellError("F", "g")), status="dead"),
]


def test_all_equal_reads_like_an_ordinary_cell() -> None:
    html = html_of(*[ok(rank, stdout("hello\n")) for rank in range(4)])

    assert html == (
        '<div><div style="opacity:0.65;font-size:11px">ranks 0–3</div>'
        f'<pre style="{PRE}font-family:monospace;font-size:13px;line-height:17px">hello</pre></div>'
    )


def test_eight_short_outputs_take_eight_rows_and_nothing_to_open() -> None:
    html = html_of(*[steps(rank, 1) for rank in range(8)])

    assert html.count("<tr") == html.count("<pre") == 8
    assert "<details" not in html


def test_more_than_four_long_outputs_are_closed_but_the_first() -> None:
    html = html_of(*[steps(rank, 20) for rank in range(8)])

    assert html.count("<details>") == 7
    assert html.index("<details open>") < html.index("<details>")
    assert "20 lines · rank 7 step 19" in html


def test_a_block_of_few_lines_is_not_closed_even_among_long_ones() -> None:
    html = html_of(steps(0, 2), *[steps(rank, 20) for rank in range(1, 8)])

    assert html.count("<details") == 7
    assert html.index("rank 0 step 1") < html.index("<details")


def test_figures_do_not_count_as_lines() -> None:
    figure = shown({"image/png": "AAAA", "text/plain": "<Figure>"})

    html = html_of(*[ok(rank, stdout(f"{rank}\n"), figure) for rank in range(8)])

    assert html.count(">1 line · 1 object</summary>") == 8


def test_the_first_failed_rank_is_open() -> None:
    ranks = [steps(rank, 20) for rank in range(8)]
    ranks[5] = failed(5, value_error("bad"), *ranks[5].outputs)

    html = html_of(*ranks)

    assert html.count("<details open>") == 1
    assert "rank 5 step 0" in html.partition("<details open>")[2].partition("</details>")[0]


def test_a_failed_rank_is_marked_with_a_word() -> None:
    html = html_of(ok(0, stdout("a")), failed(1, value_error("bad"), stdout("b")))

    assert "rank 1   failed" in words(html)


def test_the_beginning_of_a_long_output_is_closed_and_nothing_is_lost() -> None:
    html = html_of(steps(0, 500))

    earlier, last = html.split("</details>")
    assert "480 earlier lines" in earlier
    assert earlier.count("rank 0 step") == 500 - LAST_LINES
    assert last.count("rank 0 step") == LAST_LINES
    assert "\n\n" not in html


def test_an_output_of_just_the_most_lines_is_open() -> None:
    assert "<details" not in html_of(steps(0, MAX_LINES))
    assert "<details" in html_of(steps(0, MAX_LINES + 1))


def test_a_colour_goes_on_where_a_long_output_is_cut() -> None:
    html = html_of(ok(0, stdout("\x1b[31m" + "red\n" * 200)))

    assert html.count('<span style="color:#e0453f">') == 2


def test_a_line_break_at_the_beginning_is_kept() -> None:
    assert ">\n\na</pre>" in html_of(ok(0, stdout("\na")))


def test_stderr_is_marked_by_a_word_and_not_by_colour_alone() -> None:
    assert "stderr" in words(html_of(ok(0, stderr("careful\n"))))


def test_a_preview_is_escaped_and_cut() -> None:
    ranks = [ok(rank, stdout("x\n" * 20 + f"{rank} <b>" + "y" * 200)) for rank in range(8)]

    html = html_of(*ranks)

    assert "21 lines · 1 &lt;b&gt;yyy" in html
    assert "y…</summary>" in html


def test_html_of_the_user_cannot_break_the_table() -> None:
    html = html_of(
        ok(0, shown({"text/html": "</table></div>broken", "text/plain": "whole"})),
        ok(1, shown({"text/html": "<div><b>open", "text/plain": "open"})),
    )

    assert "broken" not in html
    assert "whole" in html
    assert "<b>open</b></div>" in html


def test_scalars_become_a_table() -> None:
    html = html_of(ok(0, result("1", 1)), ok(1, result("2", 2)))

    assert html.count("<tr") == 2
    assert "min 1 (rank 0) · mean 1.5 · max 2 (rank 1)" in html


def test_errors_stand_below_the_output_and_waiting_ranks_below_them() -> None:
    seen = words(html_of(failed(0, waited(1)), failed(1, value_error("bad"), stdout("step 1"))))

    assert seen.index("step 1") < seen.index("ValueError") < seen.index("rank 0 waited for rank 1")


def test_nothing_in_it_needs_a_script_or_a_style_sheet() -> None:
    html = html_of(*MANY_KINDS)

    assert not re.search(r"<(script|style|svg|iframe|link)|\son\w+=|javascript:|var\(", html)


def test_every_style_survives_the_sanitiser() -> None:
    html = html_of(*MANY_KINDS)

    for style in set(re.findall('style="([^"]*)"', html)):
        for rule in style.split(";"):
            values = rule.partition(":")[2].split()
            assert values, rule
            assert all(SAFE_VALUE.fullmatch(value) for value in values), rule


def test_tags_are_closed() -> None:
    html = html_of(*MANY_KINDS)

    for tag in ("div", "table", "tbody", "tr", "td", "pre", "span", "details", "summary", "b"):
        assert len(re.findall(f"<{tag}[ >]", html)) == html.count(f"</{tag}>"), tag


def test_both_forms_say_the_same() -> None:
    bundle = render(MANY_KINDS)

    said = words(bundle["text/html"])
    for line in bundle["text/plain"].replace("[rank1] <image/png>\n", "").split("\n"):
        fact = re.sub(r"^\[rank[^]]*\] (stderr: )?\s*", "", line).replace(": ", " ")
        assert " ".join(fact.split()) in " ".join(said.replace(": ", " ").split())
