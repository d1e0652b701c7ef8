"""What every rank is doing, for ``%dist status``: its own word, and what its host sees of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from nbdist import wire
from nbdist.launchers.start import Processes
from nbdist.sessions.transport import RankClient
from nbdist.wire import Snapshot

ANSWER_S = 1.0


@dataclass(frozen=True)
class RankState:
    """What one rank is doing.

    Attributes:
        rank: Which.
        pid: Its process.
        state: ``idle``, ``running In[3] for 2 s``, ``dead: ...`` or ``no answer: ...``.
        memory_bytes: Resident memory of the process; ``None`` when it is dead.
        gpu_bytes: CUDA memory that torch has allocated; ``None`` without CUDA.
    """

    rank: int
    pid: int
    state: str
    memory_bytes: int | None = None
    gpu_bytes: int | None = None


def rank_states(
    client: RankClient, processes: Processes, death: Callable[[int], str]
) -> list[RankState]:
    """Ask every rank at once what it is doing; wait at most a second for each that is silent.

    Args:
        client: The connection to the ranks.
        processes: Of the session.
        death: Says how a rank has ended.
    """
    is_lost = processes.is_agent_lost or processes.is_controller_lost
    asked = {
        rank: None if rank in processes.exits or is_lost else ask(client, rank)
        for rank in range(processes.plan.nproc)
    }
    return [_state(rank, answer, processes, death) for rank, answer in asked.items()]


def ask(client: RankClient, rank: int) -> Any:
    """Ask *rank* for a snapshot; return the future of the answer, ``None`` for one that is gone."""
    try:
        return client.control(rank, wire.SNAPSHOT_REQUEST, {})
    except KeyError:
        return None


def answer_of(asked: Any) -> Snapshot | None:
    """Return the snapshot that *asked* brings, or ``None`` where none comes in time."""
    if asked is None or not asked.wait(ANSWER_S):
        return None
    return Snapshot.from_json(asked.result()["content"])


def _state(rank: int, asked: Any, processes: Processes, death: Callable[[int], str]) -> RankState:
    pid = processes.pids[rank]
    if asked is None:
        if rank not in processes.exits and processes.is_controller_lost:
            return RankState(rank, pid, "out of reach", _resident_bytes(pid))
        if rank not in processes.exits and not processes.is_agent_lost:
            return RankState(rank, pid, "joining the others", _resident_bytes(pid))
        return RankState(rank, pid, f"dead: {death(rank)}")
    snapshot = answer_of(asked)
    if snapshot is None:
        return RankState(rank, pid, f"no answer: {_why_silent(pid)}", _resident_bytes(pid))
    state = "idle"
    if snapshot.label is not None:
        state = f"running {snapshot.label} for {snapshot.seconds:.0f} s"
    return RankState(rank, pid, state, _resident_bytes(pid), snapshot.gpu_bytes)


def _why_silent(pid: int) -> str:
    try:
        is_stopped = psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return "it is gone"
    return f"stopped by SIGSTOP (kill -CONT {pid})" if is_stopped else "busy in a C call"


def _resident_bytes(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
