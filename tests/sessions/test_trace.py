"""What a session can tell of its ranks' collectives, and `%dist trace`. Real ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbdist.errors import UsageError
from nbdist.notebook import commands
from nbdist.notebook.commands import Commands
from nbdist.sessions.run import Run
from nbdist.sessions.session import Session
from nbdist.view.trace import CellTrace
from tests.sessions.driving import PATIENCE_S, finished, ranks, statuses
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

LATE_S = 0.6
LATE_CELL = f"""import time
x, came_at = torch.ones(1000), []
for step in range(2):
    if rank == 2:
        time.sleep({LATE_S / 2})
    came_at.append(time.monotonic())
    dist.all_reduce(x)
came_at
"""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(3) as session:
        finished(session, "import time; from torch import nn")
        yield session


def ran(session: Session, code: str, where: str | None = None) -> Run:
    run = finished(session, code, where)
    assert not run.has_failed, run.render()["text/plain"]
    return run


def trace_of(session: Session, run: Run) -> CellTrace:
    return session.trace([run.request.label]).labelled(run.request.label)


def straggler(cell: CellTrace) -> Any:
    [found] = cell.stragglers
    return found


# The session -------------------------------------------------------------------------------------


def test_a_rank_that_sleeps_is_the_straggler(session: Session) -> None:
    run = ran(session, LATE_CELL)
    cell = trace_of(session, run)

    found = straggler(cell)
    assert (found.rank, found.waiting) == (2, (0, 1))
    # By the ranks' own clocks: how late they are on a busy machine, nobody knows beforehand.
    steps = zip(*run.values(), strict=True)
    assert found.seconds == pytest.approx(sum(c - min(a, b) for a, b, c in steps), abs=LATE_S / 4)
    assert found.source == f"{cell.label}:7"
    assert cell.verdict.startswith("rank 2 was waited for ")


@pytest.mark.parametrize("mode", ["trace", "on"])
def test_the_straggler_of_a_training_step_is_named_in_both_modes(
    session: Session, mode: str
) -> None:
    ran(session, f"nbdist.guard({mode!r})")
    ran(session, "model = nn.parallel.DistributedDataParallel(nn.Linear(50, 50))")

    run = ran(
        session,
        f"if rank == 1: time.sleep({LATE_S})\nmodel(torch.ones(4, 50)).sum().backward()",
    )

    found = straggler(trace_of(session, run))
    assert found.rank == 1
    assert found.seconds > LATE_S / 2
    ran(session, "nbdist.guard('on')")


def test_the_last_cell_that_called_any_is_found(session: Session) -> None:
    run = ran(session, "dist.barrier()")
    ran(session, "1 + 1")

    cell = session.trace("last").last()

    assert cell is not None
    assert cell.label == run.request.label
    assert [one.site.op for one in cell.collectives] == ["barrier"]
    assert all(one.inside_s is not None for one in cell.collectives)


def test_every_call_is_there_with_all_its_ranks(session: Session) -> None:
    code = """x = [torch.ones(10) for _ in range(3)]
dist.all_gather(x, torch.ones(10))
if rank == 0: dist.send(x[0], 1)
if rank == 1: dist.recv(x[0], 0)
dist.all_reduce(x[0], async_op=True).wait()
"""
    cell = trace_of(session, ran(session, code))

    found = {one.site.op: one for one in cell.collectives}
    assert {op: sorted(one.calls) for op, one in found.items()} == {
        "all_gather": [0, 1, 2],
        "send": [0, 1],
        "all_reduce": [0, 1, 2],
    }
    lines = {op: one.site.source.partition(":")[2] for op, one in found.items()}
    assert lines == {"all_gather": "2", "send": "3", "all_reduce": "5"}


def test_ranks_that_took_no_part_are_not_in_it(session: Session) -> None:
    code = """
pair = dist.new_group([0, 1], use_local_synchronization=True)
dist.all_reduce(torch.ones(1), group=pair)
"""
    cell = trace_of(session, ran(session, code, "0,1"))

    assert sorted(cell.cells) == [0, 1]
    assert cell.silent == ()


def test_a_cell_that_waits_can_be_looked_at(session: Session, tmp_path: Path) -> None:
    run = session.run(
        f"import pathlib\n"
        f"while rank == 1 and not pathlib.Path('{tmp_path}/go').exists(): time.sleep(0.02)\n"
        "dist.barrier()"
    )
    try:
        wait_until(
            lambda: any(trace.calls for trace in session.trace([run.request.label]).ranks.values()),
            "a rank to come to the barrier",
        )
        cell = trace_of(session, run)
    finally:
        (tmp_path / "go").touch()
    assert run.wait(PATIENCE_S)

    assert {wait.for_rank for wait in cell.waits} <= {1, 2}
    assert "the cell still runs" in cell.notes
    assert statuses(run) == ["ok"] * 3


def test_a_rank_that_failed_was_waited_for(session: Session) -> None:
    code = f"if rank == 1:\n    time.sleep({LATE_S})\n    raise ValueError('bad')\ndist.barrier()"
    run = finished(session, code)
    assert run.has_failed

    found = straggler(trace_of(session, run))

    assert (found.rank, found.waiting) == (1, (0, 2))
    assert found.seconds > LATE_S / 2


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Return what `%dist` displays, as a front end would get it."""
    found: list[dict[str, str]] = []
    monkeypatch.setattr(commands, "publish_display_data", found.append)
    return found


def trace_line(line: str = "") -> None:
    Commands(None).command(f"trace {line}")


def test_the_command_shows_one_output_with_table_and_picture(
    session: Session, shown: list[dict[str, str]]
) -> None:
    ran(session, LATE_CELL)

    trace_line()

    [bundle] = shown
    assert "rank 2 was waited for" in bundle["text/plain"]
    assert "2 × all_reduce" in bundle["text/plain"]
    assert "data:image/png;base64," in bundle["text/html"]
    assert len(bundle["text/html"]) < 60_000


def test_the_command_finds_a_named_cell_and_can_do_without_the_picture(
    session: Session, shown: list[dict[str, str]]
) -> None:
    label = ran(session, LATE_CELL).request.label
    ran(session, "dist.barrier()")

    trace_line(f"{label} --table --all")

    [bundle] = shown
    assert bundle["text/plain"].startswith(f"{label} · ranks 0–2 · 2 calls\n")
    assert "2 × all_reduce" not in bundle["text/plain"]
    assert "<img" not in bundle["text/html"]


def test_the_command_saves_the_picture(
    session: Session, shown: list[dict[str, str]], tmp_path: Path
) -> None:
    ran(session, "dist.barrier()")

    trace_line(f"--table --save {tmp_path}/out.png")

    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert f"saved as {tmp_path}/out.png" in shown[0]["text/plain"]


def test_a_cell_without_calls_is_answered_with_those_that_have_some(session: Session) -> None:
    with pytest.raises(UsageError, match=r"No calls of In\[999\] are known"):
        trace_line("999")


def test_what_stays_the_same_is_the_same_each_time(
    session: Session, shown: list[dict[str, str]]
) -> None:
    ran(session, "dist.barrier()")

    trace_line("--table")
    trace_line("--table")

    assert shown[0] == shown[1]


def test_with_the_guard_off_the_command_says_so(
    shown: list[dict[str, str]], capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("session").stop()
    with ranks(2, guard="off") as session:
        ran(session, "dist.barrier()")
        trace_line()

    assert shown == []
    assert "Nothing was recorded: the guard is off." in capsys.readouterr().out
