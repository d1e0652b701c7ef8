"""Which errors ended a cell, each told once, and what they caused.

    RankOutput, RankOutput, …  →  causes (error, death, stop), then who only waited for them

A rank that raised by itself is a cause; a rank that was freed because another one failed only
waited. Errors of one class that came the same way are one cause, even if their messages differ.
"""

from __future__ import annotations

import re
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from nbdist.view.ansi import strip_ansi
from nbdist.view.columns import clip
from nbdist.view.names import name_ranks
from nbdist.view.stream import settle
from nbdist.wire import CellError, Frame, RankOutput, Text

_MAX_MESSAGE_CHARS = 200
_MAX_CAUSES = 3
_NUM_LAST_LINES = 3
_MAX_LAST_CHARS = 2000

# How the guard says in which call a rank was when a peer failed.
_WAITED_IN = re.compile(r"^This rank (?:waited for it|was) in (a native call|\w+)", re.MULTILINE)

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
        error: Class and frames, and those of the errors before it, are alike on all ranks here;
            its message and theirs are those of the first rank.
        earlier: For each of the errors before it, what that said.
        last_lines: What dead ranks wrote at last.
    """

    ranks: tuple[int, ...]
    status: Literal["error", "stopped", "dead"]
    messages: tuple[Message, ...]
    error: CellError
    earlier: tuple[tuple[Message, ...], ...] = ()
    last_lines: tuple[Message, ...] = ()

    @property
    def name(self) -> str:
        """The class of the error; ``stopped`` or ``died`` where that says it better."""
        if self.status == "error":
            return self.error.ename or "failed"
        return "stopped" if self.status == "stopped" else "died"


@dataclass(frozen=True)
class TraceLine:
    """A line of a short traceback: a place, the code there, an earlier error, or a note.

    Attributes:
        kind: Which of these.
        text: May have several lines.
        ranks: Where it is so (ascending), if not on all ranks of the cause.
    """

    kind: Literal["where", "source", "error", "note"]
    text: str
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """Ranks that another rank's failure freed while they waited for it.

    Attributes:
        ranks: Ascending.
        waited_for: The rank that failed.
        location: Where they waited: ``In[3]:5``, or empty.
        call: Which collective they waited in: ``all_reduce``, or empty.
        reason: What they were told, if the failed rank itself is not among those shown.
    """

    ranks: tuple[int, ...]
    waited_for: int
    location: str
    call: str = ""
    reason: str = ""

    def headline(self) -> str:
        """Say who waited: ``ranks 0, 2, 3 waited for rank 1 in all_reduce (In[3]:5)``."""
        return f"{name_ranks(self.ranks)} {self.deed()}"

    def deed(self) -> str:
        """Say the same without naming who: ``waited for rank 1 in all_reduce (In[3]:5)``."""
        call = f" in {self.call}" if self.call else ""
        where = f" ({self.location})" if self.location else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"waited for rank {self.waited_for}{call}{where}{reason}"


@dataclass(frozen=True)
class Failures:
    """All that went wrong in a cell, in the order it should be read."""

    causes: tuple[Cause, ...]
    waiting: tuple[Waiting, ...]


def group_failures(
    ranks: Iterable[RankOutput], *, is_folded: bool = True, held_up_by: frozenset[int] = frozenset()
) -> Failures:
    """Tell each cause once: errors and deaths first, then stops.

    Of these, causes that other ranks waited for come first, then those of lower ranks.

    Args:
        ranks: What the ranks made of the cell, in any order.
        is_folded: Put ranks together; otherwise each is told by itself.
        held_up_by: Ranks that others waited for when the cell was stopped.
    """
    failed = sorted((r for r in ranks if r.status != "ok"), key=lambda r: r.rank)
    causes: dict[Hashable, list[RankOutput]] = {}
    waiting: dict[Hashable, list[RankOutput]] = {}
    for output in failed:
        error = output.error or _UNKNOWN
        alone = None if is_folded else output.rank
        if error.waited_for is not None:
            key = (error.waited_for, _call(error), location(error), alone)
            waiting.setdefault(key, []).append(output)
        else:
            causes.setdefault((output.status, _way(error), alone), []).append(output)
    waited_for = {output.error.waited_for for output in failed if output.error}
    in_order = sorted(
        causes.values(),
        key=lambda group: (
            is_stopped := group[0].status == "stopped",
            (held_up_by if is_stopped else waited_for).isdisjoint(_ranks(group)),
        ),
    )
    told = {rank for group in in_order for rank in _ranks(group)}
    return Failures(
        tuple(map(_cause, in_order)), tuple(_waiting(group, told) for group in waiting.values())
    )


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
    earlier = iter(cause.earlier)
    for words, error in chain(cause.error):
        for message in next(earlier) if words else ():
            said = f"{words} {error.ename}" + f": {message.text}" * bool(message.text)
            yield TraceLine("error", said, message.ranks if message.ranks != cause.ranks else ())
        for frame in shorten(error.frames):
            if isinstance(frame, str):
                yield TraceLine("note", frame)
                continue
            yield TraceLine("where", f"{shorten_path(frame.location)}  in {frame.function}")
            if frame.source:
                yield TraceLine("source", frame.source)
    for message in cause.last_lines:
        ranks = message.ranks if message.ranks != cause.ranks else ()
        yield TraceLine("note", "its last lines:", ranks)
        yield TraceLine("source", message.text, ranks)


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
    chains = {output.rank: _chain_messages(output.error or _UNKNOWN) for output in group}
    messages, *earlier = [
        _group_messages({rank: said[level] for rank, said in chains.items()})
        for level in range(len(chains[group[0].rank]))
    ]
    status = group[0].status
    assert status != "ok"
    is_dead = status == "dead"
    return Cause(
        ranks=_ranks(group),
        status=status,
        messages=messages,
        error=group[0].error or _UNKNOWN,
        earlier=tuple(earlier),
        last_lines=_group_texts(
            {output.rank: text for output in group if is_dead and (text := _last_lines(output))}
        ),
    )


def _ranks(group: Iterable[RankOutput]) -> tuple[int, ...]:
    return tuple(output.rank for output in group)


def _way(error: CellError) -> Hashable:
    """Return what errors have in common that came the same way, whatever they say."""
    if error.ename == "CollectiveMismatch":  # its message names the line of every rank
        return error.ename
    return tuple((words, step.ename, step.frames) for words, step in chain(error))


def _chain_messages(error: CellError) -> list[str]:
    return [clean(step.evalue) for _, step in chain(error)]


def _group_texts(texts: Mapping[int, str]) -> tuple[Message, ...]:
    """Put ranks that say the same together, in the order of the first rank."""
    ranks: dict[str, list[int]] = {}
    for rank, text in texts.items():
        ranks.setdefault(text, []).append(rank)
    return tuple(Message(tuple(ranks), text) for text, ranks in ranks.items())


def _group_messages(texts: Mapping[int, str]) -> tuple[Message, ...]:
    """Likewise, and put ranks together that each say the same of themselves.

    Their number, behind the word rank, becomes the numbers of all of them: ``rank 0–3``.
    """
    groups: dict[Hashable, list[Message]] = {}
    for message in _group_texts(texts):
        is_one = len(message.ranks) == 1
        key = _with_numbers(message, "") if is_one else message.text
        groups.setdefault((is_one, key), []).append(message)
    return tuple(map(_united, groups.values()))


def _united(messages: Sequence[Message]) -> Message:
    if len(messages) == 1:
        return messages[0]
    ranks = tuple(sorted(rank for message in messages for rank in message.ranks))
    return Message(ranks, _with_numbers(messages[0], name_ranks(ranks).removeprefix("ranks ")))


def _with_numbers(message: Message, numbers: str) -> str:
    """Put *numbers* in place of that of the rank that says *message*, where it names itself."""
    own = rf"(\brank[ :=#]{{0,2}}){message.ranks[0]}\b"
    return re.sub(own, lambda found: found[1] + numbers, message.text, flags=re.IGNORECASE)


def _last_lines(output: RankOutput) -> str:
    """Return what a rank wrote at last, on both streams, as plain text."""
    pieces: list[str] = []
    num_chars = 0
    for written in reversed(output.outputs):
        if num_chars > _MAX_LAST_CHARS:
            break
        if isinstance(written, Text):
            pieces.append(written.text[-_MAX_LAST_CHARS:])
            num_chars += len(pieces[-1])
    lines = clean("".join(reversed(pieces))[-_MAX_LAST_CHARS:]).rstrip().split("\n")
    return "\n".join(lines[-_NUM_LAST_LINES:])


def _waiting(group: list[RankOutput], told: Container[int]) -> Waiting:
    error = group[0].error
    assert error is not None
    assert error.waited_for is not None
    return Waiting(
        ranks=_ranks(group),
        waited_for=error.waited_for,
        location=location(error),
        call=_call(error),
        reason="" if error.waited_for in told else _first_line(clean(error.evalue)),
    )


def _call(error: CellError) -> str:
    found = _WAITED_IN.search(error.evalue)
    return found[1] if found else ""


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
    return clip(text.split("\n", 1)[0].rstrip(":"), _MAX_MESSAGE_CHARS)


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
