"""Models to train for `test_training`; runs as a cell on each rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

rank, world_size = dist.get_rank(), dist.get_world_size()
NUM_STEPS = 30


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


def apply_bomb(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> Any:
    return Bomb.apply(output)  # type: ignore[no-untyped-call]


def make_model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(6)]
    net: nn.Module = nn.Sequential(*layers, nn.Linear(64, 1))
    layers[3].register_forward_hook(apply_bomb)
    if kind == "ddp":
        return DistributedDataParallel(net, bucket_cap_mb=0.02)
    if kind == "ddp unused":
        return DistributedDataParallel(net, bucket_cap_mb=0.02, find_unused_parameters=True)
    if kind == "ddp static":
        return DistributedDataParallel(
            net, bucket_cap_mb=0.02, static_graph=True, gradient_as_bucket_view=True
        )
    mesh = init_device_mesh("cpu", (world_size,))
    if kind == "tensor parallel":
        # Below the bomb: their backward has collectives, where the other rank is held back.
        plan = {"2.0": ColwiseParallel(), "3.0": RowwiseParallel()}
        return parallelize_module(net, mesh, plan)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


class Training:
    """One model on its way through `NUM_STEPS` steps."""

    def __init__(self, kind: str) -> None:
        self.model = make_model(kind)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.zeroes = kind == "ddp static"
        self.losses: list[float] = []
        seed = 100 + (0 if kind == "tensor parallel" else rank)
        generator = torch.Generator().manual_seed(seed)
        self.data = [
            (torch.randn(16, 64, generator=generator), torch.randn(16, 1, generator=generator))
            for _ in range(NUM_STEPS)
        ]

    def step(self) -> None:
        """Do the next step; one that fails is the next one again."""
        x, y = self.data[len(self.losses)]
        self.optimizer.zero_grad(set_to_none=not self.zeroes)
        loss = (self.model(x) - y).pow(2).mean()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def outcome(self) -> list[float]:
        """Return all losses, and what the parameters are, to the last bit."""
        digests = [whole(p).double().sum().item() for p in self.model.parameters()]
        return [*self.losses, *digests]


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
