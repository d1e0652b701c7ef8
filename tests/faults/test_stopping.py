"""The stop button, whatever the ranks are in: the cell ends soon, and nothing is lost.

What Python is busy with on its own stands in tests/sessions/test_interrupting.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nbdist.errors import SessionError
from tests.faults.driving import PROMPT_S, Workshop
from tests.faults.test_raising import CALLS
from tests.processes import describe, wait_for_end
from tests.sessions.driving import pids, printed, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

# Rank 1 does something else while the others are in the call.
AWAY = "if rank == 1: time.sleep(600)\n"


@contextmanager
def guard_in(shop: Workshop, mode: str) -> Iterator[None]:
    """Change the guard's mode on all ranks, and back."""
    values(shop.session, f"nbdist.guard('{mode}')")
    try:
        yield
    finally:
        values(shop.session, "nbdist.guard('on')")


# Within a collective -----------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_that_one_rank_does_not_come_to(shop: Workshop, call: str) -> None:
    run = shop.run(f"{AWAY}{call}\ndist.all_reduce(ones(2))")
    shop.wait_until_within(run, [0, 2])

    shop.stops(run)


@pytest.mark.parametrize("mode", ["trace", "off"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_native_call_that_one_rank_does_not_come_to(shop: Workshop, call: str, mode: str) -> None:
    with guard_in(shop, mode):
        run = shop.run(f"{AWAY}{call}\ndist.all_reduce(ones(2))")
        shop.wait_until_within(run, [0, 2])

        shop.stops(run)


@pytest.mark.parametrize("model", ["ddp", "fsdp"])
def test_training_that_goes_on_and_on(shop: Workshop, model: str) -> None:
    # No steps: one that is done and not taken back yet would show afterwards.
    run = shop.run(f"while True:\n    {model}.zero_grad()\n    {model}(x).sum().backward()")
    shop.wait_until_within(run, shop.all)

    shop.stops(run)


@pytest.mark.parametrize("mode", ["on", "trace", "off"])
def test_collectives_that_go_on_and_on(shop: Workshop, mode: str) -> None:
    with guard_in(shop, mode):
        run = shop.run("big = ones(500_000)\nwhile True: dist.all_reduce(big); big.fill_(1)")
        shop.wait_until_within(run, shop.all)

        shop.stops(run)


def test_a_group_that_only_one_rank_makes(shop: Workshop) -> None:
    run = shop.run("dist.new_group([0, 1]) if rank == 0 else None")
    shop.wait_until_within(run, [0])

    shop.session.stop_run(run, "The cell was stopped")

    assert statuses(run) == ["stopped", "ok", "ok"]


def test_a_cell_on_some_ranks_that_needs_all(shop: Workshop) -> None:
    run = shop.run("dist.all_reduce(ones(2))", "0,1")
    shop.wait_until_within(run, [0, 1])

    shop.stops(run)


def test_a_model_trained_on_some_ranks_that_needs_all(shop: Workshop) -> None:
    run = shop.run("train(ddp)", "0,2")
    shop.wait_until_within(run, [0, 2])

    shop.stops(run)


def test_a_recv_that_nobody_answers(shop: Workshop) -> None:
    run = shop.run("dist.recv(ones(2), 2)", 0)
    shop.wait_until_within(run, [0])

    shop.stops(run)


def test_a_recv_from_anybody_takes_no_later_message(shop: Workshop) -> None:
    for _ in range(4):
        run = shop.run("dist.recv(ones(2))", 0)
        shop.wait_until_within(run, [0])

        shop.stops(run)
        shop.works()
        shop.works()


# On a store --------------------------------------------------------------------------------------

MINE = "store = dist.TCPStore('127.0.0.1', 0, 1, True)\n"
STORE_WAITS = {
    "TCPStore": "dist.TCPStore('127.0.0.1', nbdist.free_port(), 2, False)",
    "TCPStore that waits for workers": "dist.TCPStore('127.0.0.1', 0, 2, True)",
    "get": f"{MINE}store.get('no')",
    "wait": f"{MINE}store.wait(['no'])",
    "barrier": f"{MINE}store.barrier('all', 2)",
    "multi_get": f"{MINE}store.multi_get(['no'])",
    "prefix": f"{MINE}dist.PrefixStore('p', store).get('no')",
    "session's": "dist.PrefixStore('p', dist.distributed_c10d._get_default_store()).get('no')",
    "file": "import tempfile\nstore = dist.FileStore(tempfile.mktemp(), 2)\nstore.get('no')",
    "rendezvous": (
        "next(dist.rendezvous(f'tcp://127.0.0.1:{nbdist.free_port()}', rank=1, world_size=2))"
    ),
    "init_rpc": (
        "from torch.distributed import rpc\n"
        "at = f'tcp://127.0.0.1:{nbdist.free_port()}'\n"
        "options = rpc.TensorPipeRpcBackendOptions(init_method=at, _transports=['uv'])\n"
        "rpc.init_rpc('w', rank=0, world_size=2, rpc_backend_options=options)"
    ),
}


@pytest.mark.parametrize("wait", STORE_WAITS.values(), ids=STORE_WAITS.keys())
def test_a_wait_on_a_store_that_nobody_answers(shop: Workshop, wait: str) -> None:
    run = shop.run(wait)
    shop.wait_until_within(run, shop.all)
    time.sleep(0.5)  # until it has asked, with luck; right at any moment

    shop.stops(run)

    assert [printed(run, rank) for rank in shop.all] == [""] * 3


# Each rank in something else ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        "while True: pass",
        "time.sleep(600)",
        "await asyncio.sleep(600)",
        "!sleep 600",
        "os.system('sleep 600')",
        "for _ in DataLoader(range(10**9), 1, num_workers=1): pass",
        "pass",
    ],
)
@pytest.mark.parametrize(
    "call", ["dist.all_reduce(ones(2))", "dist.all_reduce(ones(2), async_op=True).wait()"]
)
def test_some_wait_while_another_is_busy(shop: Workshop, other: str, call: str) -> None:
    waits = shop.run(call, "0,2")
    busy = shop.run(other, 1)
    shop.wait_until_within(waits, [0, 2])

    shop.session.interrupt(waits)
    shop.session.stop_run(busy, "The cell was stopped")
    shop.ends(waits)
    shop.ends(busy)

    assert statuses(waits) == ["stopped", "stopped"]
    assert statuses(busy) == ["ok" if other == "pass" else "stopped"]


# Several cells, several presses -------------------------------------------------------------------


def test_two_cells_are_stopped_and_the_third_runs(shop: Workshop) -> None:
    first = shop.run(f"{AWAY}dist.all_reduce(ones(2))")
    second = shop.run("began = True\ndist.all_reduce(ones(2))")
    shop.wait_until_within(first, [0, 2])

    shop.session.interrupt(second)
    shop.session.interrupt(first)
    third = shop.run("'began' in globals(), rank")

    assert list(shop.ends(third).result()) == [(False, 0), (False, 1), (False, 2)]
    assert set(statuses(first)) == set(statuses(second)) == {"stopped"}


@pytest.mark.parametrize("call", ["dist.all_reduce(ones(2))", "train(ddp)", "train(fsdp)"])
@pytest.mark.parametrize("num_presses", [2, 5])
def test_several_presses_are_one(shop: Workshop, call: str, num_presses: int) -> None:
    run = shop.run(f"{AWAY}{call}\ndist.all_reduce(ones(2))")
    shop.wait_until_within(run, [0, 2])

    for _ in range(num_presses):
        shop.session.interrupt(run)
    shop.ends(run)

    assert set(statuses(run)) == {"stopped"}


def test_a_press_right_after_sending(shop: Workshop) -> None:
    for call in ("dist.all_reduce(ones(2))", "train(ddp)", "train(fsdp)") * 5:
        run = shop.run(f"{AWAY}{call}")

        shop.stops(run)
        shop.works()


def test_a_press_at_the_end_does_not_reach_the_next_cell(shop: Workshop) -> None:
    for _ in range(20):
        run = shop.run("dist.all_reduce(ones(2))")
        shop.session.interrupt(run)
        following = shop.run("dist.get_rank()")
        shop.ends(run)

        assert list(shop.ends(following).result()) == [0, 1, 2]


def test_a_stopped_rank_may_catch_it_and_use_a_collective(shop: Workshop) -> None:
    run = shop.run(
        f"try:\n    {AWAY.strip()}\n    dist.all_reduce(ones(2))\n"
        "except BaseException: dist.all_reduce(ones(2))"
    )
    shop.wait_until_within(run, [0, 2])

    shop.stops(run)


# While the ranks recover -------------------------------------------------------------------------


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process from outside, and let it go on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_press_while_the_ranks_agree_to_go_on(shop: Workshop) -> None:
    shop.ends(shop.run("if rank == 1: raise ValueError('the bug')\ndist.barrier()"))

    with frozen(pids(shop.session)[1]):
        run = shop.run("dist.all_reduce(ones(2))")  # begins with an agreement that rank 1 misses
        stuck = shop.session.stop_run(run, "The cell was stopped")

    assert stuck == (1,)
    assert set(statuses(run)) == {"stopped"}
    shop.is_free()


def test_a_press_while_the_groups_are_made_anew(shop: Workshop) -> None:
    shop.ends(shop.run("if rank == 1: raise ValueError('the bug')\ntrain(ddp)"))

    with frozen(pids(shop.session)[2]):
        run = shop.run("dist.all_reduce(ones(2))")
        stuck = shop.session.stop_run(run, "The cell was stopped")

    assert stuck == (2,)
    shop.is_free()


def test_recover_with_a_rank_that_does_not_come_can_be_given_up(shop: Workshop) -> None:
    shop.ends(shop.run("if rank == 1: raise ValueError('the bug')\ndist.barrier()"))
    recovery = shop.session._recovery

    with frozen(pids(shop.session)[1]):
        settling = recovery.settle(shop.all)
        with pytest.raises(
            SessionError, match=r"rank 1 \(stopped from outside\) did not come within 1 s"
        ):
            recovery.wait(settling, timeout_s=1)

    shop.session.recover()


# What a stopped cell had started -----------------------------------------------------------------


def test_children_of_a_stopped_cell_end_with_it(shop: Workshop) -> None:
    run = shop.run("!sleep 611\ndist.barrier()", 1)
    waits = shop.run("dist.barrier()", "0,2")
    shop.wait_until_within(waits, [0, 2])
    wait_until(lambda: below(shop, "sleep 611"), "the command to run")
    children = below(shop, "sleep 611")

    shop.session.interrupt(waits)
    shop.stops(run)
    shop.ends(waits)

    assert [describe(process) for process in wait_for_end(children, PROMPT_S)] == []


def test_workers_of_a_stopped_cell_end(shop: Workshop, tmp_path: Path) -> None:
    run = shop.run(
        "for batch in DataLoader(range(10**9), 4, num_workers=2):\n"
        "    dist.all_reduce(batch)\n"
        "    if rank == 1: time.sleep(600)"
    )
    shop.wait_until_within(run, [0, 2])
    workers = below(shop, "pt_data_worker")
    assert len(workers) >= 4

    shop.stops(run)
    values(shop.session, "import gc; gc.collect(); 0")

    assert [describe(process) for process in wait_for_end(workers, PROMPT_S)] == []


def below(shop: Workshop, what: str) -> list[psutil.Process]:
    """Return the processes below the ranks whose name or command line has *what*."""
    ranks = [psutil.Process(pid) for pid in pids(shop.session)]
    children = [child for rank in ranks for child in rank.children(recursive=True)]
    return [child for child in children if what in f"{child.name()} {describe(child)}"]
