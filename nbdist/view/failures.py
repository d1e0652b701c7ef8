"""Which errors ended a cell, each told once, and what they caused.

    RankOutput, RankOutput, …  →  causes (error, death, stop), then who only waited for them

A rank that raised by itself is a cause; a rank that was freed because another one failed only
waited. Errors of one class from the same line are one cause, even if their messages differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from nbdist.view.ansi import strip_ansi
from nbdist.view.names import name_ranks
from nbdist.view.stream import settle
from nbdist.wire import CellError, Frame, RankOutput

_MAX_MESSAGE_CHARS = 200
_MAX_CAUSES = 3

_UNKNOWN = CellError(ename="", evalue="")


@dataclass(frozen=True)
class Message:
    """What an error says, and the ranks (ascending) where it says just this."""

    ranks: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Cause:
    """Why a cell ended on some ranks.

    Attributes:
        ranks: Ascending.
        status: ``error``, ``stopped`` or ``dead``.
        messages: What was said, in the order of the first rank.
        error: Class, frames and earlier errors, which all ranks here have in common.
    """

    ranks: tuple[int, ...]
    status: Literal["error", "stopped", "dead"]
    messages: tuple[Message, ...]
    error: CellError

    @property
    def name(self) -> str:
        """The class of the error; ``stopped`` or ``died`` where that says it better."""
        if self.status == "error":
            return self.error.ename or "failed"
        return "stopped" if self.status == "stopped" else "died"


@dataclass(frozen=True)
class TraceLine:
    """A line of a short traceback: a place, the code there, an earlier error, or a note."""

    kind: Literal["where", "source", "error", "note"]
    text: str


@dataclass(frozen=True)
class Waiting:
    """Ranks (ascending) that another rank's failure freed while they waited for it."""

    ranks: tuple[int, ...]
    waited_for: int
    location: str

    def headline(self) -> str:
        """Say who waited for whom: ``ranks 0, 2, 3 waited for rank 1 (In[3]:5)``."""
        where = f" ({self.location})" if self.location else ""
        return f"{name_ranks(self.ranks)} waited for rank {self.waited_for}{where}"


@dataclass(frozen=True)
class Failures:
    """All that went wrong in a cell, in the order it should be read."""

    causes: tuple[Cause, ...]
    waiting: tuple[Waiting, ...]


def group_failures(ranks: Iterable[RankOutput], *, is_folded: bool = True) -> Failures:
    """Tell each cause once: errors and deaths first, then stops, each by its first rank.

    Args:
        ranks: What the ranks made of the cell, in any order.
        is_folded: Put ranks together; otherwise each is told by itself.
    """
    failed = sorted((r for r in ranks if r.status != "ok"), key=lambda r: r.rank)
    causes: dict[Hashable, list[RankOutput]] = {}
    waiting: dict[Hashable, list[RankOutput]] = {}
    for output in failed:
        error = output.error or _UNKNOWN
        alone = None if is_folded else output.rank
        if error.waited_for is not None:
            waiting.setdefault((error.waited_for, location(error), alone), []).append(output)
        else:
            key = (output.status, error.ename, error.frames, error.cause, error.link, alone)
            causes.setdefault(key, []).append(output)
    in_order = sorted(causes.values(), key=lambda group: group[0].status == "stopped")
    return Failures(tuple(map(_cause, in_order)), tuple(map(_waiting, waiting.values())))


def summary(ranks: Iterable[RankOutput]) -> str:
    """Say in one line why the cell failed; empty when it did not.

    Examples: ``ValueError on rank 1 at In[3]:4: bad batch``, ``rank 2 died: SIGKILL``,
    ``stopped on ranks 0–3``, ``2 different errors on 3 ranks: …``.
    """
    failures = group_failures(ranks)
    errors = [cause for cause in failures.causes if cause.status != "stopped"]
    stopped = [rank for cause in failures.causes[len(errors) :] for rank in cause.ranks]
    parts = [_summarize(cause) for cause in errors[:_MAX_CAUSES]]
    parts += ["…"] * (len(errors) > _MAX_CAUSES)
    if stopped:
        parts.append(f"stopped on {name_ranks(stopped)}")
    if not parts:
        parts = [waiting.headline() for waiting in failures.waiting]
    num_ranks = sum(len(error.ranks) for error in errors)
    count = f"{len(errors)} different errors on {num_ranks} ranks: " if len(errors) > 1 else ""
    return count + "; ".join(parts)


def location(error: CellError) -> str:
    """Return where *error* came from: the innermost line of a cell, else its last line."""
    of_cells = [frame.location for frame in error.frames if frame.is_cell]
    return (of_cells or [shorten_path(frame.location) for frame in error.frames[-1:]] or [""])[-1]


def chain(error: CellError) -> Iterator[tuple[str, CellError]]:
    """Give *error* and those before it, each with the words that lead to it."""
    words, earlier = "", error
    while True:
        yield words, earlier
        words = "caused by" if earlier.link == "cause" else "while handling"
        if earlier.cause is None:
            return
        earlier = earlier.cause


def trace_lines(cause: Cause) -> Iterator[TraceLine]:
    """Give the short traceback of *cause*, outermost call first, and the errors before it."""
    for words, error in chain(cause.error):
        if words:
            message = clean(error.evalue)
            yield TraceLine("error", f"{words} {error.ename}" + f": {message}" * bool(message))
        for frame in shorten(error.frames):
            if isinstance(frame, str):
                yield TraceLine("note", frame)
                continue
            yield TraceLine("where", f"{shorten_path(frame.location)}  in {frame.function}")
            if frame.source:
                yield TraceLine("source", frame.source)


def shorten(frames: Sequence[Frame]) -> list[Frame | str]:
    """Leave out what the user cannot mend: library frames, but for the very last frame.

    Returns:
        Frames of cells and of the user's own modules, with a line of text where others were
        left out: ``… 5 frames in torch …``.
    """
    kept: list[Frame | str] = []
    last = len(frames) - 1
    runs = groupby(enumerate(frames), key=lambda item: item[1].is_library and item[0] < last)
    for is_left_out, run in runs:
        members = [frame for _, frame in run]
        if is_left_out:
            kept.append(_elide(members))
        else:
            kept += _without_repetition(members)
    return kept


def shorten_path(path: str) -> str:
    """Drop what stands before the package: ``/…/site-packages/torch/x.py:3``, ``torch/x.py:3``."""
    for folder in ("/site-packages/", "/dist-packages/"):
        _, found, inside = path.rpartition(folder)
        if found:
            return inside
    before, found, inside = path.partition("/lib/python3")
    return inside.partition("/")[2] if found else before


def clean(message: str) -> str:
    """Return *message* as plain text, without colours and control characters."""
    return strip_ansi(settle(message)).strip("\n")


def _cause(group: list[RankOutput]) -> Cause:
    messages: dict[str, list[int]] = {}
    for output in group:
        error = output.error or _UNKNOWN
        messages.setdefault(clean(error.evalue), []).append(output.rank)
    status = group[0].status
    assert status != "ok"
    return Cause(
        ranks=tuple(output.rank for output in group),
        status=status,
        messages=tuple(Message(tuple(ranks), text) for text, ranks in messages.items()),
        error=group[0].error or _UNKNOWN,
    )


def _waiting(group: list[RankOutput]) -> Waiting:
    error = group[0].error
    assert error is not None
    assert error.waited_for is not None
    return Waiting(tuple(output.rank for output in group), error.waited_for, location(error))


def _summarize(cause: Cause) -> str:
    message = _first_line(cause.messages[0].text)
    if len(cause.messages) > 1:
        message += f" ({name_ranks(cause.messages[0].ranks)}; the messages differ)"
    said = f": {message}" if message else ""
    who = name_ranks(cause.ranks)
    if cause.status == "dead":
        return f"{who} died{said}"
    where = location(cause.error)
    return f"{cause.error.ename or 'error'} on {who}{f' at {where}' if where else ''}{said}"


def _first_line(text: str) -> str:
    line = text.split("\n", 1)[0]
    return line if len(line) <= _MAX_MESSAGE_CHARS else line[: _MAX_MESSAGE_CHARS - 1] + "…"


def _elide(frames: list[Frame]) -> str:
    packages = dict.fromkeys(_package(frame) for frame in frames)
    noun = "frame" if len(frames) == 1 else "frames"
    return f"… {len(frames)} {noun} in {', '.join(packages)} …"


def _package(frame: Frame) -> str:
    path = shorten_path(frame.location).rpartition(":")[0]
    return path.lstrip("/").split("/")[0].removesuffix(".py")


def _without_repetition(frames: list[Frame]) -> Iterator[Frame | str]:
    """Give each frame once where it calls itself again and again."""
    for frame, same in groupby(frames):
        yield frame
        num_more = len(list(same)) - 1
        if num_more:
            yield f"… the same {num_more} times more …"
