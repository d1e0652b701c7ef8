"""Name a process so that it can never be mistaken for another, and end it.

A pid alone is reused; a pid together with the start time the kernel keeps for it is not. All that
nbdist ends, it ends by such an identity, written down at the process's birth. Linux only.
"""

from __future__ import annotations

import contextlib
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
        return (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="utf-8", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except (FileNotFoundError, ProcessLookupError):
        return None


def marked(mark: str) -> list[int]:
    """Return the living processes that carry the session's *mark*, but for the calling one.

    They are the session's processes and all that came from them, whatever process group or session
    they have moved to since.
    """
    entries = (entry.name for entry in Path("/proc").iterdir())
    pids = [int(name) for name in entries if name.isdigit() and int(name) != os.getpid()]
    return [pid for pid in pids if has_mark(pid, mark) and _is_living(pid)]


def group_members(pgid: int, mark: str) -> list[int]:
    """Return those of `marked` that are in process group *pgid*."""
    stats = ((pid, _stat(pid)) for pid in marked(mark))
    return [pid for pid, stat in stats if stat is not None and int(stat[2]) == pgid]


def _is_living(pid: int) -> bool:
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX"


def has_mark(pid: int, mark: str) -> bool:
    """Whether *pid* was started with ``NBDIST_SESSION=mark`` (by a process of that session)."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def end(processes: Iterable[ProcessId], *, mark: str, grace_s: float = 1.0) -> list[int]:
    """End *processes* and all that came from them: TERM, *grace_s* seconds, KILL.

    Args:
        processes: What to end, by identity; those already gone are passed over.
        mark: Id of the session; every process that carries it is ended too.
        grace_s: How long a process may take to end by itself.

    Returns:
        The pids that had to be killed.
    """
    leaders = list(processes)
    for pid in _alive(leaders, mark):
        _signal(pid, signal.SIGTERM)
        _signal(pid, signal.SIGCONT)  # a stopped process cannot act on TERM
    if _wait_until_gone(leaders, mark, grace_s):
        return []
    killed = _alive(leaders, mark)
    while survivors := _alive(leaders, mark):  # what was forked meanwhile comes in the next round
        for pid in survivors:
            _signal(pid, signal.SIGKILL)
        if _wait_until_gone(leaders, mark, grace_s):
            break
    return killed


def _alive(leaders: list[ProcessId], mark: str) -> list[int]:
    own = {leader.pid for leader in leaders if leader.is_alive and leader.pid != os.getpid()}
    return sorted(own.union(marked(mark)))


def _wait_until_gone(leaders: list[ProcessId], mark: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while _alive(leaders, mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _signal(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def exit_words(code: int) -> str:
    """Return an exit code in words: ``exited with code 3``, ``was killed by SIGKILL (...)``."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hints = {
        signal.SIGKILL: "out of memory, or someone's kill -9",
        signal.SIGSEGV: "a crash in native code",
        signal.SIGABRT: "native code gave up; its message is in the log",
        signal.SIGBUS: "often a full /dev/shm",
    }
    hint = hints.get(-code)  # type: ignore[call-overload]
    return f"was killed by {name}" + (f" ({hint})" if hint else "")
