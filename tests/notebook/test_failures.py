"""What a person at a notebook sees and does when things fail; the ranks keep all they have."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.driving import Notebook

pytestmark = pytest.mark.ranks

HANG_S = 5.0  # until the monitor has seen one: nobody can ask a kernel that is busy
TOTAL = "%%dist\ntotal = torch.ones(1)\ndist.all_reduce(total)\ntotal.item()"


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """A notebook with three ranks that soon call a hang one."""
    with Notebook() as notebook:
        start(notebook)
        yield notebook


@pytest.fixture
def own_notebook(run_folder: Path) -> Iterator[Notebook]:
    with Notebook() as notebook:
        start(notebook)
        yield notebook


def start(notebook: Notebook, *options: str) -> None:
    assert notebook.run("%load_ext nbdist").status == "ok"
    words = ["%dist start -n 3 device=cpu hang.after_s=1", *options]
    assert notebook.run(" ".join(words)).status == "ok"


def assert_it_works(notebook: Notebook, num_ranks: int = 3) -> None:
    cell = notebook.run(TOTAL)
    assert f"{num_ranks}.0" in cell.display, cell


def test_the_cause_is_shown_and_those_who_waited_are_one_line(notebook: Notebook) -> None:
    cell = notebook.run("%%dist\nif rank == 1: raise ValueError('bug')\ndist.barrier()")

    assert cell.status == "error"
    assert "rank 1" in cell.error
    assert "ValueError on rank 1" in cell.error
    assert cell.display.count("ValueError: bug") == 1
    assert "ranks 0, 2 waited for rank 1 in barrier" in cell.display
    assert_it_works(notebook)


def test_a_mismatch_shows_both_calls_and_their_lines(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%dist\nif rank == 0:\n    dist.all_reduce(torch.ones(5))\n"
        "else:\n    dist.all_reduce(torch.ones(6))"
    )

    assert cell.status == "error"
    for text in ("float32[5]", "float32[6]", ":3", ":5"):
        assert text in cell.display
    assert_it_works(notebook)


def test_a_hang_is_explained_and_the_stop_button_ends_it(notebook: Notebook) -> None:
    running = notebook.begin(
        "%%dist\nimport time\ndef load_batch():\n    time.sleep(600)\n"
        "if rank == 1: load_batch()\ndist.barrier()"
    )
    time.sleep(HANG_S)

    notebook.interrupt()
    cell = running.finish(timeout_s=10)

    assert cell.error.startswith("CellStopped")
    assert "It was stopped in this: ranks 0, 2 wait in barrier" in cell.display
    assert "rank 1 sleeps in time.sleep" in cell.display
    assert_it_works(notebook)


def test_a_hang_in_the_background_is_told_under_its_cell(notebook: Notebook) -> None:
    running = notebook.begin(
        "%%dist -a\nimport time\nif rank == 1: time.sleep(600)\ndist.barrier()"
    )
    assert running.finish().status == "ok"

    notebook.run("run = _")
    notebook.run("import time\nwhile run.hang is None: time.sleep(0.1)\ntime.sleep(1)")
    under_its_cell = running.finish().streams
    notebook.run("run.cancel()")

    assert "ranks 0, 2 wait in barrier" in under_its_cell
    assert_it_works(notebook)


def test_a_cell_of_some_ranks_that_needs_all_ends_by_itself(notebook: Notebook) -> None:
    cell = notebook.run("%%dist 0\ndist.barrier()")

    assert "CollectiveError on rank 0" in cell.error
    assert "ranks 1, 2 were not given this cell" in cell.display
    assert "`%%dist all`" in cell.display
    assert_it_works(notebook)


def test_a_call_to_which_nobody_can_come_ends_by_itself(notebook: Notebook) -> None:
    notebook.run("%%dist\nkept = rank")
    cell = notebook.run("%%dist\nif rank: dist.all_reduce(torch.ones(3))")

    label = f"In[{cell.reply['execution_count']}]"
    assert "CollectiveError on ranks 1, 2" in cell.error
    assert cell.display.count("ranks 1, 2 wait in all_reduce #") == 1
    assert f" at {label}:2; rank 0 has ended this cell\n" in cell.display
    assert notebook.run("%%dist\n[kept == rank]").display == "[ranks 0–2] [True]"
    assert_it_works(notebook)


def test_a_call_in_the_background_waits_for_the_next_cell(notebook: Notebook) -> None:
    notebook.run("%%dist 1,2 -a\ndist.all_reduce(torch.ones(1))")
    notebook.run("import time\ntime.sleep(2)")

    assert notebook.run("%%dist 0\ndist.all_reduce(torch.ones(1))").status == "ok"
    assert_it_works(notebook)


def test_with_the_action_stop_a_hang_ends_by_itself(own_notebook: Notebook) -> None:
    own_notebook.run("%dist stop")
    start(own_notebook, "hang.action=stop")

    cell = own_notebook.run("%%dist\nimport time\nif rank == 0: time.sleep(600)\ndist.barrier()")

    assert cell.error.startswith("CellStopped")
    assert "ranks 1, 2 wait in barrier" in cell.display
    assert_it_works(own_notebook)


def test_one_collective_fewer_is_told_at_once(notebook: Notebook) -> None:
    cell = notebook.run("%%dist\nif rank: dist.all_reduce(torch.ones(3), async_op=True)")

    assert cell.status == "ok"
    assert "rank 0 ran one collective fewer than ranks 1, 2" in cell.display
    assert notebook.run("%%dist 0\ndist.all_reduce(torch.ones(3))").status == "ok"
    assert_it_works(notebook)


def test_a_dead_rank_is_replaced_and_gets_what_the_others_have(own_notebook: Notebook) -> None:
    own_notebook.run("%%dist\nweights = torch.arange(4.0)\nmine = rank")
    died = own_notebook.run("%%dist\nif rank == 1: import os; os._exit(3)\ndist.barrier()")

    recovered = own_notebook.run("%dist recover")

    assert died.status == "error"
    assert "exited with code 3" in died.display
    assert recovered.status == "ok"
    assert "rank 1 replaced" in recovered.streams
    assert "weights" in recovered.streams
    assert "mine (differs between ranks)" in recovered.streams
    assert own_notebook.run("%%dist\nweights.sum().item()").display == "[ranks 0–2] 6.0"
    assert_it_works(own_notebook)


def test_with_recover_auto_the_next_cell_has_all_ranks(own_notebook: Notebook) -> None:
    own_notebook.run("%dist stop")
    start(own_notebook, "recover=auto")

    died = own_notebook.run("%%dist\nif rank == 2: import os; os.kill(os.getpid(), 9)")

    assert died.status == "error"
    assert "rank 2 replaced" in died.streams
    assert_it_works(own_notebook)


def test_one_rank_can_be_restarted(own_notebook: Notebook) -> None:
    own_notebook.run("%%dist\nkept = 1")

    restarted = own_notebook.run("%dist restart --ranks 2")

    assert "rank 2 replaced" in restarted.streams
    assert own_notebook.run("%%dist\nkept").display == "[ranks 0–2] 1"
    assert_it_works(own_notebook)


def test_replicas_are_compared_and_repaired(notebook: Notebook) -> None:
    notebook.run("%%dist\nw = torch.zeros(4)\nif rank == 2: w[1] = 5")

    differ = notebook.run("%dist check w")
    repaired = notebook.run("%dist check w --repair --from 0")
    equal = notebook.run("%dist check w")

    assert "rank 2" in differ.display
    assert "set to" in repaired.display
    assert "equal on ranks 0–2" in equal.display
    assert "--from" in notebook.run("%dist check w --repair").error


def test_the_guard_is_switched_for_all_ranks(notebook: Notebook) -> None:
    assert "guard off" in notebook.run("%dist guard off").display
    assert_it_works(notebook)
    assert "guard on" in notebook.run("%dist guard on").display
    assert_it_works(notebook)
