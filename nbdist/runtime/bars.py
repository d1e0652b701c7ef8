"""A progress bar for a loop, wherever it runs.

    for batch in nbdist.progress(loader, desc="epoch 3"): ...

On a rank of a session the bar is followed by its engine, and shown in the notebook. Under torchrun
or alone it is a line on stderr now and then.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from typing import Generic, TypeVar

from nbdist.runtime.group import get_rank, get_world_size

LINE_S = 5.0  # between two lines on stderr

T = TypeVar("T")


class Loop:
    """One pass over what a bar counts.

    Attributes:
        desc: What is counted.
        total: Steps in all; ``None`` where nobody knows.
        done: Steps done.
        is_over: It has ended, in whatever way.
    """

    def __init__(self, desc: str, total: float | None) -> None:
        self.desc = desc
        self.total = total
        self.done = 0
        self.is_over = False
        self._began_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """For how long it has run."""
        return time.monotonic() - self._began_at

    def __repr__(self) -> str:
        of = "" if self.total is None else f"/{self.total}"
        return f"<Loop {f'{self.desc} {self.done}{of}'.strip()}>"


class Outlet:
    """Where bars are shown: whoever follows them here, else stderr.

    Attributes:
        follow: Takes a loop when it begins; returns what to call when it is over.
    """

    follow: Callable[[Loop], Callable[[], None]] | None = None


#: A process shows its bars in one place.
outlet = Outlet()


class progress(Generic[T]):  # noqa: N801 - it is used as a function
    """Iterate over something and show how far that is.

    Args, in the order of tqdm's:
        iterable: Anything to loop over; the bar gives its items unchanged.
        desc: What is counted, in a word or two.
        total: Number of steps; ``len(iterable)`` where it has one.

    Raises:
        TypeError: *desc* is no text, or *total* no number.
    """

    def __init__(self, iterable: Iterable[T], desc: str = "", total: float | None = None) -> None:
        _check(desc, total)
        self._iterable = iterable
        if total is None:
            try:
                total = len(iterable)  # type: ignore[arg-type]  # it may have none
            except TypeError:
                total = None
        self.total = None if total is None or not math.isfinite(total) else total
        self.desc = desc

    def __repr__(self) -> str:
        return f"<progress {self.desc!r}, total {self.total}>"

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # as its own len() would say

    def __iter__(self) -> Iterator[T]:
        loop = Loop(self.desc, self.total)
        if outlet.follow is None:
            return _with_lines(self._iterable, loop)
        return _followed(self._iterable, loop, outlet.follow)


def _check(desc: object, total: object) -> None:
    if not isinstance(desc, str):
        raise TypeError(f"nbdist.progress: desc must be a text, not {desc!r}.")
    if total is not None and not isinstance(total, Real):
        raise TypeError(f"nbdist.progress: total must be a number of steps, not {total!r}.")


def _followed(
    iterable: Iterable[T], loop: Loop, follow: Callable[[Loop], Callable[[], None]]
) -> Iterator[T]:
    end = follow(loop)
    try:
        for item in iterable:
            yield item
            loop.done += 1
    finally:
        loop.is_over = True
        end()


def _with_lines(iterable: Iterable[T], loop: Loop) -> Iterator[T]:
    due_at = time.monotonic() + LINE_S
    try:
        for item in iterable:
            yield item
            loop.done += 1
            if time.monotonic() >= due_at:
                due_at = time.monotonic() + LINE_S
                _print_line(loop)
    finally:
        loop.is_over = True
        _print_line(loop)


def _print_line(loop: Loop) -> None:
    rank = f"[rank{get_rank()}] " if get_world_size() > 1 else ""
    of = "" if loop.total is None else f"/{loop.total}"
    count = f"{loop.desc} {loop.done}{of}".strip()
    sys.stderr.write(f"{rank}{count} · {loop.seconds:.1f} s\n")
