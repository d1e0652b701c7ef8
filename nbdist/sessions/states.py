"""What every rank is doing, for ``%dist status``: its own word, and what its host sees of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from nbdist import wire
from nbdist.launchers.start import Processes
from nbdist.processes import is_stopped
from nbdist.sessions import dumps
from nbdist.sessions.load import CpuSight, overload, sight_of
from nbdist.sessions.stacks import silence
from nbdist.sessions.transport import RankClient
from nbdist.wire import Prospect, Snapshot

ANSWER_S = 1.0


@dataclass(frozen=True)
class RankState:
    """What one rank is doing.

    Attributes:
        rank: Which.
        pid: Its process.
        state: ``idle``, ``running In[3] for 2 s``, ``no cell, but busy: ...``, ``dead: ...`` or
            ``no answer: ...``.
        memory_bytes: Resident memory of the process; ``None`` when it is dead.
        gpu_bytes: CUDA memory that torch has allocated; ``None`` without CUDA.
    """

    rank: int
    pid: int
    state: str
    memory_bytes: int | None = None
    gpu_bytes: int | None = None


def rank_states(client: RankClient, processes: Processes) -> list[RankState]:
    """Ask every rank at once what it is doing; wait at most a second for those that are silent.

    Args:
        client: The connection to the ranks.
        processes: Of the session.
    """
    ranks = range(processes.plan.nproc)
    living = [rank for rank in ranks if rank not in processes.exits and not processes.is_lost]
    before = {rank: sight_of(processes.pids[rank]) for rank in living}
    answers = snapshots(client, living, ANSWER_S)
    return [_state(rank, answers.get(rank), client, processes, before.get(rank)) for rank in ranks]


def snapshots(client: RankClient, ranks: Iterable[int], timeout_s: float) -> dict[int, Snapshot]:
    """Ask all *ranks* at once what they are doing; return what those say that answer in time."""
    answers = client.ask_all(ranks, wire.SNAPSHOT_REQUEST, {}, timeout_s)
    return {rank: Snapshot.from_json(content) for rank, content in answers.items()}


def prospects(client: RankClient, ranks: Iterable[int], timeout_s: float) -> dict[int, Prospect]:
    """Ask all *ranks* at once whether they may still come to a call."""
    answers = client.ask_all(ranks, wire.PROSPECT_REQUEST, {}, timeout_s)
    return {rank: Prospect.from_json(content) for rank, content in answers.items()}


def _state(
    rank: int,
    snapshot: Snapshot | None,
    client: RankClient,
    processes: Processes,
    before: CpuSight | None,
) -> RankState:
    pid = processes.pids[rank]
    if rank not in processes.exits and processes.is_controller_lost:
        return RankState(rank, pid, "out of reach", _resident_bytes(pid))
    if rank in processes.exits or processes.is_agent_lost:
        return RankState(rank, pid, f"dead: {processes.ending_of(rank)}")
    if not client.has_joined(rank):
        return RankState(rank, pid, "joining the others", _resident_bytes(pid))
    if snapshot is None and processes.blockage:
        return RankState(rank, pid, "out of reach", _resident_bytes(pid))
    if snapshot is None:
        why = _why_silent(pid, processes.folder.rank_stack(rank), before)
        return RankState(rank, pid, f"no answer: {why}", _resident_bytes(pid))
    state = f"no cell, but busy: {snapshot.outside}" if snapshot.outside else "idle"
    if snapshot.label is not None:
        state = f"running {snapshot.label} for {snapshot.seconds:.0f} s"
    return RankState(rank, pid, state, _resident_bytes(pid), snapshot.gpu_bytes)


def _why_silent(pid: int, stack: Path, before: CpuSight | None) -> str:
    if not psutil.pid_exists(pid):
        return "it is gone"
    if is_stopped(pid):
        return f"stopped by SIGSTOP (kill -CONT {pid})"
    return silence(dumps.ask(pid, stack), overload(before, sight_of(pid)))


def _resident_bytes(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
