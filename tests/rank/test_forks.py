"""What a cell forks: it ends where the cell's code ends in it, and the rank goes on."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from nbdist.sessions.session import Session
from tests.sessions.driving import error, finished, pids, printed, ranks, statuses, values

pytestmark = pytest.mark.ranks

WAIT = "_, ended = os.waitpid(pid, 0); code = os.waitstatus_to_exitcode(ended)"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2) as session:
        yield session


@pytest.fixture(autouse=True)
def the_ranks_go_on_alone(session: Session) -> Iterator[None]:
    finished(session, "import asyncio, os, sys\nkept = rank * 10")
    before = pids(session)
    yield
    assert values(session, "nbdist.all_reduce(1), kept") == [(2, 0), (2, 10)]
    assert pids(session) == before
    assert [psutil.Process(pid).children() for pid in before] == [[], []]


@pytest.mark.parametrize(
    ("in_child", "code", "text"),
    [
        ("pass", 0, ""),
        ("print('from the child')", 0, "from the child"),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit(-1)", 255, ""),
        ("sys.exit('good-bye')", 1, "good-bye"),
        ("raise ValueError('the bug')", 1, "ValueError: the bug"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
        ("await asyncio.sleep(0)", 1, "cannot await"),
        ("os._exit(4)", 4, ""),
        ("e = ValueError('the bug'); raise e from e", 1, "ValueError: the bug"),
    ],
)
def test_a_child_ends_with_the_code_that_a_script_would_end_with(
    session: Session, in_child: str, code: int, text: str
) -> None:
    run = finished(session, f"pid = os.fork()\nif pid == 0:\n    {in_child}\nelse:\n    {WAIT}")

    assert statuses(run) == ["ok", "ok"]
    assert values(session, "code") == [code, code]
    assert text in printed(run, 0)


def test_a_child_that_falls_through_does_what_is_left_of_the_cell(session: Session) -> None:
    run = finished(session, f"pid = os.fork()\nif pid: {WAIT}\nkept, pid > 0")

    assert list(run.result()) == [(0, True), (10, True)]
    assert "(10, False)" in printed(run, 1)


def test_a_child_outlives_its_cell(session: Session) -> None:
    finished(session, "r, w = os.pipe()\npid = os.fork()\nif pid == 0: os.read(r, 1); sys.exit(7)")

    assert values(session, "nbdist.all_reduce(1)") == [2, 2]
    assert values(session, f"os.write(w, b'x'); {WAIT}; os.close(r); os.close(w); code") == [7, 7]


def test_the_cell_of_the_rank_may_fail_beside_its_child(session: Session) -> None:
    run = finished(session, f"pid = os.fork()\nif pid: {WAIT}\nraise ValueError(pid > 0)")

    assert statuses(run) == ["error", "error"]
    assert error(run, 1).evalue == "True"
    assert "ValueError: False" in printed(run, 1)


def test_a_pull_may_fork(session: Session) -> None:
    found = list(session.pull("[os.waitpid(pid, 0)[1] if (pid := os.fork()) else 1 / 0]"))

    assert found == [[256], [256]]


def test_a_child_may_have_groups_of_its_own(session: Session) -> None:
    code = (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    c10d = dist.distributed_c10d\n"
        "    c10d.GroupMember.WORLD = None; c10d._world.pg_names.clear()\n"
        "    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "    t = torch.ones(2); dist.all_reduce(t); sys.exit(int(t.sum()) + 40)\n"
        f"{WAIT}\ncode"
    )

    assert values(session, code) == [42, 42]
