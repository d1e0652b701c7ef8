"""One rank raises: the others are freed at once and told why, and all go on with what they had.

Not covered: NCCL, several hosts.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from nbdist.errors import TransferError
from tests.faults.driving import PROMPT_S, Workshop
from tests.sessions.driving import error, statuses

pytestmark = pytest.mark.ranks

CULPRIT = 1
BUG = "raised ValueError: the bug"
RAISE = "raise ValueError('the bug')"

# What all three ranks call.
CALLS = {
    "all_reduce": "dist.all_reduce(ones(4))",
    "all_gather": "dist.all_gather([ones(4), ones(4), ones(4)], ones(4))",
    "all_gather_into_tensor": "dist.all_gather_into_tensor(ones(12), ones(4))",
    "reduce_scatter": "dist.reduce_scatter(ones(4), [ones(4), ones(4), ones(4)])",
    "reduce_scatter_tensor": "dist.reduce_scatter_tensor(ones(4), ones(12))",
    "all_to_all_single": "dist.all_to_all_single(ones(6), ones(6))",
    "broadcast": "dist.broadcast(ones(4), 0)",
    "broadcast of the culprit": "dist.broadcast(ones(4), 1)",
    "reduce": "dist.reduce(ones(4), 0)",
    "reduce to the culprit": "dist.reduce(ones(4), 1)",
    "gather": "dist.gather(ones(4), [ones(4), ones(4), ones(4)] if rank == 0 else None)",
    "scatter": "dist.scatter(ones(4), [ones(4), ones(4), ones(4)] if rank == 0 else None)",
    "barrier": "dist.barrier()",
    "all_gather_object": "dist.all_gather_object([None] * 3, rank)",
    "broadcast_object_list": "dist.broadcast_object_list([rank], 1)",
    "gather_object": "dist.gather_object(rank, [None] * 3 if rank == 0 else None)",
    "scatter_object_list": "dist.scatter_object_list([None], [1, 2, 3] if rank == 0 else None)",
    "subgroup": "dist.all_reduce(ones(4), group=pair) if rank < 2 else None",
    "group of the mesh": "dist.all_reduce(ones(4), group=mesh.get_group())",
    "send and recv": "[lambda: dist.recv(ones(4), 1), lambda: dist.send(ones(4), 0), int][rank]()",
    "recv and send": "[lambda: dist.send(ones(4), 1), lambda: dist.recv(ones(4), 0), int][rank]()",
    "isend and irecv": "pass_on()",
    "batch_isend_irecv": (
        "ops = [dist.P2POp(dist.isend, ones(2), (rank + 1) % 3), "
        "dist.P2POp(dist.irecv, ones(2), (rank - 1) % 3)]\n"
        "for work in dist.batch_isend_irecv(ops): work.wait()"
    ),
    "async all_reduce": "dist.all_reduce(ones(4), async_op=True).wait()",
    "async all_gather": (
        "dist.all_gather([ones(4), ones(4), ones(4)], ones(4), async_op=True).wait()"
    ),
    "async all_gather_into_tensor": (
        "dist.all_gather_into_tensor(ones(12), ones(4), async_op=True).wait()"
    ),
    "async reduce_scatter_tensor": (
        "dist.reduce_scatter_tensor(ones(4), ones(12), async_op=True).wait()"
    ),
    "async broadcast": "dist.broadcast(ones(4), 1, async_op=True).wait()",
    "async all_to_all_single": "dist.all_to_all_single(ones(6), ones(6), async_op=True).wait()",
    "async barrier": "dist.barrier(async_op=True).wait()",
    "several async ones": (
        "for work in [dist.all_reduce(ones(1000), async_op=True) for _ in range(5)]: work.wait()"
    ),
    "functional": "functional.all_reduce(ones(4), 'sum', mesh).sum().item()",
    "functional all_gather": "functional.all_gather_tensor(ones(4), 0, mesh).sum().item()",
    "DTensor": "redistribute()",
    "DTensor in whole": "sharded.full_tensor()",
    "DDP": "train(ddp)",
    "DDP in no_sync": "with ddp.no_sync(): ddp(x).sum().backward()\nddp(x).sum().backward()",
    "FSDP2": "train(fsdp)",
    "new_group": "other = dist.new_group([0, 1, 2]); dist.destroy_process_group(other)",
    "new_group of two": "other = dist.new_group([0, 1]); dist.barrier(other) if rank < 2 else None",
    "new mesh": "init_device_mesh('cpu', (3, 1))",
    "DDP's constructor": "DistributedDataParallel(make_net())",
}


# Before, within and after each kind of call -------------------------------------------------------


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_rank_raises_before_the_others_come(shop: Workshop, call: str) -> None:
    run = shop.ends(
        shop.run(f"if rank == 1: {RAISE}\nwait_for_failure()\n{call}\ndist.all_reduce(ones(2))")
    )

    assert error(run, CULPRIT).evalue == "the bug"
    shop.blames(run, CULPRIT, BUG)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_rank_raises_while_the_others_are_within(
    shop: Workshop, call: str, tmp_path: Path
) -> None:
    run = shop.run(
        f"if rank == 1:\n    wait_for_file('{tmp_path}/go')\n    {RAISE}\n"
        f"{call}\ndist.all_reduce(ones(2))"
    )
    shop.wait_until_within(run, [0, 2])
    (tmp_path / "go").touch()
    shop.ends(run)

    assert error(run, CULPRIT).evalue == "the bug"
    shop.blames(run, CULPRIT, BUG)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_rank_raises_after_the_call(shop: Workshop, call: str) -> None:
    run = shop.ends(shop.run(f"{call}\nif rank == 1: {RAISE}\ndist.all_reduce(ones(2))"))

    assert error(run, CULPRIT).evalue == "the bug"
    shop.blames(run, CULPRIT, BUG)


@pytest.mark.parametrize("model", ["ddp", "fsdp"])
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_a_rank_raises_in_a_layer_of_the_model(
    shop: Workshop, model: str, where: str, culprit: int
) -> None:
    run = shop.ends(
        shop.run(f"if rank == {culprit}: Bomb.armed = '{where}'\ntrain({model})\ntrain({model})")
    )

    assert error(run, culprit).evalue == "the bug"
    shop.blames(run, culprit, BUG)


@pytest.mark.parametrize("model", ["ddp", "fsdp"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_all_ranks_raise_in_a_layer_of_the_model(shop: Workshop, model: str, where: str) -> None:
    run = shop.ends(shop.run(f"Bomb.armed = '{where}'\ntrain({model})"))

    # A slow rank may be freed from a collective before it comes to its own bug.
    found = [error(run, rank) for rank in shop.all]
    assert "the bug" in [each.evalue for each in found]
    assert all("raised ValueError: the bug" in e.evalue for e in found if e.evalue != "the bug")


# How a rank can raise -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("raise GeneratorExit", "raised GeneratorExit"),
        ("raise asyncio.CancelledError", "raised CancelledError"),
        ("raise StopIteration(3)", "raised StopIteration: 3"),
        ("raise ExceptionGroup('many', [ValueError(1)])", "raised ExceptionGroup: many"),
        ("raise MemoryError", "raised MemoryError"),
        ("torch.empty(2**50)", "raised RuntimeError"),
        ("raise ConnectionResetError('the database is gone')", "raised ConnectionResetError"),
        ("raise RuntimeError('connection refused by the database')", "raised RuntimeError"),
        ("raise ValueError('first line\\nsecond line')", "raised ValueError: first line"),
        ("raise ValueError('\\ud800')", "raised ValueError"),
        ("raise ValueError('x' * 100_000)", "raised ValueError: xxx"),
        ("assert rank == 0, 'half'", "raised AssertionError: half"),
        ("1 +", "raised SyntaxError"),
        ("await asyncio.wait_for(asyncio.sleep(9), 0.01)", "raised TimeoutError"),
        ("def f(): f()\nf()", "raised RecursionError"),
        (
            "class Rude(Exception):\n    def __str__(self): raise ValueError('no')\nraise Rude",
            "raised Rude",
        ),
        ("assert False", "raised AssertionError"),
        ("exit()", "raised"),
    ],
)
def test_the_others_are_told_what_it_was(shop: Workshop, code: str, how: str) -> None:
    waits = shop.run("dist.all_reduce(ones(2))", "0,2")
    shop.wait_until_within(waits, [0, 2])
    fails = shop.run(code, CULPRIT)
    shop.ends(waits)
    shop.ends(fails)

    assert statuses(fails) == ["error"]
    assert statuses(waits) == ["error", "error"]
    shop.blames(waits, CULPRIT, how, [0, 2])


@pytest.mark.parametrize(
    "code",
    [
        "raise RuntimeError(f'mine is {mine}')",
        "raise RuntimeError(f'connection refused: mine is {mine}')",
        "dist.barrier()\nraise ValueError(f'mine is {mine}')",
        "dist.barrier()\nw = dist.all_reduce(ones(4), async_op=True)\nw.wait()\n"
        "raise RuntimeError(f'mine is {mine}')",
    ],
)
def test_ranks_that_all_raise_show_their_own_error(shop: Workshop, code: str) -> None:
    run = shop.ends(shop.run(code))

    for rank in shop.all:
        assert error(run, rank).evalue.endswith(f"mine is {rank * 10}")
        assert error(run, rank).waited_for is None


def test_the_first_of_two_culprits_is_named(shop: Workshop) -> None:
    run = shop.ends(
        shop.run(
            f"if rank == 1: {RAISE}\n"
            "if rank == 2:\n    wait_for_failure()\n    raise KeyError('later')\n"
            "dist.all_reduce(ones(2))"
        )
    )

    shop.blames(run, CULPRIT, BUG, [0])
    assert error(run, 2).ename == "KeyError"


def test_a_rank_that_catches_its_own_error_fails_nobody(shop: Workshop) -> None:
    run = shop.ends(
        shop.run(f"try:\n    if rank == 1: {RAISE}\nexcept ValueError: pass\ndist.barrier()")
    )

    assert statuses(run) == ["ok"] * 3


def test_a_freed_rank_may_clean_up(shop: Workshop) -> None:
    run = shop.ends(
        shop.run(
            f"cleaned = False\nif rank == 1: {RAISE}\ntry: dist.barrier()\nfinally: cleaned = True"
        )
    )

    shop.blames(run, CULPRIT, BUG)
    assert list(shop.session.pull("cleaned")) == [True, False, True]


def test_a_freed_rank_that_goes_on_is_freed_again(shop: Workshop) -> None:
    run = shop.ends(
        shop.run(
            f"if rank == 1: {RAISE}\nfor _ in range(3):\n"
            "    try: dist.all_reduce(ones(2))\n    except nbdist.errors.PeerFailed: pass\n"
            "train(ddp)"
        )
    )

    shop.blames(run, CULPRIT, BUG)


def test_what_waits_behind_a_failed_cell_runs(shop: Workshop) -> None:
    first = shop.run(f"if rank == 1: {RAISE}\ndist.barrier()")
    second = shop.run("rank")
    shop.ends(first)

    assert list(shop.ends(second).result()) == [0, 1, 2]


@pytest.mark.parametrize("call", ["dist.barrier()", "train(ddp)", "train(fsdp)"])
def test_a_collective_queued_behind_a_failed_cell_ends(shop: Workshop, call: str) -> None:
    first = shop.run(f"if rank == 1: {RAISE}\n{call}")
    second = shop.run(call)

    shop.ends(first)
    shop.ends(second)


def test_a_pull_that_raises_in_a_collective_frees_the_others(shop: Workshop) -> None:
    shop.ends(shop.run("Bomb.armed = 'now'"))
    began = time.monotonic()

    with pytest.raises(TransferError, match="the bug"):
        shop.session.pull("Bomb.explode(Bomb.armed) if rank == 1 else dist.all_reduce(ones(2))")

    assert time.monotonic() - began < PROMPT_S


# Data loaders -------------------------------------------------------------------------------------

LOADER = """\
class Data(torch.utils.data.Dataset):
    def __len__(self): return 64
    def __getitem__(self, index):
        if rank == 1 and index == 20: {fault}
        return torch.ones(8)
for batch in DataLoader(Data(), 4, num_workers=2):
    ddp(batch).sum().backward()
"""


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("raise ValueError('the bug')", "Caught ValueError in DataLoader worker"),
        ("os._exit(3)", "exited unexpectedly with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "is killed by signal: Killed"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "is killed by signal: Segmentation fault"),
    ],
)
def test_a_data_loader_s_worker_fails(shop: Workshop, fault: str, how: str) -> None:
    run = shop.ends(shop.run(LOADER.format(fault=fault)))

    # A dead worker is told of by SIGCHLD, or met by the next batch, or by Python's queue.
    told = error(run, CULPRIT).evalue
    others = ("exited unexpectedly", "Connection reset by peer")
    assert how in told or any(text in told for text in others)
    shop.blames(run, CULPRIT, "raised")
