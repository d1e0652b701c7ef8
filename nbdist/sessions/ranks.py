"""Read lists of ranks: ``0,2`` ``0-2`` ``1:`` ``-1`` ``all``.

Pure: text in, tuples out. A text is matched against a grammar and never evaluated.

    ranks = ["["] item {"," item} ["]"]
    item  = "all" | rank | first "-" last | [start] ":" [stop] [":" [step]]

``first-last`` holds both ends, ``start:stop`` is a slice of Python and leaves *stop* out. A
negative rank or bound counts from the end. Mesh coordinates such as ``dp=0`` are recognised, not
yet read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nbdist.errors import RankError
from nbdist.view.names import name_ranks

__all__ = ["parse_ranks", "split_ranks"]

_NUMBER = "-?[0-9]{1,9}"
_RANK = re.compile(_NUMBER)
_RANGE = re.compile(r"([0-9]{1,9})\s*[-–]\s*([0-9]{1,9})")
_SLICE = re.compile(rf"({_NUMBER})?\s*:\s*({_NUMBER})?\s*(?::\s*({_NUMBER})?)?")
_COORDINATE = re.compile(r"[A-Za-z_]\w*\s*=.*", re.DOTALL)

# What may stand before the flags of a magic line. An item never starts like a flag (`-o`), and a
# word that starts like an item is taken whole, so that a slip is answered as a slip in the ranks.
_ITEM = r"(?:all\b|-?[0-9]|:|[A-Za-z_]\w*=)[^\s,\[\]]*"
_LEADING = re.compile(rf"\s*(\[[^\]]*\]|\[\S*|{_ITEM}(?:\s*,\s*{_ITEM})*(?:\s*,)*)")

_EXAMPLES = "Write ranks as 0 or 0,2 or 0-2 or 1: or -1 or all."


def parse_ranks(text: str, world_size: int) -> tuple[int, ...]:
    """Return the ranks that *text* names, in ascending order, each once.

    Args:
        text: Such as ``0,2``, ``[0-2]``, ``-1`` or ``all``; blanks around items do not matter.
        world_size: Number of ranks there are.

    Raises:
        RankError: The text cannot be read, names a rank that does not exist, or names none.
    """
    listed = text.strip()
    if listed.startswith("[") and listed.endswith("]"):
        listed = listed[1:-1].strip()
    if not listed:
        raise RankError(f"No rank is named in {text!r}. {_EXAMPLES}")
    ranks = {
        rank for item in listed.split(",") for rank in _parse_item(item.strip(), text, world_size)
    }
    if not ranks:
        raise RankError(f"{text!r} names no rank at all. {_there_are(world_size)}")
    return tuple(sorted(ranks))


def split_ranks(line: str) -> tuple[str | None, str]:
    """Take the ranks off the front of a magic's line, before its flags are parsed.

    Args:
        line: What stands behind the magic: ``0,2 -o x``.

    Returns:
        The ranks as text (``None`` where the line starts with a flag or a word) and the rest. The
        ranks are not checked: `parse_ranks` does that, when the world size is known.
    """
    match = _LEADING.match(line)
    if match is None:
        return None, line.strip()
    return match[1].strip(), line[match.end() :].strip()


def _parse_item(item: str, text: str, world_size: int) -> Iterable[int]:
    """Return the ranks of one *item* of the list *text*."""
    if item == "all":
        return range(world_size)
    if _RANK.fullmatch(item):
        return [_existing(int(item), text, world_size)]
    if match := _RANGE.fullmatch(item):
        return _parse_range(int(match[1]), int(match[2]), text, world_size)
    if match := _SLICE.fullmatch(item):
        start, stop, step = (None if part is None else int(part) for part in match.groups())
        return _parse_slice(start, stop, step, text, world_size)
    if _COORDINATE.fullmatch(item):
        raise RankError(
            f"Ranks cannot be named by mesh coordinates ({item}) yet. {_there_are(world_size)}"
        )
    raise RankError(f"Cannot read {text!r} as ranks. {_EXAMPLES}")


def _parse_range(first: int, last: int, text: str, world_size: int) -> range:
    if last < first:
        raise RankError(f"{first}-{last} in {text!r} runs backwards. Write {last}-{first}.")
    _existing(last, text, world_size)
    return range(first, last + 1)


def _parse_slice(
    start: int | None, stop: int | None, step: int | None, text: str, world_size: int
) -> range:
    """Return the ranks of a slice; unlike Python's, its bounds must be there."""
    if step == 0:
        raise RankError(f"The slice in {text!r} has the step 0. Use ::2 for every second rank.")
    for bound in (start, stop):
        # The end of a slice is left out, so it may be one behind the last rank.
        if bound is not None and not -world_size <= bound <= world_size:
            raise _no_such_rank(bound, text, world_size)
    return range(world_size)[start:stop:step]


def _existing(rank: int, text: str, world_size: int) -> int:
    if not -world_size <= rank < world_size:
        raise _no_such_rank(rank, text, world_size)
    return rank % world_size


def _no_such_rank(rank: int, text: str, world_size: int) -> RankError:
    return RankError(f"There is no rank {rank} (in {text!r}). {_there_are(world_size)}")


def _there_are(world_size: int) -> str:
    if world_size == 1:
        return "There is only rank 0."
    return f"There are {name_ranks(range(world_size))}."
