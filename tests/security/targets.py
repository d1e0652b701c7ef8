"""The sockets on which processes listen, as /proc tells them to who may look."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

LISTENS = "0A"  # state of a TCP socket
ACCEPTS = 0x10000  # flag of a Unix socket that listens
Target = list[Any] | str


def tcp_targets(processes: Iterable[psutil.Process]) -> list[Target]:
    """Return (address, port) of every TCP socket on which *processes* listen, as this host's."""
    inodes = sockets_of(processes)
    lines = [line.split() for name in ("tcp", "tcp6") for line in rows(name)]
    ports = {
        int(local.rpartition(":")[2], 16)
        for _, local, _, state, _, _, _, _, _, inode, *_ in lines
        if state == LISTENS and inode in inodes
    }
    return [["127.0.0.1", port] for port in sorted(ports)]


def unix_targets(processes: Iterable[psutil.Process]) -> list[Target]:
    """Return the address of every Unix socket on which *processes* listen.

    The kernel knows the name that was bound; a socket that was renamed since goes by both.
    """
    inodes = sockets_of(processes)
    lines = [line.split() for line in rows("unix")]
    names = {
        line[7]
        for line in lines
        if len(line) > 7 and line[6] in inodes and int(line[3], 16) & ACCEPTS
    }
    names |= {name.removesuffix(".part") for name in names}
    return [name.replace("@", "\0", 1) if name.startswith("@") else name for name in sorted(names)]


def rows(name: str) -> list[str]:
    return Path(f"/proc/net/{name}").read_text().splitlines()[1:]


def sockets_of(processes: Iterable[psutil.Process]) -> set[str]:
    """Return the inodes of all sockets that *processes* have open."""
    return {inode for process in processes for inode in inodes_of(process)}


def inodes_of(process: psutil.Process) -> Iterator[str]:
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if found := re.fullmatch(r"socket:\[(\d+)\]", str(fd.readlink())):
                yield found[1]
