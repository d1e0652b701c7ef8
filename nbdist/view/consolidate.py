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
from nbdist.wire import Area, Clear, Display, Dropped, Output, Progress, Text

Left = Text | Display | Dropped | Progress
"""What is left at the end; never an `Area` or `Clear`, nor a `Display` that is an update."""

Shown = Text | Display | Dropped | Bar
"""What is shown: the bars of the ranks have become those of all of them (`unite`)."""


def consolidate(outputs: Iterable[Output]) -> tuple[Left, ...]:
    """Carry out clears and display updates, and merge neighbouring texts of one stream.

    An update replaces every display of the same ``display_id`` where it stands, and is lost when
    there is none. ``Clear(wait=True)`` acts when the next text or display comes. A clear within an
    output widget takes what came there. The count of what was dropped outlives a clear. Texts are
    settled (see `stream`), ``display_id`` is removed: it is random, and has done its work.

    Of a progress bar the last record stands where the first one came. A bar that is not over
    outlives a clear, as its next step would draw it again; one that is not to stay is left out.
    """
    area = _OutputArea()
    for output in outputs:
        if isinstance(output, Clear):
            area.clear(output)
        elif isinstance(output, Area):
            area.number = output.number
        elif isinstance(output, Text):
            area.write(output)
        elif isinstance(output, Dropped):
            area.show(output)
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
    """What is shown so far, and where in it the displays are that can still change.

    Attributes:
        number: Of the output widget that what comes now stands in; 0 for the cell.
    """

    def __init__(self) -> None:
        self.number = 0
        self._shown: list[_Stream | Display | Dropped | Progress] = []
        self._numbers: list[int] = []  # of the output widgets, for each of what is shown
        self._places: dict[str, list[int]] = {}
        self._bars: dict[int, int] = {}
        self._clears_due: set[int] = set()

    def write(self, text: Text) -> None:
        if not text.text:
            return
        self._clear_if_due()
        last = self._shown[-1] if self._shown and self._numbers[-1] == self.number else None
        if isinstance(last, _Stream) and last.name == text.name:
            last.pieces.append(text.text)
        else:
            self.show(_Stream(text.name, [text.text]))

    def display(self, display: Display) -> None:
        self._clear_if_due()
        if display.display_id is not None:
            self._places.setdefault(display.display_id, []).append(len(self._shown))
        self.show(dataclasses.replace(display, display_id=None))

    def show(self, output: _Stream | Display | Dropped | Progress) -> None:
        self._shown.append(output)
        self._numbers.append(self.number)

    def update(self, update: Display) -> None:
        for place in self._places.get(update.display_id or "", ()):
            replaced = self._shown[place]
            assert isinstance(replaced, Display)
            self._shown[place] = dataclasses.replace(update, kind=replaced.kind, display_id=None)

    def progress(self, progress: Progress) -> None:
        if progress.bar not in self._bars:
            self._clear_if_due()
            self._bars[progress.bar] = len(self._shown)
            self.show(progress)
        else:
            self._shown[self._bars[progress.bar]] = progress

    def clear(self, clear: Clear) -> None:
        self._clears_due.add(clear.area)
        if not clear.wait:
            self._clear(clear.area)

    def settled(self) -> tuple[Left, ...]:
        settled: list[Left] = []
        for output in self._shown:
            if isinstance(output, Progress) and not output.is_kept:
                continue
            last = settled[-1] if settled else None
            if isinstance(output, Dropped) and isinstance(last, Dropped):
                settled[-1] = Dropped(last.size_bytes + output.size_bytes)
            elif not isinstance(output, _Stream):
                settled.append(output)
            elif text := settle("".join(output.pieces)):
                # What stood between two texts of one stream may have settled to nothing.
                if isinstance(last, Text) and last.name == output.name:
                    settled[-1] = Text(output.name, last.text + text)
                else:
                    settled.append(Text(output.name, text))
        return tuple(settled)

    def _clear_if_due(self) -> None:
        if self.number in self._clears_due:
            self._clear(self.number)

    def _clear(self, number: int) -> None:
        """Forget what came in one output widget; with the cell's own, that of all."""
        self._clears_due = self._clears_due - {number} if number else set()
        kept = [place for place in range(len(self._shown)) if self._outlives(place, number)]
        moved = {old: new for new, old in enumerate(kept)}
        self._shown = [self._shown[place] for place in kept]
        self._numbers = [self._numbers[place] for place in kept]
        self._bars = {bar: moved[place] for bar, place in self._bars.items() if place in moved}
        self._places = {
            name: [moved[place] for place in places if place in moved]
            for name, places in self._places.items()
        }

    def _outlives(self, place: int, number: int) -> bool:
        """Say whether a clear in output widget *number* leaves what stands at *place*."""
        output = self._shown[place]
        if isinstance(output, Progress):
            return not output.is_over or number not in (0, self._numbers[place])
        return isinstance(output, Dropped) or number not in (0, self._numbers[place])
