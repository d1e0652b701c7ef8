"""The log of the live view, in the browser's own JavaScript: what it shows of what was printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from nbdist.notebook.widget import STATIC
from nbdist.view.ansi import ansi_to_html, strip_ansi
from nbdist.view.stream import settle
from tests.browser.lab import Lab

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

LOAD = """async source => {
  const url = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
  window.live = await import(url);
}"""
FEED = """pieces => {
  const log = new window.live.Log();
  for (const [kind, text] of pieces) log.feed(kind, text);
  log.settle();
  return {text: log.text, lost: log.lost, rows: log.rows.map(row => [row.kind, row.spans])};
}"""

Feed = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tab(lab: Lab) -> Iterator[Page]:
    tab = lab.context.new_page()
    tab.goto("about:blank")
    tab.evaluate(LOAD, (STATIC / "live.js").read_text())
    yield tab
    tab.close()


@pytest.fixture
def feed(tab: Page) -> Feed:
    def feed_(*pieces: tuple[str, str]) -> dict[str, Any]:
        found: dict[str, Any] = tab.evaluate(FEED, [list(piece) for piece in pieces])
        return found

    return feed_


TEXTS = [
    "one\ntwo\n\nfour",
    "10%\r 50%\r100%\n",
    "a long line\rshort\n",
    "dots...\b\b!\n",
    "windows\r\nline\r\n",
    "one\ntwo\n\x1b[Aover\n\x1b[2Afirst",
    "to the right\x1b[4Dedge\x1b[K\n",
    "wipe me\x1b[2K\rclean\n",
    "\x1b]0;a title\x07text\x1b[?25l\n",
    "\x1b[31mred \x1b[1mbold\x1b[0m plain\n",
    "col\x1b[20Gumn\ttab\n",
    "bell\x07 and null\x00\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_page_shows_the_same_text_as_the_final_output(feed: Feed, text: str) -> None:
    shown = feed(("stdout", text))["text"]

    assert [line.rstrip() for line in shown.split("\n")] == [
        line.rstrip() for line in strip_ansi(settle(text)).rstrip("\n").split("\n")
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_where_a_text_is_cut_makes_no_difference(feed: Feed, text: str) -> None:
    whole = feed(("stdout", text))

    for cut in range(1, len(text)):
        assert feed(("stdout", text[:cut]), ("stdout", text[cut:])) == whole, cut


@pytest.mark.parametrize(
    "codes", ["31", "1;32", "38;5;208", "48;2;10;20;30", "4;9;97", "7;35", "2;3", "102", "90"]
)
def test_colours_are_those_of_the_final_output(feed: Feed, codes: str) -> None:
    text = f"\x1b[{codes}mword\x1b[0m rest"

    [[_, [[style, word], *rest]]] = feed(("stdout", text))["rows"]

    expected = ansi_to_html(text)
    assert (word, rest[0][1]) == ("word", " rest")
    assert f'<span style="{style["css"]}">word</span> rest' == expected


def test_the_last_five_thousand_lines_stay_and_the_others_are_counted(feed: Feed) -> None:
    text = "".join(f"line {number}\n" for number in range(12_000))

    log = feed(*(("stdout", text[at : at + 999]) for at in range(0, len(text), 999)))

    lines = log["text"].split("\n")
    assert len(lines) == 5000
    assert (lines[0], lines[-1]) == ("line 7000", "line 11999")
    assert log["lost"] == 7000


def test_a_line_without_end_goes_on_in_the_next_row(feed: Feed) -> None:
    rows = feed(("stdout", "x" * 25_000))["rows"]

    assert [len(spans[0][1]) for _, spans in rows] == [10_000, 10_000, 5_000]


def test_streams_do_not_mix_in_one_line(feed: Feed) -> None:
    rows = feed(("stdout", "be"), ("stderr", "warn\n"), ("stdout", "gin\n"))["rows"]

    assert [(kind, spans[0][1]) for kind, spans in rows] == [
        ("stdout", "begin"),
        ("stderr", "warn"),
    ]


def test_a_clear_acts_at_once_or_when_the_next_text_comes(feed: Feed) -> None:
    assert feed(("stdout", "old\n"), ("clear", ""))["text"] == ""
    assert feed(("stdout", "old\n"), ("clear", "wait"))["text"] == "old"
    assert feed(("stdout", "old\n"), ("clear", "wait"), ("stdout", "new"))["text"] == "new"


def test_a_progress_bar_costs_one_row_whatever_stands_between(feed: Feed) -> None:
    pieces = [
        piece for i in range(50) for piece in (("stderr", f"\r{i} %"), ("stdout", f"step {i}\n"))
    ]

    rows = feed(*pieces)["rows"]

    assert [spans[0][1] for kind, spans in rows if kind == "stderr"] == ["49 %"]
    assert len(rows) == 51
