"""Where a session keeps its files: one private folder per session.

    <root>/<session id>/            0700, root chosen by `runtime_root`
        session.json                who, when, and until when it waits for a kernel: `nbdist ps`
        processes.jsonl             one line per process at its birth: role, pid, start time
        agent.json                  what the agent is to do
        agent.sock                  the agent's Unix socket
        channels/                   ipyparallel's Unix sockets
        logs/                       agent.log, controller.log, rank0.log, ...
        cells/rank0/1.jsonl         what a rank put out in its last cells, see `nbdist.rank.journal`
        security/                   ipyparallel's connection files (keys), 0600

Both sides import this module. Of what the user runs, only what it puts out is written here.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbdist.errors import LaunchError
from nbdist.processes import ProcessId

MAX_SOCKET_PATH = 100  # bytes; Linux takes 107 for the address of a Unix socket


def runtime_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that holds this user's sessions: it is private, or this raises.

    ``NBDIST_RUNTIME_DIR`` if set, else ``$XDG_RUNTIME_DIR/nbdist``, else ``/tmp/nbdist-<uid>``.

    Raises:
        LaunchError: The folder belongs to someone else, or cannot be made.
    """
    if chosen := environ.get("NBDIST_RUNTIME_DIR"):
        root = Path(chosen)
    elif (xdg := environ.get("XDG_RUNTIME_DIR")) and os.access(xdg, os.W_OK):
        root = Path(xdg) / "nbdist"
    else:
        root = Path(tempfile.gettempdir()) / f"nbdist-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = root.lstat()
    except OSError as exc:
        raise LaunchError(
            f"The folder for sessions, {root}, cannot be made: {exc.strerror}.\n"
            "Set NBDIST_RUNTIME_DIR to a folder of your own."
        ) from exc
    if info.st_uid != os.getuid() or root.is_symlink():
        raise LaunchError(
            f"The folder for sessions, {root}, belongs to another user.\n"
            "Set NBDIST_RUNTIME_DIR to a folder of your own."
        )
    root.chmod(0o700)
    return root


class SessionFolder:
    """The files of one session, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session_id = path.name
        self.logs = path / "logs"
        self.cells = path / "cells"
        self.security = path / "security"
        self.agent_spec = path / "agent.json"
        self.agent_socket = path / "agent.sock"
        self.channels = path / "channels" / "c"  # and a number: c:1, c:2, ...

    def __repr__(self) -> str:
        return f"<SessionFolder {self.path}>"

    @classmethod
    def create(cls, root: Path) -> SessionFolder:
        """Make the folder of a new session below *root*."""
        folder = cls(root / secrets.token_hex(4))
        if len(os.fsencode(folder.agent_socket)) > MAX_SOCKET_PATH:
            raise LaunchError(
                f"The path of the session's socket, {folder.agent_socket}, is too long for Linux.\n"
                "Set NBDIST_RUNTIME_DIR to a folder with a shorter path."
            )
        for path in (
            folder.path,
            folder.logs,
            folder.cells,
            folder.security,
            folder.channels.parent,
        ):
            path.mkdir(mode=0o700)
        return folder

    def rank_log(self, rank: int) -> Path:
        """Return the path of the log of *rank*."""
        return self.logs / f"rank{rank}.log"

    def journals(self, rank: int) -> Path:
        """Return the folder in which *rank* keeps the output of its last cells."""
        return self.cells / f"rank{rank}"

    def shared_memory(self) -> Path:
        """Return the session's own folder in ``/dev/shm``, for values on their way."""
        return Path("/dev/shm") / f"nbdist-{os.getuid()}-{self.session_id}"  # noqa: S108

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write *content* to *path*, readable by this user only, all of it or nothing."""
        draft = path.with_suffix(".part")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        draft.replace(path)

    def describe(self, content: Mapping[str, Any]) -> None:
        """Write ``session.json``."""
        self.write_json(self.path / "session.json", content)

    def description(self) -> dict[str, Any]:
        """Read ``session.json``; empty where the session never got that far."""
        try:
            content = json.loads((self.path / "session.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def record_birth(self, role: str, pid: int) -> ProcessId:
        """Write down that *pid* was born as *role*, to be found when all else is dead."""
        identity = ProcessId.of(pid)
        entry = {"role": role, "pid": identity.pid, "started": identity.started, "boot": boot_id()}
        line = json.dumps(entry) + "\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND  # one short append is atomic among writers
        fd = os.open(self.path / "processes.jsonl", flags, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
        return identity

    def processes(self) -> list[tuple[str, ProcessId]]:
        """Return (role, identity) of every process ever born in this session, oldest first.

        Those of an earlier boot of the machine are left out: their start times mean nothing now.
        """
        try:
            lines = (self.path / "processes.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return [
            (entry["role"], ProcessId(entry["pid"], entry["started"]))
            for entry in entries
            if entry["boot"] == boot_id()
        ]

    def process(self, role: str) -> ProcessId | None:
        """Return the latest process that was born as *role*; ``None`` where there was none."""
        return dict(self.processes()).get(role)

    def remove(self) -> None:
        """Delete the folder and the session's shared memory."""
        shutil.rmtree(self.shared_memory(), ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)


def boot_id() -> str:
    """Return what names this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def sessions(root: Path) -> list[SessionFolder]:
    """Return the folders of all sessions below *root*."""
    return [SessionFolder(path) for path in sorted(root.iterdir()) if (path / "logs").is_dir()]
