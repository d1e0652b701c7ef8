"""What /proc tells: who keeps the cores busy, and how much memory a process really holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.processes import describe


@dataclass(frozen=True)
class Load:
    """What ran on the machine while we did nothing.

    Attributes:
        cores_busy: Cores that were in use, on average.
        busiest: Processes with their share of a core, the busiest first.
    """

    cores_busy: float
    busiest: tuple[str, ...]


def sample_load(duration_s: float = 1.0) -> Load:
    """Watch the machine for *duration_s* while doing nothing."""
    others = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    for process in others:
        core_percent(process)  # only starts its clock
    busy_percent = psutil.cpu_percent(duration_s)
    shares = sorted(((core_percent(p), p) for p in others), key=lambda pair: -pair[0])
    busiest = tuple(f"{share:.0f} % of a core: {describe(p)}" for share, p in shares if share >= 3)
    return Load(busy_percent / 100 * (psutil.cpu_count() or 1), busiest)


def core_percent(process: psutil.Process) -> float:
    """Return its use of one core since the last call, in percent; 0 for one that is gone."""
    try:
        return float(process.cpu_percent())
    except psutil.NoSuchProcess:
        return 0.0


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of *pids* together: pages that n processes share count 1/n for each."""
    return sum(map(pss_of, pids))


def pss_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it ended, or it is a zombie
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
