"""Why a cell failed as rows of HTML: the root cause first and open, who waited for it last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from nbdist.view.elements import AMBER, PRE, RED, Label, Row, details, faint, pre_html, small
from nbdist.view.failures import Cause, TraceLine, Waiting, location, trace_lines
from nbdist.view.html_lines import marked
from nbdist.view.names import name_ranks

MAX_MESSAGES = 8  # of one cause that stand open


def failure_rows(causes: Sequence[Cause], waiting: Sequence[Waiting]) -> Iterator[Row]:
    """Give the rows of all that went wrong; the way to the first cause stands open."""
    for cause in causes:
        yield from _cause(cause, is_open=cause is causes[0])
    yield from map(_waiting, waiting)


def _cause(cause: Cause, *, is_open: bool) -> Iterator[Row]:
    heads = _heads(cause)
    trace = _trace(cause, is_open=is_open)
    if len(heads) == 1:
        yield _row(cause, cause.ranks, pre_html(heads[0]) + trace)
        return
    whose = [message.ranks for message in cause.messages]
    for ranks, head in zip(whose[:MAX_MESSAGES], heads, strict=False):
        yield _row(cause, ranks, pre_html(head))
    if rest := whose[MAX_MESSAGES:]:
        lines = zip(map(name_ranks, rest), heads[MAX_MESSAGES:], strict=True)
        html = "\n".join(f"{faint(name)} {head}" for name, head in lines)
        closed = details(faint(f"{len(rest)} more messages"), pre_html(html))
        yield _row(cause, tuple(rank for ranks in rest for rank in ranks), closed)
    if trace:
        yield _row(cause, cause.ranks, trace)


def _row(cause: Cause, ranks: tuple[int, ...], content: str) -> Row:
    color = AMBER if cause.status == "stopped" else RED
    return Row((Label(name_ranks(ranks)),), content, color, f"{color}14")


def _heads(cause: Cause) -> list[str]:
    """Give what was raised as HTML, for each message of *cause*; what differs is marked."""
    messages = marked([(message.ranks, message.text) for message in cause.messages])
    name = f"<b>{escape(cause.name, quote=False)}</b>"
    return [name + f": {message}" * bool(message) for message in messages]


def _trace(cause: Cause, *, is_open: bool) -> str:
    lines = "\n".join(map(_trace_line, trace_lines(cause)))
    if not lines:
        return ""
    trace = pre_html(lines, style=f"{PRE};padding:2px 0 0")
    return trace if is_open else details(faint(location(cause.error) or "where"), trace)


def _trace_line(line: TraceLine) -> str:
    text = escape(line.text, quote=False)
    if line.kind == "source":
        return "    " + text.replace("\n", "\n    ")
    whose = f"{faint(name_ranks(line.ranks))} " if line.ranks else ""
    return whose + (f"<b>{text}</b>" if line.kind == "error" else faint(line.text))


def _waiting(waiting: Waiting) -> Row:
    return Row((Label(name_ranks(waiting.ranks)),), small(waiting.deed()))
