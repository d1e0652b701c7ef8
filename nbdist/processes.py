"""Name a process so that it can never be mistaken for another, and end it.

A pid alone is reused; a pid together with the start time the kernel keeps for it is not. All that
nbdist ends, it ends by such an identity, written down at the process's birth. Linux only.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "NBDIST_SESSION"
"""Environment variable that every process of a session inherits; its value is the session's id."""


@dataclass(frozen=True)
class ProcessId:
    """A process of this machine.

    Attributes:
        pid: Its number.
        started: Its start time in clock ticks since boot (field 22 of ``/proc/PID/stat``).
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Return the identity of the living process *pid*.

        Raises:
            ProcessLookupError: There is no such process.
        """
        stat = _stat(pid)
        if stat is None:
            raise ProcessLookupError(f"there is no process {pid}")
        return cls(pid, int(stat[19]))

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        stat = _stat(self.pid)
        return stat is not None and int(stat[19]) == self.started and stat[0] not in "ZX"


def _stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` from the state (field 3) on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def group_members(pgid: int, mark: str) -> list[int]:
    """Return the living processes of process group *pgid* that carry the session's *mark*.

    The mark is looked up in the environment a process was started with, so that a group whose
    number was reused by someone else is left alone.
    """
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            stat = _stat(pid)
            if stat and int(stat[2]) == pgid and stat[0] not in "ZX" and has_mark(pid, mark):
                members.append(pid)
    return members


def has_mark(pid: int, mark: str) -> bool:
    """Whether *pid* was started with ``NBDIST_SESSION=mark`` (by a process of that session)."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def end(processes: Iterable[ProcessId], *, mark: str, grace_s: float = 1.0) -> list[int]:
    """End *processes* and their process groups: TERM, *grace_s* seconds, KILL.

    Args:
        processes: What to end, by identity; those already gone are passed over.
        mark: Id of the session; group members that do not carry it are left alone.
        grace_s: How long a process may take to end by itself.

    Returns:
        The pids that had to be killed.
    """
    leaders = list(processes)
    _signal_all(leaders, mark, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and _alive(leaders, mark):
        time.sleep(0.01)
    killed = _alive(leaders, mark)
    _signal_all(leaders, mark, signal.SIGKILL)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and _alive(leaders, mark):
        time.sleep(0.01)
    return killed


def _alive(leaders: list[ProcessId], mark: str) -> list[int]:
    pids = {leader.pid for leader in leaders if leader.is_alive}
    for leader in leaders:
        pids.update(group_members(leader.pid, mark))
    return sorted(pids)


def _signal_all(leaders: list[ProcessId], mark: str, signum: int) -> None:
    for pid in _alive(leaders, mark):
        try:
            os.kill(pid, signum)
            if signum == signal.SIGTERM:
                os.kill(pid, signal.SIGCONT)  # a stopped process cannot act on TERM
        except ProcessLookupError:
            continue
