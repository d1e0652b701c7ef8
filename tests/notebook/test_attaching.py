"""A notebook whose kernel is killed, and the one that takes its ranks. Real kernels, real ranks."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdist.folder import SessionFolder
from nbdist.sessions.leases import waiting
from tests.notebook.driving import Notebook
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks


@pytest.fixture
def lost(run_folder: Path) -> Iterator[Notebook]:
    """A notebook with two ranks, to be killed."""
    with Notebook() as notebook:
        notebook.run("%load_ext nbdist")
        started = notebook.run("%dist start -n 2 device=cpu")
        if started.status != "ok":
            pytest.fail(f"the ranks did not start:\n{started.error}")
        yield notebook


@pytest.fixture
def other() -> Iterator[Notebook]:
    """A notebook without ranks."""
    with Notebook() as notebook:
        notebook.run("%load_ext nbdist")
        yield notebook


def kill(notebook: Notebook, root: Path) -> SessionFolder:
    """Kill the kernel; return its session when that waits for another one."""
    os.kill(notebook.pid, signal.SIGKILL)
    wait_until(lambda: waiting(root), "the lease to begin")
    return waiting(root)[0].folder


def test_another_notebook_goes_on_where_the_killed_one_was(
    lost: Notebook, other: Notebook, run_folder: Path, tmp_path: Path
) -> None:
    lost.run("%%dist\nkept = rank + 5")
    lost.begin(
        f"%%dist\nimport os, time\nprint('one', rank)\nopen(f'{tmp_path}/{{rank}}', 'w').close()\n"
        f"while not os.path.exists('{tmp_path}/go'): time.sleep(0.01)\nprint('two')"
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to be busy")
    kill(lost, run_folder)
    (tmp_path / "go").touch()

    attached = other.run("%dist attach")

    assert attached.status == "ok"
    assert attached.streams == "attached: 2 ranks on 1 host · cpu · cpu:gloo · seed 0\n"
    assert attached.display == "[rank0] one 0\n[rank1] one 1\n[ranks 0, 1] two"
    assert other.value("list(__import__('nbdist').session().pull('kept'))") == [5, 6]
    assert other.run("%%dist\nnbdist.all_reduce(1)").display.startswith("[ranks 0, 1] 2\n")


def test_a_cell_that_came_back_is_stopped_by_the_button(
    lost: Notebook, other: Notebook, run_folder: Path, tmp_path: Path
) -> None:
    lost.begin(
        f"%%dist\nprint('begun', flush=True)\nopen(f'{tmp_path}/{{rank}}', 'w').close()\n"
        "while True: pass"
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to be busy")
    kill(lost, run_folder)

    running = other.begin("%dist attach")
    running.until_shown("attached")
    other.interrupt()
    cell = running.finish(timeout_s=20)

    assert cell.error.startswith("CellStopped")
    assert "begun" in cell.display
    assert other.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"


def test_a_start_names_the_session_that_waits(
    lost: Notebook, other: Notebook, run_folder: Path
) -> None:
    folder = kill(lost, run_folder)

    started = other.run("%dist start -n 1 device=cpu")
    refused = other.run("%dist attach")
    other.run("%dist stop")
    attached = other.run(f"%dist attach {folder.session_id}")

    waits, ways, summary = started.streams.splitlines()
    assert waits.startswith(f"A session waits for a kernel: {folder.session_id}, 2 ranks, started")
    assert f"%dist attach {folder.session_id}" in ways
    assert summary == "1 rank on 1 host · cpu · cpu:gloo · seed 0"
    assert "running here already" in refused.error
    assert attached.streams == "attached: 2 ranks on 1 host · cpu · cpu:gloo · seed 0\n"
    assert other.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"


def test_the_last_output_and_that_of_any_cell_can_be_seen_again(lost: Notebook) -> None:
    first = lost.run("%%dist\nfor i in range(3): print('line', i, rank)")
    shown = lost.run("%%dist 1\nprint('of one'); 1 / 0")
    label = f"In[{first.reply['execution_count']}]"

    last = lost.run("%dist last")
    log = lost.run(f"%dist log {label}")
    short = lost.run(f"%dist log {first.reply['execution_count']} -r 1 -n 2")
    wrong = lost.run("%dist log In[99]")

    assert last.status == "ok"
    assert last.display == shown.display
    assert "ZeroDivisionError" in last.display
    assert log.streams == "".join(f"[rank{r}] line {i} {r}\n" for r in range(2) for i in range(3))
    assert short.streams == "[rank1] line 1 1\n[rank1] line 2 1\n"
    assert wrong.error.startswith("SessionError: No output of In[99] is kept.")
    assert label in wrong.error


def test_the_last_output_of_a_lost_notebook_can_be_seen_in_another(
    lost: Notebook, other: Notebook, run_folder: Path
) -> None:
    shown = lost.run("%%dist\nprint('kept by', rank)")
    kill(lost, run_folder)
    other.run("%dist attach")

    assert other.run("%dist last").display == shown.display


def test_without_a_cell_there_is_no_last_output(lost: Notebook) -> None:
    assert lost.run("%dist last").streams == "The last cell has put out nothing.\n"
    assert "No cell has run yet" in lost.run("%dist log 1").error


def test_a_session_that_is_lost_says_so_until_it_is_stopped(
    lost: Notebook, run_folder: Path, tmp_path: Path
) -> None:
    running = lost.begin(
        f"%%dist\nopen(f'{tmp_path}/{{rank}}', 'w').close()\nimport time; time.sleep(600)"
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to be busy")
    process = SessionFolder(next(run_folder.iterdir())).process("agent")
    assert process is not None

    os.kill(process.pid, signal.SIGKILL)
    cell = running.finish(timeout_s=20)

    assert cell.status == "error"
    assert "agent" in cell.display
    assert "agent" in lost.run("%%dist\n1").error
    assert "trouble: the agent is gone" in lost.run("%dist status").streams
    assert "%dist stop" in lost.run("%dist start -n 2 device=cpu").error
    assert lost.run("%dist stop").streams == "ranks 0, 1 stopped\n"
    assert [found.pid for found in lost.processes()] == [lost.pid]
    assert list(run_folder.iterdir()) == []
    assert lost.run("%dist start -n 1 device=cpu").status == "ok"
