r"""What a text looks like in the end, once a terminal has carried out its control characters.

    "10%\r 50%\r100%\n"  →  "100%\n"

The time is linear in the length of the text. Colours stay in as escape sequences (see `ansi`).

Not covered: characters that are two columns wide, combining characters, scroll regions, and cursor
moves to an absolute row.
"""

from __future__ import annotations

import re
from itertools import groupby

from nbdist.view.ansi import ESCAPE, PLAIN, SGR_BODY, Style, after_sgr

_HEIGHT = 100  # rows that the cursor can still go back to
_WIDTH = 400  # columns that a cursor move alone can reach

_ACTS = re.compile(rf"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f]|\x1b(?!{SGR_BODY})")
_TOKENS = re.compile(
    rf"\x1b{SGR_BODY}"
    r"|\x1b\[(?P<count>[0-9]{0,5})(?P<move>[ABCDGJK])"
    r"|(?P<text>[^\x00-\x08\x0a-\x1f\x7f]+)"
    r"|(?P<control>[\n\r\b])"
    rf"|{ESCAPE}|[\x00-\x1f\x7f]"
)


def settle(text: str) -> str:
    r"""Carry out ``\r``, backspaces and cursor moves; drop bells and other control characters.

    Blanks at the end of a line that was written over are dropped too: they only hid what stood
    there before.
    """
    text = text.replace("\r\n", "\n")
    # The first test is for most texts, and several times faster than the second.
    if text.replace("\n", " ").isprintable() or not _ACTS.search(text):
        return text
    screen = _Screen()
    for token in _TOKENS.finditer(text):
        if token["text"]:
            screen.write(token["text"])
        elif token["control"]:
            screen.control(token["control"])
        elif token["move"]:
            screen.move(token["move"], token["count"])
        elif token[1] is not None:
            screen.style = after_sgr(screen.style, token[1])
    return screen.text()


class _Row:
    """One line of the screen: its characters and, beside them, the style of each."""

    def __init__(self) -> None:
        self.chars: list[str] = []
        self.styles: list[Style] = []
        self.is_overwritten = False

    def write(self, column: int, text: str, style: Style) -> None:
        num_blanks = column - len(self.chars)
        if num_blanks > 0:
            self.write(len(self.chars), " " * num_blanks, PLAIN)
        self.is_overwritten |= column < len(self.chars)
        end = column + len(text)
        self.chars[column:end] = text
        self.styles[column:end] = [style] * len(text)

    def cut(self, column: int) -> None:
        del self.chars[column:], self.styles[column:]

    def text(self) -> str:
        if self.is_overwritten:
            self._drop_blanks()
        if all(style is PLAIN or style == PLAIN for style in self.styles):
            return "".join(self.chars)
        return "".join(
            f"{style.sgr}{text}\x1b[0m" if style.sgr else text for style, text in self._runs()
        )

    def _runs(self) -> list[tuple[Style, str]]:
        start, runs = 0, []
        for style, same in groupby(self.styles):
            end = start + len(list(same))
            runs.append((style, "".join(self.chars[start:end])))
            start = end
        return runs

    def _drop_blanks(self) -> None:
        end = len(self.chars)
        while end and self.chars[end - 1] == " " and not self.styles[end - 1].background:
            end -= 1
        self.cut(end)


class _Screen:
    """The last rows of a terminal; those that scrolled off the top are text already."""

    def __init__(self) -> None:
        self.style = PLAIN
        self._above: list[str] = []
        self._rows = [_Row()]
        self._row = 0
        self._column = 0

    def write(self, text: str) -> None:
        self._rows[self._row].write(self._column, text, self.style)
        self._column += len(text)

    def control(self, char: str) -> None:
        if char == "\n":
            self._row += 1
            self._column = 0
            if self._row == len(self._rows):
                self._rows.append(_Row())
            self._scroll()
        elif char == "\r":
            self._column = 0
        else:
            self._column = max(self._column - 1, 0)

    def move(self, kind: str, count: str) -> None:
        if kind in "JK":
            self._erase(kind, count)
            return
        steps = int(count or 1) or 1
        if kind in "AB":
            row = self._row + (steps if kind == "B" else -steps)
            self._row = min(max(row, 0), len(self._rows) - 1)
            return
        column = {"C": self._column + steps, "D": self._column - steps, "G": steps - 1}[kind]
        # A terminal stops at its right edge; without one, a few bytes could ask for gigabytes.
        edge = max(_WIDTH, self._column)
        self._column = min(max(column, 0), edge)

    def text(self) -> str:
        return "\n".join([*self._above, *(row.text() for row in self._rows)])

    def _erase(self, kind: str, count: str) -> None:
        row, what = self._rows[self._row], int(count or 0)
        if what == 0:
            row.cut(self._column)
        elif kind == "K" and what == 1:
            row.write(0, " " * min(self._column, len(row.chars)), PLAIN)
        elif kind == "K":
            row.cut(0)
        if kind == "J" and what == 0:
            del self._rows[self._row + 1 :]

    def _scroll(self) -> None:
        # In batches, so that the cost of taking rows off the front does not show.
        if len(self._rows) > 2 * _HEIGHT:
            num_gone = min(len(self._rows) - _HEIGHT, self._row)
            self._above += [row.text() for row in self._rows[:num_gone]]
            del self._rows[:num_gone]
            self._row -= num_gone
