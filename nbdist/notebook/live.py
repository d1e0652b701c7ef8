"""What a cell shows while it runs; the final output comes after it and stands alone.

RunEvent ──▶ LiveView.take, state, … ──▶ tick ──▶ the page
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Literal, Protocol

from nbdist.notebook.frontend import Live
from nbdist.view import LineStreamer, failures_text
from nbdist.wire import Output, RankOutput

REFRESH_S = 0.1
FAILED_S = 1.0

State = Literal["running", "waiting", "asking", "failed", "stopped", "done", "dead"]


class LiveView(Protocol):
    """Shows how a run goes. All methods are for the thread that runs the cell."""

    shows_text: bool
    """Whether the text it showed stays on the page, so that the final output need not repeat it."""

    def take(self, rank: int, outputs: tuple[Output, ...]) -> None:
        """Take outputs of *rank*."""

    def state(self, rank: int, state: State, where: str = "") -> None:
        """Say how *rank* is doing.

        Args:
            rank: Which.
            state: From now on.
            where: ``all_reduce #41``, or what it failed with.
        """

    def progress(self, rank: int, done: float, total: float | None, text: str = "") -> None:
        """Say how far *rank* is.

        Args:
            rank: Which.
            done: Steps that it has done.
            total: Of so many, if that is known.
            text: What it counts.
        """

    def failed(self, failures: Sequence[RankOutput]) -> None:
        """Show why the cell has failed on some ranks so far; replaces what was said before."""

    def note(self, text: str) -> None:
        """Show a line about the run that will stand in the final output as well."""

    def warn(self, text: str | None) -> None:
        """Show *text* until there is another one; ``None`` takes it away."""

    def tick(self) -> None:
        """Show what is due; called at least every `REFRESH_S`."""

    def show_all(self) -> None:
        """Show all there is, at once: the user is to be asked something."""

    def close(self, *, is_replaced: bool = True) -> None:
        """Make room for what comes after it.

        Args:
            is_replaced: Something will be shown at once; else the room is left empty.
        """


class NoView:
    """Shows nothing until the cell is over."""

    shows_text = False

    def take(self, rank: int, outputs: tuple[Output, ...]) -> None:
        """Nothing to show."""

    def state(self, rank: int, state: State, where: str = "") -> None:
        """Nothing to show."""

    def progress(self, rank: int, done: float, total: float | None, text: str = "") -> None:
        """Nothing to show."""

    def failed(self, failures: Sequence[RankOutput]) -> None:
        """Nothing to show."""

    def note(self, text: str) -> None:
        """Nothing to show."""

    def warn(self, text: str | None) -> None:
        """Nothing to show."""

    def tick(self) -> None:
        """Nothing is due."""

    def show_all(self) -> None:
        """Nothing is kept back."""

    def close(self, *, is_replaced: bool = True) -> None:
        """Nothing is there."""


class LinesView(NoView):
    """Prints ``[rank0] line`` as it comes; the lines stay.

    Why a rank failed is printed where the others go on for `FAILED_S`; else the final output says
    it soon enough.
    """

    shows_text = True

    def __init__(self) -> None:
        self._lines = LineStreamer()
        self._warning: str | None = None
        self._failures: tuple[RankOutput, ...] = ()
        self._told: set[int] = set()
        self._failed_at = 0.0

    def take(self, rank: int, outputs: tuple[Output, ...]) -> None:
        """Print the lines that are complete."""
        self._print("".join(self._lines.feed(rank, output) for output in outputs))

    def failed(self, failures: Sequence[RankOutput]) -> None:
        """Print why, after a while."""
        if len(self._failures) == len(self._told):
            self._failed_at = time.monotonic()
        self._failures = tuple(failures)

    def tick(self) -> None:
        """Print why ranks failed that others have not followed."""
        is_due = time.monotonic() - self._failed_at > FAILED_S
        new = [failure for failure in self._failures if failure.rank not in self._told]
        if new and is_due:
            self._told.update(failure.rank for failure in new)
            self._print(f"{failures_text(new)}\n")

    def warn(self, text: str | None) -> None:
        """Print *text* if it is another one."""
        if text and text != self._warning:
            self._print(f"{text}\n")
        self._warning = text

    def show_all(self) -> None:
        """Print also the lines that have not ended."""
        self._print(self._lines.flush())

    def close(self, *, is_replaced: bool = True) -> None:  # noqa: ARG002 - lines stay either way
        """Print the lines that never ended."""
        self._print(self._lines.flush())

    def _print(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()


def make_view(mode: Live, ranks: Sequence[int], label: str) -> LiveView:
    """Return the view for *mode*: ``lines`` also where a widget is wanted and anywidget is missing.

    Args:
        mode: As `live_mode` says.
        ranks: Those that the cell runs on.
        label: Names the cell.
    """
    if mode == "widget":
        try:
            from nbdist.notebook.widget import show_widget
        except ImportError:
            return LinesView()
        from IPython.display import clear_output

        from nbdist.notebook.live_widget import WidgetView

        return WidgetView(ranks, label, show_widget, clear_output)
    return LinesView() if mode == "lines" else NoView()
