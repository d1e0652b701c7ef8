"""Nothing outlives its rank, also what has an environment and a session of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from nbdist.processes import ProcessId
from nbdist.sessions.session import Session
from tests.processes import describe, is_running, wait_for_end
from tests.sessions.driving import finished, pids, ranks, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

# A shell that ends leaves an orphan: a daemon.
CHILDREN = """
import subprocess
unmarked = {"PATH": "/usr/bin:/bin"}
daemon = "sleep 987 > /dev/null 2>&1 & echo $!"
found = []
for env in (unmarked, None):
    for alone in (False, True):
        child = subprocess.Popen(["sleep", "987"], env=env, start_new_session=alone)
        found.append(child.pid)
        text = subprocess.check_output(["sh", "-c", daemon], env=env, start_new_session=alone)
        found.append(int(text))
found
"""


def children_of_ranks(session: Session) -> list[list[psutil.Process]]:
    """Start children in every way there is; return those of each rank."""
    return [list(map(psutil.Process, found)) for found in values(session, CHILDREN)]


def minder_of(pid: int) -> ProcessId:
    return ProcessId.of(psutil.Process(pid).ppid())


def agent_of(session: Session) -> ProcessId:
    agent = session._processes.folder.process("agent")
    assert agent is not None
    return agent


def left(processes: list[psutil.Process], timeout_s: float = 10) -> list[str]:
    return [describe(process) for process in wait_for_end(processes, timeout_s)]


def test_all_that_came_from_a_rank_ends_with_it_and_with_the_session(run_folder: Path) -> None:
    with ranks(3) as session:
        of_ranks = children_of_ranks(session)

        os.kill(pids(session)[1], signal.SIGKILL)
        wait_until(lambda: session.dead_ranks == (1,), "the death to be known")

        assert left(of_ranks[1]) == []
        session.recover()
        session.restart_ranks(2)
        assert left(of_ranks[2]) == []
        assert all(map(is_running, of_ranks[0]))
    assert left(of_ranks[0]) == []


def test_what_a_living_rank_has_started_is_left_alone_between_cells(run_folder: Path) -> None:
    with ranks(1) as session:
        [children] = children_of_ranks(session)

        finished(session, "raise ValueError")
        finished(session, "1")

        assert all(map(is_running, children))


def test_daemons_that_have_ended_leave_no_zombies(run_folder: Path) -> None:
    code = "import subprocess; subprocess.run(['sh', '-c', 'true & true &']); None"
    with ranks(1) as session:
        for _ in range(5):
            finished(session, code)

        minder = psutil.Process(minder_of(pids(session)[0]).pid)

        wait_until(lambda: len(minder.children()) == 1, "only the rank to be left")


@pytest.mark.parametrize("is_stopped", [False, True])
def test_what_came_from_ranks_ends_when_the_agent_is_killed(
    run_folder: Path, is_stopped: bool
) -> None:
    with ranks(2) as session:
        of_ranks = children_of_ranks(session)
        everything = [psutil.Process(pid) for pid in pids(session)]
        everything += [process.parent() for process in everything]
        if is_stopped:  # such a rank cannot end by itself
            os.kill(pids(session)[1], signal.SIGSTOP)

        os.kill(agent_of(session).pid, signal.SIGKILL)

        assert left([*of_ranks[0], *of_ranks[1], *everything]) == []


def test_a_killed_minder_takes_its_rank_along_and_no_other(run_folder: Path) -> None:
    with ranks(2) as session:
        of_ranks = children_of_ranks(session)
        run = session.run("import time; time.sleep(600 if rank else 0)")

        os.kill(minder_of(pids(session)[1]).pid, signal.SIGKILL)

        assert run.wait(20)
        assert statuses(run) == ["ok", "dead"]
        assert left(of_ranks[1]) == []
        assert all(map(is_running, of_ranks[0]))
        session.recover()
        assert values(session, "rank") == [0, 1]


def test_children_get_a_moment_to_end_when_the_session_ends(
    run_folder: Path, tmp_path: Path
) -> None:
    last_words = tmp_path / "words"
    script = (
        f"trap 'sleep 0.3; echo bye > {last_words}; exit' TERM; echo; while :; do sleep 0.05; done"
    )
    code = (
        "import subprocess\n"
        f"child = subprocess.Popen(['sh', '-c', {script!r}], env={{'PATH': '/usr/bin:/bin'}},\n"
        "    stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()"
    )
    with ranks(1) as session:
        finished(session, code)

    assert last_words.read_text() == "bye\n"
