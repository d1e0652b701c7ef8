"""What ranks put out as HTML: text, objects, and how much of them stands open."""

from __future__ import annotations

from html import escape

from nbdist.sizes import describe_size
from nbdist.view.ansi import open_style, strip_ansi
from nbdist.view.columns import clip
from nbdist.view.consolidate import Shown, describe_dropped
from nbdist.view.elements import FAINT, PRE, SMALL, details, faint, pre, small
from nbdist.view.fold import Block
from nbdist.view.mime import display_html, display_text, is_rich
from nbdist.view.progress import Bar, bar_html
from nbdist.wire import Display, Dropped, Text

MAX_LINES = 100  # of one text; above that its middle is closed
FIRST_LINES = 5  # how much of it stays open
LAST_LINES = 15
OBJECT_LINES = 15  # how high a figure or the like is taken to be
MAX_PREVIEW_CHARS = 60

_EDGES = "background:transparent;padding:0 0 0 8px;font-size:12px"
STDERR = "background:#e0453f1f"
STDERR_MARK = f'<span style="float:right;padding:0 6px;{FAINT};{SMALL}">stderr </span>'


def outputs_html(block: Block) -> str:
    """Show all that *block* holds."""
    return "".join(map(_output, block.outputs))


def closed_html(block: Block) -> str:
    """Show how much *block* holds, how it begins and how it ends, and the rest on demand."""
    return details(_preview(block), "".join(map(_whole, block.outputs)))


def height(block: Block) -> int:
    """Count the lines of *block* that stand open."""
    return sum(_height(output) for output in block.outputs)


def object_html(output: Shown) -> str:
    """Show an object as the HTML or the image it brought, else as text."""
    assert isinstance(output, Display)
    brought = display_html(output)
    if brought:
        return f'<div style="overflow-x:auto;margin:2px 0">{brought}</div>'
    return pre(display_text(output))


def _output(output: Shown) -> str:
    """Show *output*; of a long text only how it begins and how it ends."""
    if not isinstance(output, Text):
        return _whole(output)
    text = output.text.removesuffix("\n")
    num_lines = text.count("\n") + 1
    return _long_text(output, text, num_lines) if num_lines > MAX_LINES else _whole(output)


def _whole(output: Shown) -> str:
    if isinstance(output, Dropped):
        return small(describe_dropped(output))
    if isinstance(output, Bar):
        return bar_html(output)
    if isinstance(output, Text):
        return _text(output, output.text.removesuffix("\n"))
    return object_html(output)


def _text(output: Text, text: str) -> str:
    if output.name == "stderr":
        return pre(text, style=f"{PRE};{STDERR}", before=STDERR_MARK)
    return pre(text)


def _long_text(output: Text, text: str, num_lines: int) -> str:
    start, end = 0, len(text)
    for _ in range(FIRST_LINES):
        start = text.find("\n", start) + 1
    for _ in range(LAST_LINES):
        end = text.rfind("\n", 0, end)
    first, middle, last = text[: start - 1], text[start:end], text[end + 1 :]
    # A colour that is on where the text is cut goes on behind the cut.
    at_start = open_style(first)
    at_end = open_style(at_start + middle)
    num_closed = num_lines - FIRST_LINES - LAST_LINES
    title = f"{num_closed:,} of {num_lines:,} lines · {describe_size(_size(middle))}"
    return "".join(
        (
            _text(output, first),
            details(faint(title), _text(output, at_start + middle)),
            _text(output, at_end + last),
        )
    )


def _preview(block: Block) -> str:
    num_lines = [_num_lines(output) for output in block.outputs]
    size = sum(_size(_plain(output)) for output in block.outputs)
    parts = [_count(sum(num_lines), "line"), _count(num_lines.count(0), "object")]
    parts += [describe_size(size)] if size else []
    first = _plain(block.outputs[0]).lstrip().partition("\n")[0]
    last = _plain(block.outputs[-1]).rstrip().rpartition("\n")[2]
    lines = [_cut(strip_ansi(line).strip()) for line in (first, last) if line]
    said = faint(" · ".join(part for part in parts if part))
    return said + (f'<code style="{_EDGES}">{" … ".join(lines)}</code>' if lines else "")


def _cut(line: str) -> str:
    """Return *line* as HTML, cut to a length that fits."""
    return escape(clip(line, MAX_PREVIEW_CHARS), quote=False)


def _plain(output: Shown) -> str:
    """Return the text of *output*; empty for objects and gaps."""
    if isinstance(output, Text | Bar):
        return output.text
    return display_text(output) if isinstance(output, Display) and not is_rich(output) else ""


def _height(output: Shown) -> int:
    num_lines = _num_lines(output) or OBJECT_LINES
    is_long = isinstance(output, Text) and num_lines > MAX_LINES
    return FIRST_LINES + LAST_LINES + 1 if is_long else num_lines


def _num_lines(output: Shown) -> int:
    """Count the lines of text in *output*; none in an image and the like."""
    if isinstance(output, Dropped | Bar):
        return 1
    if isinstance(output, Display) and is_rich(output):
        return 0
    return _plain(output).removesuffix("\n").count("\n") + 1


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number > 1)}" if number else ""


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))
