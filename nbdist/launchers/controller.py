"""ipyparallel's controller, made for few and quick messages. Run as ``python -m``.

The stock hub reads a copy of every message that passes, to keep books nobody asks for here: half of
the controller's work in a short cell. This one subscribes to the heart beats alone.

Its channels are Unix sockets in the session's private folder, which no other user can reach.
Another controller that is started there takes over: it binds the same sockets, to which client and
engines connect again by themselves, and reads which engines there are.

Read in ipyparallel 9.2: `IPController.init_hub` makes ``self.hub`` with a ``monitor`` stream; the
controller spells the address of a Unix socket ``ipc://x-PORT``, client and engine ``ipc://x:PORT``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import zmq
from ipyparallel.controller.app import IPController

from nbdist.processes import forget_other_clusters
from nbdist.titles import set_title


class Controller(IPController):  # type: ignore[misc]
    """A controller on Unix sockets, whose hub hears of engines, not of what they do."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self._numbers = itertools.count(1)

    def next_port(self, pool_name: str = "common") -> int:  # noqa: ARG002 - ipyparallel's signature
        """Return the number of the next channel: a part of its socket's name, and no port."""
        # Not those of a controller before this one, whose addresses are known to client and ranks.
        return next(n for n in self._numbers if not Path(f"{self.engine_ip}:{n}").exists())

    def construct_url(self, kind: str, channel: str, index: object = None) -> str:
        """Return the address of a channel as client and engine spell it."""
        url: str = super().construct_url(kind, channel, index)
        interface, _, number = url.rpartition("-")
        return f"{interface}:{number}"

    def init_hub(self) -> None:
        """Make the hub, take it off the queues' traffic, and tell it of the engines there are."""
        super().init_hub()
        with contextlib.suppress(OSError, ValueError, LookupError):
            self.hub._load_engine_state()  # of the controller before this one, if there was any
        save = self.hub._save_engine_state

        def save_if_possible() -> None:
            with contextlib.suppress(OSError):  # on a full disk no engine could register any more
                save()

        self.hub._save_engine_state = save_if_possible
        monitor = self.hub.monitor.socket
        monitor.setsockopt(zmq.SUBSCRIBE, b"heartmonitor")
        monitor.setsockopt(zmq.UNSUBSCRIBE, b"")

    def to_work_dir(self) -> None:
        """Stay in the notebook's folder, and import nothing that lies in it."""


if __name__ == "__main__":
    set_title("nbdist controller")
    forget_other_clusters()
    os.umask(0o077)  # all its files are private, whatever the user's umask is
    Controller.launch_instance()
