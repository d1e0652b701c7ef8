"""What is said of ranks that answer, are silent, are gone; with ranks played by the test."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nbdist.sessions.states import rank_states
from nbdist.wire import SNAPSHOT_REQUEST, Snapshot
from tests.sessions.fakes import NO_PID, FakeClient, FakeProcesses, fake_processes
from tests.waiting import wait_until

IDLE = asdict(Snapshot(rank=0, pid=1))


@pytest.fixture
def processes(run_folder: Path) -> FakeProcesses:
    return fake_processes(run_folder, 3)


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient()
    client.plays[SNAPSHOT_REQUEST] = lambda *_: IDLE
    return client


def told(client: FakeClient, processes: FakeProcesses) -> list[str]:
    return [found.state for found in rank_states(client, processes)]  # type: ignore[arg-type]


def test_each_rank_says_for_itself_what_it_does(
    client: FakeClient, processes: FakeProcesses
) -> None:
    running = {**IDLE, "label": "In[3]", "seconds": 2.4}
    client.plays[SNAPSHOT_REQUEST] = lambda rank, _: running if rank == 1 else IDLE

    assert told(client, processes) == ["idle", "running In[3] for 2 s", "idle"]


def test_a_rank_whose_main_thread_is_kept_outside_of_a_cell_is_not_called_idle(
    client: FakeClient, processes: FakeProcesses
) -> None:
    kept = {**IDLE, "outside": "is to agree with the others to go on"}
    client.plays[SNAPSHOT_REQUEST] = lambda rank, _: kept if rank == 1 else IDLE

    busy = "no cell, but busy: is to agree with the others to go on"
    assert told(client, processes) == ["idle", busy, "idle"]


def test_dead_joining_and_silent_ranks_are_told_apart(
    client: FakeClient, processes: FakeProcesses
) -> None:
    processes.die(0)
    client.unregistered = {1}
    client.plays[SNAPSHOT_REQUEST] = lambda *_: None

    states = told(client, processes)

    assert states[0].startswith("dead: was killed by SIGKILL")
    assert states[1:] == ["joining the others", "no answer: it is gone"]


def test_without_a_controller_the_ranks_are_out_of_reach_and_not_asked(
    client: FakeClient, processes: FakeProcesses
) -> None:
    processes.agent.hear({"event": "controller lost", "pid": NO_PID})
    client.plays[SNAPSHOT_REQUEST] = lambda *_: pytest.fail("was asked")

    assert told(client, processes) == ["out of reach"] * 3


def test_without_an_agent_all_ranks_are_dead(client: FakeClient, processes: FakeProcesses) -> None:
    processes.agent.hear({"event": "lost"})

    assert set(told(client, processes)) == {
        "dead: is gone: the agent that watched it has ended",
    }


# What the agent sees of them ---------------------------------------------------------------------


def asking(processes: FakeProcesses, found: list[Any], timeout_s: float) -> threading.Thread:
    """Ask for the state in a thread; return when the agent was told."""
    num_told = len(processes.agent.told)
    asker = threading.Thread(target=lambda: found.append(processes.ask_state(timeout_s)))
    asker.start()
    wait_until(lambda: len(processes.agent.told) > num_told, "the question")
    return asker


def test_of_two_who_ask_at_once_both_may_take_the_later_answer(processes: FakeProcesses) -> None:
    found: list[Any] = []
    askers = [asking(processes, found, 20), asking(processes, found, 20)]
    numbers = [arguments["number"] for _, arguments in processes.agent.told]

    processes.agent.hear({"event": "state", "number": max(numbers), "stopped": [1]})
    for asker in askers:
        asker.join()

    assert len(set(numbers)) == 2
    assert [state["stopped"] for state in found] == [[1], [1]]


def test_an_answer_from_before_the_question_is_not_taken(processes: FakeProcesses) -> None:
    processes.agent.plays["state"] = lambda number: [
        {"event": "state", "number": number, "stopped": [1]}
    ]
    assert processes.ask_state(20)["stopped"] == [1]

    processes.agent.plays.clear()

    assert processes.ask_state(0.05) == {}
