"""Failures at odd moments: between cells, in a pull, in a recovery; none may poison the session."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from nbdist.errors import SessionError, TransferError
from nbdist.sessions.recovery import RecoveryReport
from nbdist.sessions.session import Session
from tests.sessions.driving import finished, pids, ranks, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

SUM = "nbdist.all_reduce(1)"


@pytest.fixture
def session() -> Iterator[Session]:
    with ranks(3) as session:
        finished(session, "import os, time\nkept = rank * 10")
        yield session


@contextmanager
def stopped_when(condition: Callable[[], object], what: str) -> Iterator[None]:
    """Press the stop button as soon as *condition* is true; the block has to end by that."""
    main = threading.get_ident()

    def press() -> None:
        wait_until(condition, what)
        signal.pthread_kill(main, signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    presser.join()


def test_a_cell_may_replace_its_file_descriptors(session: Session) -> None:
    code = "null = os.open(os.devnull, os.O_WRONLY)\nos.dup2(null, 1); os.dup2(null, 2)"
    finished(session, code, 1)

    assert values(session, SUM) == [3, 3, 3]
    run = finished(session, "print('still here')", 1)
    assert "still here" in run.render()["text/plain"]


def test_a_pull_that_fails_leaves_a_background_cell_alone(session: Session) -> None:
    background = session.run("dist.barrier(); 'over'", "1,2")
    for rank in (1, 2):
        wait_until(partial(session.running_cell, rank), f"rank {rank} to run the cell")

    with pytest.raises(TransferError, match="NameError"):
        session.pull("no_such_name", 0)
    finished(session, "dist.barrier()", 0)

    assert background.wait(20)
    assert statuses(background) == ["ok", "ok"]


def test_after_a_stopped_pull_the_groups_work(session: Session, tmp_path: Path) -> None:
    with stopped_when((tmp_path / "begun").exists, "the pull to begin"):
        session.pull(f"(open('{tmp_path}/begun', 'w'), dist.barrier())", 0)

    assert values(session, SUM) == [3, 3, 3]


def test_a_pull_that_hangs_in_c_keeps_nobody_but_its_rank(session: Session, tmp_path: Path) -> None:
    def is_in_c() -> bool:
        return (tmp_path / "begun").exists() and session.running_cell(0) is None

    # With the GIL held: not even the thread that takes interrupts can run.
    with stopped_when(is_in_c, "the C call"):
        session.pull(
            f"(open('{tmp_path}/begun', 'w'), __import__('ctypes').PyDLL(None).sleep(12))", 0
        )

    with pytest.raises(SessionError, match="rank 0 still runs a cell"):
        session.recover()
    assert values(session, "kept", "1,2") == [10, 20]
    assert session.busy_ranks == (0,)  # all that was long before its call is over

    wait_until(lambda: not session.busy_ranks, "the C call to end")
    assert values(session, SUM) == [3, 3, 3]


@pytest.mark.timeout(150)  # a rank that has not heard of the end waits 30 s for the others
def test_a_recovery_that_is_cut_short_can_be_gone_on_with(session: Session) -> None:
    before = pids(session)
    os.kill(before[1], signal.SIGSTOP)
    os.kill(before[2], signal.SIGKILL)
    wait_until(lambda: session.dead_ranks == (2,), "the death to be known")
    with stopped_when(lambda: session._recovery.open_meeting, "the ranks to be asked"):
        session.recover()
    os.kill(before[1], signal.SIGCONT)

    with pytest.raises(SessionError, match="%dist recover"):
        session.run("1")
    wait_until(lambda: recovers(session), "the recovery to succeed", timeout_s=90)

    assert values(session, SUM) == [3, 3, 3]
    assert values(session, "kept", "0,1") == [0, 10]


def recovers(session: Session) -> bool:
    try:
        session.recover()
    except SessionError:
        return False
    return True


def test_with_recover_auto_a_death_between_cells_is_told() -> None:
    with ranks(2, recover="auto") as session:
        finished(session, "kept = rank")
        os.kill(pids(session)[1], signal.SIGKILL)
        wait_until(lambda: session.dead_ranks == (1,), "the death to be known")

        run = finished(session, SUM)

        assert run.values().stack().tolist() == [2, 2]
        assert "rank 1 replaced" in run.render()["text/plain"]


def test_an_agent_that_meets_an_error_keeps_its_ranks(session: Session) -> None:
    session._processes.link.send("spawn", rank="nonsense")  # no such rank, and half of the message

    assert values(session, SUM) == [3, 3, 3]
    assert session._processes.ask_state(20)


# Several who want to recover ----------------------------------------------------------------------


def at_once(*actions: Callable[[], object]) -> list[object]:
    """Do all *actions* at once, in threads; return what came out or was raised, in their order."""
    ready = threading.Barrier(len(actions))

    def do(action: Callable[[], object]) -> object:
        ready.wait()
        try:
            return action()
        except SessionError as exc:
            return exc

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(do, actions))


def births(session: Session, rank: int) -> list[int]:
    """Return the pids of all processes that were made for *rank*."""
    recorded = session._processes.folder.processes()
    return [process.pid for role, process in recorded if role == f"rank {rank}"]


def kill(session: Session, rank: int) -> None:
    os.kill(pids(session)[rank], signal.SIGKILL)
    wait_until(lambda: session.dead_ranks == (rank,), "the death to be known")


def test_of_two_who_recover_at_once_one_makes_the_fresh_rank(session: Session) -> None:
    for _ in range(3):
        kill(session, 1)
        before = births(session, 1)

        reports = at_once(session.recover, session.recover, session.recover)

        replaced = [report.replaced for report in reports if isinstance(report, RecoveryReport)]
        assert sorted(replaced) == [(), (), (1,)], reports
        assert len(births(session, 1)) == len(before) + 1
        assert values(session, SUM) == [3, 3, 3]
    assert values(session, "kept", "0,2") == [0, 20]


def test_a_recovery_beside_a_restart_of_the_same_rank(session: Session) -> None:
    kill(session, 1)

    found = at_once(session.recover, partial(session.restart_ranks, "1"))

    assert all(isinstance(each, RecoveryReport) for each in found), found
    assert values(session, SUM) == [3, 3, 3]
    assert values(session, "kept", "0,2") == [0, 20]


def test_a_cell_that_is_sent_during_a_recovery_waits_for_it(session: Session) -> None:
    kill(session, 1)
    recovering = threading.Thread(target=session.recover)
    recovering.start()
    wait_until(lambda: session._recovery.open_meeting, "the ranks to be asked")

    assert values(session, SUM) == [3, 3, 3]
    recovering.join()


# A store that does not answer ---------------------------------------------------------------------


@contextmanager
def suspended(session: Session, *roles: str) -> Iterator[None]:
    """Stop processes of the session from outside; the agent first, where it is one of them."""
    found = [session._processes.folder.process(role) for role in roles]
    suspended = [process.pid for process in found if process is not None]
    assert len(suspended) == len(roles)
    for pid in suspended:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in suspended:
            os.kill(pid, signal.SIGCONT)


def test_a_store_keeper_that_was_stopped_keeps_nobody(session: Session) -> None:
    with suspended(session, "store"):
        finished(session, "if rank == 1: 1 / 0\ndist.barrier()")

        assert values(session, SUM) == [3, 3, 3]
        assert values(session, f"g = dist.new_group([0, 1, 2]); {SUM}") == [3, 3, 3]
    assert values(session, "kept") == [0, 10, 20]


@pytest.mark.parametrize(
    "call", ["dist.barrier()", "dist.all_reduce(torch.ones(1), async_op=True).wait()"]
)
def test_the_stop_button_ends_the_wait_for_a_store_that_does_not_answer(
    session: Session, call: str
) -> None:
    with suspended(session, "agent", "store"):
        finished(session, f"if rank == 1: 1 / 0\n{call}")
        run = session.run(SUM)
        wait_until(partial(are_to_agree, session), "the ranks to wait for the store")
        assert not run.done
        assert session.stop_run(run, "The cell was stopped") == ()
        assert statuses(run) == ["stopped"] * 3

    assert values(session, SUM) == [3, 3, 3]
    assert values(session, "kept") == [0, 10, 20]


def are_to_agree(session: Session) -> bool:
    return all("is to agree with the others" in state.state for state in session.states())


# What the ranks are said to do --------------------------------------------------------------------


def test_no_rank_is_called_idle_that_does_not_answer(session: Session) -> None:
    victim = pids(session)[2]
    finished(session, "loop = __import__('asyncio').get_running_loop()", 1)
    finished(session, "handle = loop.call_later(0.3, time.sleep, 6)", 1)
    os.kill(victim, signal.SIGSTOP)
    try:
        wait_until(lambda: "no cell, but busy" in session.states()[1].state, "rank 1 to be busy")
        found = [state.state for state in session.states()]
    finally:
        os.kill(victim, signal.SIGCONT)

    assert found[0] == "idle"
    assert found[2].startswith("no answer: stopped by SIGSTOP")
    wait_until(lambda: {s.state for s in session.states()} == {"idle"}, "all to be idle again")
