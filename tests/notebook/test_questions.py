"""The questions of ranks, on a run that is fed by hand."""

from __future__ import annotations

import builtins
import threading
from typing import Any

import pytest

from nbdist.notebook.cells import Questions
from nbdist.notebook.live import NoView, State
from nbdist.notebook.stopping import StopButton
from nbdist.sessions.run import Place, Run
from nbdist.sessions.transport import Message
from nbdist.wire import INPUT_REQUEST, CellRequest, Output
from tests.waiting import wait_until


class Seen(NoView):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}
        self.outputs: list[tuple[int, tuple[Output, ...]]] = []
        self.calls: list[str] = []

    def state(self, rank: int, state: State, where: str = "") -> None:
        self.states[rank] = state

    def show_all(self) -> None:
        self.calls.append("show all")


class Session:
    """Takes the answers."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []

    def answer_input(self, rank: int, answer: dict[str, str]) -> None:
        self.answers.append((rank, answer))


@pytest.fixture
def run() -> Run:
    request = CellRequest("s-1.1", "input()", "In[1]", 1, (0, 1))
    return Run(request, lambda *_: None, lambda _: None, 2)


def ask(run: Run, rank: int, prompt: str) -> None:
    content = {"prompt": prompt, "is_password": False}
    run.hear(Message("id", rank, INPUT_REQUEST, content, []))


def next_event(run: Run) -> Any:
    event = run.next_event(1)
    assert event is not None
    return event


def test_a_rank_that_asks_is_shown_so_until_it_has_its_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, session = Seen(), Session()
    questions = Questions(run, view)
    shown_when_asked: list[tuple[State, list[str]]] = []

    def answer(_prompt: str) -> str:
        shown_when_asked.append((view.states[1], list(view.calls)))
        return "yes"

    monkeypatch.setattr(builtins, "input", answer)
    ask(run, 1, "well? ")
    questions.take(next_event(run))
    questions.serve(session, StopButton())  # type: ignore[arg-type]  # a stand-in

    assert shown_when_asked == [("asking", ["show all"])]
    assert session.answers == [(1, {"text": "yes"})]
    assert view.states[1] == "running"
    assert not questions.waiting


def test_what_comes_while_the_user_thinks_is_shown_and_questions_wait(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, session = Seen(), Session()
    questions = Questions(run, view)
    names: list[str] = []

    def answer(prompt: str) -> str:
        names.append(prompt)
        if len(names) == 1:
            ask(run, 0, "second? ")
            run.note_places({0: Place("In[1]:1"), 1: Place("In[1]:1")})
            run.note_death(1, "was killed")
            wait_until(lambda: view.states.get(1) == "dead", "rank 1 shown as dead")
        return "x"

    monkeypatch.setattr(builtins, "input", answer)
    ask(run, 1, "first? ")
    questions.take(next_event(run))
    questions.serve(session, StopButton())  # type: ignore[arg-type]
    assert view.states == {0: "asking", 1: "dead"}
    questions.serve(session, StopButton())  # type: ignore[arg-type]

    assert names == ["[rank1] first? ", "[rank0] second? "]
    assert view.states == {0: "running", 1: "dead"}
    assert "nbdist-meanwhile" not in [thread.name for thread in threading.enumerate()]
