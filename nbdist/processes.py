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

    def send(self, signum: int) -> None:
        """Send it a signal, unless it has ended or is another user's by now."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signum)


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped process *pid* (SIGSTOP), so that it cannot answer."""
    stat = _stat(pid)
    return stat is not None and stat[0] == "T"


def _stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/PID/stat`` from the state (field 3) on."""
    try:
        # The name of a program, in front of the bracket, may be any bytes.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split() or None
    except (FileNotFoundError, ProcessLookupError):
        return None


def marked(mark: str) -> list[int]:
    """Return the living processes that carry the session's *mark*, but for the calling one.

    They are the session's processes and all that came from them, whatever process group or session
    they have moved to since.
    """
    others = [pid for pid in _pids() if pid != os.getpid()]
    return [pid for pid in others if has_mark(pid, mark) and _is_living(pid)]


def group_members(pgid: int, mark: str) -> list[int]:
    """Return those of `marked` that are in process group *pgid*."""
    stats = ((pid, _stat(pid)) for pid in marked(mark))
    return [pid for pid, stat in stats if stat is not None and int(stat[2]) == pgid]


def children(pid: int) -> list[ProcessId]:
    """Return the living processes of this user whose parent is *pid*."""
    return _living(stat for stat in _stats().items() if int(stat[1][1]) == pid)


def descendants(ancestors: Iterable[ProcessId]) -> list[ProcessId]:
    """Return the living processes of this user that are below *ancestors*, but for the calling one.

    Whatever environment, process group or session they have. Not those whose parent has ended,
    unless one of *ancestors* takes orphans (`nbdist.rank.minder`).
    """
    stats = _stats()
    below: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        below.setdefault(int(stat[1]), []).append(pid)
    waiting = [a.pid for a in ancestors if a.pid in stats and int(stats[a.pid][19]) == a.started]
    found: set[int] = set()
    while waiting:
        fresh = [pid for pid in below.get(waiting.pop(), ()) if pid not in found]
        found.update(fresh)
        waiting += fresh
    return _living((pid, stats[pid]) for pid in found if pid != os.getpid())


def _living(stats: Iterable[tuple[int, list[str]]]) -> list[ProcessId]:
    """Return those of *stats* that live and belong to the user this process runs as."""
    living = [ProcessId(pid, int(stat[19])) for pid, stat in stats if stat[0] not in "ZX"]
    return [process for process in living if _is_own(process.pid)]


def _stats() -> dict[int, list[str]]:
    return {pid: stat for pid in _pids() if (stat := _stat(pid)) is not None}


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _is_own(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False


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
        processes: What to end, by identity; those already gone are passed over, and so is the
            calling one, but not what is below it.
        mark: Id of the session; every process that carries it is ended too.
        grace_s: How long a process may take to end by itself.

    Returns:
        The pids that had to be killed.
    """
    family = _Family(processes, mark)
    for process in family.alive():
        process.send(signal.SIGTERM)
        process.send(signal.SIGCONT)  # a stopped process cannot act on TERM
    if family.is_gone_within(grace_s):
        return []
    killed = [process.pid for process in family.alive()]
    while survivors := family.alive():  # what was forked meanwhile comes in the next round
        for process in survivors:
            process.send(signal.SIGKILL)
        if family.is_gone_within(grace_s):
            break
    return killed


class _Family:
    """Processes, all that carry the session's mark, and all below: once seen, never forgotten.

    Who was seen below a process is known by its own identity, also when that one has ended.
    """

    def __init__(self, members: Iterable[ProcessId], mark: str) -> None:
        self._known = set(members)
        self._mark = mark

    def alive(self) -> list[ProcessId]:
        """Look for new members; return all that live, but for the calling process."""
        for pid in marked(self._mark):
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                self._known.add(ProcessId.of(pid))
        self._known.update(descendants(self._known))
        return self._known_alive()

    def _known_alive(self) -> list[ProcessId]:
        alive = (member for member in self._known if member.is_alive and member.pid != os.getpid())
        return sorted(alive, key=lambda member: member.pid)

    def is_gone_within(self, timeout_s: float) -> bool:
        """Wait until nobody is left, but no longer than *timeout_s*."""
        deadline = time.monotonic() + timeout_s
        while self._known_alive() or self.alive():  # looking for new ones is the dearer half
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def forget_other_clusters() -> None:
    """Take ipyparallel's settings for another cluster out of this process's environment.

    Controller and engines would obey them. Its profile's folder is ours, and stays.
    """
    for name in list(os.environ):
        if name.startswith(("IPP_CONNECTION", "IPP_SESSION", "IPP_CURVE", "IPP_ENABLE_CURVE")):
            del os.environ[name]


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
