"""The monitor's thread: what it tells a run, also when it fails; with ranks played by the test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nbdist.sessions import monitor as monitor_module
from nbdist.sessions.monitor import Monitor
from nbdist.sessions.run import Place, Run
from nbdist.wire import SNAPSHOT_REQUEST, CellRequest, Frame, Snapshot
from tests.sessions.fakes import FakeClient, FakeProcesses, fake_processes
from tests.waiting import wait_until


@pytest.fixture
def processes(run_folder: Path) -> FakeProcesses:
    processes = fake_processes(run_folder, 2)
    processes.agent.plays["state"] = lambda number: [{"event": "state", "number": number}]
    return processes


@pytest.fixture
def client() -> FakeClient:
    client = FakeClient()
    client.plays[SNAPSHOT_REQUEST] = at_work
    return client


@pytest.fixture
def run(
    processes: FakeProcesses, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Return a cell that runs on both ranks, and is watched from its beginning."""
    monkeypatch.setattr(monitor_module, "LOOK_S", 0.01)
    monkeypatch.setattr(monitor_module, "YOUNG_S", 0.0)
    request = CellRequest("c-0.1", "work()", "In[3]", 3, (0, 1), want_value=False)
    run = Run(request, lambda *_: None, lambda _: None)
    monitor = Monitor(processes, client, after_s=60.0)  # type: ignore[arg-type]  # a fake
    monitor.add(run)
    monitor.start()
    yield run
    monitor.close()


def at_work(rank: int, _: Mapping[str, Any]) -> dict[str, Any]:
    frame = Frame(f"In[3]:{rank + 1}", "<module>", "", is_cell=True)
    return asdict(Snapshot(rank, pid=1, label="In[3]", seconds=2.0, stack=(frame,)))


def test_a_run_is_told_where_its_ranks_are(run: Run) -> None:
    wait_until(lambda: run.places, "the places")

    assert run.places == {0: Place("In[3]:1"), 1: Place("In[3]:2")}


def test_a_monitor_that_fails_says_so_in_the_cell_and_goes_on(run: Run, client: FakeClient) -> None:
    def break_down(*_: Any) -> dict[str, Any]:
        raise ValueError("a snapshot that nobody understands")

    client.plays[SNAPSHOT_REQUEST] = break_down
    wait_until(lambda: run.hang, "the failure to be told")
    said = run.hang
    client.plays[SNAPSHOT_REQUEST] = at_work
    wait_until(lambda: run.hang is None, "the monitor to go on")

    assert str(said).startswith("The monitor of this cell has failed (ValueError: a snapshot that")
    assert {"hang"} <= {event.kind for event in iter(lambda: run.next_event(0), None)}


def test_a_rank_that_dies_between_two_looks_is_not_asked(
    run: Run, client: FakeClient, processes: FakeProcesses
) -> None:
    asked: list[int] = []

    def note(rank: int, content: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(rank)
        return at_work(rank, content)

    processes.die(1)
    wait_until(lambda: run.places == {0: Place("In[3]:1")}, "a look that knows of the death")
    client.plays[SNAPSHOT_REQUEST] = note
    wait_until(lambda: len(asked) > 2, "more looks")

    assert set(asked) == {0}
    assert run.hang is None
