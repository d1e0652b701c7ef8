"""What `test_trace` runs on real ranks; see `real_ranks`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nbdist.runtime.signature import Signature
from nbdist.runtime.trace import entry_of
from tests.runtime.real_ranks import World, main

LATE_S = 0.4


def told(world: World) -> list[dict[str, Any]]:
    """Return what was recorded since the last time, in words that a test can compare."""
    trace = world.guard.trace.told(world.rank, world.guard.mode)
    world.guard.trace.__init__()  # type: ignore[misc]  # a new ring
    return [
        {
            "op": call.site.op,
            "text": call.site.text,
            "source": call.site.source.partition(":")[0],
            "ranks": call.site.ranks,
            "kind": call.site.kind,
            "size_bytes": call.site.size_bytes,
            "is_async": call.site.is_async,
            "seq": call.seq,
            "began": call.began,
            "held_s": call.waited_s,
            "native_s": call.returned - call.began - call.waited_s,
            "wait_s": call.wait_ended - call.wait_began,
            "is_waited": call.wait_ended > 0,
            "done_s": call.done - call.began if call.done else 0,
            "is_failed": call.is_failed,
        }
        for call in trace.calls
    ]


def late(world: World, rank: int) -> None:
    world.meet()
    if world.rank == rank:
        time.sleep(LATE_S)


def kinds(world: World) -> None:
    """Make one call of each kind, rank 1 late; in the mode that is set."""
    world.join()
    x, other = torch.ones(1000), 1 - world.rank
    whole: Any = dist.group.WORLD
    for mode in ("on", "trace"):
        world.guard.set_mode(mode)
        told(world)
        late(world, 1)
        dist.all_reduce(x)
        world.say(**{f"{mode} all_reduce": told(world)})
        late(world, 1)
        dist.all_reduce(x, async_op=True).wait()
        world.say(**{f"{mode} asynchronous": told(world)})
        late(world, 0)
        dist.send(x, 1) if world.rank == 0 else dist.recv(x, 0)
        world.say(**{f"{mode} message": told(world)})
        late(world, 0)
        work: Any = dist.isend(x, other) if world.rank == 0 else dist.irecv(x, other)
        work.wait()
        world.say(**{f"{mode} imessage": told(world)})
        late(world, 1)
        functional.all_reduce(x, "sum", whole).sum()
        world.say(**{f"{mode} functional": told(world)})


def ddp(world: World) -> None:
    world.join()
    model = DistributedDataParallel(nn.Linear(100, 100))
    told(world)
    late(world, 1)
    model(torch.ones(2, 100)).sum().backward()
    world.say(calls=told(world))


def off(world: World) -> None:
    world.join()
    told(world)
    world.guard.set_mode("off")
    dist.all_reduce(torch.ones(1))
    world.say(calls=told(world))


def any_source(world: World) -> None:
    world.join()
    told(world)
    x = torch.ones(1)
    dist.send(x, 1) if world.rank == 0 else dist.recv(x)
    world.say(calls=told(world))


def not_over(world: World) -> None:
    """Tell from another thread while the call waits for a rank that comes later."""
    world.join()
    told(world)
    world.meet()
    if world.rank == 0:
        world.after(LATE_S / 2, lambda: world.say(meanwhile=told(world)))
    else:
        time.sleep(LATE_S)
    dist.barrier()
    world.meet()


def raises(world: World) -> None:
    world.join()
    told(world)

    def cell() -> None:
        if world.rank == 1:
            while not any(view.members[0].seq for view in world.table.view()):
                time.sleep(0.01)
            raise ValueError("bad")
        dist.all_reduce(torch.ones(1))

    world.run_cell(cell)
    world.say(calls=told(world))
    world.recover()


def dropped(world: World) -> None:
    """A tensor must not live on because its call is in the ring."""
    import gc
    import weakref

    world.join()
    tensors = [torch.ones(10) for _ in range(3)]
    references = [weakref.ref(tensor) for tensor in tensors]
    work = dist.all_reduce(tensors[0], async_op=True)
    dist.all_reduce(tensors[1])
    dist.all_reduce(tensors[2], async_op=True)
    world.guard.trace.end_cell()
    work.wait()
    del work
    tensors.clear()
    world.meet()
    dist.barrier()
    gc.collect()
    world.say(alive=[reference() is not None for reference in references])


def cost(world: World) -> None:
    """Record calls without making them; microseconds a call, the best of some rounds.

    Beside it, in the same rounds, a call of torch that does next to nothing.
    """
    world.join()
    work: Any = dist.all_reduce(torch.ones(1), async_op=True)
    work.wait()
    trace, num = world.guard.trace, 500
    [group] = world.guard._groups.guarded()
    signature = Signature("all_reduce", "all_reduce(float32[1], sum)", key=0, size_bytes=4)
    boxed, one = work.boxed(), torch.ones(1)
    rounds, of_torch = [], []
    for _ in range(10):
        began = time.perf_counter()
        for number in range(num):
            entry = trace.post(group.key, signature, "In[1]:1", began=time.monotonic(), seq=number)
            entry.may_go()
            trace.issue(entry, lambda _: boxed, world.recover)
            with entry_of(work):
                pass
        middle = time.perf_counter()
        for _ in range(num):
            one.add(1)
        of_torch.append((time.perf_counter() - middle) / num * 1e6)
        rounds.append((middle - began) / num * 1e6)
    world.say(us=min(rounds), torch_us=min(of_torch))


if __name__ == "__main__":
    main(globals())
