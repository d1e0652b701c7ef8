"""The few HTML elements that a cell is made of, with the styles they carry.

Every style is inline and of a kind that JupyterLab's sanitiser keeps in a notebook nobody has
trusted yet. That rules out ``var(--jp-…)``: text takes its colour from the page, all else is
translucent or a mid-tone, and so it fits light and dark themes. Where styles are lost as well
(GitHub), tables, ``<pre>``, ``<details>`` and words carry the meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from nbdist.view.ansi import ansi_to_html

GREY, RED, AMBER = "#80808059", "#e0453f", "#a0790a"
MAX_LABEL_CHARS = 20

_BARE = "margin:0;padding:0;border:0;background:transparent"
_FONT = "font-family:monospace;font-size:13px;line-height:17px"
PRE = f"{_BARE};white-space:pre-wrap;word-break:normal;overflow-wrap:break-word;{_FONT}"
UNWRAPPED = f"{_BARE};white-space:pre;overflow-x:auto;{_FONT}"
FAINT = "opacity:0.65"
SMALL = "font-size:11px;line-height:17px"
MARK = f"background:{AMBER}40"

_LABEL = f"{_BARE};white-space:pre-wrap;font-family:monospace;{SMALL}"
_LABEL_CHAR_PX = 6.7
_TABLE = "border-collapse:collapse;border:0;margin:0"
_ROW = "background:transparent"
_CELL = "border:0;text-align:left;vertical-align:top"
_GUTTER = f"{_CELL};padding:1px 8px 1px 0"
_CONTENT = f"{_CELL};padding:1px 0 1px 9px;border-left:2px solid"
_INLINE_LABEL = (
    "display:inline-block;vertical-align:top;font-size:11px;"
    f"border-right:2px solid {GREY};margin-right:9px"
)


@dataclass(frozen=True)
class Label:
    """Whose something is, and a word about what became of them; empty if all is well."""

    text: str
    fate: str = ""

    @property
    def num_chars(self) -> int:
        """How long it is."""
        return len(self.text) + (len(self.fate) + 1 if self.fate else 0)

    @property
    def html(self) -> str:
        """The label, faint, and the word in red."""
        said = f'<span style="{FAINT}">{self.text}</span>' if self.text else ""
        return said + (f' <b style="color:{RED}">{self.fate}</b>' if self.fate else "")


@dataclass(frozen=True)
class Row:
    """A row of the table that a cell is shown as.

    Attributes:
        labels: Whose it is, below one another.
        content: HTML.
        color: Of the line between label and content.
        tint: Background of the content; empty for none.
    """

    labels: tuple[Label, ...]
    content: str
    color: str = GREY
    tint: str = ""


@dataclass(frozen=True)
class LineRow:
    """Lines (HTML) that do not wrap, each behind its label.

    All are one element, with the labels in its text. So they cost little, and are read aloud and
    copied line by line.
    """

    lines: tuple[tuple[Label, str], ...]

    @property
    def labels(self) -> tuple[Label, ...]:
        """Whose they are."""
        return tuple(label for label, _ in self.lines)


@dataclass(frozen=True)
class Gap:
    """A little room between two rows."""

    labels: tuple[Label, ...] = ()


GAP = Gap()
AnyRow = Row | LineRow | Gap


def gutter_table(rows: Sequence[AnyRow]) -> str:
    """Put *rows* below one another, beside a gutter as wide as the longest label."""
    num_chars = max((label.num_chars for row in rows for label in row.labels), default=0)
    width = round(min(num_chars, MAX_LABEL_CHARS) * _LABEL_CHAR_PX) + 10
    body = "".join(_any_row(row, width, num_chars) for row in rows)
    return (
        f'<table style="{_TABLE};width:100%;table-layout:fixed"><colgroup>'
        f'<col style="width:{width}px"><col></colgroup><tbody>{body}</tbody></table>'
    )


def side_by_side(cells: Sequence[str]) -> str:
    """Put *cells* (HTML) beside one another, each as wide as it needs."""
    row = "".join(f'<td style="{_GUTTER}">{cell}</td>' for cell in cells)
    return f'<table style="{_TABLE}"><tbody><tr style="{_ROW}">{row}</tr></tbody></table>'


def pre_html(html: str, *, style: str = PRE) -> str:
    """Show *html* with its blanks and line breaks."""
    # HTML ignores a line break right after <pre>.
    return f'<pre style="{style}">{chr(10) * html.startswith(chr(10))}{html}</pre>'


def pre(text: str, *, style: str = PRE, before: str = "") -> str:
    """Show *text* with its ANSI colours, after *before* (HTML)."""
    return pre_html(before + ansi_to_html(text), style=style)


def faint(text: str) -> str:
    """Show words of ours among those of a rank."""
    return f'<span style="{FAINT}">{escape(text, quote=False)}</span>'


def small(text: str) -> str:
    """Show a remark of ours."""
    return f'<div style="{FAINT};{SMALL}">{escape(text, quote=False)}</div>'


def details(title: str, content: str) -> str:
    """Show *content* (HTML) when the user opens *title* (HTML)."""
    return f'<details><summary style="{SMALL};cursor:pointer">{title}</summary>{content}</details>'


def _any_row(row: AnyRow, width: int, num_chars: int) -> str:
    if isinstance(row, Gap):
        return f'<tr style="{_ROW}"><td colspan="2" style="{_CELL};padding:7px 0 0"></td></tr>'
    return _row(row) if isinstance(row, Row) else _line_row(row, width, num_chars)


def _row(row: Row) -> str:
    labels = "\n".join(label.html for label in row.labels)
    tint = f";background:{row.tint}" if row.tint else ""
    return (
        f'<tr style="{_ROW}"><td style="{_GUTTER}"><pre style="{_LABEL}">{labels}</pre></td>'
        f'<td style="{_CONTENT} {row.color}{tint}">{row.content}</td></tr>'
    )


def _line_row(row: LineRow, width: int, num_chars: int) -> str:
    style = f"{_INLINE_LABEL};width:{width - 1}px"
    # The blanks keep the lines aligned where styles are lost.
    lines = "\n".join(
        f'<span style="{style}">{label.html}{" " * (num_chars - label.num_chars + 1)}</span>{html}'
        for label, html in row.lines
    )
    return (
        f'<tr style="{_ROW}"><td colspan="2" style="{_CELL};padding:0">'
        f"{pre_html(lines, style=UNWRAPPED)}</td></tr>"
    )
