"""What is printed in the cells of a notebook arrives there, every line. Real kernel, real ranks."""

from __future__ import annotations

import html
import re
from collections import Counter

import pytest

from tests.notebook.driving import Cell, Notebook
from tests.sessions.mixed_cells import NUM_LINES, SETUP, has_figure, has_widget, lines_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

NUM_CELLS = 100  # for each way of following a cell
BAR = f"steps {NUM_LINES}/{NUM_LINES}"
LABEL = re.compile(r"\[rank(?:s (\d), (\d)|(\d))\] (.*)")
LONG = "x" * 30
NUM_LONG = 60_000  # lines, on each of the ranks: more than a page shows


def lines_by_rank(text: str) -> dict[int, list[str]]:
    """Take apart what a cell left as text: each line says whose it is."""
    found: dict[int, list[str]] = {0: [], 1: []}
    for line in text.splitlines():
        if match := LABEL.fullmatch(line):
            *labelled, said = match.groups()
            for rank in filter(None, labelled):
                found[int(rank)].append(said)
    return found


def printed(cell: Cell) -> dict[int, list[str]]:
    """Return the lines that came of each rank: those that were streamed, then the display's."""
    displays = [str(content["data"]["text/plain"]) for content in cell.of_kind("display_data")]
    return lines_by_rank("\n".join([cell.streams, *displays]))


def in_html(cell: Cell) -> str:
    contents = [content["data"].get("text/html", "") for content in cell.of_kind("display_data")]
    return html.unescape(re.sub(r"<[^>]*>", "", "".join(contents)))


@pytest.mark.parametrize("live", ["auto", "lines"])
def test_cells_of_mixed_output_lose_no_line_in_a_notebook(live: str) -> None:
    with Notebook(env={"NBDIST_LIVE": live}) as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        assert notebook.run("%dist start -n 2 device=cpu").status == "ok"
        assert notebook.run(f"%%dist\n{SETUP}").status == "ok"
        for number in range(NUM_CELLS):
            cell = notebook.run(f"%%dist\nmixed({number})", page=True)

            assert cell.status == "ok"
            assert "Traceback" not in str(cell.outputs)
            check(cell, number, is_streamed=live == "lines")


def check(cell: Cell, number: int, *, is_streamed: bool) -> None:
    wanted = Counter(lines_of(number))
    for lines in printed(cell).values():
        assert Counter(line for line in lines if line in wanted) == wanted
        assert any(line.startswith(BAR) for line in lines)
        assert ("IntSlider(value=0)" in lines) == has_widget(number)
        assert any("<Figure" in line for line in lines) == has_figure(number)
    if not is_streamed:
        shown = in_html(cell)
        assert [line for line in wanted if line not in shown] == []


def test_what_a_page_leaves_out_is_said_and_in_the_log() -> None:
    with Notebook() as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        assert notebook.run("%dist start -n 2 device=cpu").status == "ok"

        cell = notebook.run(f"%%dist\nfor i in range({NUM_LONG}): print('line', i, {LONG!r})")
        log = notebook.run(f"%dist log In[{cell.reply['execution_count']}]")

    assert "bytes of output are left out here" in cell.display
    assert cell.display.endswith("\nWhat is left out is in `%dist log`.")
    assert len(printed(cell)[0]) < NUM_LONG
    wanted = [f"line {number} {LONG}" for number in range(NUM_LONG)]
    assert printed(log) == {0: wanted, 1: wanted}
