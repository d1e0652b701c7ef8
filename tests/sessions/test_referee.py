"""The referee's thread: whom it asks, and whom it tells; agent and ranks are played by the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nbdist.sessions import referee as referee_module
from nbdist.sessions.referee import Referee
from nbdist.sessions.run import Run
from nbdist.sessions.unanswered import Unanswered
from nbdist.wire import PROSPECT_REQUEST, BlockedCall, CellRequest, GroupCall, Prospect
from tests.sessions.fakes import FakeClient, FakeProcesses, fake_processes
from tests.sessions.scenes import call
from tests.waiting import wait_until

CELL = "c-0.1"
WAITS = call(0, 4, "waiting", ranks=(0, 1), source="In[3]:2")
BEHIND = call(1, 3, "issued", ranks=(0, 1))


@pytest.fixture
def table() -> list[GroupCall]:
    """Where the ranks stand, as the agent says."""
    return [WAITS, BEHIND]


@pytest.fixture
def processes(run_folder: Path, table: list[GroupCall]) -> FakeProcesses:
    processes = fake_processes(run_folder, 2)
    processes.agent.plays["state"] = lambda number: [
        {"event": "state", "number": number, "calls": [asdict(each) for each in table]}
    ]
    return processes


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient()
    client.plays[PROSPECT_REQUEST] = prospect
    return client


def prospect(rank: int, _: Mapping[str, Any]) -> dict[str, Any]:
    """Return that rank 0 waits for rank 1, which is at its end."""
    if rank == 1:
        return asdict(Prospect(1, is_idle=True))
    return asdict(Prospect(0, CELL, blocked=BlockedCall(5, WAITS, (1,), 1800.0)))


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def referee(
    processes: FakeProcesses,
    client: FakeClient,
    failures: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Referee]:
    monkeypatch.setattr(referee_module, "LOOK_S", 0.01)
    monkeypatch.setattr(referee_module, "PAUSE_S", 0.01)
    plain: Any = client
    referee = Referee(processes, plain, Unanswered(), on_ending=lambda: failures.append("noted"))
    referee.start()
    yield referee
    referee.close()


@pytest.fixture
def run() -> Run:
    request = CellRequest(CELL, "work()", "In[3]", 3, (0, 1), want_value=False)
    return Run(request, lambda *_: None, lambda _: None)


def endings(processes: FakeProcesses) -> list[dict[str, Any]]:
    return [arguments for command, arguments in processes.agent.told if command == "end calls"]


def num_looks(processes: FakeProcesses) -> int:
    return sum(command == "state" for command, _ in processes.agent.told)


def test_a_call_is_ended_once(
    referee: Referee, processes: FakeProcesses, run: Run, failures: list[str]
) -> None:
    with referee.watching(run):
        wait_until(lambda: endings(processes), "the call to be ended")
        looks = num_looks(processes)
        wait_until(lambda: num_looks(processes) > looks + 3, "more looks")

    [ending] = endings(processes)
    assert ending["numbers"] == {0: 5}
    said = "rank 0 waits in all_reduce #4 at In[3]:2; rank 1 has ended this cell\n"
    assert ending["reason"].startswith(said)
    assert failures == ["noted"]


def test_nobody_is_asked_while_nobody_waits(
    referee: Referee,
    processes: FakeProcesses,
    client: FakeClient,
    run: Run,
    table: list[GroupCall],
) -> None:
    asked: list[int] = []
    client.plays[PROSPECT_REQUEST] = lambda rank, _: asked.append(rank)
    table[:] = [call(0, 4, "issued", ranks=(0, 1)), call(1, 4, "issued", ranks=(0, 1))]

    with referee.watching(run):
        wait_until(lambda: num_looks(processes) > 3, "some looks")

    assert asked == []


def test_a_cell_is_looked_at_only_while_somebody_waits_for_it(
    referee: Referee, processes: FakeProcesses, run: Run
) -> None:
    with referee.watching(run):
        wait_until(lambda: num_looks(processes), "a look")
        during = repr(referee)

    assert (during, repr(referee)) == ("<Referee of 1 cells>", "<Referee of 0 cells>")


def test_an_error_of_its_own_does_not_end_it(
    referee: Referee, processes: FakeProcesses, client: FakeClient, run: Run
) -> None:
    client.plays[PROSPECT_REQUEST] = lambda *_: {"nobody": "understands"}
    with referee.watching(run):
        looks = num_looks(processes)
        wait_until(lambda: num_looks(processes) > looks + 3, "some looks")
        client.plays[PROSPECT_REQUEST] = prospect
        wait_until(lambda: endings(processes), "the call to be ended")
