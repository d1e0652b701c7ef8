"""What a cell prints on a real rank, by whatever way, reaches the notebook: all of it, in order."""

from __future__ import annotations

import builtins
import gc
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nbdist.sessions.session import Session
from nbdist.wire import Clear, Display, Dropped, Text
from tests.sessions.driving import (
    error,
    finished,
    outputs_of,
    printed,
    ranks,
    shown,
    statuses,
    values,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

LOG_BYTES = 2**22
C_PUTS = "import ctypes; libc = ctypes.CDLL(None)\n"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2, log_bytes=LOG_BYTES) as session:
        yield session


# Ways to print -----------------------------------------------------------------------------------


def test_text_of_python_children_and_c_comes_in_the_order_it_was_written(session: Session) -> None:
    code = (
        "import os, subprocess, sys\n"
        "print('python')\n"
        "os.system('echo shell')\n"
        "print('python again')\n"
        "subprocess.run(['echo', 'child'])\n"
        "print('to stderr', file=sys.stderr)\n"
        "os.write(1, b'descriptor\\n')\n"
        "os.write(2, b'descriptor 2\\n')\n"
        + C_PUTS
        + "libc.puts(b'c library'); libc.fflush(None)\n"
        "print('end')"
    )

    assert printed(finished(session, code)).splitlines() == [
        "python",
        "shell",
        "python again",
        "child",
        "to stderr",
        "descriptor",
        "descriptor 2",
        "c library",
        "end",
    ]


def test_a_last_line_without_its_end_is_not_lost(session: Session) -> None:
    assert printed(finished(session, "print('no end', end='')")) == "no end"
    assert printed(finished(session, "import os; os.system('printf shell')\nNone")) == "shell"
    assert printed(finished(session, C_PUTS + "libc.printf(b'c'); libc.fflush(None)\nNone")) == "c"


def test_what_c_has_buffered_comes_with_its_cell(session: Session) -> None:
    assert printed(finished(session, C_PUTS + "libc.printf(b'buffered')\nNone")) == "buffered"


def test_stderr_is_marked_and_stands_in_its_place(session: Session) -> None:
    run = finished(session, "import sys\nprint('a'); print('b', file=sys.stderr); print('c')")

    assert shown(run) == (Text("stdout", "a\n"), Text("stderr", "b\n"), Text("stdout", "c\n"))


def test_warnings_and_logging_reach_the_cell(session: Session) -> None:
    code = "import logging, warnings\nwarnings.warn('careful')\nlogging.warning('watch out')"

    text = printed(finished(session, code))

    assert "UserWarning: careful" in text
    assert "watch out" in text


def test_a_child_that_fills_stderr_does_not_block(session: Session) -> None:
    child = "import sys; sys.stderr.write('x' * 200_000)"
    code = f"import subprocess, sys\n_ = subprocess.run([sys.executable, '-c', {child!r}])"

    assert printed(finished(session, code)).count("x") == 200_000


def test_200_kb_of_stderr_in_one_cell_come_whole(session: Session) -> None:
    run = finished(session, "import sys\nfor i in range(2000): print('e' * 99, file=sys.stderr)")

    assert printed(run) == ("e" * 99 + "\n") * 2000


def test_text_of_a_forked_process_is_shown(session: Session) -> None:
    code = (
        "import multiprocessing\n"
        "print('parent')\n"
        "p = multiprocessing.Process(target=print, args=('child',)); p.start(); p.join()\n"
        "print('parent again')"
    )

    assert printed(finished(session, code)) == "parent\nchild\nparent again\n"


def test_text_of_a_thread_is_shown(session: Session) -> None:
    code = (
        "import threading\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()"
    )

    assert printed(finished(session, code)) == "thread\n"


def test_text_of_a_thread_that_an_earlier_cell_started_goes_to_the_log(session: Session) -> None:
    finished(
        session,
        "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(1)\n"
        "pool.submit(int).result()",
    )

    run = finished(session, "pool.submit(print, 'from the pool').result()")

    assert printed(run) == ""
    assert "from the pool" in session.log_tail(0, 5)


def test_bytes_may_be_written_to_the_buffer_of_stdout(session: Session) -> None:
    run = finished(session, "import sys\nsys.stdout.buffer.write('ü\\n'.encode())\nNone")

    assert printed(run) == "ü\n"


@pytest.mark.parametrize("text", [r"\ud800", r"\udc80", r"\x00", r"\x1b[31mred\x1b[0m", "😀"])
def test_odd_characters_do_not_harm(session: Session, text: str) -> None:
    run = finished(session, f"print('before {text} after')")

    assert statuses(run) == ["ok", "ok"]
    assert printed(run).startswith("before ")
    assert printed(run).endswith(" after\n")


def test_bytes_that_are_no_text_do_not_harm(session: Session) -> None:
    run = finished(session, "import os; os.write(1, b'a\\xff\\xfeb\\n')\nNone")

    assert printed(run) == "a��b\n"


def test_a_character_that_a_pipe_cuts_in_two_is_put_together(session: Session) -> None:
    child = r"printf '\303'; sleep 0.3; printf '\274'"
    code = f"import subprocess\n_ = subprocess.run(['sh', '-c', {child!r}])"

    assert printed(finished(session, code)) == "ü"


def test_carriage_returns_are_kept_for_the_view(session: Session) -> None:
    assert printed(finished(session, "print('10 %\\r20 %\\r30 %')")) == "10 %\r20 %\r30 %\n"


# Displays ----------------------------------------------------------------------------------------


def test_displays_updates_and_clears_come_in_order(session: Session) -> None:
    code = (
        "from IPython.display import clear_output\n"
        "handle = display('one', display_id=True)\n"
        "handle.update('two')\n"
        "clear_output(wait=True)\n"
        "display('three')"
    )

    one, two, clear, three = shown(finished(session, code))

    assert isinstance(one, Display)
    assert isinstance(two, Display)
    assert isinstance(three, Display)
    assert (one.kind, two.kind, three.kind) == ("display", "update", "display")
    assert one.display_id == two.display_id is not None
    assert clear == Clear(wait=True)


def test_a_figure_comes_as_an_image(session: Session) -> None:
    pytest.importorskip("matplotlib")
    code = (
        "%matplotlib inline\nimport matplotlib.pyplot as plt\n_ = plt.plot([1, 2, 3])\nplt.show()"
    )

    displays = [o for o in shown(finished(session, code)) if isinstance(o, Display)]

    assert ["image/png" in display.data for display in displays] == [True]


@pytest.mark.parametrize(
    ("code", "scalar"),
    [
        ("3", 3),
        ("2.5", 2.5),
        ("torch.tensor(1.5)", 1.5),
        ("torch.tensor(2.0, dtype=torch.bfloat16)", 2.0),
        ("__import__('numpy').float32(0.5)", 0.5),
        ("True", None),
        ("torch.ones(1)", None),
        ("'3'", None),
        ("10**400", 10**400),
    ],
)
def test_a_last_line_that_is_one_number_says_so(
    session: Session, code: str, scalar: float | None
) -> None:
    [result] = shown(finished(session, code))

    assert isinstance(result, Display)
    assert (result.kind, result.scalar) == ("result", scalar)


@pytest.mark.parametrize("code", ["float('nan')", "float('inf')", "torch.tensor(float('nan'))"])
def test_a_loss_that_is_not_finite_is_shown_as_a_number(session: Session, code: str) -> None:
    run = finished(session, code)

    assert statuses(run) == ["ok", "ok"]
    assert "nan" in run.render()["text/plain"] or "inf" in run.render()["text/plain"]
    [result] = shown(run)
    assert isinstance(result, Display)
    assert isinstance(result.scalar, float | None)
    assert printed(finished(session, "print('next')")) == "next\n"


# Bounds ------------------------------------------------------------------------------------------


def test_beyond_its_bound_output_is_counted_and_the_last_lines_are_kept(session: Session) -> None:
    run = finished(session, "for i in range(10_000): print(f'{i:04}' + 'x' * 995)")

    [dropped] = [output for output in shown(run) if isinstance(output, Dropped)]
    text = printed(run)
    assert text.startswith("0000xxx")
    assert text.splitlines()[-1].startswith("9999xxx")
    assert len(text) + dropped.size_bytes == 10_000 * 1000
    assert len(text) < LOG_BYTES + 2**18


def test_an_endless_print_costs_no_memory_and_can_be_stopped(
    session: Session, tmp_path: Path
) -> None:
    process = psutil.Process()
    finished(session, "print('warm up')")
    before = process.memory_info().rss
    run = session.run(
        "import itertools, pathlib\n"
        "for i in itertools.count():\n"
        "    print('a rather long line', i, 'x' * 1000)\n"
        f"    if i == {2 * LOG_BYTES // 1000}: pathlib.Path(f'{tmp_path}/{{rank}}').touch()"
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to be beyond their bound")

    stuck = session.stop_run(run, "enough")

    assert stuck == ()
    assert statuses(run) == ["stopped", "stopped"]
    assert any(isinstance(output, Dropped) for output in shown(run))
    assert process.memory_info().rss - before < 100e6


def test_a_million_lines_take_bounded_memory_here(session: Session) -> None:
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss

    run = finished(session, "for i in range(1_000_000): print(f'line {i}')", 0)

    assert process.memory_info().rss - before < 200e6
    assert printed(run).startswith("line 0\nline 1\n")
    assert printed(run).endswith("line 999998\nline 999999\n")
    assert any(isinstance(output, Dropped) for output in shown(run))


def test_one_text_longer_than_the_bound_is_cut(session: Session) -> None:
    run = finished(session, f"print('x' * {4 * LOG_BYTES})")

    assert any(isinstance(output, Dropped) for output in shown(run))
    assert len(printed(run)) < LOG_BYTES + 2**18


# Late output -------------------------------------------------------------------------------------


def test_what_a_thread_prints_after_its_cell_goes_to_the_log_alone(
    session: Session, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    finished(
        session,
        "import pathlib, threading, time\n"
        "def late():\n"
        f"    while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
        "    print('late words')\n"
        "    pathlib.Path(f'{gate}{rank}').touch()\n".replace("{gate}", str(gate))
        + "threading.Thread(target=late).start()",
    )

    run = finished(
        session,
        f"pathlib.Path({str(gate)!r}).touch()\n"
        f"while not pathlib.Path(f'{gate}{{rank}}').exists(): time.sleep(0.01)\n"
        "print('own words')",
    )

    assert printed(run) == "own words\n"
    assert "late words" in session.log_tail(0, 20)


def test_what_a_task_prints_after_its_cell_goes_to_the_log_alone(session: Session) -> None:
    finished(
        session,
        "import asyncio\nturn = asyncio.Event()\n"
        "async def late():\n    await turn.wait()\n    print('late task')\n"
        "task = asyncio.get_running_loop().create_task(late())",
    )

    run = finished(session, "turn.set()\nawait task\nprint('own words')")

    assert printed(run) == "own words\n"
    assert "late task" in session.log_tail(0, 20)


def test_what_a_child_prints_after_its_cell_goes_to_the_log_alone(
    session: Session, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    wait = f"while ! [ -e {gate} ]; do sleep 0.01; done; echo late child"
    finished(session, f"import subprocess\nchild = subprocess.Popen(['sh', '-c', {wait!r}])")

    gate.touch()
    wait_until(lambda: "late child" in session.log_tail(0, 20), "the child's words in the log")

    assert printed(finished(session, "child.wait(); print('own words')")) == "own words\n"


def test_each_rank_has_its_own_log(session: Session) -> None:
    finished(session, "print(f'I am {rank}')")

    assert "I am 0" in session.log_tail(0, 5)
    assert "I am 1" not in session.log_tail(0, 5)


# Questions ---------------------------------------------------------------------------------------


def test_input_outside_of_a_notebook_cell_can_be_answered(session: Session) -> None:
    run = session.run("input('name? ')", 1)
    event = run.next_event(20)
    assert event is not None

    session.answer_input(event.rank, {"text": "Ada"})

    assert (event.kind, event.rank) == ("input", 1)
    assert event.content == {"prompt": "name? ", "is_password": False}
    assert run.result(20)[1] == "Ada"


def test_a_front_end_that_cannot_ask_makes_input_an_error(session: Session) -> None:
    run = session.run("input()", 0)
    assert run.next_event(20) is not None

    session.answer_input(0, {"error": "no one is here"})

    assert run.wait(20)
    assert error(run).ename == "EOFError"
    assert "no one is here" in error(run).evalue


def test_a_cell_that_waits_for_an_answer_can_be_stopped(session: Session) -> None:
    run = session.run("input()", 0)
    assert run.next_event(20) is not None

    assert session.stop_run(run, "enough") == ()

    assert statuses(run) == ["stopped"]
    assert values(session, "rank") == [0, 1]


def test_input_in_a_thread_is_refused(session: Session) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "ThreadPoolExecutor(1).submit(input).result()"
    )

    assert error(finished(session, code)).ename == "EOFError"


def test_input_of_this_process_stays_as_it_was(session: Session) -> None:
    assert builtins.input.__module__ in ("builtins", "_pytest.capture", "io", None)
    assert outputs_of(finished(session, "None"), 0) == ((), None)


# What IPython gives to a pager -------------------------------------------------------------------


def test_help_on_an_object_is_shown_once(session: Session) -> None:
    text = finished(session, "def half(x):\n    '''Halve.'''\n    return x / 2\n\nhalf?").render()

    assert "Signature: half(x)" in text["text/plain"]
    assert text["text/plain"].count("Halve.") == 1


def test_the_source_of_an_object_is_shown(session: Session) -> None:
    finished(session, "def half(x):\n    return x / 2  # by two")

    assert "# by two" in finished(session, "half??").render()["text/plain"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("%prun -l 3 sorted(range(100))", "function calls"),
        ("%page [1, 2, 3]", "[1, 2, 3]"),
        ("%psearch torch.nn.Linea*", "torch.nn.Linear"),
        ("%magic", "IPython's 'magic' functions"),
    ],
)
def test_what_would_be_paged_is_shown(session: Session, code: str, text: str) -> None:
    assert text in finished(session, code).render()["text/plain"]


def test_what_would_become_the_next_cell_is_shown(session: Session, tmp_path: Path) -> None:
    (tmp_path / "loaded.py").write_text("a = 'of a file'\n")

    run = finished(session, f"%load {tmp_path / 'loaded.py'}")

    assert "a = 'of a file'" in run.render()["text/plain"]
