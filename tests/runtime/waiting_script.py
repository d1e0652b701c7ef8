"""What `test_waiting` runs on real ranks; see `real_ranks`."""

from __future__ import annotations

import os
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
from torch.nn.parallel import DistributedDataParallel

from tests.runtime.real_ranks import World, main

BIG = 24_000_000  # floats; far more than sockets hold, and a moment to reduce


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def make_kinds(rank: int) -> dict[str, Callable[[], Any]]:
    world: Any = dist.group.WORLD
    big, message_data = torch.ones(BIG), torch.ones(4 * BIG)  # a message needs no reduction
    ddp = DistributedDataParallel(nn.Linear(4000, 4000), bucket_cap_mb=200)
    x = torch.ones(1, 4000)

    def message(to: int) -> Any:
        peer = 1 - rank
        return dist.send(message_data, peer) if rank != to else dist.recv(message_data, peer)

    return {
        "all_reduce": lambda: dist.all_reduce(big),
        "asynchronous": lambda: dist.all_reduce(big, async_op=True).wait(),
        "functional": lambda: functional.all_reduce(big, "sum", world).sum().item(),
        "DDP": lambda: ddp(x).sum().backward(),
        "send": lambda: message(1),
        "recv": lambda: message(0),
        "isend": lambda: (
            dist.isend(message_data, 1).wait()  # type: ignore[union-attr]
            if rank == 0
            else dist.irecv(message_data, 0).wait()  # type: ignore[union-attr]
        ),
    }


def half_sent(world: World) -> None:
    """Rank 1 is stopped in mid-transfer, and rank 0 cuts itself off; then rank 1 goes on."""
    world.join()
    rank = world.rank
    kinds = make_kinds(rank)
    for call in kinds.values():
        call()
    world.guard.set_mode("off")  # it has nothing to say here: both are in the native call
    world.store.set(f"pid {rank}", str(os.getpid()))
    peer = int(world.store.get(f"pid {1 - rank}"))
    for name, call in kinds.items():
        world.meet()
        clock: list[float] = []

        def cut_off(clock: list[float] = clock) -> None:
            while not is_stopped(peer):
                time.sleep(0.002)
            time.sleep(0.05)  # what is under way arrives
            clock.append(time.time())
            world.lifeline.abort("the test says so", generation=world.generation)

        def be_told(key: str = f"{name} is cut") -> None:
            world.store.get(key)
            world.lifeline.abort("the test says so", generation=world.generation)

        if rank == 0:
            world.after(0, cut_off)
        else:
            world.after(0.02, lambda: os.kill(os.getpid(), signal.SIGSTOP))
            world.after(0, be_told)
        error = world.attempt(call)
        freed_ms = (time.time() - clock[0]) * 1e3 if clock else 0.0
        if rank == 0:
            world.store.set(f"{name} is cut", "1")
            os.kill(peer, signal.SIGCONT)
        world.meet()
        world.guard.set_mode("on")
        world.recover()
        again = world.attempt(call)
        world.guard.set_mode("off")
        world.say(**{name: [error, freed_ms, again]})


def interrupted(world: World) -> None:
    """Rank 0 waits natively for calls whose peer does not come; SIGINT ends that."""
    world.join()
    kinds: dict[str, Callable[[], Any]] = {
        "asynchronous": lambda: dist.all_reduce(torch.ones(3), async_op=True).wait(),
        "irecv": lambda: dist.irecv(torch.ones(3), 1).wait(),  # type: ignore[union-attr]
    }
    for name, call in kinds.items():
        world.meet()
        if world.rank == 0:
            pressed = world.interrupt_after(0.1)
            error = world.run_cell(call)
            world.say(**{name: [error, (time.time() - pressed[0]) * 1e3]})
        outcome = world.recover()
        total = torch.ones(2)
        dist.all_reduce(total)
        world.say(**{f"{name} afterwards": [outcome.needs_rebuild, total.tolist()]})


def works(world: World) -> None:
    """What a `Work` is to its caller is as without us."""
    world.join()
    work: Any = dist.all_reduce(torch.ones(3), async_op=True)
    is_over = work.wait()
    world.say(class_=type(work).__name__, is_over=is_over, is_completed=work.is_completed())
    value = dist.all_reduce(torch.ones(3), async_op=True).get_future().wait()
    world.say(value=[part.tolist() for part in value])
    source = torch.ones(2)
    if world.rank == 0:
        world.say(source=dist.recv(source))
    else:
        dist.send(source, 0)
    world.meet()
    if world.rank == 0:  # nobody comes: its own timeout ends the wait
        from datetime import timedelta

        late: Any = dist.all_reduce(torch.ones(3), async_op=True)
        world.say(timeout=world.attempt(lambda: late.wait(timedelta(milliseconds=50))))
        world.store.set("timed out", "1")
        late.wait()
    else:
        world.store.get("timed out")
        dist.all_reduce(torch.ones(3))


if __name__ == "__main__":
    main(globals())
