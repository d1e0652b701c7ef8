"""What this machine, or the container around us, lets us use of its CPU cores and memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil


def available_cores(root: Path = Path("/"), affinity: int | None = None) -> int:
    """Return how many CPU cores this process may keep busy, at least 1.

    The smaller of its affinity and the CPU quota of its cgroups (v1 and v2), rounded down: more
    threads than that are put to sleep in the middle of a collective.

    Args:
        root: Where ``proc`` and ``sys`` are.
        affinity: Cores this process may be scheduled on; asked from the system when ``None``.
    """
    cores = _affinity() if affinity is None else affinity
    return max(1, int(min([cores, *_quotas(root)])))


def free_memory(root: Path = Path("/"), available: int | None = None) -> int:
    """Return how many bytes of memory may still be taken, by this machine and its cgroups.

    Args:
        root: Where ``proc`` and ``sys`` are.
        available: What the machine has; asked from the system when ``None``.
    """
    machine = psutil.virtual_memory().available if available is None else available
    return max(0, int(min([machine, *_memory_left(root)])))


def _memory_left(root: Path) -> Iterator[int]:
    """Yield what each cgroup around this process that has a limit lets it take."""
    mount = root / "sys" / "fs" / "cgroup"
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for group in _with_parents(path):
            if not controllers:
                limit, used = "memory.max", "memory.current"
                folder = mount / group
            elif "memory" in controllers.split(","):
                limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
                folder = mount / "memory" / group
            else:
                continue
            numbers = _read(folder / limit), _read(folder / used)
            if all(map(str.isdigit, numbers)):
                yield int(numbers[0]) - int(numbers[1])


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota in cores of each cgroup around this process that has one."""
    mount = root / "sys" / "fs" / "cgroup"
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for group in _with_parents(path):
                yield from _quota_v2(mount / group)
        elif "cpu" in controllers.split(","):
            for group in _with_parents(path):
                # Usually `cpu` is a link to `cpu,cpuacct`; one of the two may be missing.
                yield from _quota_v1(mount / "cpu" / group)
                yield from _quota_v1(mount / controllers / group)


def _with_parents(path: str) -> Iterator[Path]:
    """Yield a cgroup's path below the mount, and those of all cgroups above it.

    Inside a container the path may be the host's, which is not there; the topmost one always is.
    """
    group = Path(*(part for part in path.split("/") if part not in ("", "..")))
    yield from (group, *group.parents)


def _quota_v2(group: Path) -> Iterator[float]:
    words = _read(group / "cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        yield int(words[0]) / int(words[1])


def _quota_v1(group: Path) -> Iterator[float]:
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
