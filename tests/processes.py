"""Find processes by a mark that their environment got, and end exactly those.

A mark goes wherever an environment goes: to agents, controllers and ranks, also when they start a
session of their own and lose their parent.

It is read as it was at exec, so not seen are: the process that set it in its own environment, what
that one forks without exec, and another user's processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


def processes_marked(name: str, value: str) -> list[psutil.Process]:
    """Find the processes that were started with ``name=value`` in their environment."""
    mark = f"{name}={value}".encode()
    return [process for process in psutil.process_iter() if mark in environment(process)]


def environment(process: psutil.Process) -> list[bytes]:
    try:
        return Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it is gone, or another user's
        return []


def wait_for_end(processes: Iterable[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Give *processes* time to end by themselves; return those that did not."""
    _, alive = psutil.wait_procs(list(processes), timeout=timeout_s)
    return [process for process in alive if is_running(process)]


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def describe(process: psutil.Process) -> str:
    """Say which process this is, in one line."""
    try:
        with process.oneshot():
            command = " ".join(" ".join(process.cmdline()).split()) or process.name()
            return f"pid {process.pid} (parent {process.ppid()}): {command:.200}"
    except psutil.NoSuchProcess:
        return f"pid {process.pid}: ended meanwhile"


def end(process: psutil.Process) -> None:
    """Kill exactly this process: psutil compares the start time, so never a later one's pid."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
