"""Training through failures is, to the last bit, training without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbdist.sessions.session import Session
from tests.sessions.driving import error, finished, ranks, statuses, values

pytestmark = [pytest.mark.ranks, pytest.mark.recovery]

CELL = (Path(__file__).parent / "training_cell.py").read_text()
NUM_STEPS = 30
KINDS = ["ddp", "ddp unused", "ddp static", "fsdp2", "tensor parallel"]

# step -> (what goes wrong in it, on which rank)
FAILURES = {
    5: ("if rank == 1: Bomb.armed = 'forward'", 1),
    9: ("if rank == 1: Bomb.armed = 'backward'", 1),
    14: ("if rank == 0: raise ValueError('the bug')", 0),
    20: ("if rank == 0: Bomb.armed = 'backward'", 0),
    21: ("if rank == 1: Bomb.armed = 'backward'", 1),
}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2) as session:
        session.run(CELL, want_value=False).result(30)
        yield session


@pytest.mark.parametrize("kind", KINDS)
def test_five_failures_do_not_change_a_bit(session: Session, kind: str) -> None:
    undisturbed = train(session, kind, {})

    disturbed = train(session, kind, FAILURES)

    assert disturbed == undisturbed
    assert len(disturbed[0]) > NUM_STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_stops_do_not_change_a_bit(session: Session, kind: str) -> None:
    undisturbed = train(session, kind, {})

    finished(session, f"training = Training({kind!r})")
    for step in range(NUM_STEPS):
        if step % 6 == 5:  # rank 1 never comes to this one
            run = session.run("import time\nif rank == 1: time.sleep(600)\ntraining.step()")
            assert session.stop_run(run, "The cell was stopped") == ()
            assert statuses(run) == ["stopped", "stopped"]
        finished(session, "training.step()").raise_failure()

    assert values(session, "training.outcome()") == undisturbed


def train(session: Session, kind: str, failures: dict[int, tuple[str, int]]) -> list[Any]:
    """Train in one cell a step; a step that fails is done again. Return the outcome by rank."""
    finished(session, f"training = Training({kind!r})").raise_failure()
    for step in range(NUM_STEPS):
        if step in failures:
            fault, culprit = failures[step]
            run = finished(session, f"{fault}\ntraining.step()")
            assert error(run, culprit).evalue == "the bug"
            assert error(run, 1 - culprit).waited_for == culprit
        finished(session, "training.step()").raise_failure()
    return values(session, "training.outcome()")
