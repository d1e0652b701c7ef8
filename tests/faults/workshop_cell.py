"""What every rank of a fault test has; runs as a cell on each of them (see `driving.Workshop`).

One of each kind of object that has to survive, and `everything`, which uses all of them.
"""

from __future__ import annotations

import asyncio  # noqa: F401 - for the cells of the tests, like all names here that nobody uses
import ctypes  # noqa: F401
import os
import signal  # noqa: F401
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader  # noqa: F401

from nbdist.runtime import guard_mode

rank, world_size = dist.get_rank(), dist.get_world_size()
ones = torch.ones
mine = rank * 10


class Bomb(torch.autograd.Function):
    """Passes everything on, or raises in its forward or its backward."""

    armed = ""

    @staticmethod
    def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
        Bomb.explode("forward")
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        Bomb.explode("backward")
        return grad

    @staticmethod
    def explode(where: str) -> None:
        if Bomb.armed == where:
            Bomb.armed = ""
            raise ValueError("the bug")


class WithBomb(nn.Module):
    """A bomb between layers."""

    def forward(self, x: torch.Tensor) -> Any:
        return Bomb.apply(x)  # type: ignore[no-untyped-call]


def make_net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), WithBomb(), nn.Linear(16, 4))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = small_integers(parameter.shape, generator)
    return net


def small_integers(shape: Any, generator: torch.Generator) -> torch.Tensor:
    """Return floats whose sums are exact: no order of adding, and no reducer, can change them."""
    return torch.randint(-1, 2, shape, generator=generator).float()


def make_sharded_net() -> Any:
    net: Any = make_net()
    for layer in (net[0], net):
        fully_shard(layer, mesh=mesh)
    return net


mesh = init_device_mesh("cpu", (world_size,))
x = small_integers((4, 8), torch.Generator().manual_seed(rank))
# Nothing from here on calls a collective: a fresh rank makes its own part again.
fsdp = make_sharded_net()
sharded = DTensor.from_local(torch.full((2, 3), float(rank)), mesh, [Shard(0)], run_check=False)


def everything() -> list[Any]:
    """Use all there is, change nothing, and return what came out: the same every time."""
    Bomb.armed = ""
    total, of_pair, of_mesh = ones(3) * (rank + 1), ones(2) * (rank + 1), ones(2)
    dist.all_reduce(total)
    if rank < 2:
        dist.all_reduce(of_pair, group=pair)
    dist.all_reduce(of_mesh, group=mesh.get_group())
    names: list[Any] = [None] * world_size
    dist.all_gather_object(names, f"rank {rank}")
    [*_, summed] = functional.all_reduce(ones(2), "sum", mesh)
    found = [total.tolist(), of_pair.tolist(), of_mesh.tolist(), names, summed.item(), pass_on()]
    return [*found, sharded.full_tensor().sum().item(), train(ddp), train(fsdp), mine, os.getpid()]


def pass_on() -> float:
    """Send to the next rank, and receive from the one before."""
    came = torch.empty(1)
    works = [
        dist.irecv(came, (rank - 1) % world_size),
        dist.isend(ones(1) * rank, (rank + 1) % world_size),
    ]
    for work in works:
        work.wait()  # type: ignore[union-attr]
    return came.item()


def train(model: nn.Module) -> list[float]:
    """Train for one step and take it back; return the loss and what this rank's part became."""
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    optimizer.zero_grad()
    loss = 12 * model(x).sum()  # what two, three and four ranks can average exactly
    loss.backward()
    optimizer.step()
    weights = torch.cat([local(parameter).flatten() for parameter in parameters])
    became = weights.dot(torch.arange(1.0, len(weights) + 1)).item()
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
    return [loss.item(), became]


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def redistribute() -> float:
    return sharded.redistribute(mesh, [Replicate()]).to_local().sum().item()


def wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.001)


def wait_for_failure() -> None:
    """Return when some rank has said that it will not come any more."""
    guard: Any = guard_mode._current
    while guard.cancellation() is None:
        time.sleep(0.001)


def objects() -> list[int]:
    """Say which objects these are."""
    return [id(thing) for thing in (ddp, fsdp, sharded, mesh, pair)]


def group_of(ranks: list[int]) -> Any:
    """Return the latest group of *ranks* that there is; for outsiders what torch gives them."""
    groups = list(dist.distributed_c10d._world.pg_map)
    found = [group for group in groups if dist.get_process_group_ranks(group) == ranks]
    return found[-1] if found else dist.GroupMember.NON_GROUP_MEMBER


if "ddp" not in globals():
    pair = dist.new_group([0, 1])
    ddp = DistributedDataParallel(make_net())
else:  # a fresh rank: the groups were made for it, and the model was copied
    pair = group_of([0, 1])
