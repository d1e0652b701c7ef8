"""Where texts that are nearly alike differ: which words and numbers to mark.

"loss 2.31 at 10", "loss 2.28 at 10"  →  [loss ]2.31[ at 10], [loss ]2.28[ at 10]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

_WORDS = re.compile(r"[-+]?\d(?:[\w.]|(?<=[eE])[-+](?=\d))*|\w+|\s+|.", re.DOTALL)


@dataclass(frozen=True)
class Piece:
    """A part of a text, and whether it is one in which the texts differ."""

    text: str
    is_marked: bool


def mark(texts: Sequence[str], own: Sequence[str] = ()) -> list[tuple[Piece, ...]]:
    """Cut each of *texts* into pieces that are alike in all of them and pieces that are not.

    Args:
        texts: Two or more.
        own: For each text a word that is expected to differ, such as the number of its rank; where
            every text has its own word, it is not marked.
    """
    words = [_WORDS.findall(text) for text in texts]
    if len(set(map(len, words))) == 1:
        is_marked = [_differs(column, own) for column in zip(*words, strict=True)]
        return [_pieces(line, is_marked) for line in words]
    start = _num_alike(words)
    end = _num_alike([line[start:][::-1] for line in words])
    return [
        _pieces(line, [start <= i < len(line) - end for i in range(len(line))]) for line in words
    ]


def _differs(column: Sequence[str], own: Sequence[str]) -> bool:
    return any(word != column[0] for word in column) and list(column) != list(own)


def _num_alike(lines: Sequence[Sequence[str]]) -> int:
    """Count the words with which all *lines* begin."""
    columns = zip(*lines, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def _pieces(words: Sequence[str], is_marked: Sequence[bool]) -> tuple[Piece, ...]:
    pairs = groupby(zip(words, is_marked, strict=True), key=lambda pair: pair[1])
    return tuple(Piece("".join(word for word, _ in same), marked) for marked, same in pairs)
