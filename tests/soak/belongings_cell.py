"""What every rank of a soak has; runs as a cell on each of them (see `tests.soak.bench`).

`counter` and `alike` are the same everywhere, `mine` is the rank's own. Two models learn: one in
DDP, one in FSDP2, each beside a plain copy that sees the data of all ranks, so that one can say at
any time what its weights must be.
"""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

rank, world_size = dist.get_rank(), dist.get_world_size()
SIZE = 1000  # of the tensors that cells change

if "counter" not in globals():
    counter, mine, alike = 0, torch.zeros(SIZE), torch.zeros(SIZE)


def advance() -> None:
    """Change everything that has to survive."""
    global counter
    counter += 1
    mine.add_(rank + 1)
    alike.add_(1)


def belongings() -> list[Any]:
    """Say what this rank has, each tensor as its one value; use all groups on the way."""
    total = torch.ones(4)
    dist.all_reduce(total)
    return [counter, one_value(mine), one_value(alike), one_value(total), *are_as_plain()]


def one_value(tensor: torch.Tensor) -> float:
    """Return what all elements are; no number where they differ."""
    return tensor[0].item() if bool((tensor == tensor[0]).all()) else float("nan")


# The models --------------------------------------------------------------------------------------


def make_net() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 4
    return net


def make_sharded() -> Any:
    net: Any = make_net()
    fully_shard(net, mesh=init_device_mesh("cpu", (world_size,)))
    return net


def loss_of(model: nn.Module, whose: int) -> torch.Tensor:
    """Return the loss on the data of rank *whose*."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(whose))
    loss: torch.Tensor = (model(x) - x[:, :4]).square().mean()
    return loss


def step(model: nn.Module, lr: float = 0.05) -> None:
    """Take one step with the other ranks; ends half-way through nothing when it raises before."""
    model.zero_grad()
    loss_of(model, rank).backward()
    take(model, lr)


def plain_step(model: nn.Module, lr: float = 0.05) -> None:
    """Take the same step alone, with everybody's data."""
    model.zero_grad()
    for whose in range(world_size):
        (loss_of(model, whose) / world_size).backward()
    take(model, lr)


def take(model: nn.Module, lr: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=lr)  # type: ignore[arg-type]


def train() -> None:
    """Let both models learn, and their plain copies."""
    for model, plain in ((ddp, plain_ddp), (sharded, plain_sharded)):
        step(model)
        plain_step(plain)


def are_as_plain() -> list[bool]:
    """Whether the model in DDP, and the one in FSDP2, has the weights of its plain copy."""
    return [is_as(ddp.module, plain_ddp), is_as(sharded, plain_sharded)]


def is_as(model: nn.Module, plain: nn.Module) -> bool:
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    return all(torch.allclose(whole(a), b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def shard_anew() -> None:
    """Begin again with the sharded model: a dead rank's part of it is lost."""
    global sharded, plain_sharded
    sharded, plain_sharded = make_sharded(), make_net()


# Processes and groups ----------------------------------------------------------------------------


def drop_groups() -> None:
    """Let go of the groups that cells have made; torch keeps them for ever."""
    world = dist.group.WORLD
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not world:
            dist.destroy_process_group(group)


def fork(ending: str) -> int:
    """Fork a child that ends by *ending*, some code; return what became of it."""
    pid = os.fork()
    if pid == 0:
        exec(ending)
        os._exit(0)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    raise TimeoutError("the child has not ended")


def bear() -> int:
    """Start a child whose environment does not say where it came from; return its pid."""
    return subprocess.Popen([sys.executable, "-Sc", "import time; time.sleep(900)"], env={}).pid


def tidy_memory() -> None:
    """Give back what is not used, so that what is left is what is kept."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


if "ddp" not in globals():
    ddp, plain_ddp = DistributedDataParallel(make_net()), make_net()
    sharded, plain_sharded = make_sharded(), make_net()
