"""A rank dies: the cell says so, the others keep all, and nothing is left after a stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nbdist.errors import CellFailed, SessionError, TransferError
from nbdist.sessions.session import Session
from tests.processes import describe, wait_for_end
from tests.sessions.driving import (
    error,
    finished,
    pids,
    printed,
    processes_of,
    ranks,
    statuses,
    values,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

SEGFAULT = "import ctypes; ctypes.string_at(0)"


IMPORTED = "sorted(name for name in __import__('sys').modules if name.startswith('torch'))"


def wait_for_death(session: Session, rank: int) -> None:
    wait_until(lambda: rank in session.dead_ranks, f"the death of rank {rank} to be known")


def test_what_a_rank_needs_of_torch_is_imported_once_before_the_fork(run_folder: Path) -> None:
    code = f"from nbdist.rank import engine; engine.preload(); print(*{IMPORTED})"
    before = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    with ranks(1) as session:
        [found] = values(session, IMPORTED)

    assert set(found) - set(before.stdout.split()) == set()
    assert "torch.distributed.fsdp" not in found  # 0.6 s and 55 MB that most sessions do not need


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os; os._exit(3)", "exited with code 3"),
        (SEGFAULT, "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os; os.abort()", "SIGABRT"),
    ],
)
def test_a_rank_that_dies_in_a_cell_ends_it_with_the_cause(
    run_folder: Path, code: str, cause: str
) -> None:
    with ranks(2) as session:
        finished(session, "kept = rank + 5")

        run = finished(session, f"print('before', flush=True)\nif rank == 1:\n    {code}")

        assert statuses(run) == ["ok", "dead"]
        assert cause in error(run, 1).evalue
        assert printed(run, 0) == "before\n"
        with pytest.raises(CellFailed, match="rank 1"):
            run.result()
        assert values(session, "kept", 0) == [5]
        everything = processes_of(session)
    assert [describe(process) for process in wait_for_end(everything, 5)] == []
    assert list(run_folder.iterdir()) == []


def test_what_a_dying_rank_wrote_last_is_told(run_folder: Path) -> None:
    with ranks(1) as session:
        run = finished(session, "import os; os.write(2, b'last words\\n'); os._exit(1)")

        assert "last words\n" in printed(run)


def test_what_had_arrived_of_a_dead_rank_is_not_told_twice(run_folder: Path) -> None:
    with ranks(1) as session:
        run = session.run("import os\nprint('early')\ninput()\nprint('late')\nos._exit(1)")
        wait_until(lambda: printed(run) == "early\n", "the first line to arrive")

        session.answer_input(0, {"text": ""})

        assert run.wait(20)
        assert printed(run) == "early\nlate\n"


def test_a_rank_that_is_there_is_not_made_again(run_folder: Path) -> None:
    with ranks(2) as session:
        before, processes = pids(session), session._processes

        processes.link.send("spawn", rank=1, generation=5, meeting="settle/5")
        wait_until(lambda: processes.not_spawned, "the answer of the agent")

        assert "rank 1 is there already" in processes.not_spawned[1]
        assert pids(session) == before
        assert values(session, "nbdist.all_reduce(1)") == [2, 2]


def test_a_rank_that_dies_while_idle_is_known_at_once(run_folder: Path) -> None:
    with ranks(3) as session:
        finished(session, "kept = rank + 5")
        victim = pids(session)[1]

        os.kill(victim, signal.SIGKILL)
        wait_for_death(session, 1)

        assert repr(session) == "<Session 3 ranks on 1 host, idle, rank 1 dead>"
        assert session.states()[1].state.startswith("dead: was killed by SIGKILL")
        with pytest.raises(SessionError, match=r"rank 1 was killed by SIGKILL[^$]*%%dist 0,2"):
            session.run("1")
        with pytest.raises(SessionError, match="rank 1"):
            session.push({"x": 1})
        assert values(session, "kept", "0,2") == [5, 7]
        assert list(session.pull("kept", "0,2")) == [5, 7]


def test_a_death_frees_a_pull_that_waits_for_the_rank(run_folder: Path) -> None:
    with ranks(2) as session, pytest.raises(TransferError, match="rank 1 was killed by SIGKILL"):
        session.pull("__import__('os').kill(__import__('os').getpid(), 9) if rank else 0")


# A first part is whole, of the second one half is there.
KILLED_WHILE_IT_WRITES = """
import os, numpy
big = [numpy.ones(2**16), numpy.ones(2**18)]
write = os.write
def die_half_way(fd, data):
    if len(data) < 2**21:
        return write(fd, data)
    write(fd, data[:2**20])
    os.kill(os.getpid(), 9)
if rank:
    os.write = die_half_way
"""


def test_a_rank_that_dies_while_it_sends_is_named_and_leaves_no_file(run_folder: Path) -> None:
    with ranks(2) as session:
        folder = session._processes.folder
        finished(session, KILLED_WHILE_IT_WRITES)
        before = {*folder.path.iterdir(), *folder.shared_memory().glob("*")}

        with pytest.raises(TransferError, match=r"rank 1 was killed by SIGKILL[^$]*%dist recover"):
            session.pull("big if rank else __import__('time').sleep(600)")

        assert {*folder.path.iterdir(), *folder.shared_memory().glob("*")} <= before


def test_cells_that_waited_behind_the_deadly_one_end_too(run_folder: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    code = (
        "import os, pathlib, time\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.01)\n"
        "if rank: os._exit(1)"
    )
    with ranks(2) as session:
        deadly = session.run(code)
        behind = session.run("rank")
        gate.touch()

        assert deadly.wait(20)
        assert behind.wait(20)
        assert statuses(deadly) == statuses(behind) == ["ok", "dead"]


def test_a_rank_whose_peer_dies_in_a_collective_is_freed(run_folder: Path) -> None:
    with ranks(2) as session:
        code = "import os\nif rank: os._exit(1)\ndist.all_reduce(torch.ones(1))"

        run = session.run(code)

        assert run.wait(20)
        assert statuses(run) == ["error", "dead"]
        assert values(session, "rank", 0) == [0]


def test_workers_of_a_dead_rank_end_with_it(run_folder: Path, tmp_path: Path) -> None:
    with ranks(2) as session:
        finished(session, "import subprocess; child = subprocess.Popen(['sleep', '600'])")
        [child] = [psutil.Process(pid) for pid in values(session, "child.pid", 1)]

        os.kill(pids(session)[1], signal.SIGKILL)
        wait_for_death(session, 1)

        assert wait_for_end([child], 5) == []
        assert values(session, "child.poll() is None", 0) == [True]


def test_all_ranks_dead_says_that_only_a_restart_helps(run_folder: Path) -> None:
    with ranks(2) as session:
        run = finished(session, "import os; os._exit(7)")

        assert statuses(run) == ["dead", "dead"]
        with pytest.raises(SessionError, match="%dist restart") as caught:
            session.run("1")
        assert "%%dist" not in str(caught.value)


def test_a_dead_agent_takes_its_ranks_with_it(run_folder: Path) -> None:
    with ranks(2) as session:
        everything = processes_of(session)
        [agent] = [
            identity for role, identity in session._processes.folder.processes() if role == "agent"
        ]
        run = session.run("import time; time.sleep(600)")

        os.kill(agent.pid, signal.SIGKILL)

        assert run.wait(20)
        assert statuses(run) == ["dead", "dead"]
        with pytest.raises(SessionError, match="agent"):
            session.run("1")
    assert [describe(process) for process in wait_for_end(everything, 5)] == []
    assert list(run_folder.iterdir()) == []


def test_a_dead_controller_is_not_waited_for_forever(run_folder: Path) -> None:
    with ranks(2) as session:
        everything = processes_of(session)
        [controller] = [
            identity
            for role, identity in session._processes.folder.processes()
            if role == "controller"
        ]

        os.kill(controller.pid, signal.SIGKILL)
    assert [describe(process) for process in wait_for_end(everything, 5)] == []
    assert list(run_folder.iterdir()) == []


def test_a_stop_ends_ranks_that_are_busy_stopped_or_deaf(run_folder: Path, tmp_path: Path) -> None:
    with ranks(4) as session:
        shared = session._processes.folder.shared_memory()
        code = (
            "import ctypes, os, signal, time, pathlib\n"
            f"pathlib.Path(f'{tmp_path}/{{rank}}').touch()\n"
            "if rank == 0: ctypes.PyDLL(None).sleep(600)\n"
            "if rank == 1: os.kill(os.getpid(), signal.SIGSTOP)\n"
            "if rank == 2: signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)\n"
            "if rank == 3: os.system('sleep 600')"
        )
        session.run(code)
        wait_until(lambda: len(list(tmp_path.iterdir())) == 4, "all ranks to be busy")
        everything = processes_of(session)
    assert [describe(process) for process in wait_for_end(everything, 1)] == []
    assert list(run_folder.iterdir()) == []
    assert not shared.exists()


def test_what_a_cell_started_in_the_background_ends_with_the_session(run_folder: Path) -> None:
    with ranks(1) as session:
        code = (
            "from subprocess import Popen\n"
            "[Popen(['sleep', '600'], start_new_session=new).pid for new in (False, True)]"
        )
        [background] = [list(map(psutil.Process, found)) for found in values(session, code)]

    assert [describe(process) for process in wait_for_end(background, 5)] == []
