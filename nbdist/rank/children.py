"""The agent's children: a rank's process with its pipe and socket, and the keeper of the store."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from nbdist import private
from nbdist.folder import SessionFolder
from nbdist.processes import ProcessId, is_stopped
from nbdist.titles import set_title
from nbdist.wire import end_of_log

logger = logging.getLogger(__name__)

PIPE_BYTES = 2**20
TAIL_BYTES = 2**20  # far enough to find where a cell began


@dataclass
class RankProcess:
    """A rank as its parent sees it.

    Attributes:
        identity: Its process; the process group has the same number.
        minder: Pid of its parent; ends when all that came from the rank is gone.
        report: Read end of the pipe in which the minder tells the rank's exit code.
        output: Read end of the pipe that is its fd 1 and 2. The rank reads it too; the agent only
            steps in when the rank does not (held up in a C call, or dead).
        channel: Socket to the rank. Its end tells the rank that the agent is gone.
        pending: Bytes of a line that has not ended yet.
        is_filling: The pipe was more than half full at the last look.
        code: How it ended, as far as that was heard.
    """

    identity: ProcessId
    minder: int
    report: BinaryIO
    output: int
    channel: socket.socket
    pending: bytearray = field(default_factory=bytearray)
    is_filling: bool = False
    code: int | None = None

    def hear_end(self) -> int | None:
        """Return the rank's exit code, once its minder has told it or is gone."""
        if self.code is None and (line := self.report.readline()):
            self.code = int(line)
        return self.code

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it (SIGSTOP), so that it cannot answer."""
        return is_stopped(self.identity.pid)

    def looks_stuck(self) -> bool:
        """Whether its pipe was more than half full at this look and the one before."""
        waiting = fcntl.ioctl(self.output, termios.FIONREAD, b"\0\0\0\0")
        was_filling = self.is_filling
        self.is_filling = struct.unpack("i", waiting)[0] > PIPE_BYTES // 2
        return was_filling and self.is_filling

    def read_output(self) -> bytes:
        """Return what is in its pipe now; empty when there is nothing, or it has ended."""
        try:
            return os.read(self.output, 65536)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close this process's ends of pipe and socket."""
        os.close(self.output)
        self.channel.close()
        self.report.close()


@dataclass(frozen=True)
class StoreKeeper:
    """The process that holds the TCPStore.

    Attributes:
        pid: Of the process.
        address: Host and port of the store, on loopback.
        channel: Its end tells the keeper that the agent is gone.
    """

    pid: int
    address: tuple[str, int]
    channel: socket.socket


def start_store_keeper(folder: SessionFolder, forget_parent: Callable[[], None]) -> StoreKeeper:
    """Fork a process that holds a TCPStore on a loopback socket of its own.

    Args:
        folder: Where its birth is written down.
        forget_parent: Called in the child: closes what belongs to the agent.
    """
    from torch._C._distributed_c10d import TCPStore

    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()[:2]
    channel, channel_end = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            set_title("nbdist store")
            channel.close()
            forget_parent()
            store = TCPStore(
                host,
                port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
            channel_end.recv(1)  # returns when the agent is gone
            del store
        finally:
            os._exit(0)
    os.setpgid(pid, pid)
    listener.close()
    channel_end.close()
    folder.record_birth("store", pid)
    return StoreKeeper(pid, (host, port), channel)


def make_pipe() -> tuple[int, int]:
    """Return the ends of a wide pipe, the reading one not blocking."""
    output, output_end = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        logger.info("the pipe keeps its default size")  # beyond the user's limit of pipe pages
    os.set_blocking(output, False)
    return output, output_end


def json_lines(pending: bytearray, data: bytes) -> list[dict[str, Any]]:
    """Add *data* to *pending* and take the complete JSON lines off it."""
    pending += data
    *lines, rest = bytes(pending).split(b"\n")
    pending[:] = rest
    return [json.loads(line) for line in lines if line]


def tail(path: Path) -> str:
    """Return the end of the log at *path*; empty where there is none that can be read."""
    try:
        with os.fdopen(private.open_file(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return end_of_log(file.read().decode(errors="replace"))
    except OSError:
        return ""
