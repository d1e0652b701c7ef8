"""What a cell shows while it runs; the final output comes after it and stands alone.

RunEvent ──▶ Live.take ──▶ the page          every view has take, tick and close
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

from nbdist.notebook.frontend import Live
from nbdist.view import LineStreamer
from nbdist.wire import Output

QUIET_S = 0.5  # a shorter cell shows its final output only
REFRESH_S = 0.1
MAX_LIVE_LINES = 5000


class LiveView(Protocol):
    """Shows outputs as they come."""

    shows_text: bool
    """Whether the text it showed stays on the page, so that the final output need not repeat it."""

    def take(self, rank: int, outputs: tuple[Output, ...]) -> None:
        """Take outputs of *rank*."""

    def note(self, text: str) -> None:
        """Show a line about the run that will stand in the final output as well."""

    def tick(self) -> None:
        """Show what is due; called at least every `REFRESH_S`."""

    def close(self) -> None:
        """Make room for the final output."""


class NoView:
    """Shows nothing until the cell is over."""

    shows_text = False

    def take(self, rank: int, outputs: tuple[Output, ...]) -> None:
        """Nothing to show."""

    def note(self, text: str) -> None:
        """Nothing to show."""

    def tick(self) -> None:
        """Nothing is due."""

    def close(self) -> None:
        """Nothing is there."""


class LinesView:
    """Prints ``[rank0] line`` as it comes; the lines stay."""

    shows_text = True

    def __init__(self) -> None:
        self._lines = LineStreamer()

    def take(self, rank: int, outputs: tuple[Output, ...]) -> None:
        """Print the lines that are complete."""
        text = "".join(self._lines.feed(rank, output) for output in outputs)
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """The final output says it."""

    def tick(self) -> None:
        """Lines are printed when they come."""

    def close(self) -> None:
        """Print the lines that never ended."""
        sys.stdout.write(self._lines.flush())
        sys.stdout.flush()


class PageView:
    """Streams labelled lines to a page, ten times a second, and takes them away at the end.

    Nothing is shown for the first `QUIET_S`. After `MAX_LIVE_LINES` lines only their count goes on:
    the final output has them all.

    Args:
        clear: Clears the cell's output when the next output comes.
    """

    shows_text = False

    def __init__(self, clear: Callable[[], None]) -> None:
        self._clear = clear
        self._lines = LineStreamer()
        self._started = time.monotonic()
        self._shown_at = 0.0
        self._pending: list[str] = []
        self._num_lines = 0
        self._has_shown = False

    def take(self, rank: int, outputs: tuple[Output, ...]) -> None:
        """Take outputs of *rank*; they are shown at the next tick."""
        for output in outputs:
            if self._num_lines < MAX_LIVE_LINES and (text := self._lines.feed(rank, output)):
                self._pending.append(text)
                self._num_lines += text.count("\n")
                if self._num_lines >= MAX_LIVE_LINES:
                    self._pending.append("… more lines follow when the cell is over\n")

    def note(self, text: str) -> None:
        """Show *text* at the next tick, however much has been shown."""
        self._pending.append(f"{text}\n")

    def tick(self) -> None:
        """Show what has come since the last time, at most every `REFRESH_S`."""
        now = time.monotonic()
        if self._pending and now - self._started > QUIET_S and now - self._shown_at > REFRESH_S:
            sys.stdout.write("".join(self._pending))
            sys.stdout.flush()
            self._pending, self._shown_at, self._has_shown = [], now, True

    def close(self) -> None:
        """Take the lines away when the final output comes."""
        if self._has_shown:
            self._clear()


def make_view(mode: Live, clear: Callable[[], None]) -> LiveView:
    """Return the view for *mode*."""
    if mode == "lines":
        return LinesView()
    if mode == "widget":
        return PageView(clear)
    return NoView()
