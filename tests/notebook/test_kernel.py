"""What a person at a real notebook gets: a real kernel, real ranks, a front end made of messages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.notebook.driving import Notebook
from tests.processes import wait_for_end
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """A notebook with two ranks that all tests of this file share."""
    with Notebook() as notebook:
        start_ranks(notebook)
        yield notebook


@pytest.fixture
def own_notebook(run_folder: Path) -> Iterator[Notebook]:
    """A notebook with two ranks for one test alone."""
    with Notebook() as notebook:
        start_ranks(notebook)
        yield notebook


def start_ranks(notebook: Notebook) -> None:
    assert notebook.run("%load_ext nbdist").status == "ok"
    started = notebook.run("%dist start -n 2 device=cpu")
    assert started.status == "ok", started


def ranks_of(notebook: Notebook) -> list[psutil.Process]:
    pids = notebook.value(
        "__import__('nbdist').session().pull('__import__(\"os\").getpid()').stack().tolist()"
    )
    return [psutil.Process(pid) for pid in pids]


# Starting ----------------------------------------------------------------------------------------


def test_a_start_prints_one_line_that_is_the_same_each_time(own_notebook: Notebook) -> None:
    own_notebook.run("%dist stop")

    started = own_notebook.run("%dist start -n 2 device=cpu")

    assert started.kinds == ["stream"]
    assert started.streams == "2 ranks on 1 host · cpu · cpu:gloo · seed 0\n"


def test_the_kernel_never_imports_torch(notebook: Notebook) -> None:
    notebook.run("%%dist -o x\ntorch.ones(3) * rank")
    notebook.run("repr(x)")

    assert notebook.value("'torch' in __import__('sys').modules") is False


def test_the_extension_may_be_loaded_twice(notebook: Notebook) -> None:
    again = notebook.run("%load_ext nbdist")

    assert again.status == "ok"
    assert "already loaded" in again.streams
    assert notebook.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"


def test_starting_again_with_the_same_configuration_does_nothing(notebook: Notebook) -> None:
    before = ranks_of(notebook)

    again = notebook.run("%dist start -n 2 device=cpu")

    assert again.streams == "already running: 2 ranks on 1 host · cpu · cpu:gloo · seed 0\n"
    assert ranks_of(notebook) == before


def test_starting_again_with_another_configuration_names_restart(notebook: Notebook) -> None:
    again = notebook.run("%dist start -n 3 device=cpu")

    assert again.status == "error"
    assert "%dist restart" in again.error
    assert notebook.run("%%dist\nrank").status == "ok"


def test_the_namespace_of_the_notebook_is_left_alone(own_notebook: Notebook) -> None:
    names = "sorted(n for n in globals() if not n.startswith('_'))"
    before = own_notebook.value(names)

    own_notebook.run("%%dist\nx = rank\nprint(x)\nx")
    own_notebook.run("%dist status")
    own_notebook.run("%dist restart")

    assert own_notebook.value(names) == before


# Cells -------------------------------------------------------------------------------------------


def test_a_cell_leaves_one_display_with_html_and_text(notebook: Notebook) -> None:
    cell = notebook.run("%%dist\nprint('one')\ndisplay('two')\nrank * 0")

    assert cell.kinds == ["display_data"]
    [content] = cell.of_kind("display_data")
    assert set(content["data"]) == {"text/html", "text/plain"}
    assert content["data"]["text/plain"] == "[ranks 0, 1] one\n[ranks 0, 1] 'two'\n[ranks 0, 1] 0"


def test_a_cell_that_says_nothing_shows_nothing(notebook: Notebook) -> None:
    assert notebook.run("%%dist\nx = 1").kinds == []


def test_a_failing_cell_shows_its_output_and_one_short_error(notebook: Notebook) -> None:
    cell = notebook.run("%%dist\nprint('before')\n1 / rank")

    assert cell.status == "error"
    assert cell.kinds == ["display_data", "error"]
    assert "ZeroDivisionError" in cell.display
    assert "[rank1] before" in cell.display or "[ranks 0, 1] before" in cell.display
    [error] = cell.of_kind("error")
    assert error["ename"] == "CellFailed"
    assert len(error["traceback"]) == 1
    assert "ZeroDivisionError" in error["evalue"]


def test_the_cell_after_an_error_runs(notebook: Notebook) -> None:
    notebook.run("%%dist\nkept = 7\nraise ValueError('x')")

    assert notebook.run("%%dist\nkept").display == "[ranks 0, 1] 7"


def test_a_syntax_error_is_shown_once_and_nothing_is_sent(notebook: Notebook) -> None:
    notebook.run("%%dist\nreached = False")

    cell = notebook.run("%%dist\nreached = True\nfor")

    assert cell.status == "error"
    assert cell.kinds == ["error"]
    assert cell.error.startswith("SyntaxError")
    assert notebook.run("%%dist\nreached").display == "[ranks 0, 1] False"


# The stop button ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import asyncio; await asyncio.sleep(600)",
        "!sleep 600",
    ],
)
def test_the_stop_button_ends_a_cell_and_the_next_one_works(
    notebook: Notebook, tmp_path: Path, code: str
) -> None:
    pids = ranks_of(notebook)
    running = notebook.begin(f"%%dist\nopen(f'{tmp_path}/{{rank}}', 'w').close()\n{code}")
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to reach the cell")

    notebook.interrupt()
    cell = running.finish(timeout_s=10)

    assert cell.status == "error"
    assert cell.error.startswith("CellStopped")
    assert notebook.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"
    assert ranks_of(notebook) == pids


# The end -----------------------------------------------------------------------------------------


def test_stop_ends_every_process_but_the_kernel(own_notebook: Notebook, run_folder: Path) -> None:
    stopped = own_notebook.run("%dist stop")

    assert stopped.streams == "ranks 0, 1 stopped\n"
    assert [p.pid for p in own_notebook.processes()] == [own_notebook.pid]
    assert list(run_folder.iterdir()) == []


def test_a_restart_of_the_kernel_leaves_nothing_behind(
    own_notebook: Notebook, run_folder: Path
) -> None:
    before = own_notebook.processes()

    own_notebook.restart()

    assert wait_for_end(before, timeout_s=15) == []
    wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")
    assert own_notebook.run("1 + 1").status == "ok"


def test_closing_the_kernel_leaves_nothing_behind(own_notebook: Notebook, run_folder: Path) -> None:
    before = own_notebook.processes()

    own_notebook.close()

    assert wait_for_end(before, timeout_s=15) == []
    wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")


def test_a_killed_kernel_leaves_nothing_behind(own_notebook: Notebook, run_folder: Path) -> None:
    before = own_notebook.processes()

    os.kill(own_notebook.pid, signal.SIGKILL)

    assert wait_for_end(before, timeout_s=15) == []
    wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")
