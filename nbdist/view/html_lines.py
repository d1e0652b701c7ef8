"""Lines of several ranks below one another, each beside its rank, with what differs marked.

    rank 0 │ loss 2.31
    rank 1 │ loss 2.28

Many short ones stand in several columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from nbdist.view.ansi import ansi_to_html, strip_ansi
from nbdist.view.elements import (
    MAX_LABEL_CHARS,
    UNWRAPPED,
    Label,
    LineRow,
    Row,
    pre_html,
    side_by_side,
)
from nbdist.view.marks import mark
from nbdist.view.names import name_ranks

MAX_UNWRAPPED_CHARS = 100
MAX_ROWS = 16  # of one column; above that there are several, if the lines are short
MAX_COLUMNS = 4
MAX_WIDTH_CHARS = 110  # of all columns together

_MARK = '<b style="background:#a0790a2b">'


@dataclass(frozen=True)
class Line:
    """A line as HTML.

    Attributes:
        ranks: Whose it is.
        html: What is shown.
        num_chars: How long that is.
        fate: A word about what became of these ranks; empty if all is well.
    """

    ranks: tuple[int, ...]
    html: str
    num_chars: int
    fate: str = ""

    @property
    def label(self) -> Label:
        """What stands before it."""
        return Label(name_ranks(self.ranks), self.fate)


def line_rows(lines: Sequence[Line]) -> Iterator[Row | LineRow]:
    """Give rows that show *lines*, which are in the order of their first ranks."""
    number = _num_columns(lines)
    if number > 1:
        ranks = [rank for line in lines for rank in line.ranks]
        yield Row((Label(name_ranks(ranks)),), _columns(lines, number))
    elif _is_unwrapped(lines):
        yield LineRow(tuple((line.label, line.html) for line in lines))
    else:
        yield from (Row((line.label,), pre_html(line.html)) for line in lines)


def marked(texts: Sequence[tuple[tuple[int, ...], str]]) -> list[str]:
    """Turn the text of each (ranks, text) into HTML in which what differs is marked.

    The number of a rank in its own line is not: that is no news. Text that has colours of its own
    is left as it is.
    """
    if len(texts) < 2 or any("\x1b" in text for _, text in texts):
        return [ansi_to_html(text) for _, text in texts]
    own = [str(ranks[0]) if len(ranks) == 1 else "" for ranks, _ in texts]
    return [
        "".join(
            f"{_MARK}{escape(piece.text, quote=False)}</b>"
            if piece.is_marked
            else escape(piece.text, quote=False)
            for piece in pieces
        )
        for pieces in mark([text for _, text in texts], own)
    ]


def text_length(text: str) -> int:
    """Return how many characters of *text* are seen."""
    return len(strip_ansi(text))


def _is_unwrapped(lines: Sequence[Line]) -> bool:
    return all(
        line.num_chars <= MAX_UNWRAPPED_CHARS and line.label.num_chars <= MAX_LABEL_CHARS
        for line in lines
    )


def _num_columns(lines: Sequence[Line]) -> int:
    width = max(line.num_chars + line.label.num_chars + 4 for line in lines)
    num_wanted = math.ceil(len(lines) / MAX_ROWS)
    return max(1, min(num_wanted, MAX_COLUMNS, MAX_WIDTH_CHARS // width))


def _columns(lines: Sequence[Line], number: int) -> str:
    num_rows = math.ceil(len(lines) / number)
    width = max(line.label.num_chars for line in lines)
    columns = [lines[start : start + num_rows] for start in range(0, len(lines), num_rows)]
    return side_by_side([_column(column, width) for column in columns])


def _column(lines: Sequence[Line], width: int) -> str:
    html = "\n".join(
        f"{line.label.html}{' ' * (width - line.label.num_chars + 2)}{line.html}" for line in lines
    )
    return pre_html(html, style=f"{UNWRAPPED};padding:0 24px 0 0")
