"""See the sessions of this user from a shell, and end them: only what nbdist wrote down itself.

A session is one folder below `nbdist.folder.runtime_root`. Who is alive is read from its records:
pid and start time of every process, so that a number which another program got later is never
touched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from nbdist.errors import LaunchError, UsageError, did_you_mean
from nbdist.folder import SessionFolder, sessions
from nbdist.launchers.agent_link import AgentLink, Event
from nbdist.launchers.start import STOP_TIMEOUT_S, end_session
from nbdist.processes import marked
from nbdist.view.columns import align
from nbdist.view.names import name_ranks

State = Literal["alive", "starting", "waiting for attach", "left behind"]


@dataclass(frozen=True)
class SessionRecord:
    """One line of ``nbdist ps``.

    Attributes:
        session_id: Name of its folder.
        nproc: Its ranks; ``None`` where it never got so far as to say.
        state: ``alive``, ``starting``, ``waiting for attach`` (its kernel was killed), or ``left
            behind``: its agent is gone as well, or it never came to a start.
        kernel_pid: Process that started it, or has taken it since.
        working_folder: Where that process ran.
        since: Seconds since 1970.
        left_s: For how long it waits yet, where it does.
    """

    session_id: str
    nproc: int | None
    state: State
    kernel_pid: int | None
    working_folder: str | None
    since: float | None
    left_s: float | None = None


def session_table(root: Path) -> str:
    """Return the sessions below *root* as a table, or a sentence that there are none."""
    records = [read_session(folder) for folder in sessions(root)]
    if not records:
        return "No sessions."
    return format_table(records)


def format_table(records: Iterable[SessionRecord]) -> str:
    """Write *records* one a line under a header."""
    rows = [("id", "ranks", "state", "kernel", "since", "folder"), *map(_row, records)]
    return "\n".join(align(rows, (False,) * len(rows[0])))


def _row(record: SessionRecord) -> tuple[str, str, str, str, str, str]:
    since = record.since
    return (
        record.session_id,
        "–" if record.nproc is None else str(record.nproc),
        record.state
        if record.left_s is None
        else f"{record.state}, {_minutes(record.left_s)} left",
        "–" if record.kernel_pid is None else str(record.kernel_pid),
        "–" if since is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(since)),
        record.working_folder or "–",
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{max(0.0, seconds):.0f} s"


def read_session(folder: SessionFolder) -> SessionRecord:
    """Read what *folder* and the process table say of a session."""
    about = folder.description()
    kernel = about.get("kernel", {})
    pid, since = kernel.get("pid"), about.get("since")
    known_since = kernel.get("since", since)  # of a later kernel: when it took the session
    lease_until: float | None = about.get("lease_until")
    born = folder.processes()
    state = judge(
        is_kernel_alive=pid is not None and since is not None and was_running(pid, known_since),
        roles_born=[role for role, _ in born],
        roles_alive=[role for role, process in born if process.is_alive],
        nproc=about.get("nproc", 0),
        has_lease=lease_until is not None,
    )
    is_waiting = state == "waiting for attach"
    return SessionRecord(
        session_id=folder.session_id,
        nproc=about.get("nproc"),
        state=state,
        kernel_pid=pid,
        working_folder=kernel.get("folder"),
        since=since,
        left_s=lease_until - time.time() if is_waiting and lease_until is not None else None,
    )


def judge(
    *,
    is_kernel_alive: bool,
    roles_born: Sequence[str],
    roles_alive: Sequence[str],
    nproc: int,
    has_lease: bool = False,
) -> State:
    """Decide what state a session is in.

    Args:
        is_kernel_alive: The process that started it, or has taken it since, runs.
        roles_born: Of all processes it ever had, as recorded: ``agent``, ``rank 0``.
        roles_alive: Of those that run.
        nproc: Number of ranks it is to have.
        has_lease: Its agent has written down that it waits for another kernel.
    """
    if has_lease and "agent" in roles_alive:
        return "waiting for attach"
    if not is_kernel_alive:
        return "left behind"
    num_ranks_born = len({role for role in roles_born if role.startswith("rank ")})
    if "agent" not in roles_born or ("agent" in roles_alive and num_ranks_born < nproc):
        return "starting"
    return "alive" if "agent" in roles_alive else "left behind"


def was_running(pid: int, since: float) -> bool:
    """Whether *pid* is still the process that had this number at the time *since*.

    One that got the number later was also born later. A second is allowed for the coarse clock.
    """
    try:
        process = psutil.Process(pid)
        is_same = process.create_time() <= since + 1
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


# Ending ---------------------------------------------------------------------------------------


def choose(root: Path, ids: Sequence[str], *, is_all: bool) -> list[SessionFolder]:
    """Return the sessions to end.

    Raises:
        UsageError: None is named, or one that does not exist; then none is ended.
    """
    folders = {folder.session_id: folder for folder in sessions(root)}
    if is_all:
        return list(folders.values())
    if not ids:
        raise UsageError(
            "Say which session to end: nbdist stop ID, or nbdist stop --all.\n"
            + ("`nbdist ps` shows them." if folders else "There are none now.")
        )
    for session_id in ids:
        if session_id not in folders:
            hint = did_you_mean(session_id, folders) if folders else "There are none now."
            raise UsageError(f"There is no session {session_id!r} of yours. {hint}")
    return [folders[session_id] for session_id in dict.fromkeys(ids)]


def stop(folder: SessionFolder) -> str:
    """End the session in *folder*, all its processes, and remove the folder.

    The agent is asked first; what it leaves, or all of it if it is gone, is ended by the records.
    The kernel that started the session goes on.

    Returns:
        What was done, in one line.
    """
    alive = [role for role, process in folder.processes() if process.is_alive]
    if not alive:  # the records may be lost
        alive = [f"pid {pid}" for pid in marked(folder.session_id)]
    agent = next((process for role, process in folder.processes() if role == "agent"), None)
    if agent is not None and agent.is_alive:
        _ask_agent(folder, agent.pid)
    end_session(folder)
    if not alive:
        return f"{folder.session_id}: nothing of it was running; its files are removed"
    number = "1 process" if len(alive) == 1 else f"{len(alive)} processes"
    return f"{folder.session_id}: stopped, {number} ended ({name_roles(alive)})"


def name_roles(roles: Iterable[str]) -> str:
    """Name processes by what they are: ``agent, controller, ranks 0–199``."""
    words = [role.split() for role in roles]
    ranks = [int(word[1]) for word in words if word[0] == "rank"]
    others = sorted(" ".join(word) for word in words if word[0] != "rank")
    return ", ".join([*others, *([name_ranks(ranks)] if ranks else [])])


def _ask_agent(folder: SessionFolder, pid: int) -> None:
    """Tell the agent to end the session; wait until it has, or until `STOP_TIMEOUT_S`."""
    is_over = threading.Event()

    def hear(event: Event) -> None:
        if event["event"] in ("stopped", "lost"):
            is_over.set()

    link = AgentLink(folder, hear)
    try:
        link.connect(is_agent_alive=lambda: psutil.pid_exists(pid), timeout_s=STOP_TIMEOUT_S)
        link.send("stop")
        is_over.wait(STOP_TIMEOUT_S)
    except (LaunchError, OSError):
        pass  # it is gone, or stuck: the records are enough
    finally:
        link.close()
