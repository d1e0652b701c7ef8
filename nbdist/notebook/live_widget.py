"""The live view of a page: what its widget is told, and what it may ask for.

Knows nothing of anywidget; see `widget` for what a batch holds.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from nbdist.notebook.live import REFRESH_S, State
from nbdist.notebook.tail import Tails
from nbdist.view import failures_text
from nbdist.view.consolidate import describe_dropped
from nbdist.wire import Clear, Display, Dropped, Output, RankOutput, Text

QUIET_S = 0.5  # a shorter cell shows its final output only
MAX_NOTES = 20
MAX_DISPLAY_CHARS = 2000
MAX_FAILURE_CHARS = 10_000


class WidgetView:
    """Shows one widget with a chip and a log for each rank, and takes it away at the end.

    Nothing is shown for the first `QUIET_S`. What is kept for the page is bounded (see `tail`): the
    final output has it all.

    Args:
        ranks: Those that the cell runs on.
        label: Names the cell.
        show: Makes the widget: `nbdist.notebook.widget.show_widget`.
        clear: Clears the cell's output, or only when the next output comes (``wait``).
    """

    shows_text = False

    def __init__(
        self,
        ranks: Sequence[int],
        label: str,
        show: Callable[..., Any],
        clear: Callable[..., object],
    ) -> None:
        self._ranks = tuple(ranks)
        self._label = label
        self._show = show
        self._clear = clear
        self._widget: Any = None
        self._tails = Tails(self._ranks)
        self._states: dict[int, dict[str, Any]] = {rank: {} for rank in self._ranks}
        self._new_states: dict[int, dict[str, Any]] = {}
        self._notes: list[str] = []
        self._news: dict[str, Any] = {}
        self._warning: str | None = None
        self._failures = ""
        self._num_batches = 0
        self._started = time.monotonic()
        self._shown_at = 0.0
        self._is_due = True
        self._wants_whole = False
        self._pages: set[str] = set()
        # Only the main thread can be interrupted by a signal.
        self._is_stoppable = threading.current_thread() is threading.main_thread()
        self._lock = threading.Lock()
        self._is_over = False

    # What happens on the ranks ----------------------------------------------------------------

    def take(self, rank: int, outputs: tuple[Output, ...]) -> None:
        """Take outputs of *rank*; they are shown at the next tick."""
        for output in outputs:
            if isinstance(output, Text):
                self._tails.add(rank, output.name, output.text)
            elif isinstance(output, Clear) and not output.area:  # the lines of a widget stay
                self._tails.add(rank, "clear", "wait" if output.wait else "")
            elif isinstance(output, Display | Dropped) and (text := _in_short(output)):
                self._tails.add(rank, "note", text)
        self._is_due = True

    def state(self, rank: int, state: State, where: str = "") -> None:
        """Show how *rank* is doing at the next tick."""
        self._change(rank, state=state, where=where)

    def progress(self, rank: int, done: float, total: float | None, text: str = "") -> None:
        """Show how far *rank* is at the next tick."""
        self._change(rank, done=done, total=total, text=text)

    def _change(self, rank: int, **fields: Any) -> None:
        known = self._states[rank]
        changed = {name: value for name, value in fields.items() if known.get(name) != value}
        if changed:
            known.update(changed)
            self._new_states.setdefault(rank, {}).update(changed)
            self._is_due = True

    def failed(self, failures: Sequence[RankOutput]) -> None:
        """Show at the next tick why the cell has failed on some ranks so far."""
        text = failures_text(failures)[:MAX_FAILURE_CHARS]
        if text != self._failures:
            self._failures = self._news["failures"] = text
            self._is_due = True

    def note(self, text: str) -> None:
        """Show *text* at the next tick."""
        if len(self._notes) < MAX_NOTES:
            self._notes.append(text)
            self._news.setdefault("notes", []).append(text)
            self._is_due = True

    def warn(self, text: str | None) -> None:
        """Show *text* as a card at the next tick, in place of the one before."""
        if text != self._warning:
            self._warning = self._news["warning"] = text
            self._is_due = True

    # What the page is sent --------------------------------------------------------------------

    def tick(self) -> None:
        """Send what is new, at most every `REFRESH_S`."""
        now = time.monotonic()
        if self._widget is None and now - self._started > QUIET_S:
            self._widget = self._show(self._label, self._ranks, self._on_message)
        if self._widget is not None and self._is_due and now - self._shown_at > REFRESH_S:
            self._show_due(now)

    def show_all(self) -> None:
        """Show the widget, however short the cell has run, and all that is new."""
        if self._widget is None:
            self._widget = self._show(self._label, self._ranks, self._on_message)
        self._show_due(time.monotonic())

    def _show_due(self, now: float) -> None:
        self._shown_at = now
        if self._wants_whole:
            self._send_whole()
        else:
            self._send_news()

    def _send_news(self) -> None:
        self._is_due = False
        news, self._news = self._news, {}
        states, self._new_states = self._new_states, {}
        tails = self._tails.take_new()
        lists = {"states": states.items(), "lost": tails.lost.items(), "pieces": tails.pieces}
        if self._pages:
            news["can_stop"] = True
        self._send(news | {name: list(items) for name, items in lists.items() if items})

    def _send_whole(self) -> None:
        self._is_due = self._wants_whole = False
        self._news, self._new_states = {}, {}
        tails = self._tails.whole()
        self._send(
            {
                "is_whole": True,
                "is_over": self._is_over,
                "can_stop": bool(self._pages),
                "states": list(self._states.items()),
                "lost": list(tails.lost.items()),
                "pieces": tails.pieces,
                "notes": self._notes,
                "warning": self._warning,
                "failures": self._failures,
            }
        )

    def _send(self, batch: dict[str, Any]) -> None:
        self._num_batches += 1
        seconds = round(time.monotonic() - self._started, 1)
        head = {"kind": "batch", "number": self._num_batches, "seconds": seconds}
        self._widget.send(head | batch)

    def close(self, *, is_replaced: bool = True) -> None:
        """Take the widget off the page when the final output comes."""
        with self._lock:
            self._is_over = True
        if self._widget is not None:
            self._clear(wait=is_replaced)

    # What the page says -----------------------------------------------------------------------

    def _on_message(self, message: dict[str, Any]) -> None:
        """Do what the page asks for; while the cell runs this is another thread than the rest."""
        kind = message.get("kind")
        if kind == "stop":
            self._press_stop()
        elif kind == "resend":
            self._wants_whole = self._is_due = True
        elif kind == "hello" and message.get("page") not in self._pages:
            self._welcome(str(message.get("page")))

    def _welcome(self, page: str) -> None:
        """Tell a page that it can reach us, or all there is when the cell is over."""
        if self._is_stoppable:
            self._pages.add(page)
        self._is_due = True
        if self._is_over:  # nobody ticks any more
            self._send_whole()

    def _press_stop(self) -> None:
        """Do as the stop button of the front end does; never after the cell is over."""
        with self._lock:
            main = threading.main_thread().ident
            if self._is_stoppable and not self._is_over and main is not None:
                signal.pthread_kill(main, signal.SIGINT)


def _in_short(output: Display | Dropped) -> str:
    """Return a display as text, since it is shown as what it is in the final output only."""
    if isinstance(output, Dropped):
        return describe_dropped(output)
    if output.kind == "update":
        return ""
    return str(output.data.get("text/plain", ""))[:MAX_DISPLAY_CHARS]
