"""The kernel's end of the agent's socket: JSON lines about births and deaths.

A daemon thread reads; it ends when the connection does. `close` says that the session is over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from nbdist import private
from nbdist.errors import LaunchError
from nbdist.folder import SessionFolder

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S = 10  # an agent that is stopped must not stop who talks to it

Event = Mapping[str, Any]


class AgentLink:
    """A connection to the agent of one host.

    Args:
        folder: The session's folder.
        on_event: Called in the reading thread for every event, and with ``{"event": "lost"}`` when
            the connection breaks.
    """

    def __init__(self, folder: SessionFolder, on_event: Callable[[Event], None]) -> None:
        self._folder = folder
        self._on_event = on_event
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        limit = struct.pack("ll", SEND_TIMEOUT_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._is_closed = False
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<AgentLink {'closed' if self._is_closed else self._folder.agent_socket}>"

    def connect(self, *, is_agent_alive: Callable[[], bool], timeout_s: float) -> None:
        """Wait for the agent's socket and connect.

        Raises:
            LaunchError: The agent ended first, took longer than *timeout_s*, or is another user's.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._socket.connect(str(self._folder.agent_socket))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if not is_agent_alive():
                    raise LaunchError("The agent ended before it could be reached.") from None
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"The agent did not answer within {timeout_s:.0f} s."
                    ) from None
                time.sleep(0.01)
        if not private.peer_of(self._socket).is_me:
            raise LaunchError(
                f"Another user's process answers at {self._folder.agent_socket}; "
                "it was told nothing."
            )
        threading.Thread(target=self._read, name="nbdist-agent", daemon=True).start()

    def _read(self) -> None:
        with self._socket.makefile("rb") as lines, contextlib.suppress(OSError):
            for line in lines:
                self._take(line)
        if not self._is_closed:
            self._on_event({"event": "lost"})

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            logger.warning("the agent said %r", line)
            return
        try:
            self._on_event(event)
        except Exception:  # the edge of a thread: the next event is as important
            logger.exception("taking %r has failed", event.get("event"))

    def send(self, command: str, **arguments: Any) -> None:
        """Tell the agent to do something; it answers with events.

        Raises:
            OSError: The agent is gone.
        """
        self._socket.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")

    def close(self) -> None:
        """Cut the connection; a session whose kernel this was waits for another one then."""
        self._is_closed = True
        if os.getpid() == self._pid:  # not in a forked child: the connection is its parent's
            with contextlib.suppress(OSError):  # the agent may have cut it first
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
