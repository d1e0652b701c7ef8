"""What `test_lifeline` runs on real ranks; see `real_ranks`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from tests.runtime.real_ranks import World, main

ones = torch.ones
NUM_STEPS = 30


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def memory_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


# Stuck in every kind of native call ---------------------------------------------------------------


@contextmanager
def unguarded(world: World) -> Iterator[None]:
    """Without the guard every wait is native."""
    world.guard.set_mode("off")
    try:
        yield
    finally:
        world.guard.set_mode("on")


def stuck(world: World) -> None:
    """Rank 0 is stuck natively, its control thread aborts; then the same objects work again."""
    world.join()
    rank, peer = world.rank, 1 - world.rank
    sub = dist.new_group([0, 1])
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    ddp = DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    fsdp: Any = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    fully_shard(fsdp, mesh=mesh)
    sharded = distribute_tensor(torch.arange(8.0).reshape(4, 2), mesh, [Shard(0)])
    x = torch.randn(4, 8)
    ddp(x).sum().backward()
    fsdp(x).sum().backward()

    def batch() -> None:
        operations = [dist.P2POp(dist.isend, ones(4), peer)]
        operations.append(dist.P2POp(dist.irecv, torch.empty(4), peer))
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    kinds: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(ones(10)),
        "sub group": lambda: dist.all_reduce(ones(10), group=sub),
        "all_to_all_single": lambda: dist.all_to_all_single(ones(4), ones(4)),
        "barrier": lambda: dist.barrier(),
        "all_gather_object": lambda: dist.all_gather_object([None, None], {"rank": rank}),
        "recv": lambda: dist.recv(ones(4), 1) if rank == 0 else dist.send(ones(4), 0),
        "batch_isend_irecv": batch,
        "functional": lambda: functional.all_reduce(ones(10), "sum", sub).sum().item(),
        "DTensor": lambda: sharded.redistribute(mesh, [Replicate()]).to_local().sum().item(),
        "DDP": lambda: ddp(x).sum().backward(),
        "FSDP2": lambda: fsdp(x).sum().backward(),
        "new_group": lambda: dist.new_group([0, 1]),
    }
    for name, call in kinds.items():
        world.meet()
        error, aborted_at = "idle", time.time()
        with unguarded(world):
            if rank == 0:
                clock: list[float] = []

                def abort(clock: list[float] = clock) -> None:
                    clock.append(time.time())
                    world.lifeline.abort("the test says so", generation=world.generation)

                world.after(0.15, abort)
                error = world.attempt(call)
                aborted_at = clock[0]
        freed_ms = (time.time() - aborted_at) * 1e3
        world.meet()
        if rank == 1:
            world.lifeline.abort("the test says so", generation=world.generation)
        started = time.time()
        world.recover()
        rebuild_ms = (time.time() - started) * 1e3
        again = world.attempt(call)
        total = ones(3)
        dist.all_reduce(total, group=sub)
        ddp(x).sum().backward()
        fsdp(x).sum().backward()
        assert sharded.full_tensor().sum() == 28
        assert total.tolist() == [2] * 3
        world.say(**{name: [error, freed_ms, rebuild_ms, again]})


# Training through failures ------------------------------------------------------------------------


class Bomb(torch.autograd.Function):
    """Passes everything on, or raises in its backward."""

    is_armed = False

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        if Bomb.is_armed:
            Bomb.is_armed = False
            raise ValueError("user bug in backward")
        return grad


def apply_bomb(output: torch.Tensor) -> Any:
    return Bomb.apply(output)  # type: ignore[no-untyped-call]


def make_model(kind: str, world: World) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(6)]
    net: nn.Module = nn.Sequential(*layers, nn.Linear(64, 1))
    layers[3].register_forward_hook(lambda _module, _inputs, output: apply_bomb(output))
    if kind == "ddp":
        return DistributedDataParallel(net, bucket_cap_mb=0.02)
    if kind == "ddp unused":
        return DistributedDataParallel(net, bucket_cap_mb=0.02, find_unused_parameters=True)
    if kind == "ddp static":
        return DistributedDataParallel(
            net, bucket_cap_mb=0.02, static_graph=True, gradient_as_bucket_view=True
        )
    mesh = init_device_mesh("cpu", (world.size,))
    if kind == "tensor parallel":
        # Below the bomb: their backward has collectives, where the other rank is held back.
        plan = {"2.0": ColwiseParallel(), "3.0": RowwiseParallel()}
        return parallelize_module(net, mesh, plan)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


# step -> (where it raises, on which rank)
FAILURES = {
    5: ("forward", 1),
    9: ("backward", 1),
    14: ("forward", 0),
    20: ("backward", 0),
    21: ("backward", 1),
}


def train(world: World, kind: str, failures: dict[int, tuple[str, int]]) -> list[Any]:
    """Train; a step that fails is recovered from, and done again with the same objects."""
    model = make_model(kind, world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    is_replicated_input = kind == "tensor parallel"
    generator = torch.Generator().manual_seed(100 + (0 if is_replicated_input else world.rank))
    data = [
        (torch.randn(16, 64, generator=generator), torch.randn(16, 1, generator=generator))
        for _ in range(NUM_STEPS)
    ]
    to_come, losses, step, notes = dict(failures), [], 0, []

    def do_step() -> None:
        where, who = to_come.pop(step, ("", -1))
        Bomb.is_armed = where == "backward" and who == world.rank
        x, y = data[step]
        optimizer.zero_grad(set_to_none=kind != "ddp static")
        if where == "forward" and who == world.rank:
            raise ValueError("user bug in forward")
        loss = (model(x) - y).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    while step < NUM_STEPS:
        if step not in to_come:
            do_step()
            step += 1
            continue
        started = time.time()
        error = world.run_cell(do_step)
        freed_s = time.time() - started
        outcome = world.recover()
        notes.append([error[:90], outcome.needs_rebuild, freed_s, time.time() - started - freed_s])
    digest = [whole(parameter).double().sum().item() for parameter in model.parameters()]
    return [losses, digest, notes]


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def training(world: World) -> None:
    world.join()
    for kind in ("ddp", "ddp unused", "ddp static", "fsdp2", "tensor parallel"):
        *undisturbed, _ = train(world, kind, {})
        *disturbed, notes = train(world, kind, FAILURES)
        pairs = list(zip(undisturbed[0], disturbed[0], strict=True))
        differing = [step for step, (one, other) in enumerate(pairs) if one != other]
        world.say(**{kind: [undisturbed == disturbed, differing[:1], undisturbed[0][-1], notes]})


# What stays ---------------------------------------------------------------------------------------


def many_recoveries(world: World) -> None:
    """Fifty rebuilds of three groups."""
    world.join()
    groups = [dist.group.WORLD, dist.new_group([0, 1]), dist.new_group([0, 1])]
    ddp = DistributedDataParallel(nn.Linear(64, 64))
    sizes = []
    for _ in range(50):
        world.lifeline.abort("the test says so", generation=world.generation)
        world.meet()
        world.resync()
        world.rebuild()
        for group in groups:
            dist.all_reduce(ones(1000), group=group)
        ddp(torch.randn(4, 64)).sum().backward()
        sizes.append([num_threads(), num_files(), memory_mib(), len(world.table.slots())])
    world.say(first=sizes[0], second=sizes[1], tenth=sizes[9], last=sizes[-1])


# A rank dies and another takes its place ----------------------------------------------------------


def replaced(world: World) -> None:
    """Rank 1 of three is killed inside an all_reduce; a fresh process is rank 1 afterwards."""
    world.join()
    dist.new_group([0, 2])
    pair = dist.new_group([1, 2])
    big, state = ones(4_000_000), {"steps": 0}
    if world.rank == 1:
        world.store.set("pid", str(os.getpid()))

    def work() -> None:
        while True:
            dist.all_reduce(big)
            big.fill_(1)
            state["steps"] += 1

    if world.rank == 0:
        world.after(0.6, lambda: kill_rank_one(world))
    error = world.run_cell(work)
    noticed_ms = (time.time() - float(world.store.get("killed"))) * 1e3
    if world.rank == 0:
        world.start_fresh(__file__, 1)
    world.generation, world.num_meetings = 1, 0
    started = time.time()
    world.resync()
    names = world.lifeline.rebuild(world.open_store(), 1)
    world.guard.rebuilt()
    world.say(joined_ms=(time.time() - started) * 1e3, names=list(names), error=error)
    total = ones(2)
    dist.all_reduce(total)
    if world.rank == 2:
        dist.all_reduce(total, group=pair)
    world.say(total=total.tolist(), noticed_ms=noticed_ms, has_state=state["steps"] > 0)


def kill_rank_one(world: World) -> None:
    """Stand for the agent: end the process, and tell the table that it is dead."""
    world.store.set("killed", str(time.time()))
    os.kill(int(world.store.get("pid")), signal.SIGKILL)
    world.table.cancel("rank 1 died: signal 9 (SIGKILL)", 1, of=1, kind="died")


def fresh(world: World) -> None:
    world.take_place()
    total = ones(2)
    dist.all_reduce(total)
    [pair] = [g for g in dist.distributed_c10d._world.pg_map if g.size() == 2]
    dist.all_reduce(total, group=pair)
    world.meet()


replaced.__dict__["expected_codes"] = [0, -9, 0]


if __name__ == "__main__":
    main(globals())
