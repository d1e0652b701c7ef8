"""Notice when nothing passes between notebook and ranks any more, though every process lives.

    near end ──▶ the controller's relay ──▶ far end
             ◀──                        ◀──            requests and replies; output goes one way

All messages go through relays, which are threads of the controller. Here both ends of each are in
one process: it sends itself a message through every relay once a second. One that is stuck while
others pass messages on is broken for good; if all of them are silent, it is the controller.

Not covered: a rank's own sockets. Who does not answer there is found by the monitor.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import zmq

from nbdist import private
from nbdist.launchers.launcher import RELAYS, connection_file
from nbdist.launchers.start import Processes
from nbdist.processes import is_stopped
from nbdist.sessions.transport import PROBE

logger = logging.getLogger(__name__)

PROBE_S = 1.0
MANY = 3  # probes in a row tell; a relay that is stuck is noticed after 4 s

State = Literal["passing", "broken", "silent"]


def judge(streaks: Mapping[str, int]) -> State:
    """Say how the relays are.

    Args:
        streaks: By relay, how many probes in a row it has passed on; negative: has not.

    Returns:
        ``broken`` where a relay is stuck while another one works, and ``silent`` while that is not
        sure: a controller that was stopped goes on with one relay after another.
    """
    if min(streaks.values()) > -MANY:
        return "passing"
    return "broken" if max(streaks.values()) >= MANY else "silent"


def _longer(streak: int, is_passing: bool) -> int:
    return max(streak, 0) + 1 if is_passing else min(streak, 0) - 1


@dataclass
class _Relay:
    """One relay of the controller, with a socket at both of its ends.

    Attributes:
        near: Where the notebook connects.
        far: Where the ranks connect.
        name: What the far end is called: no rank has this name.
        has_way_back: The far end answers; output is passed on one way only.
    """

    near: zmq.Socket[bytes]
    far: zmq.Socket[bytes]
    name: bytes
    has_way_back: bool

    def send(self) -> None:
        """Send a message to the other end; where the queue is full it is one of many."""
        with contextlib.suppress(zmq.Again):
            if self.has_way_back:
                self.near.send_multipart([self.name, b"probe"], zmq.NOBLOCK)
            else:
                self.far.send_multipart([self.name, b"probe"], zmq.NOBLOCK)

    def hear(self) -> bool:
        """Take what has come, answer at the far end; return whether a message is back."""
        if self.has_way_back:
            for sender, *_ in _received(self.far):
                with contextlib.suppress(zmq.Again):
                    self.far.send_multipart([sender, b"probe"], zmq.NOBLOCK)
        return bool(_received(self.near))


def _received(socket: zmq.Socket[bytes]) -> list[list[bytes]]:
    messages = []
    with contextlib.suppress(zmq.Again):
        while True:
            messages.append(socket.recv_multipart(zmq.NOBLOCK))
    return messages


@dataclass
class Channels:
    """Watches the relays of one session's controller; `start` and `close` its thread.

    What it finds is the *blockage* of the session's processes. A controller with a broken relay is
    ended: the next cell puts another in its place.

    Args:
        processes: Of the session.
    """

    processes: Processes
    _is_closed: threading.Event = field(default_factory=threading.Event, init=False)

    def start(self) -> None:
        """Watch from now on."""
        threading.Thread(target=self._watch, name="nbdist-channels", daemon=True).start()

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._is_closed.set()

    def _watch(self) -> None:
        try:
            relays = self._connect()
        except (OSError, ValueError, zmq.ZMQError):
            logger.exception("the channels of this session are not watched")
            return
        streaks = dict.fromkeys(relays, 0)
        watched = self.processes.controller
        while not self._is_closed.is_set():
            passing = self._probe(relays)
            streaks = {name: _longer(streaks[name], name in passing) for name in relays}
            if self.processes.is_lost or self.processes.controller != watched:
                watched = self.processes.controller
                streaks = dict.fromkeys(relays, 0)
            self._tell(judge(streaks))
        for relay in relays.values():
            relay.near.close(linger=0)
            relay.far.close(linger=0)

    def _tell(self, state: State) -> None:
        controller = self.processes.controller
        if state == "passing" or controller is None:
            self.processes.note_blockage(None)
            return
        self.processes.note_blockage(describe(controller.pid))
        if state == "broken" and controller.is_alive:
            os.kill(controller.pid, signal.SIGKILL)

    def _connect(self) -> dict[str, _Relay]:
        clients, engines = (
            json.loads(private.read_text(connection_file(self.processes.folder, side)))
            for side in ("client", "engine")
        )
        context: zmq.Context[Any] = zmq.Context.instance()
        relays = {}
        for name in RELAYS:
            has_way_back = name != "iopub"
            near = context.socket(zmq.DEALER if has_way_back else zmq.SUB)
            far = context.socket(zmq.DEALER if has_way_back else zmq.PUB)
            relay = _Relay(near, far, PROBE + secrets.token_bytes(8).hex().encode(), has_way_back)
            if has_way_back:
                far.setsockopt(zmq.IDENTITY, relay.name)
            else:
                near.setsockopt(zmq.SUBSCRIBE, relay.name)
            near.connect(f"{clients['interface']}:{clients[name]}")
            far.connect(f"{engines['interface']}:{engines[name]}")
            relays[name] = relay
        return relays

    def _probe(self, relays: Mapping[str, _Relay]) -> set[str]:
        """Send a message through each relay, wait `PROBE_S`, and return those that passed it on."""
        passing: set[str] = set()
        poller = zmq.Poller()
        for relay in relays.values():
            relay.send()
            poller.register(relay.near, zmq.POLLIN)
            poller.register(relay.far, zmq.POLLIN)
        deadline = time.monotonic() + PROBE_S
        while (rest := deadline - time.monotonic()) > 0 and len(passing) < len(relays):
            poller.poll(int(rest * 1000) + 1)
            passing |= {name for name, relay in relays.items() if relay.hear()}
        self._is_closed.wait(max(0.0, deadline - time.monotonic()))
        return passing


def describe(pid: int) -> str:
    """Say that nothing passes, why as far as one can see, and what to do; *pid*: the controller."""
    has_stopped = is_stopped(pid)
    how = "is stopped from outside" if has_stopped else "passes nothing on"
    cure = f"`kill -CONT {pid}` in a shell lets it go on; " if has_stopped else ""
    return (
        f"The controller (an ipyparallel process, pid {pid}) {how}: nothing reaches the ranks, and "
        "nothing comes from them.\n"
        f"They go on, and keep all they have. {cure}"
        "`%dist recover` puts another controller in its place."
    )
