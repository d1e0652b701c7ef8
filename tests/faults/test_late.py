"""Legal programs in which the others come late, by whatever is left at work: no call is ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from nbdist.sessions.run import Run
from nbdist.sessions.session import RankSpec
from tests.faults.driving import Workshop
from tests.faults.test_hopeless import MODES
from tests.faults.test_stopping import guard_in
from tests.sessions.driving import pids, statuses, values

pytestmark = pytest.mark.ranks

LATE_S = 30.0  # nothing here takes as long, on whatever machine


@pytest.fixture(params=MODES)
def guarded(shop: Workshop, request: pytest.FixtureRequest) -> Iterator[Workshop]:
    with guard_in(shop, request.param):
        yield shop


def passes(shop: Workshop, code: str, where: RankSpec = None) -> Run:
    """Run *code* as a cell that the prompt waits for; it has to end well, on all its ranks."""
    run = shop.run(code, where)
    with shop.session.awaited(run):
        shop.ends(run, LATE_S)
    assert set(statuses(run)) == {"ok"}, shop.describe(run)
    return run


REDUCE = "dist.all_reduce(ones(1))"
LATER = {
    "a thread": f"""
import threading
def late():
    time.sleep(3)
    {REDUCE}
if rank == 0: threading.Thread(target=late).start()
else: {REDUCE}
""",
    "a timer": f"""
import threading
if rank == 0: threading.Timer(3, lambda: {REDUCE}).start()
else: {REDUCE}
""",
    "a pool": f"""
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
if rank == 0: pool.submit(lambda: (time.sleep(3), {REDUCE}))
else: {REDUCE}
""",
    "a task": f"""
async def late():
    await asyncio.sleep(3)
    {REDUCE}
if rank == 0: task = asyncio.ensure_future(late())
else: {REDUCE}
""",
    "a task on a worker thread": f"""
async def late():
    await asyncio.to_thread(lambda: (time.sleep(3), {REDUCE}))
if rank == 0: task = asyncio.ensure_future(late())
else: {REDUCE}
""",
    "call_later": f"""
if rank == 0: asyncio.get_running_loop().call_later(3, lambda: {REDUCE})
else: {REDUCE}
""",
    "an alarm": f"""
signal.signal(signal.SIGALRM, lambda *_: {REDUCE})
if rank == 0: signal.setitimer(signal.ITIMER_REAL, 3)
else: {REDUCE}
""",
    "the end of another call": """
first, second = dist.new_group([0, 1]), dist.new_group([1, 2])
if rank == 2:
    time.sleep(3)
    dist.all_reduce(ones(1), group=second)
if rank == 1:
    work = dist.all_reduce(ones(1), group=second, async_op=True)
    work.get_future().add_done_callback(lambda _: dist.all_reduce(ones(1), group=first))
if rank == 0:
    dist.all_reduce(ones(1), group=first)
""",
}


@pytest.mark.parametrize("code", LATER.values(), ids=LATER.keys())
def test_what_is_left_at_work_comes_later(guarded: Workshop, code: str) -> None:
    passes(guarded, code)


RPC = f"""
from torch.distributed import rpc
options = rpc.TensorPipeRpcBackendOptions(init_method="env://", _transports=["uv"])
rpc.init_rpc(f"w{{rank}}", rank=rank, world_size=3, rpc_backend_options=options)
def serve():
    time.sleep(2)
    {REDUCE}
    return rank
"""


def test_rpc_serves_a_collective(guarded: Workshop) -> None:
    passes(guarded, RPC)
    call = "served = [rpc.rpc_async(f'w{i}', serve) for i in (1, 2)]\n"

    passes(guarded, f"{call}{REDUCE}\n[one.wait() for one in served]", [0])

    passes(guarded, "rpc.shutdown()")


def test_a_cell_in_the_background_and_then_one_on_the_others(guarded: Workshop) -> None:
    background = guarded.run(REDUCE, [0])
    time.sleep(2)

    passes(guarded, REDUCE, [1, 2])

    assert statuses(guarded.ends(background, LATE_S)) == ["ok"]


def test_the_others_come_in_a_cell_in_the_background(guarded: Workshop) -> None:
    background = guarded.run(f"time.sleep(3)\n{REDUCE}", [1, 2])

    passes(guarded, REDUCE, [0])

    assert statuses(guarded.ends(background, LATE_S)) == ["ok", "ok"]


def test_the_others_come_in_a_cell_that_is_queued(guarded: Workshop) -> None:
    background = [guarded.run("time.sleep(2)", [1, 2]), guarded.run(REDUCE, [1, 2])]

    passes(guarded, REDUCE, [0])

    assert statuses(guarded.ends(background[-1], LATE_S)) == ["ok", "ok"]


def test_a_cell_that_no_prompt_waits_for_is_left_alone(guarded: Workshop) -> None:
    run = guarded.run(f"if rank: {REDUCE}")
    assert not run.wait(3)

    guarded.session.stop_run(run, "The cell was stopped")
    assert statuses(run) == ["ok", "stopped", "stopped"]


# Calls that end by themselves ---------------------------------------------------------------------

POLL = """
from datetime import timedelta
short = dist.new_group([0, 1, 2], timeout=timedelta(seconds=4))
other = dist.new_group([0, 1, 2])  # nobody uses it after that: its ranks have called unlike things
began, seen = time.monotonic(), None
try:
    CALL
except RuntimeError as exc:
    seen = type(exc).__name__
took = time.monotonic() - began
"""
ENDING = {
    "a group's time-out": "if rank: dist.all_reduce(ones(1), group=short)",
    "recv within it": "if rank: dist.recv(ones(1), 0, group=short)",
    "a wait with its own": (
        "if rank: dist.all_reduce(ones(1), group=other, async_op=True).wait(timedelta(seconds=4))"
    ),
    "monitored_barrier": ("if rank == 0: dist.monitored_barrier(other, timedelta(seconds=4))"),
}


@pytest.mark.parametrize("call", ENDING.values(), ids=ENDING.keys())
def test_a_call_with_a_time_out_of_its_own_waits_so_long(guarded: Workshop, call: str) -> None:
    passes(guarded, POLL.replace("CALL", call))

    assert max(values(guarded.session, "took")) > 3.5


ALARM = """
other = dist.new_group([0, 1, 2])
def give_up(*_): raise TimeoutError
signal.signal(signal.SIGALRM, give_up)
seen = None
if rank:
    signal.alarm(3)
    try: dist.all_reduce(ones(1), group=other)
    except TimeoutError as exc: seen = type(exc).__name__
"""


def test_an_alarm_ends_a_wait(guarded: Workshop) -> None:
    passes(guarded, ALARM)

    assert values(guarded.session, "seen") == [None, "TimeoutError", "TimeoutError"]


# Ranks that are held up ---------------------------------------------------------------------------


def test_a_rank_that_is_stopped_for_a_while(guarded: Workshop) -> None:
    pid = pids(guarded.session)[0]
    run = guarded.run(f"time.sleep(1)\n{REDUCE}")
    os.kill(pid, signal.SIGSTOP)
    try:
        with guarded.session.awaited(run):
            assert not run.wait(4)
            os.kill(pid, signal.SIGCONT)
            guarded.ends(run, LATE_S)
    finally:
        os.kill(pid, signal.SIGCONT)

    assert set(statuses(run)) == {"ok"}


def test_a_rank_that_holds_pythons_lock(guarded: Workshop) -> None:
    passes(guarded, f"if rank == 0: ctypes.PyDLL(None).sleep(3)\n{REDUCE}")


def test_a_rank_that_is_asked_something(guarded: Workshop) -> None:
    run = guarded.run(f"if rank == 0: name = input('who? ')\n{REDUCE}")
    with guarded.session.awaited(run):
        assert not run.wait(3)
        guarded.session.answer_input(0, {"text": "me"})
        guarded.ends(run, LATE_S)

    assert set(statuses(run)) == {"ok"}


# Several at work ----------------------------------------------------------------------------------

THREADS = """
import threading
a, b = dist.new_group([0, 1, 2]), dist.new_group([0, 1, 2])
def in_b():
    time.sleep(2 if rank == 2 else 0)
    dist.all_reduce(ones(1), group=b)
def in_a():
    time.sleep(2 if rank == 1 else 0)
    dist.all_reduce(ones(1), group=a)
first, second = (in_a, in_b) if rank == 0 else (in_b, in_a)
thread = threading.Thread(target=second)
thread.start()
first()
thread.join()
"""


def test_two_threads_in_two_groups(guarded: Workshop) -> None:
    passes(guarded, THREADS)


def test_messages_that_cross(guarded: Workshop) -> None:
    passes(
        guarded,
        "if rank < 2:\n    sent = dist.isend(ones(1 << 20), 1 - rank)\n"
        "    time.sleep(2 * rank)\n    dist.recv(ones(1 << 20), 1 - rank)\n    sent.wait()",
    )


def test_a_checkpoint_is_written_meanwhile(guarded: Workshop) -> None:
    code = """
import tempfile
import torch.distributed.checkpoint as dcp
where = [tempfile.mkdtemp()] if rank == 0 else [None]
dist.broadcast_object_list(where)
writing = dist.new_group([0, 1, 2])
saved = dcp.async_save({"w": ones(1000)}, checkpoint_id=where[0], process_group=writing)
"""
    passes(guarded, code)

    passes(guarded, f"time.sleep(2 * (rank == 0))\n{REDUCE}\nsaved.result()")


def test_data_loaders_stay_at_work(guarded: Workshop) -> None:
    code = f"""
loader = DataLoader(range(64), batch_size=4, num_workers=1, persistent_workers=True)
batches = iter(loader)
if rank == 0: next(batches); time.sleep(3)
{REDUCE}
"""
    passes(guarded, code)

    passes(guarded, "del batches, loader")
