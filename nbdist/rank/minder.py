"""The minder of a rank: a process between agent and rank that lets nothing outlive the rank.

    agent ──fork──▶ minder ──fork──▶ rank ──▶ its children, and theirs

Linux gives an orphan to its nearest ancestor that asked for orphans, and the minder asks. So all
that comes from a rank stays below its minder, whatever environment, process group or session it has
and whether or not it has become a daemon; and nothing else is ever below it.

    the rank ends         its exit is reported, then all that is left below is killed
    the session ends      (TERM) the agent gives everyone a moment; the minder goes last
    the agent is killed   the rank ends by itself; what has not gone in time is killed

It is a fork of the agent, so it shares the agent's memory; it has one thread and does nothing else.

Not covered: where agent, minder and rank are killed at the same time, what has neither the rank's
process group nor the session's mark goes on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from nbdist import processes
from nbdist.processes import ProcessId

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
HEARD = {signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP}
GRACE_S = 2.0  # a rank takes one second at most to end when its agent is gone
PATIENCE_S = 2.0  # with what was killed and does not go: it waits for a disk or a device


def mind(
    report: int, agent: int, be_rank: Callable[[], NoReturn], note_birth: Callable[[int], ProcessId]
) -> NoReturn:
    """Fork the rank and stay until all that came from it is gone. Called in a fork of the agent.

    Args:
        report: Write end of a pipe. Gets two lines: the rank's pid and start time; its exit code.
        agent: Pid of the agent.
        be_rank: Called in the rank's process.
        note_birth: Writes the rank's pid down.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)  # they are waited for, and end nothing
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    take_orphans()
    _prctl(PR_SET_PDEATHSIG, signal.SIGHUP)  # when the agent ends; the rank does not inherit it
    rank = os.fork()
    if rank == 0:
        os.close(report)
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
        be_rank()
    os.setpgid(rank, rank)  # here and in the child: whoever comes first
    _keep_only(report)
    identity = note_birth(rank)
    _tell(report, identity.pid, identity.started)
    if not _rank_ended_alone(report, agent, rank):
        _wait_for_children(GRACE_S)
    _kill_below()
    os._exit(0)


def _rank_ended_alone(report: int, agent: int, rank: int) -> bool:
    """Return when the rank or the agent has ended: whether it was the rank, in a living session."""
    is_session_ending = False
    while os.getppid() == agent:
        ended = reap()
        if rank in ended:
            _tell(report, ended[rank])
            return not is_session_ending and signal.SIGTERM not in signal.sigpending()
        is_session_ending |= signal.sigwait(HEARD) == signal.SIGTERM
    return False


def take_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def reap() -> dict[int, int]:
    """Take the exit codes of this process's children that have ended; return them by pid."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):  # there are no children
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def _wait_for_children(timeout_s: float) -> None:
    """Return when no child is left, or after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    reap()
    while _has_children() and (left_s := deadline - time.monotonic()) > 0:
        signal.sigtimedwait(HEARD, left_s)
        reap()


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _kill_below() -> None:
    """Kill all that is below this process; what was forked meanwhile comes in the next round."""
    deadline = time.monotonic() + PATIENCE_S
    while _has_children() and time.monotonic() < deadline:
        for process in processes.descendants([ProcessId.of(os.getpid())]):
            process.send(signal.SIGKILL)
        _wait_for_children(0.05)


def _keep_only(fd: int) -> None:
    """Close what was inherited, but for *fd*: others wait for the end of pipes and sockets."""
    for other in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if other > 2 and other != fd:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(other)


def _tell(report: int, *numbers: int) -> None:
    with contextlib.suppress(OSError):  # the agent is gone
        os.write(report, f"{' '.join(map(str, numbers))}\n".encode())


def _prctl(option: int, value: int) -> None:
    """Ask the kernel for something that this process can do without where it is not to be had."""
    ctypes.CDLL(None).prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0)))
