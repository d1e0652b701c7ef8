"""What `test_replicas_on_ranks` runs on real ranks; see `real_ranks`."""

from __future__ import annotations

import linecache
import os
import signal
import sys
import traceback
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from nbdist.rank import replicas
from nbdist.rank.placed import Place
from nbdist.runtime.replica_check import check, repair
from tests.runtime.real_ranks import World, main

CELL = """
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

WIDTH = 48

class Net(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.norm = nn.BatchNorm1d(width)
        self.unused = nn.Linear(width, width)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        x = self.norm(x)
        return self.unused(x) if x.shape[0] == 1 else x

def decayed(step):
    return 0.9**step

def make(kind):
    torch.manual_seed(0)
    options = {
        "default": {},
        "unused": {"find_unused_parameters": True},
        "static": {"static_graph": True},
        "views": {"gradient_as_bucket_view": True},
        "hook": {},
        "group": {"process_group": dist.new_group(range(world_size))},
    }[kind]
    net = Net()
    if kind not in ("unused", "static"):
        del net.unused
        net.unused = nn.Identity()
    model = DistributedDataParallel(net, bucket_cap_mb=0.02, **options)
    if kind == "hook":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decayed(step))
    return model, optimizer, scheduler

def train(steps):
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(100 * step + rank)
        x = torch.randn(8, WIDTH, generator=generator)
        optimizer.zero_grad()
        loss = (model(x) - x).pow(2).mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses
"""


class Notebook:
    """The namespace of a rank, and its cells."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.place = Place(world.rank, torch.device("cpu"))
        self.clear()

    def clear(self) -> None:
        """Be a fresh process, as far as a namespace goes."""
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self.names = module.__dict__
        self.base: dict[str, Any] = {"rank": self.world.rank, "world_size": self.world.size}
        self.base |= {"torch": torch, "dist": dist}
        self.names.update(self.base)
        for name in [name for name in linecache.cache if name.startswith("In[")]:
            del linecache.cache[name]

    def run(self, code: str, label: str = "In[1]") -> None:
        linecache.cache[label] = (len(code), None, code.splitlines(keepends=True), label)
        exec(compile(code, label, "exec"), self.names)

    def value(self, expression: str) -> Any:
        return eval(expression, self.names)

    def share(self, *, is_fresh: bool) -> str:
        model = self.names.get("model")
        return replicas.share(
            self.names,
            self.base,
            self.place,
            self.world.folder,
            is_fresh=is_fresh,
            modules=[model] if model is not None and not is_fresh else [],
        )


def begin(world: World) -> Notebook:
    world.join()
    notebook = Notebook(world)
    notebook.run(CELL)
    return notebook


def training(world: World) -> None:
    """Rank 1 loses all it has in the middle of a training; it goes on with a copy."""
    notebook = begin(world)
    for kind in ("default", "unused", "static", "views", "hook", "group"):
        outcomes = {}
        for disturbance in ("none", "renewed", "replaced"):
            notebook.run(f"model, optimizer, scheduler = make({kind!r})", "In[2]")
            losses = notebook.value("train(range(5))")
            if disturbance == "renewed":
                replicas.renew_reducers([notebook.names["model"]])
            if disturbance == "replaced":
                if world.rank == 1:
                    notebook.clear()
                world.say(report=notebook.share(is_fresh=world.rank == 1))
            losses += notebook.value("train(range(5, 10))")
            outcomes[disturbance] = [losses, parameters_of(notebook)]
        world.say(**{kind: outcomes})


def parameters_of(notebook: Notebook) -> list[float]:
    sums: list[float] = notebook.value("[p.double().sum().item() for p in model.parameters()]")
    return sums


def naive_copy(world: World) -> None:
    """What happens without `renew_reducers`: the copy begins with other buckets than the others."""
    notebook = begin(world)
    world.guard.set_mode("on")
    notebook.run("model, optimizer, scheduler = make('default')", "In[2]")
    notebook.value("train(range(3))")
    if world.rank == 1:
        replicas.renew_reducers([notebook.names["model"]])  # as a copy is
    world.say(error=world.run_cell(lambda: notebook.value("train(range(3, 5))")))


KINDS = """
import xml.etree.ElementTree
import torch.distributed.device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

class Bad:
    def __reduce__(self):
        raise RuntimeError("nope")

class Touchy:
    def __setstate__(self, state):
        raise ValueError("not here")

table = torch.arange(4.0)
row = table[1:3]
batch = torch.ones(2) * rank
data = TensorDataset(torch.arange(12.0))
loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, shuffle=False))
iterator = iter(loader)
numbers = (number for number in range(3))
bad, touchy = Bad(), Touchy()
touchy.x = 1
pair = dist.new_group([0, 2])
everyone = dist.new_group([0, 1, 2])
mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (3,))
shard = distribute_tensor(torch.arange(6.0), mesh, [Shard(0)])
net = torch.nn.Linear(6, 6)
fully_shard(net, mesh=mesh)
if rank == 0:
    note = "here only"
"""


def kinds(world: World) -> None:
    """What is copied of a notebook with a bit of everything, and what is said of the rest."""
    notebook = begin(world)
    notebook.run(KINDS, "In[3]")
    if world.rank == 1:
        notebook.clear()
    report = notebook.share(is_fresh=world.rank == 1)
    notebook.run("total = torch.ones(1); dist.all_reduce(total, group=everyone)", "In[4]")
    world.say(
        report=report.splitlines(),
        group=notebook.value("total.item()"),
        loader=notebook.value("[x.tolist() for [x] in loader]"),
        names=sorted({"batch", "touchy", "shard", "note", "table"} & notebook.names.keys()),
        pair=notebook.value("pair != dist.GroupMember.NON_GROUP_MEMBER")
        if "pair" in notebook.names
        else None,
        files=[path.name for path in world.folder.glob("replicas-*")],
    )


def replaced(world: World) -> None:
    """Rank 1 of three is killed between two steps; a fresh interpreter takes its place."""
    notebook = begin(world)
    notebook.run("model, optimizer, scheduler = make('static')", "In[2]")
    losses = notebook.value("train(range(5))")
    if world.rank == 1:
        world.store.set("losses", str(losses))
        world.meet()
        os.kill(os.getpid(), signal.SIGKILL)
    world.meet()
    if world.rank == 0:
        world.start_fresh(__file__, 1)
    world.lifeline.abort("rank 1 died", generation=0)
    world.generation, world.num_meetings = 1, 0
    world.resync()
    world.lifeline.rebuild(world.open_store(), 1)
    world.guard.rebuilt()
    world.say(report=notebook.share(is_fresh=False).splitlines())
    losses += notebook.value("train(range(5, 10))")
    world.say(losses=losses, sums=parameters_of(notebook))
    world.say(fresh=eval(world.store.get("fresh").decode()))


def fresh(world: World) -> None:
    world.take_place()
    notebook = Notebook(world)
    notebook.share(is_fresh=True)
    losses = notebook.value("train(range(5, 10))")
    source = notebook.value("__import__('inspect').getsource(train)")
    said = {"losses": losses, "sums": parameters_of(notebook), "source": source}
    try:
        notebook.value("model.module(torch.ones(3, 5))")
    except RuntimeError as exc:
        frames = traceback.extract_tb(exc.__traceback__)
        said["lines"] = [frame.line for frame in frames if frame.filename == "In[1]"]
    world.store.set("fresh", repr(said))
    world.meet()


replaced.__dict__["expected_codes"] = [0, -9, 0]


# Are replicas equal? ------------------------------------------------------------------------------


def checking(world: World) -> None:
    """Compare models, optimizers and the rest on all ranks; set right what differs."""
    world.join()
    rank, last = world.rank, world.size - 1
    torch.manual_seed(0)
    net: Any = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8))
    model = DistributedDataParallel(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(4, 16)).sum().backward()
        optimizer.step()

    step()
    identity = [id(p) for p in net.parameters()]
    world.say(equal=str(check(net, name="net")), equal_optimizer=str(check(optimizer, name="opt")))
    if rank == last:
        with torch.no_grad():
            net[0].weight[0, :3] += 0.5
            net[0].bias[1] = float("nan")
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.state[net[0].weight]["step"] += 1
    world.say(differs=str(check(net, name="net")), opt_differs=str(check(optimizer, name="opt")))
    world.say(repaired=str(repair(net, 0, name="net")), opt=str(repair(optimizer, name="opt")))
    world.say(after=str(check(net)), opt_after=check(optimizer).is_equal)
    world.say(same_objects=identity == [id(p) for p in net.parameters()])
    world.say(lr=optimizer.param_groups[0]["lr"], error=world.attempt(step))

    if rank == last:
        optimizer.state.clear()
    world.say(unstepped=check(optimizer, name="opt").is_equal)
    repair(optimizer, 0)
    world.say(stepped=str(check(optimizer, name="opt")))

    different = {"a": torch.zeros(2 + (rank == 0)), "b": [1, rank == 0], "c": torch.ones(2)}
    if rank == last:
        different["only"] = torch.ones(1)
    world.say(forms=str(check(different, name="state")))
    world.say(unrepaired=str(repair(different, 0, name="state")), b=different["b"])

    mesh = init_device_mesh("cpu", (world.size,))
    parts: Any = {
        "whole": distribute_tensor(torch.arange(4.0), mesh, [Replicate()]),
        "shard": distribute_tensor(torch.arange(4.0), mesh, [Shard(0)]),
    }
    if rank == last:
        parts["whole"].to_local()[0] = 9.0
    world.say(sharded=str(check(parts, name="parts")))
    repair(parts, 0)
    world.say(whole=parts["whole"].to_local().tolist())

    pair = dist.new_group([0, last])
    if rank in (0, last):
        world.say(pair=str(check(torch.ones(1) * rank, name="x", group=pair)))
    world.say(wrong=world.attempt(lambda: repair(net, 7)))


if __name__ == "__main__":
    main(globals())
