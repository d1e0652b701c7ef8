"""A recovery that does not go as it should, with ranks played by the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nbdist.errors import SessionError
from nbdist.sessions.recovery import Recovery
from nbdist.wire import RECOVER_REQUEST
from tests.sessions.fakes import NO_PID, FakeClient, FakeProcesses, fake_processes

FRESH_PID = NO_PID + 100


@pytest.fixture
def processes(run_folder: Path) -> FakeProcesses:
    """Three ranks; a fresh one joins at once, and a killed one is gone at once."""
    processes = fake_processes(run_folder, 3)
    processes.agent.plays["spawn"] = lambda rank, **_: [spawned(rank), joined(rank)]
    processes.agent.plays["kill"] = lambda rank: [
        {"event": "exited", "rank": rank, "pid": processes.pids[rank], "code": -9}
    ]
    return processes


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient()
    client.plays[RECOVER_REQUEST] = lambda *_: {"status": "ok"}
    return client


@pytest.fixture
def recovery(processes: FakeProcesses, client: FakeClient) -> Recovery:
    return Recovery(processes, client, 1)  # type: ignore[arg-type]  # a fake


def spawned(rank: int) -> dict[str, Any]:
    return {"event": "spawned", "rank": rank, "pid": FRESH_PID}


def joined(rank: int) -> dict[str, Any]:
    return {"event": "joined", "rank": rank, "limits": []}


def test_a_fresh_rank_takes_the_place_of_a_dead_one(
    processes: FakeProcesses, client: FakeClient, recovery: Recovery
) -> None:
    processes.die(2)

    settling = recovery.replace((2,), (0, 1))

    assert settling.is_over
    assert processes.pids[2] == FRESH_PID
    assert processes.exits == {}
    assert not recovery.is_due
    assert client.listeners == {}


def test_a_fork_that_is_refused_is_told_with_its_reason(
    processes: FakeProcesses, client: FakeClient, recovery: Recovery
) -> None:
    reason = "BlockingIOError: no more processes"
    refusal = {"event": "not spawned", "error": reason}
    processes.agent.plays["spawn"] = lambda rank, **_: [{**refusal, "rank": rank}]
    client.plays[RECOVER_REQUEST] = lambda *_: None  # they wait for the fresh one
    processes.die(2)

    with pytest.raises(SessionError, match=f"No process could be made for rank 2: {reason}"):
        recovery.replace((2,), (0, 1))

    assert recovery.is_due
    assert client.told_to_stop == [({0, 1}, ["settle/1"])]
    assert recovery.open_meeting == "settle/1"  # until they have answered


def test_after_a_refused_fork_the_next_try_may_succeed(
    processes: FakeProcesses, recovery: Recovery
) -> None:
    succeeds = processes.agent.plays["spawn"]
    refusal = {"event": "not spawned", "error": "MemoryError: "}
    processes.agent.plays["spawn"] = lambda rank, **_: [{**refusal, "rank": rank}]
    processes.die(2)
    with pytest.raises(SessionError, match="MemoryError"):
        recovery.replace((2,), (0, 1))

    processes.agent.plays["spawn"] = succeeds
    settling = recovery.replace((2,), (0, 1))

    assert settling.meeting == "settle/2"
    assert processes.exits == {}


def test_a_rank_that_dies_while_the_others_agree_ends_the_wait(
    processes: FakeProcesses, client: FakeClient, recovery: Recovery
) -> None:
    client.plays[RECOVER_REQUEST] = lambda rank, _: {"status": "ok"} if rank == 0 else None
    settling = recovery.settle((0, 1, 2))
    processes.die(1)

    with pytest.raises(SessionError, match="rank 1 died while the ranks were to agree"):
        recovery.wait(settling, timeout_s=20)

    assert recovery.is_due


def test_a_rank_that_cannot_agree_is_named_with_its_error(
    client: FakeClient, recovery: Recovery
) -> None:
    def reply(rank: int, _: Mapping[str, Any]) -> dict[str, Any]:
        return {"status": "error", "error": "RebuildError: no"} if rank == 2 else {"status": "ok"}

    client.plays[RECOVER_REQUEST] = reply

    with pytest.raises(SessionError, match=r"rank 2: RebuildError: no"):
        recovery.wait(recovery.settle((0, 1, 2)), timeout_s=20)

    assert recovery.is_due


@pytest.mark.parametrize("answer", ["before the interrupt", "after the interrupt", "never"])
def test_a_replacement_that_was_interrupted_leaves_no_second_process_of_its_rank(
    processes: FakeProcesses,
    recovery: Recovery,
    answer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nbdist.sessions.recovery.FORK_S", 20.0 if answer != "never" else 0.1)
    late = threading.Timer(0.2, processes.agent.hear, [spawned(2)])
    succeeds = processes.agent.plays["spawn"]

    def cut_short(**_: Any) -> Iterator[dict[str, Any]]:
        if answer == "before the interrupt":
            yield spawned(2)
        elif answer == "after the interrupt":
            late.start()
        raise KeyboardInterrupt

    processes.agent.plays["spawn"] = cut_short
    processes.die(2)

    with pytest.raises(KeyboardInterrupt):
        recovery.replace((2,), (0, 1))

    was_forked = answer != "never"
    assert (("kill", {"rank": 2}) in processes.agent.told) == was_forked
    assert set(processes.exits) == {2}

    processes.agent.plays["spawn"] = succeeds
    assert recovery.replace((2,), (0, 1)).meeting == "settle/2"
    assert processes.exits == {}
