"""The progress bars of the running cell: one record each, however often they move.

    tqdm, nbdist.progress ── touch ──▶ Bars ◀── due, last, take ── Recorder

A bar says only that it begins, moves or is over; how far it is, it is asked when a batch goes out.
So a bar that moves a million times a second costs what one costs that stands still.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nbdist.runtime import bars
from nbdist.wire import Progress

logger = logging.getLogger(__name__)

FIRST_INTERVAL_S = 0.1  # between two records of one bar, as the page is refreshed
LAST_INTERVAL_S = 1.0  # for a cell that has run for long
SHORT_S = 0.2  # a bar that will not stay is not worth a message before that
PREFIXES = ("", "k", "M", "G", "T")
MAX_BARS = 1000  # that stay, of one cell

T = TypeVar("T")


class BarSource(Protocol):
    """A bar, as far as it can be asked. Hashed by identity."""

    @property
    def is_over(self) -> bool:
        """Whether it has been closed."""

    def read(self, *, is_exact: bool) -> Progress:
        """Return how far it is; number, depth and ``is_over`` are filled in by `Bars`.

        Args:
            is_exact: Look up steps that the bar has not counted yet, at some cost.
        """


@dataclass(eq=False)
class Bar:
    """A bar of the running cell, which stands for its record where outputs wait to be sent."""

    source: BarSource
    number: int
    since: float
    sent: Progress | None = None
    final: Progress | None = None
    is_waiting: bool = False
    is_refused: bool = False


class Bars:
    """The bars of one cell after another. Whoever calls, holds the recorder's lock.

    Args:
        clock: Seconds that only grow.

    Attributes:
        num_refused: Bars of this cell that are left out, since it has had `MAX_BARS`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[BarSource, Bar] = {}
        self._left: dict[BarSource, Progress] = {}
        self.clear()

    def __repr__(self) -> str:
        return f"<Bars {len(self._open)} open, {self._num_bars} so far>"

    def __contains__(self, source: BarSource) -> bool:
        return source in self._open

    def clear(self) -> None:
        """Begin or end a cell: bars that are open become new ones when they move again."""
        sent = {source: bar.sent for source, bar in self._open.items() if bar.sent is not None}
        left = (self._left | sent).items()
        self._left = {source: record for source, record in left if not source.is_over}
        self._open = {}
        self._num_bars = self._num_kept = self.num_refused = 0
        self._since = self._due_at = 0.0

    @property
    def interval_s(self) -> float | None:
        """After what time to look for what is due; ``None`` where there is no bar."""
        if not self._open:
            return None
        age_s = self._clock() - self._since
        return min(max(age_s / 100, FIRST_INTERVAL_S), LAST_INTERVAL_S)

    @property
    def is_used(self) -> bool:
        """Whether the cell has had any bar."""
        return self._num_bars > 0

    def touch(self, source: BarSource) -> Bar | None:
        """Take note that *source* has begun, moved, or is over.

        A bar of an earlier cell that is only closed in this one is none of this cell's.

        Returns:
            The bar, where its record is to wait among the outputs, in this place.
        """
        bar = self._open.get(source)
        if not source.is_over:
            return self._begin(source) if bar is None else None
        if bar is not None:
            return self._close(bar)
        begun = self._begin(source) if self._has_moved(source) else None
        self._left.pop(source, None)
        if begun is not None:
            self._close(begun)
        return begun

    def _has_moved(self, source: BarSource) -> bool:
        """Whether a bar of an earlier cell has moved since that has ended."""
        sent = self._left.get(source)
        return sent is not None and not _is_same(_ask(source, sent, is_exact=True), sent)

    def _begin(self, source: BarSource) -> Bar | None:
        now = self._clock()
        if not self._num_bars:
            self._since = now
        bar = self._open[source] = Bar(source, self._num_bars, now)
        self._num_bars += 1
        if not self._read(bar, is_exact=False).is_kept:
            return None
        if self._num_kept >= MAX_BARS:
            bar.is_refused = True
            self.num_refused += 1
            return None
        self._num_kept += 1
        return _waiting(bar)

    def _close(self, bar: Bar) -> Bar | None:
        bar.final = dataclasses.replace(self._read(bar, is_exact=True), is_over=True)
        del self._open[bar.source]
        is_seen = bar.sent is not None or (bar.final.is_kept and not bar.is_refused)
        return _waiting(bar) if is_seen and not bar.is_waiting else None

    def due(self) -> list[Bar]:
        """Return the bars that have moved and have not been sent for a while."""
        now = self._clock()
        if not self._open or now < self._due_at:
            return []
        self._due_at = now + (self.interval_s or 0.0)
        return [_waiting(bar) for bar in self._open.values() if self._is_due(bar, now)]

    def _is_due(self, bar: Bar, now: float) -> bool:
        if bar.is_waiting or bar.is_refused:
            return False
        if bar.sent is None:
            return now - bar.since > SHORT_S
        return not _is_same(self._read(bar, is_exact=False), bar.sent)

    def last(self) -> list[Bar]:
        """Return the bars that the end of the cell leaves open and that moved since they went.

        A bar of an earlier cell may have moved and not said so: tqdm says so now and then.
        """
        unseen = [source for source in self._left if source not in self._open]
        found = (self._begin(s) for s in unseen if not s.is_over and self._has_moved(s))
        begun = [bar for bar in found if bar is not None]
        return begun + [
            _waiting(bar)
            for bar in self._open.values()
            if bar.sent is not None
            and not bar.is_waiting
            and not _is_same(self._read(bar, is_exact=True), bar.sent)
        ]

    def take(self, outputs: Iterable[T | Bar], *, is_exact: bool = False) -> Iterator[T | Progress]:
        """Put records in the places of the bars among *outputs*."""
        for output in outputs:
            if not isinstance(output, Bar):
                yield output
                continue
            record = output.final or self._read(output, is_exact=is_exact)
            is_seen = output.sent is not None or record.is_kept or not record.is_over
            output.sent, output.is_waiting = record, False
            if is_seen:
                yield record

    def _read(self, bar: Bar, *, is_exact: bool) -> Progress:
        known = bar.sent or Progress(bar.number, "", 0)
        reading = _ask(bar.source, known, is_exact=is_exact)
        depth = next((i for i, other in enumerate(self._open.values()) if other is bar), 0)
        return dataclasses.replace(reading, bar=bar.number, depth=depth)


def _ask(source: BarSource, known: Progress, *, is_exact: bool) -> Progress:
    """Read *source*, or return what is *known* of it: a bar may be a user's class and raise."""
    try:
        return source.read(is_exact=is_exact)
    except Exception:
        logger.debug("%r could not be read", source, exc_info=True)
        return known


def _waiting(bar: Bar) -> Bar:
    bar.is_waiting = True
    return bar


def _is_same(reading: Progress, sent: Progress) -> bool:
    """Whether *reading* says nothing new; the clock alone is no news."""
    alike = {name: getattr(sent, name) for name in ("bar", "depth", "seconds", "rate")}
    return dataclasses.replace(reading, **alike) == sent


def rate_text(steps: float, seconds: float, unit: str, divisor: int = 0) -> str:
    """Say how fast a bar moves: ``12.5 it/s``, or ``3.2 s/it`` for a slow one; empty if unknown.

    Args:
        steps: So many.
        seconds: In this time.
        unit: What a step is called.
        divisor: As in `Progress`.
    """
    if steps <= 0 or seconds <= 0:
        return ""
    rate, power = steps / seconds, 0
    while divisor > 1 and rate >= divisor and power < len(PREFIXES) - 1:
        rate, power = rate / divisor, power + 1
    unit = PREFIXES[power] + unit
    return f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{1 / rate:,.1f} s/{unit}"


class HelperBar:
    """A loop of ``nbdist.progress`` as it is asked how far it is."""

    def __init__(self, loop: bars.Loop) -> None:
        self._loop = loop

    @property
    def is_over(self) -> bool:
        """Whether the loop has ended."""
        return self._loop.is_over

    def read(self, *, is_exact: bool) -> Progress:  # noqa: ARG002 - it always is
        """Return how far the loop is."""
        loop = self._loop
        rate = rate_text(loop.done, loop.seconds, "it")
        return Progress(-1, loop.desc, loop.done, loop.total, seconds=loop.seconds, rate=rate)


def install(touch: Callable[[BarSource], None]) -> None:
    """Let ``nbdist.progress`` tell *touch* of its bars."""

    def follow(loop: bars.Loop) -> Callable[[], None]:
        source = HelperBar(loop)
        touch(source)
        return lambda: touch(source)

    bars.outlet.follow = follow
