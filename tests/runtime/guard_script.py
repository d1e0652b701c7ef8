"""What `test_guard` runs on real ranks; see `real_ranks`."""

from __future__ import annotations

import os
import statistics
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
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from tests.runtime.real_ranks import World, main

ones = torch.ones

# (rank 0, rank 1): what gloo makes of it without a guard stands in recovery/NOTES.md, section 4.
MISMATCHES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "all_reduce or all_gather": (
        lambda: dist.all_reduce(ones(10)),
        lambda: dist.all_gather([ones(5), ones(5)], ones(5)),
    ),
    "all_reduce 10 or 5": (lambda: dist.all_reduce(ones(10)), lambda: dist.all_reduce(ones(5))),
    "all_reduce 5 or 10": (lambda: dist.all_reduce(ones(5)), lambda: dist.all_reduce(ones(10))),
    "all_reduce 1M or 10": (
        lambda: dist.all_reduce(ones(1_000_000)),
        lambda: dist.all_reduce(ones(10)),
    ),
    "all_reduce 10 or 1M": (
        lambda: dist.all_reduce(ones(10)),
        lambda: dist.all_reduce(ones(1_000_000)),
    ),
    "dtype": (lambda: dist.all_reduce(ones(10)), lambda: dist.all_reduce(ones(10).double())),
    "broadcast 10 or 5": (
        lambda: dist.broadcast(ones(10), 0),
        lambda: dist.broadcast(ones(5), 0),
    ),
    "broadcast 5 or 10": (
        lambda: dist.broadcast(ones(5), 0),
        lambda: dist.broadcast(ones(10), 0),
    ),
    "all_gather 10 or 5": (
        lambda: dist.all_gather([ones(10), ones(10)], ones(10)),
        lambda: dist.all_gather([ones(5), ones(5)], ones(5)),
    ),
    "all_gather_into_tensor 10 or 5": (
        lambda: dist.all_gather_into_tensor(ones(20), ones(10)),
        lambda: dist.all_gather_into_tensor(ones(10), ones(5)),
    ),
    "reduce_scatter_tensor 10 or 5": (
        lambda: dist.reduce_scatter_tensor(ones(10), ones(20)),
        lambda: dist.reduce_scatter_tensor(ones(5), ones(10)),
    ),
    "sum or max": (
        lambda: dist.all_reduce(ones(10)),
        lambda: dist.all_reduce(ones(10), op=dist.ReduceOp.MAX),
    ),
    "all_reduce or barrier": (lambda: dist.all_reduce(ones(10)), lambda: dist.barrier()),
    "all_reduce or broadcast": (
        lambda: dist.all_reduce(ones(10)),
        lambda: dist.broadcast(ones(10), 0),
    ),
    "send 10 recv 5": (lambda: dist.send(ones(10), 1), lambda: dist.recv(ones(5), 0)),
    "send 5 recv 10": (lambda: dist.send(ones(5), 1), lambda: dist.recv(ones(10), 0)),
    "root": (lambda: dist.broadcast(ones(10), 0), lambda: dist.broadcast(ones(10), 1)),
    "all_to_all 10 or 6": (
        lambda: dist.all_to_all_single(ones(10), ones(10)),
        lambda: dist.all_to_all_single(ones(6), ones(6)),
    ),
}


def is_usable() -> bool:
    probe = ones(3)
    dist.all_reduce(probe)
    return probe.tolist() == [dist.get_world_size()] * 3


def mismatches(world: World) -> None:
    """Each case twice: rank 0 first, then rank 1 first; then a good call in the same group."""
    world.join()
    for name, calls in MISMATCHES.items():
        for first in (0, 1):
            world.meet()
            if world.rank != first:
                time.sleep(0.03)
            error = world.attempt(calls[world.rank])
            world.say(**{f"{name}, rank {first} first": [error, is_usable()]})


def finish(work: Any) -> None:
    work.wait()


ASYNC_MISMATCHES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "sizes": (
        lambda: dist.all_reduce(ones(10), async_op=True).wait(),
        lambda: dist.all_reduce(ones(5), async_op=True).wait(),
    ),
    "dtype, one of them synchronous": (
        lambda: dist.all_reduce(ones(10), async_op=True).wait(),
        lambda: dist.all_reduce(ones(10).double()),
    ),
    "operation": (
        lambda: dist.all_reduce(ones(10), async_op=True).wait(),
        lambda: dist.barrier(),
    ),
    "isend and irecv": (
        lambda: finish(dist.isend(ones(10), 1)),
        lambda: finish(dist.irecv(ones(5), 0)),
    ),
}


def async_mismatches(world: World) -> None:
    """The first is in the native call when the second finds out: only the lifeline frees it."""
    world.join()
    for name, calls in ASYNC_MISMATCHES.items():
        for first in (0, 1):
            world.meet()
            if world.rank != first:
                time.sleep(0.05)
            error = world.run_cell(calls[world.rank])
            damaged = world.recover().damaged
            world.say(**{f"{name}, rank {first} first": [error, is_usable(), list(damaged)]})


def raise_bug() -> None:
    raise ValueError("user bug")


# A peer raises while the others wait -------------------------------------------------------------


def peer_raises(world: World) -> None:
    """Rank 1 raises; the others wait in one kind of call after the other. Nothing is rebuilt."""
    world.join()
    others = dist.new_group([0, 1, 2])
    kinds: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(ones(10)),
        "sub group": lambda: dist.all_reduce(ones(10), group=others),
        "barrier": lambda: dist.barrier(),
        "all_gather_object": lambda: dist.all_gather_object([None] * 3, {}),
        "broadcast": lambda: dist.broadcast(ones(3), 1),
        "inference": lambda: torch.inference_mode()(dist.all_reduce)(ones(10)),
    }
    for name, call in kinds.items():
        world.meet()
        clock: dict[str, float] = {}
        if world.rank == 1:
            time.sleep(0.1)
            world.store.set(f"raised {name}", str(time.time()))
            error = world.run_cell(raise_bug)
        else:
            error = world.run_cell(call)
        clock["ms"] = (time.time() - float(world.store.get(f"raised {name}"))) * 1e3
        damaged = list(world.resync().damaged)
        world.say(**{name: [error, damaged, is_usable(), clock["ms"]]})


def interrupted(world: World) -> None:
    """Rank 0 waits for a peer that computes; SIGINT ends its wait; the peer comes later."""
    world.join()
    kinds: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(ones(10)),
        "barrier": lambda: dist.barrier(),
        "recv": lambda: dist.recv(ones(2), 1) if world.rank == 0 else dist.send(ones(2), 0),
        "send": lambda: dist.send(ones(2), 1) if world.rank == 0 else dist.recv(ones(2), 0),
    }
    for name, call in kinds.items():
        world.meet()
        if world.rank == 0:
            pressed = world.interrupt_after(0.15)
            error = world.attempt(call)
            world.say(**{f"{name} ms": (time.time() - pressed[0]) * 1e3})
            world.store.set(f"stopped {name}", "1")
        else:
            world.store.get(f"stopped {name}")
            error = world.attempt(call)
        damaged = list(world.resync().damaged)
        world.say(**{name: [error, damaged, is_usable()]})


def quiet_wait(world: World) -> None:
    """A second of waiting; what it costs, and what others can see of it."""
    world.join()
    world.say(before=time.time())
    world.meet()
    if world.rank == 0:
        before = os.times()
        dist.all_reduce(ones(1))
        after = os.times()
        busy = after.user + after.system - before.user - before.system
        world.say(share_of_processor=busy / (after.elapsed - before.elapsed))
    else:
        while not (groups := world.table.view()) or groups[0].members[0].phase != "waiting":
            time.sleep(0.001)
        waiting = groups[0].members[0]
        world.say(after=time.time(), since=waiting.since)
        world.say(seen=[waiting.phase, waiting.seq, waiting.text])
        time.sleep(1)
        dist.all_reduce(ones(1))


# Legal programs ----------------------------------------------------------------------------------


def legal_two(world: World) -> None:
    """Programs for two ranks that plain gloo runs."""
    world.join(timeout_s=10)
    rank, peer = world.rank, 1 - world.rank
    first, second = dist.new_group([0, 1]), dist.new_group([0, 1])
    alone = [dist.new_group([0]), dist.new_group([1])][rank]

    def crossing() -> None:
        data = ones(4)
        if rank == 0:
            work = dist.all_reduce(data, async_op=True)
            dist.send(ones(2), 1)
            work.wait()
        else:
            dist.recv(torch.zeros(2), 0)
            dist.all_reduce(data)
        assert data.tolist() == [2] * 4

    def two_groups_crossed() -> None:
        groups = (first, second) if rank == 0 else (second, first)
        works = [dist.all_reduce(ones(3), group=group, async_op=True) for group in groups]
        for work in works:
            finish(work)

    def two_threads() -> None:
        sums: list[float] = []

        def work(group: Any) -> None:
            for _ in range(30):
                data = ones(2)
                dist.all_reduce(data, group=group)
                sums.append(data[0].item())

        threads = [threading.Thread(target=work, args=(group,)) for group in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sums == [2] * 60

    def exchange() -> None:
        received = torch.zeros(4)
        operations = [dist.P2POp(dist.isend, ones(4) * rank, peer)]
        operations.append(dist.P2POp(dist.irecv, received, peer))
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        assert received.tolist() == [peer] * 4

    def tags() -> None:
        if rank == 0:
            works = [dist.isend(torch.full((2,), float(tag)), 1, tag=tag) for tag in (1, 2, 3)]
        else:
            received = {tag: torch.zeros(tag and 2) for tag in (3, 1, 2)}
            works = [dist.irecv(received[tag], 0, tag=tag) for tag in (3, 1, 2)]
        for work in works:
            finish(work)
        if rank == 1:
            assert all(data[0] == tag for tag, data in received.items())

    def many_messages() -> None:
        """More than a ring holds before the receiver looks."""
        if rank == 0:
            for work in [dist.isend(torch.full((2,), float(i)), 1) for i in range(200)]:
                finish(work)
        else:
            time.sleep(0.1)
            for i in range(200):
                data = torch.zeros(2)
                dist.recv(data, 0)
                assert data[0] == i

    def from_anybody() -> None:
        for i in range(3):
            if rank == 0:
                dist.send(torch.full((2,), float(i)), 1)
            else:
                data = torch.zeros(2)
                dist.recv(data) if i != 1 else dist.recv(data, 0)
                assert data[0] == i

    def uneven_all_to_all() -> None:
        give = [1, 3] if rank == 0 else [2, 5]
        take = [1, 2] if rank == 0 else [3, 5]
        out = torch.zeros(sum(take))
        dist.all_to_all_single(out, ones(sum(give)), take, give)
        assert out.sum() == sum(take)

    def shapes_of_one_size() -> None:
        dist.all_reduce(ones(2, 3) if rank == 0 else ones(6))

    def alone_in_a_group() -> None:
        dist.all_reduce(ones(2), group=alone)
        dist.barrier(group=alone)

    def async_run_ahead() -> None:
        works = [dist.all_reduce(ones(1), async_op=True) for _ in range(150)]
        if rank == 1:
            time.sleep(0.05)
        for work in works:
            finish(work)

    def many_groups() -> None:
        for _ in range(12):
            group = dist.new_group([0, 1])
            dist.all_reduce(ones(1), group=group)
            dist.destroy_process_group(group)

    def monitored() -> None:
        if rank == 0:
            with pytest.raises(RuntimeError, match="Rank 1"):
                dist.monitored_barrier(timeout=timedelta(milliseconds=200))

    def own_timeout() -> None:
        group = dist.new_group([0, 1], timeout=timedelta(milliseconds=300))
        if rank == 0:
            with pytest.raises(RuntimeError, match=r"0\.3 s"):
                dist.all_reduce(ones(1), group=group)

    def pipeline_schedules() -> None:
        """GPipe and 1F1B of torch, four microbatches on two stages; the losses are compared."""
        torch.manual_seed(0)
        stages = [nn.Linear(8, 8), nn.Linear(8, 8)]
        x, y = torch.randn(8, 8), torch.randn(8, 8)
        whole = nn.functional.mse_loss(stages[1](stages[0](x)), y).item()
        for schedule_class in (ScheduleGPipe, Schedule1F1B):
            stage = PipelineStage(stages[rank], rank, 2, torch.device("cpu"))
            schedule = schedule_class(stage, 4, loss_fn=nn.functional.mse_loss)
            losses: list[torch.Tensor] = []
            for _ in range(3):
                losses.clear()
                schedule.step(*([x] if rank == 0 else []), target=y, losses=losses)
            if rank == 1:
                assert torch.stack(losses).mean().item() == pytest.approx(whole)

    def uneven_inputs_joined() -> None:
        model = DistributedDataParallel(nn.Linear(4, 4))
        with model.join():
            for _ in range(3 + 2 * rank):
                model(ones(2, 4)).sum().backward()

    def coalesced() -> None:
        parts = [ones(3), ones(5)]
        with vars(dist)["_coalescing_manager"]():
            for part in parts:
                dist.all_reduce(part)
        assert [part[0].item() for part in parts] == [2, 2]

    def objects_of_two_sizes() -> None:
        if rank == 0:
            dist.send_object_list(["x" * 1000, {"a": 1}], 1)
        else:
            received: list[Any] = [None, None]
            dist.recv_object_list(received, 0)
            assert received == ["x" * 1000, {"a": 1}]

    programs = [crossing, two_groups_crossed, two_threads, exchange, tags, many_messages]
    programs += [from_anybody, uneven_all_to_all, shapes_of_one_size, alone_in_a_group]
    programs += [async_run_ahead, many_groups, pipeline_schedules, uneven_inputs_joined]
    programs += [coalesced, objects_of_two_sizes, monitored, own_timeout]
    for program in programs:
        world.meet()
        started = time.time()
        world.say(**{program.__name__: [world.attempt(program), time.time() - started]})
    world.say(slots=len(world.table.slots()))


def legal_three(world: World) -> None:
    """Programs for three ranks that plain gloo runs."""
    world.join(timeout_s=10)
    rank = world.rank
    pairs = {pair: dist.new_group(list(pair)) for pair in ((0, 1), (1, 2), (0, 2))}

    def done_before_the_last() -> None:
        """Rank 1 has its data while rank 2 has not come, and rank 2 waits for rank 1."""
        if rank == 2:
            dist.recv(torch.zeros(2), 1)
        dist.broadcast(ones(4), 0)
        if rank == 1:
            dist.send(ones(2), 2)

    def root_ahead() -> None:
        for _ in range(10):
            dist.broadcast(ones(4), 0)
            if rank == 2:
                time.sleep(0.02)

    def round_the_pairs() -> None:
        order = {0: [(0, 1), (0, 2)], 1: [(0, 1), (1, 2)], 2: [(1, 2), (0, 2)]}[rank]
        for pair in order:
            dist.all_reduce(ones(2), group=pairs[pair])

    def gather_and_scatter() -> None:
        parts = [torch.zeros(2) for _ in range(3)] if rank == 1 else None
        dist.gather(torch.full((2,), float(rank)), parts, dst=1)
        assert parts is None or [part[0].item() for part in parts] == [0, 1, 2]
        out = torch.zeros(3)
        dist.scatter(out, [ones(3) * i for i in range(3)] if rank == 2 else None, src=2)
        assert out[0] == rank

    def objects() -> None:
        found: list[Any] = [None] * 3
        dist.all_gather_object(found, "x" * 10**rank)
        assert [len(text) for text in found] == [1, 10, 100]
        parcel = [{"a": rank}]
        dist.broadcast_object_list(parcel, src=2)
        assert parcel == [{"a": 2}]

    def pipeline() -> None:
        for i in range(20):
            data = torch.zeros(8)
            if rank > 0:
                dist.recv(data, rank - 1)
            data += 1
            if rank < 2:
                dist.send(data, rank + 1)
            assert data[0] == rank + 1, i

    for program in (
        done_before_the_last,
        root_ahead,
        round_the_pairs,
        gather_and_scatter,
        objects,
        pipeline,
    ):
        world.meet()
        started = time.time()
        world.say(**{program.__name__: [world.attempt(program), time.time() - started]})


def overhead(world: World) -> None:
    """Print what the guard costs; not a test: ``python guard_script.py overhead 2``.

    Both ways take turns in one pair of processes, in blocks too short for the load to change in.
    """
    world.join()
    for name, size, count, num_turns in (("1 element", 1, 60, 60), ("25 MB", 6_553_600, 1, 40)):
        data = ones(size)
        seconds: dict[str, list[float]] = {"off": [], "trace": [], "on": []}
        for _ in range(num_turns):
            for mode in ("off", "trace", "on"):
                world.guard.set_mode(mode)
                dist.all_reduce(data)
                start = time.perf_counter()
                for _ in range(count):
                    dist.all_reduce(data)
                seconds[mode].append((time.perf_counter() - start) / count)
                data.fill_(1)
        world.say(
            **{
                name: {
                    mode: [round(q * 1e6) for q in (min(found), statistics.median(found))]
                    for mode, found in seconds.items()
                }
            }
        )


if __name__ == "__main__":
    main(globals())
