"""Groups that only some ranks have made: nobody waits for them in vain, and the next are made."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest

from nbdist.rank.recovery import TIDY_EVERY
from nbdist.sessions.run import Run
from nbdist.sessions.session import Session
from tests.faults.driving import PROMPT_S
from tests.sessions.driving import finished, pids, printed, ranks, statuses, values
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


# In the middle of connecting ----------------------------------------------------------------------

# Rank 1 leaves its address, and does not wait for rank 0. Whether that one is then refused or waits
# for ever is decided by the two addresses: by chance.
GIVES_UP = """
from datetime import timedelta
from torch.distributed import distributed_c10d as c10d
name = str(c10d._world.group_count)
store = c10d._world.pg_map[dist.group.WORLD][1]
if rank == 1:
    ours = c10d.PrefixStore("cpu/", c10d.PrefixStore(f"{name}/", store))
    try: c10d.ProcessGroupGloo(ours, 1, 2, timedelta(milliseconds=20))
    except dist.DistStoreError: store.set(f"{name} was given up", "")
    time.sleep(60)
store.get(f"{name} was given up")
print("connects", flush=True)
dist.new_group([0, 1])
"""


@pytest.mark.parametrize("attempt", range(3))
def test_who_connects_with_a_rank_that_has_given_up_is_freed_by_the_stop_button(
    session: Session, attempt: int
) -> None:
    run = session.run(GIVES_UP)
    wait_until(lambda: "connects" in printed(run, 0), "rank 0 to connect")
    time.sleep(0.05 * attempt)  # before, at and after its first look

    began = time.monotonic()
    stuck = session.stop_run(run, "The cell was stopped")

    assert stuck == ()
    assert time.monotonic() - began < PROMPT_S


def test_a_rank_that_was_suspended_while_others_made_a_group_comes_back(session: Session) -> None:
    pid = pids(session)[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        for code in ("dist.barrier()", "dist.barrier()", GROUP):
            run = session.run(code)
            assert session.stop_run(run, "The cell was stopped", partial(is_left_to, 1, run)) == (
                1,
            )
    finally:
        os.kill(pid, signal.SIGCONT)

    wait_until(lambda: not session.busy_ranks, "rank 1 to come to the end of its cells")


def is_left_to(rank: int, run: Run) -> bool:
    return run.running_ranks == (rank,)


def test_what_failures_leave_in_the_store_is_forgotten(session: Session) -> None:
    call = "work = dist.barrier(async_op=True) if rank else None"
    ask = (
        "store = dist.TCPStore(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), "
        "is_master=False)\n"
        "sorted({key.split('/')[key.startswith('settle/')] for key in store.list_keys()})"
    )
    for _ in range(2 * TIDY_EVERY + 1):
        finished(session, f"{call}\nif rank == 0: raise ValueError('the bug')\nwork.wait()")

    [agreements_and_generations] = values(session, ask, 0)

    assert 2 < len(agreements_and_generations) <= 2 * TIDY_EVERY + 2
