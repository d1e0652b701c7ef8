"""Whether a rank that does not answer is busy, or gets no turn on a machine that is overloaded.

Pure but for `sight_of`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

LITTLE = 0.2  # of a core's time: with more of it a control thread answers, if it can
CROWD = 8  # threads for each core that want to run


@dataclass(frozen=True)
class CpuSight:
    """What the host knew of a process at one moment.

    Attributes:
        at: On the monotonic clock.
        cpu_s: CPU time it has had.
        wants_cpu: Its main thread could run.
        num_runnable: Threads of the whole machine that could.
        num_cores: Of the machine.
    """

    at: float
    cpu_s: float
    wants_cpu: bool
    num_runnable: int
    num_cores: int


def sight_of(pid: int) -> CpuSight | None:
    """Look at *pid* now; ``None`` where that cannot be done."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        runnable = Path("/proc/loadavg").read_text(encoding="ascii").split()[3].partition("/")[0]
        return CpuSight(
            at=time.monotonic(),
            cpu_s=times.user + times.system,
            wants_cpu=process.status() == psutil.STATUS_RUNNING,
            num_runnable=int(runnable),
            num_cores=os.cpu_count() or 1,
        )
    except (psutil.Error, OSError, ValueError, IndexError):
        return None


def overload(before: CpuSight | None, now: CpuSight | None) -> str:
    """Say what keeps a process from running; empty where it gets its share, or wants none."""
    if before is None or now is None or now.at <= before.at:
        return ""
    has_little = now.cpu_s - before.cpu_s < LITTLE * (now.at - before.at)
    is_crowded = now.num_runnable > CROWD * now.num_cores
    if not (now.wants_cpu and has_little and is_crowded):
        return ""
    cores = "1 core" if now.num_cores == 1 else f"{now.num_cores} cores"
    return f"the machine is overloaded ({now.num_runnable} threads want its {cores})"
