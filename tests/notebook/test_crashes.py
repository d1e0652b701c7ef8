"""A crash, and a C call that never ends, say where: on the page, in the card, in the status."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.driving import Notebook

pytestmark = pytest.mark.ranks

# Where the tests themselves run on a machine with far too much to do, that is said, and is true.
BUSY = r"(busy in a C call|the machine is overloaded \(.*\))"


@pytest.fixture
def notebook(run_folder: Path) -> Iterator[Notebook]:
    with Notebook(env={"NBDIST_LIVE": "lines"}) as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        assert notebook.run("%dist start 2 device=cpu hang.after_s=2").status == "ok"
        yield notebook


def test_a_crash_names_its_line_and_the_way_out(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%dist\nimport ctypes\ndef crash():\n    ctypes.string_at(0)\n"
        "if rank == 1: crash()\ndist.barrier()"
    )

    label = f"In[{cell.reply['execution_count']}]"
    assert cell.status == "error"
    assert "SIGSEGV" in cell.display
    assert f"{label}:4  in crash\n" in cell.display
    assert "ctypes.string_at(0)" in cell.display
    assert f"{label}:5  in <module>" in cell.display
    assert "`%dist recover` puts a fresh rank in its place" in cell.display
    assert "Extension modules" not in cell.display + cell.streams
    recovered = notebook.run("%dist recover")
    assert recovered.status == "ok", recovered
    assert "[ranks 0, 1] 1" in notebook.run("%%dist\nprint(1)\n1").display


def test_a_death_by_another_hand_names_the_way_out_and_no_line(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%dist\nimport os, signal\nif rank == 1: os.kill(os.getpid(), signal.SIGKILL)"
    )

    assert "`%dist recover` puts a fresh rank in its place" in cell.display
    assert "in <module>" not in cell.display


def test_a_crash_of_a_child_process_is_not_taken_for_one_of_the_rank(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%dist 1\nimport ctypes, os, signal\nif not os.fork(): ctypes.string_at(0)\n"
        "os.wait()\nos.kill(os.getpid(), signal.SIGKILL)"
    )

    assert "in <module>" not in cell.display


def test_a_c_call_that_keeps_the_lock_is_named_with_its_line(notebook: Notebook) -> None:
    running = notebook.begin(
        "%%dist\nimport itertools\nif rank == 1:\n    sum(itertools.repeat(0))\ndist.barrier()"
    )

    running.until_shown("rank 1 does not answer: ")

    notebook.interrupt()
    cell = running.finish()
    label = re.escape(f"In[{cell.reply['execution_count']}]")
    assert re.search(f"does not answer: {BUSY} at {label}:4 since", cell.streams), cell.streams


def test_the_status_names_the_line_of_a_c_call(notebook: Notebook) -> None:
    started = notebook.run("%%dist 1 -a\nimport itertools\nsum(itertools.repeat(0))")

    status = notebook.run("%dist status").streams

    label = re.escape(f"In[{started.reply['execution_count']}]")
    assert re.search(f"no answer: {BUSY} at {label}:3", status), status


def test_a_c_call_that_sleeps_is_not_woken(notebook: Notebook) -> None:
    notebook.run("%%dist 1 -a\nimport ctypes\nleft_s = ctypes.PyDLL(None).sleep(3)")

    status = notebook.run("%dist status").streams

    assert re.search(f"no answer: {BUSY}", status), status
    assert notebook.run("%%dist 1\nleft_s").display == "[rank1] 0"
