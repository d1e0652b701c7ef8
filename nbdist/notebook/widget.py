"""The widget of a cell that runs: what passes between the kernel and its page.

    LiveWidget.send({"kind": "batch", ...}) ──▶ static/live.js
    on_message({"kind": "hello" | "resend" | "stop"}) ◀── static/live.js

Imported late: anywidget takes a tenth of a second. A batch has these fields, all but the first
three only when there is something to say:

    kind, number, seconds   the third batch after 12.3 s
    is_whole                forget all you know, this is everything
    is_over                 the cell has ended
    can_stop                a message of the page reaches us while the cell runs
    states                  [[rank, {"state": "waiting", "where": "all_reduce #41", ...}], ...]
    lost                    [[rank, number of lines that are not sent], ...]
    pieces                  [[rank, "stdout", text], ...]
    notes, warning          lines about the run; the text of the card, null for none
    failures                why the cell has failed on some ranks so far, with tracebacks

The traits hold what a page needs before the first batch, and nothing that grows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from IPython.display import publish_display_data

STATIC = Path(__file__).with_name("static")
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


class LiveWidget(anywidget.AnyWidget):
    """One live view in a page."""

    _esm = STATIC / "live.js"
    _css = STATIC / "live.css"
    label = traitlets.Unicode().tag(sync=True)
    ranks = traitlets.List(traitlets.Int()).tag(sync=True)

    def close(self) -> None:
        """Take the widget out of every page, its layout as well."""
        self.layout.close()
        super().close()


_latest: list[LiveWidget] = []


def show_widget(
    label: str, ranks: Iterable[int], on_message: Callable[[dict[str, Any]], None]
) -> LiveWidget:
    """Show a live view, as a widget only: text would stay in the notebook's tests.

    The one before it is closed now and not when its cell ended: a page that was reloaded while the
    cell ran can ask for it only then.

    Args:
        label: Names the cell.
        ranks: Those that it runs on.
        on_message: Takes what the page says; called in any thread.
    """
    while _latest:
        _latest.pop().close()
    widget = LiveWidget(label=label, ranks=list(ranks))
    _latest.append(widget)
    widget.on_msg(lambda _widget, content, _buffers: on_message(content))
    answer_while_busy(widget.comm)
    view = {"model_id": widget.model_id, "version_major": 2, "version_minor": 0}
    publish_display_data({WIDGET_MIME: view})
    return widget


def answer_while_busy(comm: Any) -> None:
    """Let the page's messages reach us while the main thread runs the cell.

    A page sends them to a thread of their own (a subshell), but ipykernel 7.4 passes them on to the
    thread that last sent something to the page, which is the busy one. Where the private name is
    missing, older kernels leave the choice to the page anyway; others answer after the cell, and
    the page never shows its stop button.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, default: default
