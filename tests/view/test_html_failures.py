from __future__ import annotations

import re
from html import unescape

from nbdist.view.elements import AMBER, RED, Row
from nbdist.view.failures import group_failures
from nbdist.view.html import render_html
from nbdist.view.html_failures import MAX_MESSAGES, failure_rows
from nbdist.view.page import lay_out
from nbdist.wire import CallCount, CellError, RankOutput
from tests.view.build import failed, in_cell, stdout, value_error, waited


def rows_of(*ranks: RankOutput) -> list[Row]:
    failures = group_failures(ranks)
    return list(failure_rows(failures.causes, failures.waiting))


def said(row: Row) -> tuple[str, str]:
    """Return whose *row* is, and what it says."""
    return row.labels[0].text, unescape(re.sub("<[^>]*>", "", row.content.replace("</pre>", "\n")))


def test_a_cause_says_what_was_raised_and_where() -> None:
    [row] = rows_of(failed(1, value_error("bad <batch>")))

    assert said(row) == (
        "rank 1",
        "ValueError: bad <batch>\n"
        "In[3]:9  in <module>\n    train()\nIn[3]:4  in step\n    raise ValueError(message)\n",
    )
    assert row.color == RED


def test_ranks_that_only_waited_are_one_line() -> None:
    rows = rows_of(
        *[failed(rank, value_error("x") if rank == 1 else waited(1)) for rank in range(4)]
    )

    assert [said(row) for row in rows[1:]] == [("ranks 0, 2, 3", "waited for rank 1 (In[3]:6)")]


def test_messages_that_differ_are_told_by_rank_and_the_way_once() -> None:
    rows = rows_of(*[failed(rank, value_error(f"label {11 + rank}")) for rank in range(2)])

    assert [said(row)[0] for row in rows] == ["rank 0", "rank 1", "ranks 0, 1"]
    assert [re.findall("<b [^>]*>(.*?)</b>", row.content) for row in rows] == [["11"], ["12"], []]
    assert rows[2].content.count("train()") == 1


def test_many_messages_are_folded_and_none_is_lost() -> None:
    rows = rows_of(*[failed(rank, CellError("E", f"number {rank * 3}")) for rank in range(64)])

    assert len(rows) == MAX_MESSAGES + 1
    assert rows[-1].labels[0].text == f"ranks {MAX_MESSAGES}–63"
    assert said(rows[-1])[1].startswith("56 more messages")
    assert all(f"E: number {rank * 3}" in "".join(said(r)[1] for r in rows) for rank in range(64))


def test_the_way_to_the_root_cause_is_open_and_to_the_others_closed() -> None:
    other = CellError("KeyError", "'x'", (in_cell(5, "d[x]"),))

    first, second, _ = rows_of(
        failed(0, other), failed(1, value_error("bad")), failed(2, waited(1))
    )

    assert said(first)[0] == "rank 1"
    assert "<details" not in first.content
    assert said(second) == ("rank 0", "KeyError: 'x'\nIn[3]:5In[3]:5  in <module>\n    d[x]\n")
    assert "<details><summary" in second.content


def test_a_stop_has_another_colour_and_says_so() -> None:
    error = CellError("KeyboardInterrupt", "", (in_cell(2, "time.sleep(60)"),))

    [row] = rows_of(failed(0, error, status="stopped"))

    assert said(row)[1].startswith("stopped\n")
    assert row.color == AMBER


def test_the_rank_that_held_up_stopped_ranks_is_open_and_those_that_waited_are_folded() -> None:
    def stopped(line: int) -> CellError:
        return CellError("KeyboardInterrupt", "", (in_cell(line, "x"),))

    calls = {rank: [CallCount("barrier", "0", (0, 1, 2), 1, 0)] for rank in (0, 2)}
    ranks = [failed(r, stopped(4 if r == 1 else 8), status="stopped") for r in range(3)]

    html = render_html(lay_out(ranks, calls=calls))

    assert html.index("In[3]:4") < html.index("<details>") < html.index("In[3]:8")


def test_a_death_says_how_and_what_the_rank_wrote_at_last() -> None:
    error = CellError("RankDied", "killed by SIGKILL")

    [row] = rows_of(failed(2, error, stdout("step 1\nstep <2>\n"), status="dead"))

    assert said(row) == (
        "rank 2",
        "died: killed by SIGKILL\nits last lines:\n    step 1\n    step <2>\n",
    )


def test_an_earlier_error_that_differs_is_told_by_rank() -> None:
    ranks = [
        failed(rank, CellError("E", "", (in_cell(2),), cause=CellError("KeyError", f"'{rank}'")))
        for rank in range(2)
    ]

    [row] = rows_of(*ranks)

    assert "rank 0 caused by KeyError: '0'\nrank 1 caused by KeyError: '1'" in said(row)[1]
