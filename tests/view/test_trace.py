from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from nbdist.errors import UsageError
from nbdist.view.trace import HEADINGS, Trace, describe_seconds
from nbdist.wire import RankTrace, TracedCell
from tests.view.build import lost_rules
from tests.view.traces import START, cell, given_up, held, issued, late, rank_trace, site, traced

EVEN = [[held(site(), 1, 0.1, 0.1, 0.2)] for _ in range(4)]


def rows_of(text: str) -> list[list[str]]:
    """Return the rows of the table in *text*, cell by cell."""
    lines = text.splitlines()
    [top] = [place for place, line in enumerate(lines) if line.lstrip().startswith("#")]
    places = [re.search(rf"(?<!\S){re.escape(name)}(?!\S)", lines[top]) for name in HEADINGS]
    assert all(places)
    table = [re.split(r"\s{2,}", line.strip()) for line in lines[top + 1 :]]
    return [row for row in table if len(row) >= len(HEADINGS) - 1]


# In words ----------------------------------------------------------------------------------------


def test_the_straggler_is_named_with_who_waited_and_where() -> None:
    assert late(2).verdict == (
        "rank 2 was waited for 1.8 s of 2.1 s (ranks 0, 1, 3), mostly at In[12]:7"
    )


def test_a_cell_in_which_all_came_together_has_no_straggler() -> None:
    assert cell(*EVEN).verdict == "no rank held up the others in 2.0 s"


def test_little_waiting_in_a_long_cell_is_no_news() -> None:
    assert late(2, by=0.02).stragglers == ()
    assert [one.rank for one in late(2, by=0.03).stragglers] == [2]


def test_ranks_that_take_turns_in_being_late_are_named_together() -> None:
    at = site(ranks=(0, 1))
    found = cell(
        [held(at, 1, 0.0, 0.8, 0.9), held(at, 2, 1.5, 1.5, 1.6)],
        [held(at, 1, 0.8, 0.8, 0.9), held(at, 2, 1.0, 1.5, 1.6)],
    )

    assert found.verdict == (
        "the ranks waited for one another: 800 ms for rank 1, 500 ms for rank 0, of 2.0 s"
    )


def test_a_rank_that_never_came_is_named() -> None:
    at = site(ranks=(0, 1))

    assert cell([given_up(at, 1, 0.5, 2.0)], []).verdict == (
        "rank 1 was waited for 1.5 s of 2.0 s (rank 0), mostly at In[12]:7"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.34, "12 s"),
        (9.96, "10 s"),
        (1.84, "1.8 s"),
        (0.24, "240 ms"),
        (0.0012, "1.2 ms"),
        (35e-6, "35 µs"),
        (0.0, "0 µs"),
    ],
)
def test_seconds_are_told_with_two_digits(seconds: float, text: str) -> None:
    assert describe_seconds(seconds) == text


# Which cell --------------------------------------------------------------------------------------


def of_cells(rank: int, *cells: tuple[str, float, bool]) -> RankTrace:
    """Return what *rank* knows of cells: label, begin, whether it called anything."""
    found = [
        TracedCell(label, label, START + at, START + at + 1, int(has)) for label, at, has in cells
    ]
    at = site(ranks=(0, 1))
    calls = [
        held(at, number, begin, begin, begin + 0.1)._replace(cell_id=label)
        for number, (label, begin, has) in enumerate(cells, 1)
        if has
    ]
    known = tuple(label for label, _, has in cells if has)
    return RankTrace(rank, "on", START + 99, tuple(found), tuple(calls), known)


def test_the_last_cell_is_the_last_that_called_any_on_some_rank() -> None:
    cells = [("In[3]", 1.0, True), ("In[5]", 3.0, True), ("In[6]", 5.0, False)]
    trace = Trace({0: of_cells(0, *cells), 1: of_cells(1, cells[0], ("In[5]", 3.0, False))}, 2)

    found = trace.last()

    assert found is not None
    assert found.label == "In[5]"
    assert sorted(found.cells) == [0, 1]  # a rank that called nothing took part all the same
    assert [len(of_rank.calls) for of_rank in found.traces.values()] == [1, 0]


def test_a_cell_is_found_by_its_label() -> None:
    trace = Trace({0: of_cells(0, ("In[3]", 1.0, True), ("In[5]", 3.0, True))}, 2)

    assert trace.labelled("In[3]").label == "In[3]"


def test_of_cells_with_one_label_the_last_is_meant() -> None:
    trace = Trace({0: of_cells(0, ("In[3]", 1.0, True), ("In[3]", 3.0, True))}, 2)

    assert trace.labelled("In[3]").began == START + 3.0


def test_a_cell_without_calls_is_answered_with_those_that_have_some() -> None:
    trace = Trace({0: of_cells(0, ("In[3]", 1.0, True), ("In[4]", 3.0, False))}, 2)

    with pytest.raises(UsageError, match=r"No calls of In\[4\].*\nCells with calls: In\[3\]\."):
        trace.labelled("In[4]")


def test_nothing_recorded_says_why() -> None:
    off = RankTrace(0, "off", START)
    on = RankTrace(0, "on", START)

    assert "the guard is off" in Trace({0: off}, 2).nothing()
    assert "one rank" in Trace({0: on}, 1).nothing()
    assert Trace({0: on}, 2).nothing() == "No cell has called a collective yet."
    assert Trace({0: on}, 2).last() is None
    with pytest.raises(UsageError, match="No cell has called"):
        Trace({0: on}, 2).labelled("In[3]")


def test_a_trace_shows_its_last_cell() -> None:
    trace = traced(*EVEN)

    assert repr(trace) == "<Trace of 4 ranks, 4 calls>"
    assert trace._repr_mimebundle_()["text/plain"].startswith("In[12] · ranks 0–3 · 1 call\n")
    assert Trace({}, 2)._repr_mimebundle_() == {"text/plain": "<Trace of 0 ranks, 0 calls>"}


# The table ---------------------------------------------------------------------------------------


def test_a_row_has_all_that_is_known_of_a_call() -> None:
    text = late(2).render()["text/plain"]

    assert text.splitlines()[:2] == ["In[12] · ranks 0–3 · 1 call", late(2).verdict]
    [row] = rows_of(text)
    assert row == [
        "1",
        "all_reduce",
        "world",
        "float32[1000], sum",
        "3.9 KiB",
        "100 ms",
        "1.8 s for rank 2 (ranks 0, 1, 3)",
        "40 kB/s",  # 4000 B in 0.1 s
        "60 kB/s",  # × 2 · 3 / 4
        "In[12]:7",
    ]


def test_calls_of_one_line_are_one_row() -> None:
    calls = [held(site(), n, n / 10, n / 10, n / 10 + 0.05) for n in range(1, 11)]

    [row] = rows_of(cell(calls, calls, calls, calls).render()["text/plain"])

    assert row[:2] == ["1–10", "10 × all_reduce"]
    assert row[5] == "50 ms"


def test_each_call_has_a_row_when_all_are_wanted() -> None:
    calls = [held(site(), n, n / 10, n / 10, n / 10 + 0.05) for n in range(1, 11)]

    rows = rows_of(cell(calls, calls, calls, calls).render(lists_all=True)["text/plain"])

    assert [row[0] for row in rows] == [str(n) for n in range(1, 11)]


def test_lines_come_in_the_order_of_their_first_calls() -> None:
    calls = [held(site(line=n), n, n / 10, n / 10, n / 10 + 0.05) for n in (1, 2, 3)]

    rows = rows_of(cell(calls, calls, calls, calls).render()["text/plain"])

    assert [row[-1] for row in rows] == ["In[12]:1", "In[12]:2", "In[12]:3"]


def test_of_very_many_lines_those_that_took_longest_are_shown() -> None:
    calls = [held(site(line=n), n, n, n, n + 0.001 * n) for n in range(1, 101)]

    text = cell(calls, calls, calls, calls).render()["text/plain"]

    assert [row[0] for row in rows_of(text)] == [str(n) for n in range(61, 101)]
    assert "60 more rows are left out" in text


def test_ten_thousand_calls_of_many_ranks_are_a_short_table() -> None:
    at = [site(line=line, ranks=tuple(range(8))) for line in (3, 4)]
    calls = [held(at[n % 2], n, n / 1e4, n / 1e4, n / 1e4 + 5e-5) for n in range(1, 10_001)]

    bundle = cell(*[calls] * 8).render()

    assert len(rows_of(bundle["text/plain"])) == 2
    assert len(bundle["text/html"]) < 10_000


def test_groups_are_named_by_their_ranks() -> None:
    half, again = site(ranks=(0, 1), group="1", line=1), site(ranks=(0, 1, 2, 3), group="5", line=2)
    other = site(ranks=(2, 3), group="2", line=1)
    first, second = (
        [held(at, 1, 0.1, 0.1, 0.2), held(again, 1, 0.3, 0.3, 0.4)] for at in (half, other)
    )

    rows = rows_of(cell(first, first, second, second).render()["text/plain"])

    assert [row[2] for row in rows] == ["2 groups of 2", "all ranks (5)"]


def test_a_message_is_one_row_with_both_lines() -> None:
    send = site("send", ranks=(0, 1), kind="p2p", line=3, data="float32[1000]")
    receive = site("recv", ranks=(0, 1), kind="p2p", line=5, data="float32[1000]")

    [row] = rows_of(
        cell([held(send, 1, 0.5, 0.5, 0.6)], [held(receive, 1, 0.1, 0.5, 0.6)]).render()[
            "text/plain"
        ]
    )

    assert (row[1], row[2], row[-1]) == ("send", "0 → 1", "In[12]:3 → In[12]:5")


def test_who_receives_from_anybody_is_so_named() -> None:
    anybody = site("recv", ranks=(1,), kind="p2p")

    [row] = rows_of(cell([], [held(anybody, 0, 0.1, 0.1, 0.6)]).render()["text/plain"])

    assert row[:3] == ["–", "recv", "any → 1"]


def test_a_call_without_data_has_neither_size_nor_bandwidth() -> None:
    at = site("barrier", data="", size_bytes=0, ranks=(0, 1))
    calls = [held(at, 1, 0.1, 0.1, 0.2)]

    [row] = rows_of(cell(calls, calls).render()["text/plain"])

    assert row == ["1", "barrier", "world", "–", "100 ms", "–", "–", "–", "In[12]:7"]


def test_what_is_not_known_of_an_asynchronous_call_is_left_open() -> None:
    calls = [issued(site(), 1, 0.1, wait_began=1.0, wait_ended=1.0)]

    [row] = rows_of(cell(calls, calls, calls, calls).render()["text/plain"])

    assert row[1] == "all_reduce (async)"
    assert row[5:9] == ["–"] * 4


def test_a_gather_of_uneven_parts_has_all_of_them_as_its_size() -> None:
    calls = [
        [held(site("all_gather", ranks=(0, 1), size_bytes=size), 1, 0.1, 0.1, 0.2)]
        for size in (1024, 3072)
    ]

    [row] = rows_of(cell(*calls).render()["text/plain"])

    assert row[4] == "1–3 KiB"
    assert row[7:9] == ["41 kB/s", "20 kB/s"]


# Notes -------------------------------------------------------------------------------------------


def test_the_numbers_are_explained() -> None:
    text = cell(*EVEN).render()["text/plain"]

    assert "inside: from when the last rank had come" in text
    assert "nccl-tests" in text


def test_calls_that_are_forgotten_are_counted() -> None:
    assert "the first 2,000 calls of each rank" in cell(*EVEN, lost=2000).render()["text/plain"]


def test_a_cell_that_still_runs_is_shown_until_now() -> None:
    found = cell(*EVEN, ended=0.0, now=3.0)

    assert found.verdict.endswith("in 3.0 s")
    assert "the cell still runs" in found.notes


def test_ranks_that_did_not_answer_are_named() -> None:
    found = cell(*EVEN[:3], world_size=4)

    assert found.silent == (3,)
    assert "rank 3 did not answer" in found.notes


def test_times_on_cuda_are_told_to_be_those_of_the_cpu() -> None:
    calls = [held(site(data="float32[10] on cuda, sum"), 1, 0.1, 0.1, 0.2)]

    assert any("on CUDA" in note for note in cell(calls, calls, calls, calls).notes)
    assert not any("on CUDA" in note for note in cell(*EVEN).notes)


def test_hints_stand_below() -> None:
    assert cell(*EVEN).render(hints=["buy more memory"])["text/plain"].endswith("\nbuy more memory")


# HTML --------------------------------------------------------------------------------------------


class Facts(HTMLParser):
    """Collects the texts of a page, and what must not be in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag != "script"
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_and_text_have_the_same_facts() -> None:
    bundle = late(2).render(hints=["a < b"])

    page = Facts(bundle["text/html"])
    said = " ".join(page.texts)
    for row in rows_of(bundle["text/plain"]):
        assert all(found in page.texts for found in row)
    for line in (late(2).verdict, *late(2).notes, "a < b", *HEADINGS):
        assert line in said


def test_in_a_narrow_page_words_wrap_and_numbers_do_not() -> None:
    html = late(2).render()["text/html"]

    wraps = re.findall("<td [^>]*white-space:(\\w+)[^>]*>([^<]*)</td>", html)
    assert [said for wrap, said in wraps if wrap == "pre"] == [
        "1",
        "3.9 KiB",
        "100 ms",
        "40 kB/s",
        "60 kB/s",
    ]
    assert {wrap for wrap, _ in wraps} == {"pre", "normal"}
    assert 'style="overflow-x:auto"><table' in html


def test_every_style_survives_the_sanitiser() -> None:
    assert lost_rules(late(2).render()["text/html"]) == []


def test_the_row_with_the_waiting_is_marked_and_no_other() -> None:
    quick = site(line=9, ranks=(0, 1))
    slow = site(line=3, ranks=(0, 1))
    first = [held(slow, 1, 0.1, 1.0, 1.1), held(quick, 2, 1.2, 1.2, 1.3)]
    second = [held(slow, 1, 1.0, 1.0, 1.1), held(quick, 2, 1.2, 1.2, 1.3)]

    rows = cell(first, second).render()["text/html"].split("<tr ")[2:]

    assert ["#a0790a40" in row for row in rows] == [True, False]


def test_what_a_user_has_named_cannot_break_the_page() -> None:
    calls = [held(site(data="<img src=x>", source="<b>.py:3"), 1, 0.1, 0.1, 0.2)]

    html = cell(calls, calls, calls, calls).render()["text/html"]

    assert "<img" not in html
    assert "<b>.py" not in html


def test_the_picture_is_in_the_html_at_half_its_size_and_says_what_it_shows() -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (1728).to_bytes(4, "big") + bytes(16)

    html = late(2).render(image=png)["text/html"]

    assert 'src="data:image/png;base64,iVBORw0KGgo' in html
    assert 'width="864"' in html
    assert html.count(late(2).verdict) == 1  # the picture has it as its title
    assert f'alt="{late(2).verdict}"' in html


def test_a_picture_changes_nothing_in_the_text() -> None:
    png = b"\x89PNG\r\n\x1a\n" + bytes(40)

    assert late(2).render(image=png)["text/plain"] == late(2).render()["text/plain"]


def test_the_same_trace_gives_the_same_bytes() -> None:
    assert late(2).render() == late(2).render()


def test_a_trace_survives_the_border() -> None:
    trace = rank_trace(2, held(site(), 1, 0.1, 0.2, 0.3), issued(site(), 2, 0.4, done=0.5))

    content = trace.to_json()

    assert RankTrace.from_json(content) == trace
    assert len(content["sites"]) == 2
