"""A kernel is killed: its ranks live on, and another kernel gets all of them. Real processes.

The kernel that is killed is a process of its own (``kernel_script.py``), the one that attaches is
this one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from nbdist.cli import sessions as cli_sessions
from nbdist.errors import CellFailed, CellStopped, SessionError
from nbdist.folder import SessionFolder
from nbdist.sessions import current
from nbdist.sessions.leases import waiting
from nbdist.sessions.run import Run
from nbdist.sessions.session import Session
from tests.private_files import write_private
from tests.processes import describe, processes_marked, wait_for_end
from tests.sessions.driving import error, finished, pids, printed, processes_of, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

SCRIPT = Path(__file__).parent / "kernel_script.py"
MARK = "NBDIST_TEST_ATTACH"


class Kernel:
    """A process that drives ranks and may be killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def do(self, code: str) -> Any:
        """Run *code*; return what it leaves as ``it``."""
        answer = self.try_to_do(code)
        assert "error" not in answer, answer["error"]
        return answer["it"]

    def try_to_do(self, code: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, **overrides: Any) -> str:
        """Start two ranks as session ``s``; return its id."""
        options = {"nproc": 2, "device": "cpu"} | overrides
        session_id: str = self.do(
            f"import nbdist\ns = nbdist.start(**{options!r})\nit = s.session_id"
        )
        return session_id

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@pytest.fixture(autouse=True)
def nothing_is_left(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Every process that a test starts must be gone soon after it, every file as well."""
    mark = f"{os.getpid()}-{abs(hash(request.node.nodeid))}"
    monkeypatch.setenv(MARK, mark)
    yield
    current.stop()
    left = [p for p in processes_marked(MARK, mark) if p.pid != os.getpid()]
    assert [describe(process) for process in wait_for_end(left, 10)] == []
    assert list(run_folder.iterdir()) == []


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with Kernel() as kernel:
        yield kernel


def killed(kernel: Kernel, root: Path) -> None:
    """Kill *kernel*, and return when its session waits for another one."""
    num_waiting = len(waiting(root))
    kernel.kill()
    wait_until(lambda: len(waiting(root)) > num_waiting, "the lease to begin")


def restored(session: Session) -> Run:
    [run] = session.restored
    return run


def gate(path: Path) -> str:
    """Return code that says by one file that it has come here, and waits for another."""
    return (
        f"open(f'{path}-{{rank}}', 'w').close()\n"
        f"while not __import__('os').path.exists('{path}'): __import__('time').sleep(0.01)\n"
    )


def both_at(path: Path) -> None:
    """Return when both ranks have come to the gate."""
    wait_until(
        lambda: all(Path(f"{path}-{rank}").exists() for rank in range(2)), "both ranks at a gate"
    )


# What comes back -----------------------------------------------------------------------------


def test_variables_and_the_output_of_the_running_cell_come_back(
    kernel: Kernel, run_folder: Path, tmp_path: Path
) -> None:
    session_id = kernel.start()
    kernel.do(
        "s.run('kept = rank + 5\\nlayer = torch.nn.Linear(2, 1)\\n'"
        "'model = torch.nn.parallel.DistributedDataParallel(layer)').result(30)"
    )
    one, two = tmp_path / "one", tmp_path / "two"
    code = f"print('one', rank)\n{gate(one)}print('two')\n{gate(two)}print('three'); raise OSError"
    kernel.do(f"run = s.run({code!r})")
    both_at(one)
    killed(kernel, run_folder)
    one.touch()
    both_at(two)  # 'two' was printed while there was no kernel

    session = current.attach()
    run = restored(session)
    before = (run.done, session.busy_ranks)
    two.touch()
    assert run.wait(30)

    assert session.session_id == session_id
    assert before == (False, (0, 1))
    assert [printed(run, rank) for rank in range(2)] == [
        f"one {rank}\ntwo\nthree\n" for rank in range(2)
    ]
    assert statuses(run) == ["error", "error"]
    assert error(run).ename == "OSError"
    with pytest.raises(CellFailed):
        run.raise_failure()
    assert values(session, "kept") == [5, 6]
    assert session.busy_ranks == ()
    finished(session, "model(torch.ones(4, 2)).sum().backward()")
    assert values(session, "nbdist.all_reduce(layer.weight.grad[0, 0].item())") == [8.0, 8.0]
    session.push({"mine": 3})
    assert list(session.pull("mine + rank")) == [3, 4]


def test_a_cell_that_ended_without_a_kernel_is_there_with_its_end(
    kernel: Kernel, run_folder: Path, tmp_path: Path
) -> None:
    kernel.start()
    code = (
        f"{gate(tmp_path / 'go')}print('over')\nopen(f'{tmp_path}/end{{rank}}', 'w').close()\nrank"
    )
    kernel.do(f"s.run({code!r})")
    both_at(tmp_path / "go")
    killed(kernel, run_folder)
    (tmp_path / "go").touch()
    folder = waiting(run_folder)[0].folder
    journals = [folder.journals(rank) / "1.jsonl" for rank in range(2)]
    wait_until(lambda: all('"reply"' in j.read_text() for j in journals), "the end of the cell")

    run = restored(current.attach())

    assert run.done
    assert statuses(run) == ["ok", "ok"]
    assert printed(run, 1) == "over\n"
    assert "[rank1] 1" in run.render()["text/plain"] or "1" in run.render()["text/plain"]


def test_a_cell_that_was_over_long_before_is_not_given_back(
    kernel: Kernel, run_folder: Path
) -> None:
    kernel.start()
    ended = kernel.do("import time\ns.run('x = 1').result(30)\nit = time.time()")
    wait_until(lambda: time.time() > ended + 1.5, "the cell to be a matter of the past")
    killed(kernel, run_folder)

    session = current.attach()

    assert session.restored == ()
    assert repr(session) == "<Session 2 ranks on 1 host, idle>"
    assert [cell.request.label for cell in session.journals.last()] == ["run[1]", "run[1]"]


def test_cells_that_were_queued_come_back_in_their_order(
    kernel: Kernel, run_folder: Path, tmp_path: Path
) -> None:
    kernel.start()
    go = tmp_path / "go"
    slow = f"open(f'{go}-{{rank}}', 'w').close()\nif rank:\n" + "".join(
        f"    {line}\n" for line in gate(go).splitlines()
    )
    kernel.do(f"s.run({slow!r})\ns.run(\"print('second')\")")
    both_at(go)
    journal = next(run_folder.iterdir()) / "cells" / "rank0" / "1.jsonl"
    wait_until(lambda: "second" in journal.read_text(), "rank 0 to be through")
    killed(kernel, run_folder)

    session = current.attach()
    go.touch()

    first, second = session.restored
    assert second.wait(30)
    assert first.done
    assert [printed(second, rank) for rank in range(2)] == ["second\n", "second\n"]
    assert values(session, "nbdist.all_reduce(1)") == [2, 2]


def test_a_cell_that_came_back_can_be_stopped(
    kernel: Kernel, run_folder: Path, tmp_path: Path
) -> None:
    kernel.start()
    code = "dist.barrier() if rank else None\n" + gate(tmp_path / "never")
    kernel.do(f"s.run({code!r})")
    wait_until((tmp_path / "never-0").exists, "rank 0 to be busy; rank 1 waits for it")
    killed(kernel, run_folder)
    session = current.attach()
    run = restored(session)

    stuck = session.stop_run(run, "stopped")

    assert stuck == ()
    assert statuses(run) == ["stopped", "stopped"]
    with pytest.raises(CellStopped):
        run.raise_failure()
    assert values(session, "nbdist.all_reduce(1)") == [2, 2]


def test_a_question_that_waits_is_put_again(
    kernel: Kernel, run_folder: Path, tmp_path: Path
) -> None:
    kernel.start()
    code = f"{gate(tmp_path / 'go')}name = input('who? ') if rank else None\nprint(name)"
    kernel.do(f"s.run({code!r})")
    both_at(tmp_path / "go")
    killed(kernel, run_folder)
    (tmp_path / "go").touch()
    journal = waiting(run_folder)[0].folder.journals(1) / "1.jsonl"
    wait_until(lambda: "who?" in journal.read_text(), "the question")

    session = current.attach()
    run = restored(session)
    events = iter(lambda: run.next_event(10), None)
    question = next(event for event in events if event.kind == "input")
    session.answer_input(question.rank, {"text": "Ada"})

    assert run.wait(30)
    assert (question.rank, question.content["prompt"]) == (1, "who? ")
    assert printed(run, 1) == "Ada\n"


def test_a_rank_that_died_without_a_kernel_is_known_and_replaced(
    kernel: Kernel, run_folder: Path, tmp_path: Path
) -> None:
    kernel.start()
    kernel.do(
        "s.run('kept = rank + 5').result(30)\n"
        "try: s.run('if rank: __import__(\"os\")._exit(1)').result(30)\n"
        "except nbdist.CellFailed: s.recover()\n"  # so that its numbers are used up
    )
    code = (
        f"print('early')\n{gate(tmp_path / 'go')}print('late')\nif rank: __import__('os')._exit(3)"
    )
    kernel.do(f"s.run({code!r})")
    both_at(tmp_path / "go")
    killed(kernel, run_folder)
    (tmp_path / "go").touch()
    folder = waiting(run_folder)[0].folder
    wait_until(lambda: rank_1_is_dead(folder), "rank 1 to die")

    session = current.attach()
    run = restored(session)

    assert run.wait(30)
    assert session.dead_ranks == (1,)
    assert statuses(run) == ["ok", "dead"]
    assert "exited with code 3" in error(run, 1).evalue
    assert printed(run, 1) == "early\nlate\n"
    session.recover()
    assert session.busy_ranks == ()
    assert values(session, "kept", 0) == [5]
    assert values(session, "nbdist.all_reduce(1)") == [2, 2]
    with pytest.raises(CellFailed):
        session.run("if rank: raise ValueError\ndist.barrier()").result(30)
    assert values(session, "nbdist.all_reduce(1)") == [2, 2]


def rank_1_is_dead(folder: SessionFolder) -> bool:
    process = folder.process("rank 1")
    return process is not None and not process.is_alive


def test_a_session_can_be_lost_and_found_again_and_again(run_folder: Path) -> None:
    kernel = Kernel()
    kernel.start()
    kernel.do("s.run('kept = rank').result(30)")
    fail = "if rank: raise ValueError\ndist.barrier()"
    for turn in range(2):
        killed(kernel, run_folder)
        kernel = Kernel()
        found = kernel.do(
            "import nbdist\ns = nbdist.attach()\n"
            "s.run('kept += 10').result(30)\n"
            f"failed = s.run({fail!r}); failed.wait(30)\n"
            "it = list(s.run('(kept, nbdist.all_reduce(1))').result(30))"
        )
        assert found == [[10 * turn + 10, 2], [10 * turn + 11, 2]]
    killed(kernel, run_folder)
    session = current.attach()

    assert values(session, "kept") == [20, 21]


# Whose it is -----------------------------------------------------------------------------------


def test_a_session_whose_kernel_lives_is_refused(kernel: Kernel) -> None:
    session_id = kernel.start()

    with pytest.raises(SessionError, match="No session waits"):
        current.attach()
    with pytest.raises(SessionError, match=f"belongs to a kernel that runs, pid {kernel.pid}"):
        current.attach(session_id)

    assert kernel.do("it = list(s.run('nbdist.all_reduce(1)').result(30))") == [2, 2]
    kernel.do("s.stop()")


def test_of_several_sessions_one_has_to_be_named(run_folder: Path) -> None:
    with Kernel() as first, Kernel() as second:
        ids = [first.start(nproc=1), second.start(nproc=1)]
        killed(first, run_folder)
        killed(second, run_folder)

        with pytest.raises(SessionError, match="2 sessions wait") as caught:
            current.attach()
        with pytest.raises(SessionError, match=f"'{ids[0]}'|{ids[0]}"):
            current.attach(ids[0][:-1])
        session = current.attach(ids[1])

        assert all(f"{session_id}, 1 rank, started" in str(caught.value) for session_id in ids)
        assert str(Path.cwd()) in str(caught.value)
        assert session.session_id == ids[1]
        with pytest.raises(SessionError, match="running here already"):
            current.attach(ids[0])
        session.stop()
        assert values(current.attach(), "rank") == [0]


def test_a_child_that_the_kernel_forked_does_not_hold_the_session(
    kernel: Kernel, run_folder: Path
) -> None:
    kernel.start()
    child = kernel.do(
        "import os, time\nit = os.fork()\nif it == 0:\n    time.sleep(600)\n    os._exit(0)"
    )
    try:
        killed(kernel, run_folder)
        session = current.attach()

        assert psutil.pid_exists(child)
        assert values(session, "rank") == [0, 1]
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_a_child_that_is_terminated_does_not_end_its_parents_session(kernel: Kernel) -> None:
    kernel.start()

    code = kernel.do(
        "import os, signal, time\n"
        "reader, writer = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n    os.write(writer, b'x')\n    time.sleep(600)\n    os._exit(0)\n"
        "os.read(reader, 1)\n"  # a signal that comes within the fork is lost
        "os.kill(child, signal.SIGTERM)\n"
        "it = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])"
    )

    assert code == -signal.SIGTERM
    assert kernel.do("it = list(s.run('rank').result(30))") == [0, 1]
    kernel.do("s.stop()")


# The end of a lease ----------------------------------------------------------------------------


def test_after_its_lease_a_session_is_gone_busy_or_not(
    kernel: Kernel, run_folder: Path, tmp_path: Path
) -> None:
    kernel.start(lease_s=0.3)
    kernel.do(f"s.run({gate(tmp_path / 'never')!r})")
    both_at(tmp_path / "never")
    kernel.kill()

    wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")

    with pytest.raises(SessionError, match="No session waits"):
        current.attach()


def test_a_waiting_session_is_listed_and_can_be_stopped_from_a_shell(
    kernel: Kernel, run_folder: Path
) -> None:
    session_id = kernel.start(lease_s=500)
    killed(kernel, run_folder)

    shown = cli_sessions.session_table(run_folder).splitlines()[1]
    said = cli_sessions.stop(SessionFolder(run_folder / session_id))

    assert "waiting for attach, 8 min left" in shown
    assert "stopped, 5 processes ended" in said
    assert cli_sessions.session_table(run_folder) == "No sessions."


def test_an_attached_session_is_listed_with_its_new_kernel(
    kernel: Kernel, run_folder: Path
) -> None:
    kernel.start()
    killed(kernel, run_folder)
    current.attach()

    record = cli_sessions.read_session(SessionFolder(next(run_folder.iterdir())))

    assert (record.state, record.kernel_pid) == ("alive", os.getpid())


def test_a_damaged_record_of_another_session_hides_none_that_waits(
    kernel: Kernel, run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.start()
    killed(kernel, run_folder)
    damaged = SessionFolder.create(run_folder)
    write_private(damaged.path / "processes.jsonl", b'{"role": "agent"\n5\n')
    write_private(damaged.path / "session.json", b'{"lease_until": []}')

    found = [waits.folder.session_id for waits in waiting(run_folder)]
    session = current.attach()
    damaged.remove()

    assert found == [session.session_id]
    assert all(damaged.session_id in message for message in caplog.messages)


# The other processes ---------------------------------------------------------------------------


@pytest.fixture
def session() -> Iterator[Session]:
    with current.start(nproc=2, device="cpu") as session:
        yield session


def kill_role(session: Session, role: str) -> None:
    process = session._processes.folder.process(role)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


def test_without_its_controller_a_session_says_so_and_can_be_stopped(session: Session) -> None:
    everything = processes_of(session)
    run = session.run("import time; time.sleep(600)")

    kill_role(session, "controller")

    assert run.wait(20)
    assert statuses(run) == ["stopped", "stopped"]
    assert error(run).ename == "ControllerLost"
    assert session.trouble is not None
    assert "controller" in session.trouble
    assert [state.state for state in session.states()] == ["out of reach", "out of reach"]
    session.stop()
    assert [describe(process) for process in wait_for_end(everything, 5)] == []


def test_a_session_without_kernel_and_controller_can_be_attached(
    kernel: Kernel, run_folder: Path
) -> None:
    session_id = kernel.start()
    kernel.do("s.run('x = 10 + rank').result()\nit = 1")
    killed(kernel, run_folder)
    controller = SessionFolder(run_folder / session_id).process("controller")
    assert controller is not None

    os.kill(controller.pid, signal.SIGKILL)

    with current.attach() as session:
        assert values(session, "nbdist.all_reduce(x)") == [21, 21]


def test_without_its_agent_a_session_says_so_and_can_be_stopped(session: Session) -> None:
    everything = processes_of(session)
    run = session.run("import time; time.sleep(600)")

    kill_role(session, "agent")

    assert run.wait(20)
    assert statuses(run) == ["dead", "dead"]
    with pytest.raises(SessionError, match=r"agent[^$]*%dist stop"):
        session.run("1")
    assert {state.state.partition(":")[0] for state in session.states()} == {"dead"}
    session.stop()
    assert [describe(process) for process in wait_for_end(everything, 5)] == []


def test_a_store_that_dies_is_replaced_and_the_groups_with_it(session: Session) -> None:
    everything = processes_of(session)
    finished(session, "kept = rank\npair = dist.new_group([0, 1])")
    before = pids(session)

    kill_role(session, "store")
    wait_until(lambda: session._processes.store_address is not None, "another store to be there")

    assert session.trouble is None
    assert values(session, "nbdist.all_reduce(kept)") == [1, 1]
    assert values(session, "nbdist.all_reduce(kept, group=pair)") == [1, 1]
    finished(session, "later = dist.new_group([0, 1])")
    assert values(session, "nbdist.all_reduce(kept, group=later)") == [1, 1]
    assert pids(session) == before
    assert session.restart_ranks(1).replaced == (1,)
    assert values(session, "nbdist.all_reduce(rank)") == [1, 1]
    session.stop()
    assert [describe(process) for process in wait_for_end(everything, 5)] == []
