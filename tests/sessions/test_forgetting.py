"""What a session keeps of cells that are over: nothing, however they ended. Ranks are played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbdist.config import Config
from nbdist.sessions import run as run_module
from nbdist.sessions.session import Session
from nbdist.sessions.transport import Message
from nbdist.wire import CELL_REPLY, CellError, CellReply
from tests.sessions.fakes import FakeClient, FakeProcesses, fake_processes

GIVEN_UP = CellError("NoAnswer", "was given up")


class Office:
    """A session with two ranks; the test plays them."""

    def __init__(self, root: Path) -> None:
        self.processes: FakeProcesses = fake_processes(root, 2)
        self.client = FakeClient()
        client: Any = self.client
        self.session = Session(Config(), self.processes, client)

    def reply(self, rank: int, *, to: str) -> None:
        content = CellReply("ok", 0).to_json()
        self.client.listeners[to](Message(to, rank, CELL_REPLY, content, []))

    @property
    def num_kept(self) -> tuple[int, int, int]:
        """Cells, listeners and messages that the session keeps."""
        session = self.session
        return len(session._runs), len(self.client.listeners), len(session._sent)


@pytest.fixture
def office(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setattr(run_module, "STRAGGLER_S", 0.0)  # nothing more is on its way
    office = Office(run_folder)
    yield office
    office.session._monitor.close()


def test_a_cell_that_all_have_answered_is_forgotten(office: Office) -> None:
    office.session.run("1")
    [sent_id] = office.client.listeners

    for rank in (0, 1):
        office.reply(rank, to=sent_id)

    assert office.num_kept == (0, 0, 0)


def test_a_cell_that_a_death_has_ended_is_forgotten_with_the_next(office: Office) -> None:
    office.session.run("1")
    [sent_id] = office.client.listeners
    office.reply(0, to=sent_id)
    office.processes.die(1)

    run = office.session.run("1", 0)

    assert office.num_kept == (1, 1, 1)
    assert not run.done


def test_what_is_still_on_its_way_after_a_death_is_heard(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "STRAGGLER_S", 600.0)
    dead = office.session.run("1", 1)
    office.processes.die(1)

    office.session.run("1", 0)

    assert dead.done
    assert office.num_kept == (2, 2, 2)


def test_a_rank_that_was_given_up_on_is_heard_when_it_answers(office: Office) -> None:
    given_up = office.session.run("1")
    [sent_id] = office.client.listeners
    office.reply(0, to=sent_id)
    given_up.abandon(GIVEN_UP)
    assert office.session.busy_ranks == (1,)

    office.session.run("1", 0)
    assert sent_id in office.client.listeners
    office.reply(1, to=sent_id)

    assert sent_id not in office.client.listeners
    assert office.session.busy_ranks == (0,)  # with the cell it was just given
