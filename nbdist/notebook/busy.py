"""Let Jupyter see a busy kernel for as long as a cell runs.

    page ── message of the live view ──▶ a thread of its own ── busy, idle ──▶ Jupyter
                                                             └─ busy, for the cell that runs

ipykernel says busy and idle around each message that it answers, also around those of a page that
it answers beside a running cell (on a subshell, or the control channel). Jupyter's server and pages
keep the last word only: an hour of training would look idle, and be culled. So each idle is
followed by busy, until the cell ends with an idle of its own.

Read in ipykernel 7.4. In ipykernel 6, which has no subshells, only the control channel says idle
while a cell runs, by the same private name. Where that is missing, nothing is done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept_busy(shell: Any) -> Iterator[None]:
    """Say busy again after each idle, for the cell that runs now in the main thread.

    Args:
        shell: The IPython shell whose cell it is; a terminal's has no kernel, and needs nothing.
    """
    kernel: Any = getattr(shell, "kernel", None)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(kernel, "_publish_status"):
        yield
        return
    before = kernel._publish_status
    status = _Status(before, kernel.get_parent("shell"))
    kernel._publish_status = status.publish
    try:
        yield
    finally:
        status.end()
        kernel._publish_status = before


class _Status:
    """Stands in for ipykernel's ``_publish_status`` while a cell runs; any thread may call it."""

    def __init__(self, publish: Any, cell: Any) -> None:
        self._publish = publish
        self._cell = cell
        self._lock = threading.Lock()
        self._is_over = False

    def publish(self, status: str, channel: str, parent: Any = None) -> None:
        self._publish(status, channel, parent)
        with self._lock:  # nothing comes from here when the cell has ended
            if status == "idle" and not self._is_over:
                self._publish("busy", "shell", self._cell)

    def end(self) -> None:
        with self._lock:
            self._is_over = True
