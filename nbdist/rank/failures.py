"""Turn an exception into frozen data that the notebook can show.

Pure but for reading source lines. What is *ours* in a traceback (IPython's and nbdist's frames
below the cell) is left out; what is the user's or a library's stays, and is marked as such.
"""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType

from nbdist.errors import CollectiveError
from nbdist.rank.suggestions import suggestion
from nbdist.runtime.calls import LIBRARY_PREFIXES
from nbdist.shadows import file_that_hides
from nbdist.wire import CELL_PREFIXES, CellError, Frame

MAX_FRAMES = 60  # of one exception; deep recursion keeps both ends
MAX_LINKS = 50  # of a chain of exceptions, the last ones
MAX_MEMBERS = 20  # of a group of exceptions
MAX_MESSAGE = 20_000  # characters of an exception's own text

_RUNNING = str(Path(__file__).parent)  # how a cell is run is no part of what went wrong in it
_OURS = str(Path(__file__).parents[1])


def describe(exception: BaseException, waited_for: int | None = None) -> CellError:
    """Return *exception* and what led to it as data.

    Args:
        exception: As it left the cell.
        waited_for: The rank whose failure this one is only a consequence of.
    """
    described: CellError | None = None
    for link in reversed(list(islice(chain_of(exception, _shown_before), MAX_LINKS))):
        described = CellError(
            ename=type(link).__name__,
            evalue=message_of(link),
            frames=_frames(link),
            cause=described,
            link="cause" if link.__cause__ is not None else "context",
            waited_for=waited_for if link is exception else None,
        )
    assert described is not None  # the exception itself is the first of its chain
    return described


def chain_of(
    exception: BaseException,
    before: Callable[[BaseException], Iterable[BaseException | None]] = lambda exception: (
        exception.__cause__,
        exception.__context__,
    ),
) -> Iterator[BaseException]:
    """Yield *exception* and what led to it, each once: ``raise e from e`` leads back to itself.

    Args:
        exception: The last.
        before: Returns what directly led to one; causes and contexts by default, shown or not.
    """
    ahead: list[BaseException | None] = [exception]
    seen: set[int] = set()
    while ahead:
        link = ahead.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        ahead += reversed([*before(link)])


def _shown_before(exception: BaseException) -> list[BaseException | None]:
    """Return what Python shows above *exception*."""
    if exception.__cause__ is not None or exception.__suppress_context__:
        return [exception.__cause__]
    return [exception.__context__]


def frames_of(frame: FrameType | None) -> tuple[Frame, ...]:
    """Return where a thread is, from the first line of a cell on down to *frame*; any may ask."""
    steps = [
        # A thread that is looked at from outside may be between two lines.
        (below.f_code.co_filename, line or below.f_code.co_firstlineno, below.f_code.co_name)
        for below, line in traceback.walk_stack(frame)
    ]
    steps.reverse()
    first = next((i for i, step in enumerate(steps) if is_cell(step[0])), len(steps))
    return tuple(_frame(*step) for step in _both_ends(steps[first:]))


def message_of(exception: BaseException) -> str:
    """Return the text of *exception*, its notes and, of a group, its members, a line each.

    Never raises, whatever ``__str__`` does.
    """
    try:
        text = str(exception)
    except Exception as exc:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"<its message cannot be shown: {type(exc).__name__}>"
    if meant := suggestion(exception):
        text = f"{text}. {meant}"
    notes = getattr(exception, "__notes__", None)
    if isinstance(notes, list):
        text = "\n".join([text, *map(str, notes)])
    if isinstance(exception, BaseExceptionGroup):
        text = "\n".join([text, *map(_member, exception.exceptions[:MAX_MEMBERS])])
    if file := file_that_hides(exception):
        text = f"{text}\n{file} hides the module that is meant: give that file another name."
    if len(text) > MAX_MESSAGE:
        text = f"{text[:MAX_MESSAGE]}… ({len(text) - MAX_MESSAGE} characters more)"
    return text


def _member(exception: BaseException) -> str:
    """Say what one exception of a group is, and where it was raised."""
    where = [f" ({frame.location})" for frame in _frames(exception) if frame.is_cell][-1:]
    text = f"{type(exception).__name__}: {message_of(exception)}"
    first, *rest = text.split("\n")
    return "\n".join(f"  {line}" for line in [first + "".join(where), *rest])


def _frames(exception: BaseException) -> tuple[Frame, ...]:
    if isinstance(exception, SyntaxError) and is_cell(exception.filename or ""):
        return (
            Frame(
                location=f"{exception.filename}:{exception.lineno}",
                function="<module>",
                source=(exception.text or "").strip(),
                is_cell=True,
            ),
        )
    is_chance = isinstance(exception, KeyboardInterrupt | CollectiveError)
    steps = _without_ours(_user_part(exception.__traceback__), is_chance)
    return tuple(_frame(*step) for step in _both_ends(steps))


def _both_ends(steps: list[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
    half = MAX_FRAMES // 2
    return steps if len(steps) <= MAX_FRAMES else steps[:half] + steps[-half:]


def _user_part(tb: TracebackType | None) -> list[tuple[str, int, str]]:
    """Return (file, line, function) from the first line of a cell on; all, where none is there."""
    steps = [
        (frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(tb)
        if not frame.f_code.co_filename.startswith(_RUNNING)
    ]
    first = next((i for i, step in enumerate(steps) if is_cell(step[0])), 0)
    return steps[first:]


def _without_ours(steps: list[tuple[str, int, str]], is_chance: bool) -> list[tuple[str, int, str]]:
    """Cut off what stands below the first frame of nbdist that leads to no code of the user.

    What the guard does inside a collective is left out: where in it a rank was is chance.

    Args:
        steps: From the first line of a cell on.
        is_chance: The same goes for libraries: an interrupt strikes anywhere in them, and what is
            between a call and the guard says no more than the call.
    """
    is_user = [not (step[0].startswith(_OURS) or _is_library(step[0])) for step in steps]
    end = len(steps) - is_user[::-1].index(True) if any(is_user) else 0
    while end < len(steps) and not (is_chance or steps[end][0].startswith(_OURS)):
        end += 1
    return steps[:end] or steps


def _frame(filename: str, line: int, function: str) -> Frame:
    return Frame(
        location=f"{filename}:{line}",
        function=function,
        source=linecache.getline(filename, line).strip(),
        is_cell=is_cell(filename),
        is_library=_is_library(filename),
    )


def _is_library(filename: str) -> bool:
    return filename.startswith(LIBRARY_PREFIXES)


def is_cell(filename: str) -> bool:
    """Whether *filename* is the label of a cell."""
    return filename.startswith(CELL_PREFIXES)
