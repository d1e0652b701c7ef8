"""Legal programs, a few lines each; what `test_legal` runs on real ranks, see `real_ranks`.

Each runs with the guard off, ``on`` and at ``trace`` in one session, and has to end alike.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from nbdist.runtime import torch_private
from tests.runtime.real_ranks import World, main
from tests.runtime.remade_script import make_world_again

ones, zeros = torch.ones, torch.zeros
MODES = ("off", "on", "trace")

Program = Callable[[World], None]
PROGRAMS: dict[int, list[Program]] = {2: [], 3: []}


def legal(*nums_ranks: int) -> Callable[[Program], Program]:
    """Run a program with these numbers of ranks."""

    def add(program: Program) -> Program:
        for num in nums_ranks:
            PROGRAMS[num].append(program)
        return program

    return add


def total(group: Any = None, **options: Any) -> float:
    data = ones(2)
    dist.all_reduce(data, group=group, **options)
    return data[0].item()


def finish(*works: Any) -> None:
    for work in works:
        work.wait()


def in_threads(*actions: Callable[[], Any]) -> None:
    errors: list[BaseException] = []

    def run(action: Callable[[], Any]) -> None:
        try:
            action()
        except BaseException as exc:  # noqa: BLE001 - raised below
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def everybody() -> list[int]:
    return list(range(dist.get_world_size()))


def short_group(seconds: float = 0.5) -> Any:
    return dist.new_group(everybody(), timeout=timedelta(seconds=seconds))


# Messages ---------------------------------------------------------------------------------------


@legal(2)
def a_hundred_messages_ahead_and_then_one_that_blocks(world: World) -> None:
    if world.rank == 0:
        works = [dist.isend(ones(2) * i, 1) for i in range(100)]
        world.store.set(f"ahead {world.guard.mode}", "1")
        dist.send(ones(2) * 100, 1)
        finish(*works)
    else:
        world.store.get(f"ahead {world.guard.mode}")
        for i in range(101):
            data = zeros(2)
            dist.recv(data, 0)
            assert data[0] == i


@legal(2)
def a_hundred_receives_ahead_and_then_one_that_blocks(world: World) -> None:
    if world.rank == 0:
        data = [zeros(2) for _ in range(100)]
        works = [dist.irecv(part, 1) for part in data]
        dist.recv(zeros(2), 1)
        finish(*works)
        assert [part[0].item() for part in data] == list(range(100))
    else:
        time.sleep(0.05)
        for i in range(101):
            dist.send(ones(2) * i, 0)


@legal(2)
def far_ahead_twice_and_messages_back(world: World) -> None:
    for _ in range(2):
        if world.rank == 0:
            finish(*[dist.isend(ones(1), 1) for _ in range(80)])
            dist.recv(zeros(1), 1)
        else:
            time.sleep(0.02)
            for _ in range(80):
                dist.recv(zeros(1), 0)
            dist.send(ones(1), 0)


@legal(2)
def far_ahead_with_two_tags(world: World) -> None:
    if world.rank == 0:
        works = [dist.isend(ones(1) * tag, 1, tag=tag) for tag in (1, 2) for _ in range(70)]
        dist.send(ones(1) * 3, 1, tag=3)
        finish(*works)
    else:
        for tag in (3, 2, 1):
            for _ in range(1 if tag == 3 else 70):
                data = zeros(1)
                dist.recv(data, 0, tag=tag)
                assert data.item() == tag


@legal(2)
def a_batch_of_messages_both_ways(world: World) -> None:
    peer, data = 1 - world.rank, [zeros(3) for _ in range(5)]
    operations = [dist.P2POp(dist.isend, ones(3) * i, peer) for i in range(5)]
    operations += [dist.P2POp(dist.irecv, part, peer) for part in data]
    finish(*dist.batch_isend_irecv(operations))
    assert [part[0].item() for part in data] == [0, 1, 2, 3, 4]


@legal(3)
def a_ring_of_batches(world: World) -> None:
    following, before = (world.rank + 1) % 3, (world.rank - 1) % 3
    for _ in range(10):
        data = zeros(1)
        send = dist.P2POp(dist.isend, ones(1) * world.rank, following)
        finish(*dist.batch_isend_irecv([send, dist.P2POp(dist.irecv, data, before)]))
        assert data.item() == before


@legal(2)
def receives_are_posted_before_the_sends(world: World) -> None:
    data = zeros(2)
    received: Any = dist.irecv(data, 1 - world.rank)
    dist.barrier()
    dist.send(ones(2), 1 - world.rank)
    finish(received)
    assert data[0] == 1


@legal(2)
def tags_out_of_order(world: World) -> None:
    tags = [4, 2, 9]
    if world.rank == 0:
        finish(*[dist.isend(ones(1) * tag, 1, tag=tag) for tag in tags])
    else:
        for tag in sorted(tags):
            data = zeros(1)
            dist.recv(data, 0, tag=tag)
            assert data.item() == tag


@legal(3)
def received_from_whoever_comes(world: World) -> None:
    if world.rank == 0:
        senders = {dist.recv(zeros(1)) for _ in range(2)}
        assert senders == {1, 2}
    else:
        dist.send(ones(1), 0)


@legal(2)
def threads_that_send_with_tags_of_their_own(world: World) -> None:
    def talk(tag: int) -> None:
        for i in range(20):
            if world.rank == 0:
                dist.send(ones(1) * i, 1, tag=tag)
            else:
                data = zeros(1)
                dist.recv(data, 0, tag=tag)
                assert data.item() == i

    in_threads(lambda: talk(1), lambda: talk(2))


@legal(2)
def messages_within_a_group_and_in_the_world(world: World) -> None:
    group = dist.new_group([0, 1])
    for where in (group, None, group):
        if world.rank == 0:
            dist.send(ones(1), 1, group=where)
        else:
            dist.recv(zeros(1), 0, group=where)


@legal(3)
def a_pipeline_of_three_stages(world: World) -> None:
    for i in range(30):
        data = ones(4) * i
        if world.rank > 0:
            dist.recv(data, world.rank - 1)
        if world.rank < 2:
            dist.send(data, world.rank + 1)
        assert data[0] == i


@legal(2)
def objects_as_messages(world: World) -> None:
    if world.rank == 0:
        dist.send_object_list([{"a": 1}, "x" * 500], 1)
    else:
        found: list[Any] = [None, None]
        dist.recv_object_list(found, 0)
        assert found == [{"a": 1}, "x" * 500]


@legal(2)
def a_collective_between_two_halves_of_a_message(world: World) -> None:
    work: Any = dist.isend(ones(1), 1) if world.rank == 0 else dist.irecv(zeros(1), 0)
    assert total() == 2
    finish(work)


# Pipelines --------------------------------------------------------------------------------------


def run_schedule(world: World, kind: Any, num_microbatches: int) -> None:
    torch.manual_seed(0)
    stages = [nn.Linear(4, 4), nn.Linear(4, 4)]
    stage = PipelineStage(stages[world.rank], world.rank, 2, torch.device("cpu"))
    schedule = kind(stage, num_microbatches, loss_fn=nn.functional.mse_loss)
    data = [ones(num_microbatches, 4)] if world.rank == 0 else []
    for _ in range(2):
        schedule.step(*data, target=ones(num_microbatches, 4))


@legal(2)
def gpipe_with_more_microbatches_than_a_ring_holds(world: World) -> None:
    run_schedule(world, ScheduleGPipe, 70)


@legal(2)
def one_forward_one_backward(world: World) -> None:
    run_schedule(world, Schedule1F1B, 8)


# Groups -----------------------------------------------------------------------------------------


@legal(3)
def overlapping_groups(world: World) -> None:
    groups = {pair: dist.new_group(list(pair)) for pair in ((0, 1), (1, 2), (0, 2))}
    order = {0: [(0, 1), (0, 2)], 1: [(0, 1), (1, 2)], 2: [(1, 2), (0, 2)]}[world.rank]
    assert [total(groups[pair]) for pair in order] == [2, 2]


@legal(2)
def groups_in_another_order_on_each_rank(world: World) -> None:
    groups = [dist.new_group([0, 1]) for _ in range(2)]
    mine = groups if world.rank == 0 else groups[::-1]
    finish(*[dist.all_reduce(ones(1), group=group, async_op=True) for group in mine])


@legal(2)
def groups_made_and_destroyed_over_and_over(world: World) -> None:
    for _ in range(8):
        group = dist.new_group([0, 1])
        assert total(group) == 2
        dist.destroy_process_group(group)


@legal(3)
def a_group_that_only_its_members_make(world: World) -> None:
    if world.rank < 2:
        for _ in range(3):
            group = dist.new_group([0, 1], use_local_synchronization=True)
            assert total(group) == 2


@legal(3)
def a_group_that_some_member_never_uses(world: World) -> None:
    for _ in range(2):
        group = dist.new_group(everybody())
        if world.rank == 0:
            dist.send(ones(1), 1, group=group)
        elif world.rank == 1:
            dist.recv(zeros(1), 0, group=group)
        dist.destroy_process_group(group)


@legal(2, 3)
def the_world_made_again(world: World) -> None:
    for number in range(2):
        if world.rank < 2:
            work: Any = dist.isend(ones(1), 1) if world.rank == 0 else dist.irecv(zeros(1), 0)
            finish(work)
        make_world_again(world, f"again {world.guard.mode} {number}")
        assert total() == world.size


@legal(2, 3)
def subgroups_of_a_world_made_again(world: World) -> None:
    total(dist.new_group([0, 1])) if world.rank < 2 else dist.new_group([0, 1])
    make_world_again(world, f"subgroups {world.guard.mode}")
    group = dist.new_group([0, 1])
    assert world.rank == 2 or total(group) == 2


@legal(2)
def a_group_in_reversed_order(world: World) -> None:
    group = dist.new_group([1, 0])
    data = ones(1) * world.rank
    dist.broadcast(data, 1, group=group)
    assert data.item() == 1


@legal(2)
def groups_of_one(world: World) -> None:
    own = [dist.new_group([rank]) for rank in range(2)][world.rank]
    assert total(own) == 1
    dist.barrier(group=own)


@legal(3)
def subgroups_by_enumeration(world: World) -> None:
    group, _ = dist.new_subgroups_by_enumeration([[0, 2], [1]])
    assert total(group) == (1 if world.rank == 1 else 2)


@legal(2)
def a_mesh(world: World) -> None:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "model"))
    assert total(mesh["data"].get_group()) == 2


# Threads ----------------------------------------------------------------------------------------


@legal(2)
def an_asynchronous_call_beside_a_thread_that_waits(world: World) -> None:
    """Rank 1 comes only when rank 0 was past its second call."""
    key = f"second call {world.guard.mode}"
    group = short_group(8)
    if world.rank == 0:
        waiter = threading.Thread(target=total, args=(group,))
        waiter.start()
        time.sleep(0.1)
        work = dist.all_reduce(ones(3), group=group, async_op=True)
        world.store.set(key, "1")
        waiter.join()
    else:
        world.store.get(key)
        total(group)
        work = dist.all_reduce(ones(3), group=group, async_op=True)
    finish(work)


@legal(2)
def two_threads_with_a_group_each(world: World) -> None:
    groups = [dist.new_group([0, 1]) for _ in range(2)]
    in_threads(*[lambda group=group: [total(group) for _ in range(20)] for group in groups])


@legal(2)
def a_thread_that_reduces_while_the_main_thread_talks(world: World) -> None:
    group = dist.new_group([0, 1])

    def talk() -> None:
        for _ in range(20):
            dist.send(ones(1), 1) if world.rank == 0 else dist.recv(zeros(1), 0)

    in_threads(talk, lambda: [total(group) for _ in range(20)])


# Run-ahead --------------------------------------------------------------------------------------


@legal(2)
def many_asynchronous_calls_before_a_wait(world: World) -> None:
    works = [dist.all_reduce(ones(1), async_op=True) for _ in range(150)]
    time.sleep(0.02 * world.rank)
    finish(*works)


@legal(3)
def a_root_that_runs_ahead(world: World) -> None:
    for i in range(10):
        data = ones(2) * i
        dist.broadcast(data, 0)
        assert data[0] == i


@legal(3)
def done_before_the_last_has_come(world: World) -> None:
    if world.rank == 2:
        dist.recv(zeros(1), 1)
    dist.broadcast(ones(1), 0)
    if world.rank == 1:
        dist.send(ones(1), 2)


@legal(2)
def crossing_calls(world: World) -> None:
    data = ones(1)
    if world.rank == 0:
        work = dist.all_reduce(data, async_op=True)
        dist.send(ones(1), 1)
        finish(work)
    else:
        dist.recv(zeros(1), 0)
        dist.all_reduce(data)
    assert data.item() == 2


# Calls that torch refuses -----------------------------------------------------------------------


def refused(action: Callable[[], Any]) -> None:
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        action()


BAD_CALLS: dict[str, Callable[[], Any]] = {
    "a list that is too short": lambda: dist.all_gather([ones(2)], ones(2)),
    "outputs of another dtype": lambda: dist.all_gather(
        [zeros(2).double() for _ in everybody()], ones(2)
    ),
    "an output that is too small": lambda: dist.all_gather_into_tensor(zeros(3), ones(2)),
    "a scatter list that is too short": lambda: dist.scatter(zeros(2), [ones(2)], src=0),
    "a gather list that is too short": lambda: dist.gather(ones(2), [zeros(2)], dst=0),
    "asynchronous": lambda: dist.all_gather([ones(2)], ones(2), async_op=True),
    "a device without a backend": lambda: dist.all_reduce(ones(2, device="meta")),
    "a message that is not contiguous": lambda: dist.send(ones(4, 4).t()[:2], 1),
    "a negative tag": lambda: dist.send(ones(2), 1, tag=-1),
    "no tensor": lambda: dist.all_reduce("x"),
    "a rank that there is not": lambda: dist.broadcast(ones(2), 77),
}


def refuse_on_one(world: World, call: Callable[[], Any]) -> None:
    for _ in range(2):
        if world.rank == 0:
            world.attempt(call)
        assert total() == world.size
    if world.rank == 0:
        dist.send(ones(2), 1)
    elif world.rank == 1:
        dist.recv(zeros(2), 0)


def add_refused(name: str, call: Callable[[], Any]) -> None:
    def program(world: World) -> None:
        refuse_on_one(world, call)

    program.__name__ = f"refused on one rank: {name}"
    legal(2, 3)(program)


for bad_name, bad_call in BAD_CALLS.items():
    add_refused(bad_name, bad_call)


@legal(2)
def refused_on_one_rank_while_the_others_wait(world: World) -> None:
    if world.rank == 0:
        time.sleep(0.1)
        refused(lambda: dist.all_gather([ones(2)], ones(2)))
    assert total() == 2


@legal(2)
def refused_on_all_ranks(world: World) -> None:
    for _ in range(3):
        refused(lambda: dist.all_gather([ones(2)], ones(2)))
    assert total() == 2


@legal(2)
def a_refused_call_in_a_sub_group(world: World) -> None:
    group = dist.new_group([0, 1])
    if world.rank == 1:
        refused(lambda: dist.all_gather([ones(2)], ones(2), group=group))
    assert total(group) == 2


# Time-outs on purpose ---------------------------------------------------------------------------


@legal(2)
def a_receive_that_times_out(world: World) -> None:
    group = short_group()
    if world.rank == 1:
        for _ in range(2):
            refused(lambda: dist.recv(zeros(1), 0, group=group))


@legal(2)
def two_ranks_that_both_send_first(world: World) -> None:
    group = short_group()
    refused(lambda: dist.send(ones(2), 1 - world.rank, group=group))


@legal(2)
def a_collective_that_times_out(world: World) -> None:
    group = short_group()
    if world.rank == 0:
        refused(lambda: total(group))


@legal(2)
def a_barrier_that_says_who_is_missing(world: World) -> None:
    if world.rank == 0:
        with pytest.raises(RuntimeError, match="Rank 1"):
            dist.monitored_barrier(short_group_of_world(), timeout=timedelta(seconds=0.2))
    else:
        short_group_of_world()


def short_group_of_world() -> Any:
    return dist.new_group(everybody())


@legal(2, 3)
def a_monitored_barrier(world: World) -> None:
    for _ in range(3):
        dist.monitored_barrier(timeout=timedelta(seconds=5))


# Amounts that differ ----------------------------------------------------------------------------


@legal(2)
def uneven_splits(world: World) -> None:
    give, take = ([1, 3], [1, 2]) if world.rank == 0 else ([2, 5], [3, 5])
    out = zeros(sum(take))
    dist.all_to_all_single(out, ones(sum(give)), take, give)
    assert out.sum() == sum(take)


@legal(2)
def splits_of_nothing(world: World) -> None:
    give, take = ([0, 2], [0, 0]) if world.rank == 0 else ([0, 0], [2, 0])
    dist.all_to_all_single(zeros(sum(take)), ones(sum(give)), take, give)


@legal(2)
def shapes_of_one_size(world: World) -> None:
    dist.all_reduce(ones(2, 3) if world.rank == 0 else ones(6))


@legal(2)
def some_asynchronous_and_some_not(world: World) -> None:
    for i in range(10):
        if (i + world.rank) % 2:
            finish(dist.all_reduce(ones(1), async_op=True))
        else:
            dist.all_reduce(ones(1))


@legal(2)
def a_receive_into_another_shape(world: World) -> None:
    dist.send(ones(2, 3), 1) if world.rank == 0 else dist.recv(zeros(6), 0)


@legal(3)
def gather_and_scatter(world: World) -> None:
    parts = [zeros(1) for _ in range(3)] if world.rank == 1 else None
    dist.gather(ones(1) * world.rank, parts, dst=1)
    out = zeros(1)
    dist.scatter(out, [ones(1) * i for i in range(3)] if world.rank == 2 else None, src=2)
    assert out.item() == world.rank


@legal(2, 3)
def every_collective(world: World) -> None:
    size = world.size
    dist.all_gather([zeros(2) for _ in range(size)], ones(2))
    dist.all_gather_into_tensor(zeros(2 * size), ones(2))
    dist.reduce_scatter_tensor(zeros(2), ones(2 * size))
    dist.reduce_scatter(zeros(2), [ones(2) for _ in range(size)])
    dist.reduce(ones(2), 0)
    dist.all_to_all_single(zeros(size), ones(size))
    for op in (dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.PRODUCT):
        dist.all_reduce(ones(2), op=op)
    dist.barrier()


@legal(2)
def sparse_tensors(world: World) -> None:
    data = torch.sparse_coo_tensor(torch.tensor([[world.rank]]), ones(1), (4,))
    dist.all_reduce(data)
    assert data.to_dense().sum() == 2


@legal(2)
def under_inference_mode(world: World) -> None:
    with torch.inference_mode():
        assert total() == 2


# Objects ----------------------------------------------------------------------------------------


@legal(3)
def objects_of_many_sizes(world: World) -> None:
    found: list[Any] = [None] * 3
    dist.all_gather_object(found, "x" * 10**world.rank)
    assert [len(text) for text in found] == [1, 10, 100]
    parcel: list[Any] = [{"a": world.rank}]
    dist.broadcast_object_list(parcel, src=2)
    assert parcel == [{"a": 2}]


@legal(3)
def objects_to_one_rank(world: World) -> None:
    found: list[Any] | None = [None] * 3 if world.rank == 0 else None
    dist.gather_object({"r": world.rank}, found, dst=0)
    out: list[Any] = [None]
    dist.scatter_object_list(out, ["a", "b", "c"] if world.rank == 0 else None, src=0)
    assert out == ["abc"[world.rank]]


# Coalescing and functional collectives ------------------------------------------------------------


@legal(2)
def coalesced(world: World) -> None:
    parts = [ones(3), ones(5)]
    with vars(dist)["_coalescing_manager"]():
        for part in parts:
            dist.all_reduce(part)
    assert [part[0].item() for part in parts] == [2, 2]


@legal(2)
def functional_collectives(world: World) -> None:
    group: Any = dist.group.WORLD
    assert functional.all_reduce(ones(2), "sum", group)[0] == 2
    assert functional.all_gather_tensor(ones(2), 0, group).shape == (4,)
    assert functional.reduce_scatter_tensor(ones(4), "sum", 0, group)[0] == 2
    assert functional.all_to_all_single(ones(2), None, None, group).sum() == 2


@legal(2)
def functional_calls_that_are_waited_for_later(world: World) -> None:
    group: Any = dist.group.WORLD
    waiting = [functional.all_reduce(ones(2) * i, "sum", group) for i in range(20)]
    assert [data[0].item() for data in waiting] == [2 * i for i in range(20)]


# Sharded tensors --------------------------------------------------------------------------------


@legal(2)
def redistributed(world: World) -> None:
    mesh = init_device_mesh("cpu", (2,))
    sharded = distribute_tensor(torch.arange(8.0).reshape(4, 2), mesh, [Shard(0)])
    whole = sharded.redistribute(mesh, [Replicate()])
    columns = whole.redistribute(mesh, [Shard(1)])
    assert columns.redistribute(mesh, [Shard(0)]).full_tensor().sum() == 28
    assert distribute_tensor(ones(5, 3), mesh, [Shard(0)]).full_tensor().sum() == 15


@legal(2)
def partial_sums(world: World) -> None:
    mesh = init_device_mesh("cpu", (2,))
    sums: Any = distribute_tensor(ones(4, 2), mesh, [Shard(0)]).sum()
    assert sums.redistribute(mesh, [Replicate()]).to_local() == 8
    assert isinstance(sums.placements[0], Partial)


@legal(2)
def fsdp2(world: World) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    for layer in model:
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model(ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@legal(2)
def zero_redundancy(world: World) -> None:
    model = DistributedDataParallel(nn.Linear(4, 4))
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    model(ones(2, 4)).sum().backward()
    optimizer.step()


# DDP --------------------------------------------------------------------------------------------


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, *, is_one: bool) -> torch.Tensor:
        found: torch.Tensor = self.one(x) if is_one else self.other(x)
        return found


def train(model: Any, num_steps: int = 3) -> None:
    for _ in range(num_steps):
        model(ones(2, 4)).sum().backward()


@legal(2, 3)
def ddp(world: World) -> None:
    train(
        DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    )


@legal(2)
def ddp_without_synchronizing(world: World) -> None:
    model = DistributedDataParallel(nn.Linear(4, 4))
    with model.no_sync():
        train(model, 2 + world.rank)
    train(model)


@legal(2)
def ddp_with_a_static_graph(world: World) -> None:
    train(DistributedDataParallel(nn.Linear(4, 4), static_graph=True))


@legal(2)
def ddp_with_unused_parameters(world: World) -> None:
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    for i in range(4):
        model(ones(2, 4), is_one=(i + world.rank) % 2 == 0).sum().backward()


@legal(2)
def ddp_with_small_buckets(world: World) -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    train(DistributedDataParallel(model, bucket_cap_mb=0.00001, gradient_as_bucket_view=True))


@legal(2)
def ddp_with_a_hook(world: World) -> None:
    model = DistributedDataParallel(nn.Linear(4, 4))
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    train(model)


@legal(2)
def ddp_with_power_sgd(world: World) -> None:
    model = DistributedDataParallel(nn.Linear(40, 40))
    state = powerSGD_hook.PowerSGDState(dist.group.WORLD, start_powerSGD_iter=2)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    for _ in range(4):
        model(ones(2, 40)).sum().backward()


@legal(2, 3)
def ddp_with_uneven_inputs(world: World) -> None:
    model = DistributedDataParallel(nn.Linear(4, 4))
    with model.join():
        train(model, 2 + world.rank)


@legal(2)
def two_joined_models(world: World) -> None:
    models = [DistributedDataParallel(nn.Linear(4, 4)) for _ in range(2)]
    with Join(list[Any](models)):
        for _ in range(2 + world.rank):
            for model in models:
                model(ones(2, 4)).sum().backward()


@legal(2)
def ddp_in_a_group_of_its_own(world: World) -> None:
    train(DistributedDataParallel(nn.Linear(4, 4), process_group=dist.new_group([0, 1])))


@legal(2)
def ddp_with_synchronized_buffers(world: World) -> None:
    model = DistributedDataParallel(nn.BatchNorm1d(4), broadcast_buffers=True)
    for _ in range(3):
        model(ones(2, 4) * world.rank).sum().backward()


# Running them -----------------------------------------------------------------------------------


def run(world: World) -> None:
    """Run every program for this number of ranks in every mode; say how each ended, and when."""
    world.join(timeout_s=8)
    for mode in MODES:
        for program in PROGRAMS[world.size]:
            world.meet()
            for group in torch_private.living_groups()[1:]:
                dist.destroy_process_group(group)
            world.guard.set_mode(mode)  # type: ignore[arg-type]
            began = time.monotonic()
            outcome = world.attempt(functools.partial(program, world))
            seconds = time.monotonic() - began
            # Where one hangs, this is all that is left to see.
            sys.stderr.write(f"{world.rank} {mode} {program.__name__}: {outcome}\n")
            world.say(
                **{
                    program.__name__: {
                        **world.facts.get(program.__name__, {}),
                        mode: [outcome, seconds],
                    }
                }
            )


if __name__ == "__main__":
    main(globals())
