"""What `test_faults` runs on real ranks; see `real_ranks`.

In each case rank 1 raises: before it has called what rank 0 is in, inside of it, or after it, when
rank 0 is in the next call already. Then both recover, and the same objects have to work.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tests.runtime.real_ranks import World, main

ones = torch.ones
Kinds = dict[str, Callable[[], Any]]


def plain_kinds(rank: int) -> Kinds:
    sub = dist.new_group([0, 1])
    parts = [torch.zeros(4) for _ in range(2)]

    def send_or_recv(sender: int) -> None:
        if rank == sender:
            dist.send(ones(4), 1 - rank)
        else:
            dist.recv(torch.zeros(4), sender)

    def exchange() -> None:
        received = torch.zeros(4)
        operations = [dist.P2POp(dist.isend, ones(4), 1 - rank)]
        operations.append(dist.P2POp(dist.irecv, received, 1 - rank))
        for work in dist.batch_isend_irecv(operations):
            work.wait()

    return {
        "all_reduce": lambda: dist.all_reduce(ones(4)),
        "all_reduce in a subgroup": lambda: dist.all_reduce(ones(4), group=sub),
        "broadcast": lambda: dist.broadcast(ones(4), 0),
        "broadcast from the one that raises": lambda: dist.broadcast(ones(4), 1),
        "reduce": lambda: dist.reduce(ones(4), 0),
        "all_gather": lambda: dist.all_gather(parts, ones(4)),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(ones(8), ones(4)),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(ones(4), ones(8)),
        "all_to_all_single": lambda: dist.all_to_all_single(ones(4), ones(4)),
        "gather": lambda: dist.gather(ones(4), parts if rank == 0 else None),
        "scatter": lambda: dist.scatter(ones(4), parts if rank == 1 else None, src=1),
        "barrier": lambda: dist.barrier(),
        "all_gather_object": lambda: dist.all_gather_object([None, None], {"rank": rank}),
        "broadcast_object_list": lambda: dist.broadcast_object_list([{"rank": rank}], src=1),
        "recv": lambda: send_or_recv(1),
        "send": lambda: send_or_recv(0),
        "batch_isend_irecv": exchange,
        "asynchronous": lambda: dist.all_reduce(ones(4), async_op=True).wait(),
        "new_group": lambda: dist.new_group([0, 1]),
    }


def module_kinds() -> Kinds:
    mesh = init_device_mesh("cpu", (2,))
    world: Any = dist.group.WORLD
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    ddp = DistributedDataParallel(net)  # with buffers: its forward has collectives, too
    fsdp: Any = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    fully_shard(fsdp, mesh=mesh)
    sharded = distribute_tensor(torch.arange(8.0).reshape(4, 2), mesh, [Shard(0)])
    x = torch.randn(4, 8)
    return {
        "functional": lambda: functional.all_reduce(ones(4), "sum", world).sum().item(),
        "DTensor redistribute": lambda: sharded.redistribute(mesh, [Replicate()]).to_local().sum(),
        "DTensor full_tensor": lambda: sharded.full_tensor(),
        "DDP forward and backward": lambda: ddp(x).sum().backward(),
        "DDP forward": lambda: ddp(x),
        "FSDP2 forward and backward": lambda: fsdp(x).sum().backward(),
        "FSDP2 forward": lambda: fsdp(x),
        "DDP constructor": lambda: DistributedDataParallel(nn.Linear(4, 4)),
    }


def raise_bug() -> None:
    raise ValueError("user bug")


def raise_inside(call: Callable[[], Any]) -> None:
    """Let the bug come out of the call itself, while it waits: from a signal's handler."""

    def on_alarm(*_: object) -> None:
        raise ValueError("user bug")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    try:
        call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_all(world: World, kinds: Kinds, faults: tuple[str, ...]) -> None:
    for name, call in kinds.items():
        for fault in faults:
            world.meet()
            world.say(**{f"{name}, {fault}": try_one(world, f"{name} {fault}", call, fault)})


def try_one(world: World, key: str, call: Callable[[], Any], fault: str) -> list[Any]:
    """Return the error, how long after the fault it came, whether a rebuild, the calls after it."""

    def fails() -> None:
        try:
            if fault == "before":
                time.sleep(0.02)
                raise_bug()
            if fault == "inside":
                raise_inside(call)
            call()
            raise_bug()
        finally:
            world.store.set(f"raised {key}", str(time.time()))

    def meets() -> None:
        if fault == "inside":
            world.store.get(f"raised {key}")
        call()
        if fault == "after":
            dist.all_reduce(ones(2))

    error = world.run_cell(fails if world.rank == 1 else meets)
    freed_ms = (time.time() - float(world.store.get(f"raised {key}"))) * 1e3
    outcome = world.recover()
    again = world.attempt(call)
    total = ones(2)
    dist.all_reduce(total)
    return [error, freed_ms, outcome.needs_rebuild, again, total.tolist()]


def collectives(world: World) -> None:
    world.join()
    try_all(world, plain_kinds(world.rank), ("before", "after"))


def inside(world: World) -> None:
    world.join()
    kinds = plain_kinds(world.rank)
    # Asynchronous calls are on their way before the bug: the other rank's may end well.
    on_their_way = ("asynchronous", "batch_isend_irecv", "new_group")
    try_all(world, {name: kinds[name] for name in kinds if name not in on_their_way}, ("inside",))


def modules(world: World) -> None:
    world.join()
    try_all(world, module_kinds(), ("before", "after"))


if __name__ == "__main__":
    main(globals())
