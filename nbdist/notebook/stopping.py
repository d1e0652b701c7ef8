"""The stop button while a cell is on the ranks.

A ``KeyboardInterrupt`` can strike between any two lines, also between sending a cell and following
it; the ranks would then run on, and the next cell would wait behind them for ever. So while a cell
is on its way a press is only noted, and the code that follows the cell looks for it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PRESSES_THAT_RAISE = 3  # the way out if ours should fail


class StopButton:
    """Takes SIGINT in place of Python's handler; a context manager, for the main thread.

    In another thread (a subshell of the kernel) signals never arrive, and this does nothing.
    """

    def __init__(self) -> None:
        self.num_presses = 0
        self._raises = False
        self._handler_before: Any = None

    def __enter__(self) -> StopButton:
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGINT, self._on_press)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler_before is not None:
            signal.signal(signal.SIGINT, self._handler_before)

    @property
    def is_pressed(self) -> bool:
        """Whether it was pressed."""
        return self.num_presses > 0

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let a press raise ``KeyboardInterrupt``: while the user is asked, or code runs here."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _on_press(self, _signum: int, _frame: FrameType | None) -> None:
        self.num_presses += 1
        if self._raises or self.num_presses >= PRESSES_THAT_RAISE:
            raise KeyboardInterrupt
