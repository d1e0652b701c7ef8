"""What `test_flight` and `test_diagnosis` run on real ranks without the guard; see `real_ranks`."""

from __future__ import annotations

import dataclasses
import linecache
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist

from nbdist.runtime.flight import flight_calls, forget_flight
from nbdist.sessions.stacks import is_native_wait, still_place
from nbdist.wire import Frame
from tests.runtime.real_ranks import World, main

ones = torch.ones
STEADY_LOOKS = 10


def without_guard(world: World) -> None:
    world.join()
    world.guard.set_mode("off")


def calls(world: World) -> list[dict[str, Any]]:
    return [dataclasses.asdict(call) for call in flight_calls(world.rank)]


def wait_until_over(world: World) -> None:
    """Torch notes the end of a call a moment after it has returned."""
    deadline = time.monotonic() + 20
    while any(call["phase"] == "issued" for call in calls(world)) and time.monotonic() < deadline:
        time.sleep(0.01)


def positions(world: World) -> None:
    without_guard(world)
    world.say(at_first=calls(world))
    pair = dist.new_group([0, 1])
    for _ in range(3):
        dist.all_reduce(ones(10))
    dist.barrier(pair)
    if world.rank == 0:
        dist.send(ones(1), 1)
    else:
        dist.recv(ones(1), 0)
    wait_until_over(world)
    world.say(idle=calls(world))
    work = dist.all_reduce(ones(2, 3), async_op=True) if world.rank == 0 else None
    world.say(under_way=calls(world))
    world.meet()
    if work is None:
        dist.all_reduce(ones(2, 3))
    else:
        work.wait()
    wait_until_over(world)
    world.say(over=calls(world))


def rebuilt(world: World) -> None:
    without_guard(world)
    for _ in range(3):
        dist.all_reduce(ones(10))
    world.rebuild()
    forget_flight()
    world.say(forgotten=calls(world))
    dist.all_reduce(ones(10))
    world.say(again=calls(world))


def stacks(world: World) -> None:
    """Let rank 0 wait for rank 1 in every way; it says where its main thread was."""
    without_guard(world)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
    ddp(ones(2, 3)).sum().backward()
    ddp(ones(2, 3)).sum().backward()
    loss = ddp(ones(2, 3)).sum()
    actions: dict[str, Callable[[], Any]] = {
        "backward": loss.backward,
        "all_reduce": lambda: dist.all_reduce(ones(10)),
        "wait": lambda: dist.all_reduce(ones(10), async_op=True).wait(),
        "functional": functional,
        "objects": lambda: dist.all_gather_object([None, None], world.rank),
        "recv": lambda: dist.recv(ones(1), 1) if world.rank == 0 else dist.send(ones(1), 0),
        "new_group": lambda: dist.new_group([0, 1]),
        "constructor": lambda: torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3)),
    }
    seen: dict[str, list[dict[str, Any]]] = {}
    for name, action in actions.items():
        if world.rank == 0:
            looking = threading.Thread(target=look, args=(world, name, seen))
            looking.start()
            action()
            looking.join()
        else:
            world.store.get(f"come/{name}")
            action()
    if world.rank == 0:
        world.say(stacks=seen)


def functional() -> None:
    import torch.distributed._functional_collectives as functional_collectives

    world: Any = dist.group.WORLD
    sum_ = functional_collectives.all_reduce(ones(3), "sum", world)
    assert (sum_ + 1).tolist() == [3, 3, 3]


def look(world: World, name: str, seen: dict[str, list[dict[str, Any]]]) -> None:
    """Note where the main thread stays, then let rank 1 come."""
    deadline, same = time.monotonic() + 5, 0
    before: list[Frame] = []
    # A place that is no native wait is kept as well, for the test to name it.
    while same < STEADY_LOOKS and time.monotonic() < deadline:
        frames = main_stack()
        is_still = still_place(frames) == still_place(before) and is_native_wait(frames)
        same = same + 1 if is_still else 0
        before = frames
        time.sleep(0.01)
    seen[name] = [dataclasses.asdict(frame) for frame in before]
    world.store.set(f"come/{name}", "now")


def main_stack() -> list[Frame]:
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    found: list[Frame] = []
    while frame is not None:
        name, line = frame.f_code.co_filename, frame.f_lineno
        source = linecache.getline(name, line).strip()
        is_library = "site-packages" in name
        found.append(Frame(f"{name}:{line}", frame.f_code.co_name, source, is_library=is_library))
        frame = frame.f_back
    return found[::-1]


if __name__ == "__main__":
    main(globals())
