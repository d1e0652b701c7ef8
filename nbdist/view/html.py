"""A cell as HTML that needs nothing else: no script, no style sheet, no kernel.

Every style is inline and of a kind that JupyterLab's sanitiser keeps in a notebook nobody has
trusted yet. That rules out ``var(--jp-…)``: text takes its colour from the page, all else is
translucent, and so it fits light and dark themes. Where styles are lost as well (GitHub), tables,
``<details>`` and words carry the meaning.
"""

from __future__ import annotations

from html import escape

from nbdist.view.ansi import ansi_to_html, open_style, strip_ansi
from nbdist.view.consolidate import Shown, describe_dropped
from nbdist.view.failures import Cause, TraceLine, Waiting, trace_lines
from nbdist.view.fold import Block
from nbdist.view.mime import display_html, display_text, is_rich
from nbdist.view.names import name_ranks
from nbdist.view.page import Page
from nbdist.view.scalars import ScalarTable
from nbdist.wire import Display, Dropped, Text

MAX_LINES = 100  # of one text; above that its beginning is closed
LAST_LINES = 20  # how much of it stays open
MAX_OPEN_BLOCKS = 4
MAX_OPEN_LINES = 60  # of all blocks together, with more than MAX_OPEN_BLOCKS of them
SHORT_BLOCK_LINES = 3
MAX_PREVIEW_CHARS = 80
MAX_LABEL_CHARS = 20

_LINE = "line-height:17px"
_FONT = f"font-family:monospace;font-size:13px;{_LINE}"
_WRAP = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"
_PRE = f"margin:0;padding:0;border:0;background:transparent;{_WRAP};{_FONT}"
_STDERR = "background:#e0453f1f;padding:1px 6px;border-radius:3px"
_FAINT = "opacity:0.65;font-size:11px"
_FAILED = "color:#e0453f;font-weight:bold;font-size:11px"
_LABEL = "background:#8080802b;border-radius:3px;padding:1px 6px;font-size:11px"
_TABLE = "border-collapse:collapse;margin:0;border:0"
_NUMBER = f"padding:1px 6px;border:0;text-align:right;{_FONT}"
_BROUGHT = "overflow-x:auto;margin:2px 0"
_MARK = f'<span style="float:right;{_FAINT}">stderr</span>'
_ROW = "background:transparent"
_CELL = "padding:1px 6px 1px 0;border:0;text-align:left;vertical-align:top"
_EDGE = "border-left:3px solid #e0453f;background:#e0453f14;padding:3px 8px;margin:4px 0"
_STOPPED_EDGE = "border-left:3px solid #a0790a;background:#a0790a14;padding:3px 8px;margin:4px 0"


def render_html(page: Page) -> str:
    """Write *page* as one ``<div>``."""
    parts = [_blocks(page)]
    if page.table:
        parts.append(_table(page.table))
    parts += [_cause(cause) for cause in page.causes]
    parts += [_waiting(waiting) for waiting in page.waiting]
    return f"<div>{''.join(parts)}</div>"


# Outputs ---------------------------------------------------------------------------------------


def _blocks(page: Page) -> str:
    if not page.blocks:
        return ""
    if len(page.blocks) == 1:
        block = page.blocks[0]
        return f'<div style="{_FAINT}">{name_ranks(block.ranks)}</div>{_outputs(block)}'
    contents = [_outputs(block) for block in page.blocks]
    if _are_too_long(page.blocks):
        first = _block_to_open(page)
        contents = [
            _details(_preview(block), content, is_open=block is first)
            if _height(block) > SHORT_BLOCK_LINES
            else content
            for block, content in zip(page.blocks, contents, strict=True)
        ]
    # As wide as the longest label, so that short outputs stand close to their rank.
    labels = [f"{name_ranks(block.ranks)} {page.fate(block)}" for block in page.blocks]
    width = min(max(map(len, labels)), MAX_LABEL_CHARS) * 7 + 16
    rows = "".join(
        f'<tr style="{_ROW}"><td style="{_CELL};{_LINE};width:{width}px">'
        f'{_label(page, block)}</td><td style="{_CELL}">{content}</td></tr>'
        for block, content in zip(page.blocks, contents, strict=True)
    )
    return f'<table style="{_TABLE};width:100%;table-layout:fixed"><tbody>{rows}</tbody></table>'


def _are_too_long(blocks: tuple[Block, ...]) -> bool:
    """Tell whether *blocks*, all standing open, would bury one another."""
    return len(blocks) > MAX_OPEN_BLOCKS and sum(map(_height, blocks)) > MAX_OPEN_LINES


def _height(block: Block) -> int:
    """Count the lines of *block* that stand open; an object is taken to be 15 lines high."""
    num_lines = [_num_lines(output) or 15 for output in block.outputs]
    return sum(LAST_LINES + 1 if number > MAX_LINES else number for number in num_lines)


def _num_lines(output: Shown) -> int:
    """Count the lines of text in *output*; none in an image and the like."""
    if isinstance(output, Dropped):
        return 1
    if isinstance(output, Display):
        return 0 if is_rich(output) else display_text(output).count("\n") + 1
    return output.text.removesuffix("\n").count("\n") + 1


def _block_to_open(page: Page) -> Block:
    """Choose the block of the first rank that failed by itself, else the first."""
    failed = [rank for cause in page.causes for rank in cause.ranks]
    for rank in failed:
        for block in page.blocks:
            if rank in block.ranks:
                return block
    return page.blocks[0]


def _label(page: Page, block: Block) -> str:
    fate = page.fate(block)
    word = f' <span style="{_FAILED}">{fate}</span>' if fate else ""
    return f'<span style="{_LABEL}">{name_ranks(block.ranks)}</span>{word}'


def _preview(block: Block) -> str:
    """Say how much a closed block holds, and show its last line."""
    num_lines = [_num_lines(output) for output in block.outputs]
    parts = [_count(sum(num_lines), "line"), _count(num_lines.count(0), "object")]
    last = block.outputs[-1]
    if num_lines[-1] and not isinstance(last, Dropped):
        text = strip_ansi(last.text if isinstance(last, Text) else display_text(last))
        line = text.rstrip("\n").rpartition("\n")[2].strip()
        is_long = len(line) > MAX_PREVIEW_CHARS
        parts.append(f"{line[: MAX_PREVIEW_CHARS - 1]}…" if is_long else line)
    return escape(" · ".join(part for part in parts if part), quote=False)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number > 1)}" if number else ""


def _outputs(block: Block) -> str:
    return "".join(_output(output) for output in block.outputs)


def _output(output: Shown) -> str:
    if isinstance(output, Dropped):
        return f'<div style="{_FAINT}">{describe_dropped(output)}</div>'
    if isinstance(output, Text):
        return _text(output)
    brought = display_html(output)
    if brought:
        return f'<div style="{_BROUGHT}">{brought}</div>'
    return _pre(display_text(output))


def _text(output: Text) -> str:
    style = f"{_PRE};{_STDERR}" if output.name == "stderr" else _PRE
    mark = _MARK if output.name == "stderr" else ""
    text = output.text.removesuffix("\n")
    num_earlier = text.count("\n") + 1 - LAST_LINES
    if num_earlier <= MAX_LINES - LAST_LINES:
        return _pre(text, style=style, mark=mark)
    end = len(text)
    for _ in range(LAST_LINES):
        end = text.rfind("\n", 0, end)
    earlier, last = text[:end], text[end + 1 :]
    return _details(f"{num_earlier:,} earlier lines", _pre(earlier, style=style)) + _pre(
        open_style(earlier) + last, style=style, mark=mark
    )


def _pre(text: str, *, style: str = _PRE, mark: str = "") -> str:
    # HTML ignores a line break right after <pre>.
    first = "\n" if not mark and text.startswith("\n") else ""
    return f'<pre style="{style}">{mark}{first}{ansi_to_html(text)}</pre>'


def _details(title: str, content: str, *, is_open: bool = False) -> str:
    return (
        f"<details{' open' if is_open else ''}>"
        f'<summary style="{_FAINT};{_LINE};cursor:pointer">{title}</summary>{content}</details>'
    )


# Numbers ---------------------------------------------------------------------------------------


def _table(table: ScalarTable) -> str:
    rows = "".join(
        f'<tr style="{_ROW}"><td style="{_CELL};{_LINE}">'
        f'<span style="{_LABEL}">rank {rank}</span></td>'
        f'<td style="{_NUMBER}">{escape(value)}</td></tr>'
        for rank, value in table.rows
    )
    return (
        f'<table style="{_TABLE}"><tbody>{rows}</tbody></table>'
        f'<div style="{_FAINT};margin:2px 0">{" · ".join(table.totals)}</div>'
    )


# Failures --------------------------------------------------------------------------------------


def _cause(cause: Cause) -> str:
    heads = "".join(
        f'<pre style="{_PRE}"><span style="{_LABEL}">{name_ranks(message.ranks)}</span> '
        f"<b>{escape(cause.name, quote=False)}</b>"
        f"{escape(f': {message.text}' * bool(message.text), quote=False)}</pre>"
        for message in cause.messages
    )
    trace = "\n".join(_trace_line(line) for line in trace_lines(cause))
    trace = f'<pre style="{_PRE};margin:3px 0 0">{trace}</pre>' if trace else ""
    edge = _STOPPED_EDGE if cause.status == "stopped" else _EDGE
    return f'<div style="{edge}">{heads}{trace}</div>'


def _trace_line(line: TraceLine) -> str:
    text = escape(line.text, quote=False)
    if line.kind == "source":
        return f"    {text}"
    if line.kind == "error":
        return f"<b>{text}</b>"
    return f'<span style="opacity:0.65">{text}</span>'


def _waiting(waiting: Waiting) -> str:
    return f'<div style="{_FAINT};margin:2px 0">{escape(waiting.headline())}</div>'
