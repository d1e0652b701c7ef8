"""Groups that only some ranks have made: the next ones are made all the same, and at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbdist.sessions.session import Session
from tests.sessions.driving import finished, printed, ranks, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

IMPORTS = "import os, signal, time\nfrom torch.distributed.device_mesh import init_device_mesh"
MESH = "mesh = init_device_mesh('cpu', (world_size, 1))"  # a group of its own on each rank
GROUP = (
    "g = dist.new_group(list(range(world_size))); t = torch.ones(1); dist.all_reduce(t, group=g)"
)


@pytest.fixture(scope="module", params=[2, 4])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with ranks(request.param) as session:
        yield session


@pytest.fixture(autouse=True)
def groups_are_made_afterwards(session: Session) -> Iterator[None]:
    finished(session, f"{IMPORTS}\nkept = rank * 10")
    yield
    size = session.world_size
    for _ in range(2):
        assert values(session, f"{GROUP}; t.item()") == [size] * size
        assert values(session, f"{MESH}; mesh.get_local_rank(0)") == list(range(size))
    assert values(session, "kept") == [rank * 10 for rank in range(size)]


def test_a_rank_raises_before_a_mesh_that_needs_nobody_else(session: Session) -> None:
    run = finished(session, f"if rank == 1: raise ValueError('the bug')\n{MESH}")

    assert statuses(run)[:2] == ["ok", "error"]


def test_a_rank_raises_between_several_groups(session: Session) -> None:
    finished(
        session, f"for _ in range(3):\n    dist.new_group([rank])\n    if rank == 1: 1 / 0\n{GROUP}"
    )


def test_a_rank_is_stopped_before_a_mesh_that_needs_nobody_else(session: Session) -> None:
    run = session.run(f"if rank == 1:\n    print('sleeps', flush=True); time.sleep(60)\n{MESH}")
    wait_until(lambda: printed(run, 1), "rank 1 to sleep")

    assert session.stop_run(run, "The cell was stopped") == ()


def test_a_rank_forgets_a_group_that_the_others_have(session: Session) -> None:
    forget = "dist.destroy_process_group(g) if rank == 1 else None"
    finished(session, f"{GROUP}\n{forget}\nif rank == 1: raise ValueError('the bug')")
