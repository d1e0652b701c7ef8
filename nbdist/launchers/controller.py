"""ipyparallel's controller, made for few and quick messages. Run as ``python -m``.

The stock hub reads a copy of every message that passes, to keep books nobody asks for here: half of
the controller's work in a short cell. This one subscribes to the heart beats alone.

Read in ipyparallel 9.2: `IPController.init_hub` makes ``self.hub`` with a ``monitor`` stream.
"""

from __future__ import annotations

import os

import zmq
from ipyparallel.controller.app import IPController


class Controller(IPController):  # type: ignore[misc]
    """A controller whose hub hears of engines, not of what they do."""

    def init_hub(self) -> None:
        """Make the hub, take it off the queues' traffic, and have it keep no file of its engines.

        Nobody resumes a controller, and on a full disk no engine could register any more.
        """
        super().init_hub()
        self.hub.engine_state_file = ""
        monitor = self.hub.monitor.socket
        monitor.setsockopt(zmq.SUBSCRIBE, b"heartmonitor")
        monitor.setsockopt(zmq.UNSUBSCRIBE, b"")

    def to_work_dir(self) -> None:
        """Stay in the notebook's folder, and import nothing that lies in it."""


if __name__ == "__main__":
    os.environ.pop("IPP_SESSION_KEY", None)  # of another cluster
    os.umask(0o077)  # all its files are private, whatever the user's umask is
    Controller.launch_instance()
