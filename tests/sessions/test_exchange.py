"""Values that ranks do not send, or too late; with ranks played by the test."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nbdist.errors import TransferError
from nbdist.sessions import exchange as exchange_module
from nbdist.sessions.exchange import Exchange
from nbdist.sessions.unanswered import Unanswered
from nbdist.wire import VALUE_REQUEST
from tests.sessions.fakes import FakeClient, FakeProcesses, fake_processes

ALL = (0, 1, 2)


class Desk:
    """An exchange of three ranks and all around it; *folder* is where their large values lie."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.processes: FakeProcesses = fake_processes(root, 3)
        self.client = FakeClient()
        self.unanswered = Unanswered()
        self.failures: list[str] = []
        self.folder = folder
        numbers = itertools.count(1)
        self.exchange = Exchange(
            self.client,  # type: ignore[arg-type]  # a fake
            self.processes,
            self.unanswered,
            begin=lambda: f"request {next(numbers)}",
            note_failure=lambda: self.failures.append("noted"),
        )

    def value_of(self, rank: int) -> dict[str, Any]:
        """Return what *rank* replies whose value lies in a file."""
        path = self.folder / f"rank{rank}"
        path.write_text("large")
        return {"status": "ok", "value": {"places": [str(path)]}}

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def desk(run_folder: Path, tmp_path: Path) -> Desk:
    return Desk(run_folder, tmp_path)


def test_a_pull_that_is_interrupted_while_it_reads_leaves_no_file(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.client.plays[VALUE_REQUEST] = lambda rank, _: desk.value_of(rank)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(desk.exchange, "unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        desk.exchange.pull(ALL, "x", None)

    assert desk.files == set()


def test_what_comes_after_a_pull_was_given_up_is_thrown_away(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_module, "STOPPING_S", 0.01)

    def play(rank: int, _: Mapping[str, Any]) -> dict[str, Any] | None:
        return desk.value_of(rank) if rank == 0 else None

    def press_stop(transfer: Any) -> bool:
        monkeypatch.undo()
        raise KeyboardInterrupt

    desk.client.plays[VALUE_REQUEST] = play
    monkeypatch.setattr(desk.exchange, "_is_over", press_stop)
    with pytest.raises(KeyboardInterrupt):
        desk.exchange.pull(ALL, "big", None)

    assert desk.failures == ["noted"]
    assert desk.client.told_to_stop == [({1, 2}, ["request 1"])]
    assert desk.unanswered.busy(ALL) == (1, 2)
    assert desk.files == set()

    [sent_id] = desk.client.listeners
    desk.client.reply(sent_id, 1, desk.value_of(1))
    assert desk.unanswered.busy(ALL) == (2,)
    desk.client.reply(sent_id, 2, {"status": "error", "error": "KeyboardInterrupt: "})

    assert desk.unanswered.busy(ALL) == ()
    assert desk.files == set()
    assert desk.client.listeners == {}


def test_the_cause_is_named_and_not_what_the_others_met_by_it(desk: Desk) -> None:
    errors = {0: "PeerFailed: rank 1 raised", 1: "ValueError: bad", 2: "KeyboardInterrupt: "}
    desk.client.plays[VALUE_REQUEST] = lambda rank, _: {"status": "error", "error": errors[rank]}

    with pytest.raises(TransferError, match=r"^rank 1: ValueError: bad$"):
        desk.exchange.pull(ALL, "x", None)

    assert desk.failures == ["noted"]
    assert desk.client.listeners == {}


def test_a_rank_that_dies_ends_the_wait_and_its_replacement_is_free(desk: Desk) -> None:
    def play(rank: int, _: Mapping[str, Any]) -> dict[str, Any] | None:
        if rank != 1:
            return desk.value_of(rank)
        desk.processes.die(1)
        return None

    desk.client.plays[VALUE_REQUEST] = play

    with pytest.raises(TransferError, match=r"^rank 1 was killed by SIGKILL"):
        desk.exchange.pull(ALL, "big", None)

    assert desk.unanswered.busy(ALL) == ()
    assert desk.files == set()
    assert desk.client.listeners == {}


# The book of requests ----------------------------------------------------------------------------


def test_a_rank_is_busy_until_it_has_answered_everything() -> None:
    book = Unanswered()
    book.expect("first", ALL)
    book.expect("second", (0, 1))

    book.answered("first", 0)
    book.answered("first", 1)
    book.answered("second", 1)

    assert book.busy(ALL) == (0, 2)
    assert book.busy((1, 2)) == (2,)


def test_what_a_dead_rank_alone_had_to_answer_is_forgotten() -> None:
    book = Unanswered()
    book.expect("its own", (2,))
    book.expect("of all", ALL)

    book.died([2])

    assert "its own" not in book
    assert "of all" in book
    assert book.busy(ALL) == (0, 1)


def test_an_answer_that_nobody_expects_changes_nothing() -> None:
    book = Unanswered()
    book.expect("sent", (0,))

    book.answered("never sent", 0)
    book.forget("never sent")

    assert book.busy(ALL) == (0,)
