"""Where a session keeps its files: one private folder per session.

    <root>/<session id>/            0700, root chosen by `runtime_root`
        shared-memory.txt           the name of its folder in /dev/shm, where it has one
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
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from nbdist import private
from nbdist.errors import LaunchError, NotPrivate
from nbdist.processes import ProcessId

logger = logging.getLogger(__name__)

MAX_SOCKET_PATH = 100  # bytes; Linux takes 107 for the address of a Unix socket
_OWN_FOLDER = "Set NBDIST_RUNTIME_DIR to a folder of your own that is closed to others."
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own in it is made, never taken
MAX_PID = 2**31
MAX_TIME = 2**40  # seconds since the epoch; what is later no calendar can show
MIN_FILE_BYTES = 4096
MIN_SHARED_BYTES = 8 * 2**20  # with less, what all ranks share lies on the disk


def runtime_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that holds this user's sessions: it is private, or this raises.

    ``NBDIST_RUNTIME_DIR`` if set, else ``$XDG_RUNTIME_DIR/nbdist``, else ``/tmp/nbdist-<uid>``.
    A folder that is there already keeps its mode.

    Raises:
        LaunchError: Others may open it or put another in its place, or it cannot be made.
    """
    if chosen := environ.get("NBDIST_RUNTIME_DIR"):
        root = Path(chosen)
    elif (xdg := environ.get("XDG_RUNTIME_DIR")) and _is_own(xdg) and os.access(xdg, os.W_OK):
        root = Path(xdg) / "nbdist"
    else:
        root = Path(tempfile.gettempdir()) / f"nbdist-{os.getuid()}"
    root = Path(os.path.abspath(root))  # noqa: PTH100 - Path's own would follow the last link
    root = root.parent.resolve() / root.name
    try:
        private.provide_folder(root)
    except NotPrivate as exc:
        raise LaunchError(
            f"The folder for sessions, {root}, is not safe from other users: {exc}\n{_OWN_FOLDER}"
        ) from exc
    except OSError as exc:
        raise LaunchError(
            f"The folder for sessions, {root}, cannot be made: {exc.strerror}.\n{_OWN_FOLDER}"
        ) from exc
    return root


def _is_own(folder: str) -> bool:
    """Whether *folder* is this user's: after `su` or `sudo` it may be that of the user before."""
    try:
        return Path(folder).stat().st_uid == os.getuid()
    except OSError:
        return False


_SHARED_NAME = re.compile(r"nbdist-\d+-[0-9a-f]{16}")


class SessionFolder:
    """The files of one session, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session_id = path.name
        self.logs = path / "logs"
        self.cells = path / "cells"
        self.security = path / "security"
        self.modules = path / "modules"
        self.agent_spec = path / "agent.json"
        self.agent_log = self.logs / "agent.log"
        self.controller_log = self.logs / "controller.log"
        self.agent_socket = path / "agent.sock"
        self.channels = path / "channels" / "c"  # and a number: c:1, c:2, ...
        self._shared_name = path / "shared-memory.txt"

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
        parts = (
            folder.path,
            folder.logs,
            folder.cells,
            folder.security,
            folder.modules,
            folder.channels.parent,
        )
        try:
            for path in parts:
                private.make_folder(path)
        except OSError as exc:
            folder.remove()
            raise LaunchError(
                f"The files of a session cannot be made in {root}: {exc.strerror}.\n{_OWN_FOLDER}"
            ) from exc
        return folder

    def make_shared_memory(self) -> None:
        """Make the session's folder in shared memory, under a name that nobody could know.

        Once, before any process is started; where shared memory cannot be used there is none.
        """
        name = f"nbdist-{os.getuid()}-{secrets.token_hex(8)}"
        with os.fdopen(private.create_file(self._shared_name), "w", encoding="ascii") as file:
            file.write(name)  # first: nothing that is made is forgotten
        try:
            private.check_place(SHARED_MEMORY)
            room = os.statvfs(SHARED_MEMORY)
            if room.f_bavail * room.f_frsize >= MIN_SHARED_BYTES:
                private.make_folder(SHARED_MEMORY / name)
        except OSError as exc:
            logger.info("no shared memory is used: %s", exc)

    def rank_log(self, rank: int) -> Path:
        """Return the path of the log of *rank*."""
        return self.logs / f"rank{rank}.log"

    def rank_stack(self, rank: int) -> Path:
        """Return the path to which *rank* writes where it is when it cannot say so."""
        return self.path / f"rank{rank}.stack"

    def journals(self, rank: int) -> Path:
        """Return the folder in which *rank* keeps the output of its last cells."""
        return self.cells / f"rank{rank}"

    def shared_memory(self) -> Path:
        """Return where large values and what all ranks share lie: `path`, if not in shared memory.

        Only the folder that this session has made for itself is ever taken.
        """
        try:
            name = private.read_text(self._shared_name)
            if not _SHARED_NAME.fullmatch(name):
                return self.path
            private.check_folder(SHARED_MEMORY / name)
        except OSError:
            return self.path
        return SHARED_MEMORY / name

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write *content* to *path*, readable by this user only, all of it or nothing."""
        draft = path.with_suffix(".part")
        draft.unlink(missing_ok=True)
        with os.fdopen(private.create_file(draft), "w", encoding="utf-8") as file:
            json.dump(content, file)
        draft.replace(path)

    def describe(self, content: Mapping[str, Any]) -> None:
        """Write ``session.json``."""
        self.write_json(self.path / "session.json", content)

    def description(self) -> dict[str, Any]:
        """Read ``session.json``; empty where the session never got that far, or it is damaged."""
        path = self.path / "session.json"
        try:
            content = json.loads(private.read_bytes(path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            _tell_damage(path, f"cannot be read ({exc})")
            return {}
        if not _is_description(content):
            _tell_damage(path, "holds what no session has written")
            return {}
        return dict(content)

    def record_birth(self, role: str, pid: int) -> ProcessId:
        """Write down that *pid* was born as *role*, to be found when all else is dead.

        Where the disk is full it is not written down; the session's mark finds it all the same.
        """
        identity = ProcessId.of(pid)
        entry = {"role": role, "pid": identity.pid, "started": identity.started, "boot": boot_id()}
        path = self.path / "processes.jsonl"
        try:
            if not _append_line(path, json.dumps(entry).encode()):
                logger.warning("%s: the disk is full, pid %s is not written down", path, pid)
        except OSError as exc:
            logger.warning("%s: pid %s is not written down: %s", path, pid, exc)
        return identity

    def processes(self) -> list[tuple[str, ProcessId]]:
        """Return (role, identity) of every process ever born in this session, oldest first.

        Those of an earlier boot of the machine are left out: their start times mean nothing now.
        What cannot be read is passed over, and told.
        """
        path = self.path / "processes.jsonl"
        try:
            lines = private.read_bytes(path).split(b"\n")
        except FileNotFoundError:
            return []
        except OSError as exc:
            _tell_damage(path, f"cannot be read ({exc})")
            return []
        entries = [_birth_of(line) for line in lines if line]
        if None in entries:
            _tell_damage(path, f"has {entries.count(None)} of {len(entries)} lines damaged")
        boot = boot_id()
        return [(birth.role, birth.process) for birth in entries if birth and birth.boot == boot]

    def process(self, role: str) -> ProcessId | None:
        """Return the latest process that was born as *role*; ``None`` where there was none."""
        return dict(self.processes()).get(role)

    @property
    def is_full(self) -> bool:
        """Whether its disk has no room left for another small file."""
        try:
            disk = os.statvfs(self.path)
        except OSError:
            return False
        has_inodes = not disk.f_files or disk.f_favail > 0  # some file systems do not count them
        return disk.f_bavail * disk.f_frsize < MIN_FILE_BYTES or not has_inodes

    def remove(self) -> None:
        """Delete the folder and the session's shared memory."""
        shutil.rmtree(self.shared_memory(), ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)


def boot_id() -> str:
    """Return what names this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def sessions(root: Path) -> list[SessionFolder]:
    """Return the folders of all sessions below *root*."""
    return [SessionFolder(path) for path in sorted(root.iterdir()) if _is_session(path)]


def _is_session(path: Path) -> bool:
    try:
        return (path / "logs").is_dir()
    except OSError:  # closed even to its owner
        return False


# Records, which a full disk or a crash may have damaged ---------------------------------------


@dataclass(frozen=True)
class _Birth:
    role: str
    process: ProcessId
    boot: str


def _birth_of(line: bytes) -> _Birth | None:
    """Read one line of ``processes.jsonl``; ``None`` for anything that we have not written."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict):
        return None
    role, pid, started, boot = (entry.get(name) for name in ("role", "pid", "started", "boot"))
    if not (isinstance(role, str) and isinstance(boot, str)):
        return None
    if not (_is_whole(pid, MAX_PID) and _is_whole(started, 2**63)):
        return None
    return _Birth(role, ProcessId(pid, started), boot)


def _is_description(content: Any) -> bool:
    """Whether *content* is what ``session.json`` may hold; any part of it may be missing."""
    if not isinstance(content, dict) or not isinstance(kernel := content.get("kernel", {}), dict):
        return False
    times = [kernel.get("since", 0), content.get("since", 0), content.get("lease_until")]
    return (
        _is_whole(kernel.get("pid", 1), MAX_PID)
        and isinstance(kernel.get("folder", ""), str)
        and _is_whole(content.get("nproc", 1), 2**31)
        and all(_is_time(time) for time in times if time is not None)
    )


def _is_whole(value: Any, end: int) -> TypeGuard[int]:
    return type(value) is int and 0 < value < end


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < MAX_TIME


def _append_line(path: Path, line: bytes) -> bool:
    """Append *line* in one write, on a line of its own; say whether all of it is there."""
    fd = private.append_file(path)
    try:
        size = os.fstat(fd).st_size
        is_torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"  # when the disk was full
        data = b"\n" * is_torn + line + b"\n"
        return os.write(fd, data) == len(data)  # one short append is atomic among writers
    finally:
        os.close(fd)


def _tell_damage(path: Path, what: str) -> None:
    """Name a damaged record to the user, once in this process."""
    if path not in _damaged:
        _damaged.add(path)
        logger.warning(
            "Session %s: its record %s %s and is passed over. "
            "`nbdist stop %s` in a shell still ends all of its processes.",
            path.parent.name,
            path,
            what,
            path.parent.name,
        )


_damaged: set[Path] = set()
