"""Find the sessions of this user on a lease: they wait for a kernel, since theirs was killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbdist.errors import SessionError, did_you_mean
from nbdist.folder import SessionFolder, sessions


@dataclass(frozen=True)
class WaitingSession:
    """A session without a kernel.

    Attributes:
        folder: Its files.
        nproc: Its ranks.
        since: When it was started, in seconds since the epoch.
        working_folder: Where its kernel ran.
    """

    folder: SessionFolder
    nproc: int
    since: float
    working_folder: str

    def __str__(self) -> str:
        ranks = "1 rank" if self.nproc == 1 else f"{self.nproc} ranks"
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"{self.folder.session_id}, {ranks}, started {began} in {self.working_folder}"


def waiting(root: Path) -> list[WaitingSession]:
    """Return the sessions below *root* that wait for a kernel."""
    return [found for folder in sessions(root) for found in _waiting(folder)]


def _waiting(folder: SessionFolder) -> Iterator[WaitingSession]:
    about = folder.description()
    agent = folder.process("agent")
    if about.get("lease_until") is not None and agent is not None and agent.is_alive:
        working_folder = about.get("kernel", {}).get("folder", "?")
        yield WaitingSession(folder, about.get("nproc", 0), about.get("since", 0.0), working_folder)


def choose(root: Path, session_id: str | None) -> SessionFolder:
    """Return the session to attach to: the one named, or the only one that waits.

    Raises:
        SessionError: There is none, or more than one.
    """
    if session_id is not None:
        folders = {folder.session_id: folder for folder in sessions(root)}
        if session_id not in folders:
            hint = did_you_mean(session_id, folders) if folders else "You have none."
            raise SessionError(f"There is no session {session_id!r} of yours. {hint}")
        return folders[session_id]
    found = waiting(root)
    if not found:
        raise SessionError(
            "No session waits for a kernel. `%dist start` starts ranks; "
            "`nbdist ps` in a shell lists all sessions of yours."
        )
    if len(found) > 1:
        lines = "\n".join(map(str, found))
        raise SessionError(
            f"{len(found)} sessions wait for a kernel. Name one: `%dist attach ID`.\n{lines}"
        )
    return found[0].folder
