"""What `test_remade` runs on real ranks: groups with the name of earlier ones."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from nbdist.runtime.hooks import hooks
from tests.runtime.real_ranks import World, main


def make_world_again(world: World, prefix: str) -> None:
    """Destroy the world and make it anew; torch counts its groups from 0 on again."""
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo",
        store=PrefixStore(prefix, world.open_store()),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=15),
    )


def total(group: dist.ProcessGroup | None = None) -> float:
    data = torch.ones(1)
    dist.all_reduce(data, group=group)
    return data.item()


def message(sender: int, receiver: int) -> None:
    if dist.get_rank() == sender:
        dist.send(torch.ones(2), receiver)
    elif dist.get_rank() == receiver:
        dist.recv(torch.zeros(2), sender)


def worlds(world: World) -> None:
    """Rank 2 calls nothing in the first world."""
    world.join(timeout_s=15)
    for mode in ("on", "trace"):
        world.meet()
        world.guard.set_mode(mode)
        message(0, 1)
        make_world_again(world, f"{mode} again")
        world.say(**{mode: [total(), known_to(world, 3)]})


def known_to(world: World, num_ranks: int) -> bool:
    """Say whether the newest group of all ranks is one group in the table, not several."""
    world.meet()
    newest = max(
        (view for view in world.table.view() if len(view.key.ranks) == num_ranks),
        key=lambda view: view.key.incarnation,
    )
    return len({member.seq for member in newest.members}) == 1


def subgroups(world: World) -> None:
    """Sub-groups get old names with a new world; rank 1 has called nothing in the first one."""
    world.join(timeout_s=15)
    first = dist.new_group([0, 1])
    if world.rank == 0:
        dist.all_reduce(torch.ones(1), group=first, async_op=True)
    make_world_again(world, "again")
    second = dist.new_group([0, 1])
    world.say(total=total(second) if world.rank < 2 else 2)
    local = [dist.new_group([0, 1], use_local_synchronization=True) for _ in range(world.rank < 2)]
    for group in local:
        world.say(local=total(group))
    local = [dist.new_group([0, 1], use_local_synchronization=True) for _ in range(world.rank < 2)]
    for group in local:
        world.say(local_again=total(group))


def pretend_accelerator() -> None:
    """Let torch split groups here: it does that for accelerators alone, gloo could as well."""
    accelerator: Any = torch.accelerator
    accelerator.is_available = lambda: True
    accelerator.current_accelerator = lambda: torch.device("cpu", 0)
    dist.group.WORLD.bound_device_id = torch.device("cpu", 0)  # type: ignore[union-attr]


def splits(world: World) -> None:
    """A world of one rank is split twice alike; then all is made anew.

    Of one rank, as torch's gloo takes part in a split, but not well: it hangs now and then.
    """
    world.join(timeout_s=15)
    pretend_accelerator()
    whole: Any = dist.group.WORLD
    # Given, since torch cannot copy those of gloo.
    options = whole._get_backend(torch.device("cpu")).options
    groups = [dist.split_group(None, [[0]], pg_options=options) for _ in range(2)]
    world.say(counted=hooks.counter and hooks.counter((0,)))
    world.say(names=[group.group_name for group in groups if group is not None])
    sums = [total(group) for group in groups]
    world.lifeline.abort("the test says so", generation=world.generation)
    world.resync()
    world.rebuild()
    world.say(sums=sums, remade=[total(group) for group in groups])


def fresh(world: World) -> None:
    """Be the rank that takes the place of the last one, after groups were made again."""
    world.take_place()
    after_a_death(world)
    world.meet()


def dies(world: World) -> None:
    """The last rank is replaced; then groups get old names once more."""
    world.join(timeout_s=15)
    make_world_again(world, "again")
    dist.new_group([0, 2])
    last = world.size - 1
    world.meet()
    if world.rank == last:
        os._exit(0)
    if world.rank == 0:  # stands for the agent, which tells of a death once
        world.table.cancel("rank 2 died", last, of=last, kind="died")
        world.start_fresh(__file__, last)
        world.store.set("told", "1")
    world.store.get("told")
    world.generation, world.num_meetings = 1, 0
    world.resync()
    world.lifeline.rebuild(world.open_store(), 1)
    world.guard.rebuilt()
    after_a_death(world)


def backends(world: World) -> None:
    """After a rebuild, ask the groups for their backends and use those."""
    world.join(timeout_s=15)
    pair: Any = dist.new_group([0, 1])
    cpu = torch.device("cpu")
    pair._get_backend(cpu)
    world.meet()
    world.lifeline.abort("the test says so", generation=world.generation)
    world.resync()
    world.rebuild()
    whole: Any = dist.group.WORLD
    sums = []
    for group in (whole, pair):
        data = torch.ones(1)
        group._get_backend(cpu).allreduce([data]).wait()
        sums.append(data.item())
    parts = [torch.ones(1), torch.ones(2)]
    with vars(dist)["_coalescing_manager"](pair):
        for part in parts:
            dist.all_reduce(part, group=pair)
    world.say(sums=sums, coalesced=[part[0].item() for part in parts])


def after_a_death(world: World) -> None:
    [pair] = [g for g in vars(dist.distributed_c10d)["_world"].pg_map if g.size() == 2] or [None]
    sums = [total()] if pair is None else [total(), total(pair)]
    make_world_again(world, "third")
    another = dist.new_group([0, 2])
    sums.append(total())
    if world.rank != 1:
        sums.append(total(another))
    world.say(sums=sums)


if __name__ == "__main__":
    main(globals())
