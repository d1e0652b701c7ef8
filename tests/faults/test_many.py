"""Fifty failures of all kinds in one session: nothing grows, on any side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.faults.driving import Workshop, workshop
from tests.sessions.driving import pids, statuses

pytestmark = [pytest.mark.ranks, pytest.mark.recovery]

NUM_ROUNDS = 10  # of five failures each
MIB = 2**20

# Most cut the groups off, so that they are made anew.
FAILURES = {
    "raised before a barrier": "if rank == 1: raise ValueError('the bug')\ndist.barrier()",
    "raised in training": "if rank == 2: Bomb.armed = 'backward'\ntrain(ddp)\ntrain(fsdp)",
    "mismatch": "dist.all_reduce(ones(2 + rank))",
    "stopped": "if rank == 1: time.sleep(600)\ndist.all_reduce(ones(2), async_op=True).wait()",
    "new group": "if rank == 0: raise ValueError('the bug')\nother = dist.new_group([0, 1, 2])",
}


@dataclass(frozen=True)
class Size:
    """How much of the system one process has."""

    num_threads: int
    num_files: int
    memory_mib: float

    @classmethod
    def of(cls, pid: int) -> Size:
        process = psutil.Process(pid)
        memory = process.memory_info().rss / MIB
        return cls(process.num_threads(), process.num_fds(), memory)


@dataclass(frozen=True)
class Footprint:
    """What a session takes of the machine."""

    processes: dict[str, Size]
    shared_bytes: int
    folder_bytes: int
    num_paths: int

    @classmethod
    def of(cls, shop: Workshop) -> Footprint:
        folder = shop.session._processes.folder
        found = {f"rank {rank}": Size.of(pid) for rank, pid in enumerate(pids(shop.session))}
        found |= {
            role: Size.of(process.pid)
            for role, process in folder.processes()
            if role in ("agent", "controller", "store")
        }
        found["this process"] = Size.of(os.getpid())
        paths = [path for path in folder.path.rglob("*") if path.is_file()]
        return cls(
            found,
            sum_of(folder.shared_memory().rglob("*")),
            sum_of(paths),
            len(paths),
        )


def sum_of(paths: Iterator[Path] | list[Path]) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())


def go_wrong(shop: Workshop) -> None:
    for kind, code in FAILURES.items():
        run = shop.run(code)
        if kind == "stopped":
            shop.wait_until_within(run, [0, 2])
            shop.stops(run)
        shop.ends(run)
        assert "ok" not in statuses(run), (kind, shop.describe(run))
        shop.works()


@pytest.mark.timeout(240)
def test_after_fifty_failures_nothing_has_grown() -> None:
    with workshop(3) as shop:
        for _ in range(2):
            go_wrong(shop)
        before = Footprint.of(shop)

        for _ in range(NUM_ROUNDS):
            go_wrong(shop)
        after = Footprint.of(shop)

    for name, old in before.processes.items():
        new = after.processes[name]
        assert new.num_threads <= old.num_threads + 3, (name, old, new)
        assert new.num_files <= old.num_files + 8, (name, old, new)
        assert new.memory_mib <= old.memory_mib + 16, (name, old, new)
    assert after.shared_bytes <= before.shared_bytes + MIB
    assert after.folder_bytes <= before.folder_bytes + MIB
    assert after.num_paths <= before.num_paths + 3


@pytest.mark.timeout(120)
def test_after_ten_deaths_nothing_has_grown() -> None:
    with workshop(2) as shop:
        kill = "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\ntrain(ddp)"
        for _ in range(2):
            shop.ends(shop.run(kill))
            shop.recovers()
        before = Footprint.of(shop)

        for _ in range(10):
            shop.ends(shop.run(kill))
            shop.recovers()
            shop.works()
        after = Footprint.of(shop)

    for name in ("rank 0", "agent", "controller", "store", "this process"):
        old, new = before.processes[name], after.processes[name]
        assert new.num_threads <= old.num_threads + 3, (name, old, new)
        assert new.num_files <= old.num_files + 8, (name, old, new)
        assert new.memory_mib <= old.memory_mib + 16, (name, old, new)
    assert after.shared_bytes <= before.shared_bytes + MIB
    assert after.folder_bytes <= before.folder_bytes + MIB
