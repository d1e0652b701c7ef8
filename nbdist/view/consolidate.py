"""What one rank's outputs come to in the end: what a single Jupyter kernel would show.

Text, Text, Clear, Display, update, …  →  Text, Display, Progress, Dropped
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nbdist.view.progress import Bar
from nbdist.view.stream import settle
from nbdist.wire import Clear, Display, Dropped, Output, Progress, Text

Left = Text | Display | Dropped | Progress
"""What is left at the end; never a `Clear`, nor a `Display` that is an update."""

Shown = Text | Display | Dropped | Bar
"""What is shown: the bars of the ranks have become those of all of them (`unite`)."""


def consolidate(outputs: Iterable[Output]) -> tuple[Left, ...]:
    """Carry out clears and display updates, and merge neighbouring texts of one stream.

    An update replaces every display of the same ``display_id`` where it stands, and is lost when
    there is none. ``Clear(wait=True)`` acts when the next text or display comes. The count of what
    was dropped outlives a clear. Texts are settled (see `stream`), ``display_id`` is removed: it is
    random, and has done its work.

    Of a progress bar the last record stands where the first one came. A bar that is not over
    outlives a clear, as its next step would draw it again; one that is not to stay is left out.
    """
    area = _OutputArea()
    for output in outputs:
        if isinstance(output, Clear):
            area.clear(output)
        elif isinstance(output, Text):
            area.write(output)
        elif isinstance(output, Dropped):
            area.drop(output)
        elif isinstance(output, Progress):
            area.progress(output)
        elif output.kind == "update":
            area.update(output)
        else:
            area.display(output)
    return area.settled()


def describe_dropped(dropped: Dropped) -> str:
    """Say how much output is missing."""
    return f"… {dropped.size_bytes:,} bytes of output are left out here …"


@dataclass(frozen=True)
class _Stream:
    """A text that still grows; pieces are joined once, since one print makes several."""

    name: Literal["stdout", "stderr"]
    pieces: list[str]


class _OutputArea:
    """What is shown so far, and where in it the displays are that can still change."""

    def __init__(self) -> None:
        self._shown: list[_Stream | Display | Dropped | Progress] = []
        self._places: dict[str, list[int]] = {}
        self._bars: dict[int, int] = {}
        self._is_clear_due = False

    def write(self, text: Text) -> None:
        if not text.text:
            return
        self._clear_if_due()
        last = self._shown[-1] if self._shown else None
        if isinstance(last, _Stream) and last.name == text.name:
            last.pieces.append(text.text)
        else:
            self._shown.append(_Stream(text.name, [text.text]))

    def display(self, display: Display) -> None:
        self._clear_if_due()
        if display.display_id is not None:
            self._places.setdefault(display.display_id, []).append(len(self._shown))
        self._shown.append(dataclasses.replace(display, display_id=None))

    def update(self, update: Display) -> None:
        for place in self._places.get(update.display_id or "", ()):
            replaced = self._shown[place]
            assert isinstance(replaced, Display)
            self._shown[place] = dataclasses.replace(update, kind=replaced.kind, display_id=None)

    def progress(self, progress: Progress) -> None:
        if progress.bar not in self._bars:
            self._clear_if_due()
            self._bars[progress.bar] = len(self._shown)
            self._shown.append(progress)
        else:
            self._shown[self._bars[progress.bar]] = progress

    def drop(self, dropped: Dropped) -> None:
        last = self._shown[-1] if self._shown else None
        if isinstance(last, Dropped):
            self._shown[-1] = Dropped(last.size_bytes + dropped.size_bytes)
        else:
            self._shown.append(dropped)

    def clear(self, clear: Clear) -> None:
        self._is_clear_due = True
        if not clear.wait:
            self._clear_if_due()

    def settled(self) -> tuple[Left, ...]:
        settled: list[Left] = []
        for output in self._shown:
            if isinstance(output, Progress) and not output.is_kept:
                continue
            if not isinstance(output, _Stream):
                settled.append(output)
            elif text := settle("".join(output.pieces)):
                last = settled[-1] if settled else None
                # What stood between two texts of one stream may have settled to nothing.
                if isinstance(last, Text) and last.name == output.name:
                    settled[-1] = Text(output.name, last.text + text)
                else:
                    settled.append(Text(output.name, text))
        return tuple(settled)

    def _clear_if_due(self) -> None:
        if self._is_clear_due:
            dropped = sum(o.size_bytes for o in self._shown if isinstance(o, Dropped))
            bars = [o for o in self._shown if isinstance(o, Progress) and not o.is_over]
            self._shown = [*([Dropped(dropped)] if dropped else []), *bars]
            first = len(self._shown) - len(bars)
            self._bars = {bar.bar: place for place, bar in enumerate(bars, first)}
            self._places = {}
            self._is_clear_due = False
