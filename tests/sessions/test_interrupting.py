"""Stop a cell on real ranks: whatever Python was doing, the rank and its variables stay."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nbdist.errors import CellStopped
from nbdist.sessions.session import Session
from tests.processes import describe, is_running, wait_for_end
from tests.sessions.driving import error, finished, pids, ranks, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

SOON_S = 3.0  # the budget is 1 s; two busy cores may take a little longer


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2) as session:
        finished(session, "import asyncio, os, pathlib, subprocess, threading, time")
        yield session


@pytest.fixture(autouse=True)
def every_rank_outlives_the_test(session: Session) -> Iterator[None]:
    finished(session, "mine = rank * 10")
    before = pids(session)
    yield
    assert pids(session) == before
    assert values(session, "mine") == [0, 10]


def reached(folder: Path) -> str:
    """Return a line of code that says in *folder* that this rank has come here."""
    return f"pathlib.Path(f'{folder}/{{rank}}').touch()\n"


def both_reach(folder: Path) -> None:
    wait_until(lambda: len(list(folder.iterdir())) == 2, "both ranks to reach the line")


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "time.sleep(600)",
        "await asyncio.sleep(600)",
        "while True: await asyncio.sleep(0)",
        "threading.Event().wait()",
        "subprocess.run(['sleep', '600'])",
        "os.system('sleep 600')",
        "!sleep 600",
        "lines = !sleep 600",
        "%timeit time.sleep(600)",
        "import socket; a, b = socket.socketpair(); a.recv(1)",
        "sum(i for i in iter(int, 1))",
        "[i for i in torch.utils.data.DataLoader(range(10**9), 1, num_workers=1)]",
        "while True:\n    try: time.sleep(0.01)\n    except Exception: pass",
    ],
)
def test_a_stopped_cell_is_over_soon_and_not_ok(
    session: Session, tmp_path: Path, code: str
) -> None:
    run = session.run(reached(tmp_path) + code)
    both_reach(tmp_path)

    begin = time.monotonic()
    stuck = session.stop_run(run, "The cell was stopped")
    took_s = time.monotonic() - begin

    assert stuck == ()
    assert statuses(run) == ["stopped", "stopped"]
    assert took_s < SOON_S
    with pytest.raises(CellStopped):
        run.raise_failure()


def test_what_a_stopped_cell_has_started_is_ended(session: Session, tmp_path: Path) -> None:
    run = session.run(reached(tmp_path) + "!sleep 601")
    wait_until(lambda: len(commands(session, "601")) >= 2, "both ranks to have started it")
    started = commands(session, "601")

    session.stop_run(run, "The cell was stopped")

    assert [describe(process) for process in wait_for_end(started, 5)] == []


def commands(session: Session, word: str) -> list[psutil.Process]:
    """Return the living processes below the ranks whose command line has *word*."""
    ranks = [psutil.Process(pid) for pid in pids(session)]
    below = [process for rank in ranks for process in rank.children(recursive=True)]
    return [process for process in below if has_word(process, word)]


def has_word(process: psutil.Process, word: str) -> bool:
    try:
        return is_running(process) and word in process.cmdline()
    except psutil.NoSuchProcess:  # it has ended between the two questions
        return False


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 0.003, 0.01, 0.03, 0.1])
def test_a_stop_at_any_moment_of_a_shell_command_is_not_lost(
    session: Session, tmp_path: Path, delay_s: float
) -> None:
    for turn in range(4):
        folder = tmp_path / str(turn)
        folder.mkdir()
        run = session.run(reached(folder) + "!sleep 602")
        both_reach(folder)
        time.sleep(delay_s)

        assert session.stop_run(run, "The cell was stopped") == ()
        assert statuses(run) == ["stopped", "stopped"]


def test_a_cell_that_was_stopped_before_it_began_does_not_begin(
    session: Session, tmp_path: Path
) -> None:
    finished(session, "began = False")
    first = session.run(reached(tmp_path) + "time.sleep(600)")
    second = session.run("began = True")
    both_reach(tmp_path)

    second.cancel()
    first.cancel()

    assert second.wait(10)
    assert statuses(first) == statuses(second) == ["stopped", "stopped"]
    assert values(session, "began") == [False, False]


def test_the_cell_behind_a_stopped_one_still_runs(session: Session, tmp_path: Path) -> None:
    first = session.run(reached(tmp_path) + "time.sleep(600)")
    second = session.run("'second'")
    both_reach(tmp_path)

    first.cancel()

    assert list(second.result(10)) == ["second", "second"]
    assert statuses(first) == ["stopped", "stopped"]


def test_stopping_at_once_after_sending_works_every_time(session: Session) -> None:
    for _ in range(30):
        run = session.run("time.sleep(600)")

        assert session.stop_run(run, "The cell was stopped") == ()
        assert statuses(run) == ["stopped", "stopped"]


def test_stopping_a_finished_run_harms_nothing(session: Session) -> None:
    run = finished(session, "1")

    run.cancel()

    assert values(session, "rank") == [0, 1]
    assert statuses(run) == ["ok", "ok"]


def test_an_interrupt_that_comes_late_does_not_reach_the_next_cell(session: Session) -> None:
    for _ in range(30):
        run = session.run("None")
        run.cancel()
        following = session.run("sum(range(1000))")

        assert list(following.result(10)) == [499500, 499500]


def test_user_code_may_clean_up_on_a_stop(session: Session, tmp_path: Path) -> None:
    run = session.run(
        "cleaned = False\n" + "try:\n    " + reached(tmp_path) + "    time.sleep(600)\n"
        "finally:\n    cleaned = True"
    )
    both_reach(tmp_path)

    session.stop_run(run, "The cell was stopped")

    assert values(session, "cleaned") == [True, True]


def test_code_that_swallows_the_stop_is_still_not_ok(session: Session, tmp_path: Path) -> None:
    run = session.run(
        "try:\n    "
        + reached(tmp_path)
        + "    time.sleep(600)\nexcept KeyboardInterrupt:\n    pass"
    )
    both_reach(tmp_path)

    session.stop_run(run, "The cell was stopped")

    assert statuses(run) == ["stopped", "stopped"]


def test_only_the_ranks_of_the_cell_are_interrupted(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    other = session.run(
        f"pathlib.Path('{tmp_path}/0').touch()\n"
        f"while not pathlib.Path('{go}').exists(): time.sleep(0.01)\n'undisturbed'",
        0,
    )
    run = session.run(f"pathlib.Path('{tmp_path}/1').touch()\ntime.sleep(600)", 1)
    both_reach(tmp_path)

    session.stop_run(run, "The cell was stopped")
    go.touch()

    assert statuses(run) == ["stopped"]
    assert other.result(10)[0] == "undisturbed"


def test_a_rank_in_a_c_call_is_named_and_comes_back_later(session: Session, tmp_path: Path) -> None:
    done = tmp_path / "done"
    # With the GIL held no Python runs here at all, not even the thread that would answer.
    code = (
        f"import ctypes; usleep = ctypes.PyDLL(None).usleep\n{reached(tmp_path)}"
        "end = time.monotonic() + 7\n"
        f"while time.monotonic() < end: usleep(7_000_000)\npathlib.Path('{done}').touch()"
    )
    run = session.run(code, 0)
    other = session.run(reached(tmp_path), 1)
    both_reach(tmp_path)

    stuck = session.stop_run(run, "The cell was stopped")

    assert other.wait(10)
    assert stuck in ((), (0,))
    assert statuses(run) == ["stopped"]
    if stuck:
        assert error(run).ename == "NoAnswer"
        assert "%dist restart" in error(run).evalue
    assert list(session.run("rank", 0).result(20)) == [0]


def test_the_error_of_a_stopped_rank_stands_where_it_was(session: Session, tmp_path: Path) -> None:
    run = session.run(reached(tmp_path) + "x = 1\ntime.sleep(600)")
    both_reach(tmp_path)

    session.stop_run(run, "The cell was stopped")

    assert error(run).frames[-1].location.endswith(":3")
    assert error(run).frames[-1].source == "time.sleep(600)"
