"""The sockets of this process: which are new, and an end to those of broken groups.

Linux only: looks into `/proc/self/fd`. A socket is known by its number and inode together, since a
number is given again once it was closed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

Sockets = dict[int, str]  # file descriptor -> "socket:[inode]"


def all_sockets() -> Sockets:
    """Return the sockets that are open now."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            link = os.readlink(entry)  # noqa: PTH115 - no path, but a text
            if link.startswith("socket:["):
                found[int(entry.name)] = link
    return found


def new_sockets(before: Sockets) -> Sockets:
    """Return the sockets that are open now and were not in *before*."""
    return {fd: link for fd, link in all_sockets().items() if before.get(fd) != link}


def _is_open(fd: int, link: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == link  # noqa: PTH115 - no path, but a text
    except OSError:
        return False


def shut_down(sockets: Sockets) -> int:
    """Shut down those of *sockets* that are still open, and are connections; return how many."""
    num_shut = 0
    for fd, link in sockets.items():
        if not _is_open(fd, link):  # closed, or its number is another's by now
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6)
            if is_tcp and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                connection.shutdown(socket.SHUT_RDWR)
                num_shut += 1
    return num_shut


def answer_listeners(sockets: Sockets, num_pairs: int) -> None:
    """Let gloo's pairs that wait for a peer at a listener among *sockets* find one that is gone.

    A peer says by 8 bytes which pair it is for (`Listener::handleEvents` of gloo, read in April
    2026). Without that a thread that was left in its connect stays until the group's timeout.

    Args:
        sockets: Where to look for listeners.
        num_pairs: How many pairs may wait at each; one that does not is not harmed.
    """
    for fd, link in sockets.items():
        if not _is_open(fd, link):
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as listener:
            is_tcp = listener.family in (socket.AF_INET, socket.AF_INET6)
            if not is_tcp or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                continue
            for pair in range(num_pairs):
                with socket.create_connection(listener.getsockname()[:2], timeout=1.0) as peer:
                    peer.sendall(struct.pack("=q", pair))
