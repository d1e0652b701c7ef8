"""Short ways to start real ranks and to read what a cell left on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from nbdist.processes import MARK
from nbdist.sessions import current
from nbdist.sessions.run import Run
from nbdist.sessions.session import RankSpec, Session
from nbdist.wire import CellError, Output, Text
from tests.processes import processes_marked

PATIENCE_S = 30.0


@contextmanager
def ranks(num: int, **overrides: Any) -> Iterator[Session]:
    """Start *num* CPU ranks, one session at a time, and stop them whatever happens."""
    with current.start(nproc=num, device="cpu", **overrides) as session:
        yield session


def finished(session: Session, code: str, where: RankSpec = None) -> Run:
    """Run *code* to its end."""
    run = session.run(code, where)
    assert run.wait(PATIENCE_S), f"not over after {PATIENCE_S} s: {run}"
    return run


def values(session: Session, code: str, where: RankSpec = None) -> list[Any]:
    """Run *code*, which must succeed, and return the value of its last line from each rank."""
    return list(session.run(code, where).result(PATIENCE_S))


def error(run: Run, rank: int = 0) -> CellError:
    found = outputs_of(run, rank)[1]
    assert found is not None, f"rank {rank} did not fail"
    return found


def printed(run: Run, rank: int = 0) -> str:
    """Return all text of *rank*, stdout and stderr as they came."""
    return "".join(o.text for o in outputs_of(run, rank)[0] if isinstance(o, Text))


def shown(run: Run, rank: int = 0) -> tuple[Output, ...]:
    return outputs_of(run, rank)[0]


def outputs_of(run: Run, rank: int) -> tuple[tuple[Output, ...], CellError | None]:
    [output] = [output for output in run.outputs if output.rank == rank]
    return output.outputs, output.error


def statuses(run: Run) -> list[str]:
    return [output.status for output in run.outputs]


def pids(session: Session) -> list[int]:
    return [state.pid for state in session.states()]


def processes_of(session: Session) -> list[psutil.Process]:
    """Return the living processes of *session*; not those that lost its mark."""
    return processes_marked(MARK, session.session_id)
