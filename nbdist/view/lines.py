"""Rank-labelled lines while a cell runs, for terminals and logs (``live=lines``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from nbdist.view.ansi import strip_ansi
from nbdist.view.consolidate import describe_dropped
from nbdist.view.names import label_ranks, label_stream
from nbdist.view.progress import live_text
from nbdist.view.stream import settle
from nbdist.wire import Dropped, Output, Progress, Text

MAX_LINE_CHARS = 2**16
BAR_S = 2.0  # between two lines of one progress bar


@dataclass
class _Partial:
    """The beginning of a line whose end has not come yet."""

    pieces: list[str] = field(default_factory=list)
    num_chars: int = 0

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.num_chars += len(text)
        if "\r" in text:
            self._forget_overwritten()

    def take(self) -> str:
        text = settle("".join(self.pieces))
        self.pieces, self.num_chars = [], 0
        return strip_ansi(text)

    def _forget_overwritten(self) -> None:
        """Keep one state of a progress bar, not all of them: the cursor is back at the start."""
        before, _, after = "".join(self.pieces).rpartition("\r")
        self.pieces = [settle(before), "\r", after]
        self.num_chars = sum(map(len, self.pieces))


class LineStreamer:
    """Turn outputs into lines ``[rank0] text``, never mixing two ranks in one line.

    The beginning of a line is held until its end comes. Of a progress bar that rewrites its line
    only the last state is given, when its line ends. A line of more than ``MAX_LINE_CHARS`` is cut.
    A progress bar that we know as one gives a line every `BAR_S` of its own time, and at its end.
    """

    def __init__(self) -> None:
        self._partials: dict[tuple[int, str], _Partial] = {}
        self._bars: dict[tuple[int, int], Progress] = {}
        self._said_at: dict[tuple[int, int], float] = {}

    def feed(self, rank: int, output: Output) -> str:
        """Take one output of *rank*; return the lines it completes, or an empty string."""
        if isinstance(output, Dropped):
            return f"{label_ranks([rank])} {describe_dropped(output)}\n"
        if isinstance(output, Progress):
            return self._feed_bar(rank, output)
        if not isinstance(output, Text):
            return ""
        partial = self._partials.setdefault((rank, output.name), _Partial())
        # A line break of Windows must not look like the start of a rewritten line.
        *ends, rest = output.text.replace("\r\n", "\n").split("\n")
        lines = []
        for end in ends:
            partial.add(end)
            lines.append(partial.take())
        partial.add(rest)
        if partial.num_chars > MAX_LINE_CHARS:
            lines.append(partial.take())
        return _label(rank, output.name, lines)

    def flush(self) -> str:
        """Return the lines and bars that were begun and never ended, in rank order."""
        partials, bars = sorted(self._partials.items()), sorted(self._bars.items())
        self._partials, self._bars, self._said_at = {}, {}, {}
        lines = [
            (rank, _label(rank, name, [partial.take()]))
            for (rank, name), partial in partials
            if partial.num_chars
        ]
        lines += [(rank, _bar_line(rank, bar)) for (rank, _), bar in bars if bar.is_kept]
        return "".join(line for _, line in sorted(lines, key=lambda line: line[0]))

    def _feed_bar(self, rank: int, bar: Progress) -> str:
        key = rank, bar.bar
        if bar.is_over:
            self._bars.pop(key, None)
            self._said_at.pop(key, None)
            return _bar_line(rank, bar) if bar.is_kept else ""
        self._bars[key] = bar
        seconds = bar.seconds - self._said_at.get(key, 0.0)
        if 0 <= seconds < BAR_S:
            return ""
        self._said_at[key] = bar.seconds  # less than before where the bar was reset
        return _bar_line(rank, bar) if seconds > 0 else ""


def _bar_line(rank: int, bar: Progress) -> str:
    return f"{label_ranks([rank])} {live_text(bar)}\n"


def _label(rank: int, name: str, lines: list[str]) -> str:
    prefix = label_stream((rank,), name)
    return "".join(f"{prefix}{line}\n" for line in lines)
