"""A cell as HTML that needs nothing else: no script, no style sheet, no kernel.

All of it stands in one table: on the left whose something is, beside it what it is. How the outputs
of one rank look is in `html_outputs`, lines side by side in `html_lines`, failures in
`html_failures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from nbdist.view.elements import (
    AMBER,
    FAINT,
    GAP,
    SMALL,
    AnyRow,
    Label,
    LineRow,
    Row,
    details,
    faint,
    gutter_table,
    pre_html,
    small,
)
from nbdist.view.fold import Block
from nbdist.view.html_failures import failure_rows
from nbdist.view.html_lines import Line, line_rows, marked, text_length
from nbdist.view.html_outputs import (
    STDERR,
    STDERR_MARK,
    closed_html,
    height,
    object_html,
    outputs_html,
)
from nbdist.view.merge import Part, Variants
from nbdist.view.mime import is_image
from nbdist.view.names import name_ranks
from nbdist.view.page import Page
from nbdist.view.scalars import ScalarTable
from nbdist.wire import Display, Text

MAX_OPEN_BLOCKS = 4
MAX_OPEN_LINES = 60  # of all blocks together, with more than MAX_OPEN_BLOCKS of them
SHORT_BLOCK_LINES = 3
MAX_OPEN_OBJECTS = 8


def render_html(page: Page) -> str:
    """Write *page* as one ``<div>``."""
    rows: list[AnyRow] = [row for part in page.parts for row in _part(page, part)]
    if page.table:
        rows += [GAP, *_table(page.table)] if rows else _table(page.table)
    failures = failure_rows(page.causes, page.waiting)
    rows = [*failures, *rows] if page.begins_with_causes else [*rows, *failures]
    rows += [Row((Label("!"),), pre_html(escape(note, quote=False)), AMBER) for note in page.notes]
    if page.collectives:
        rows.append(Row((Label(""),), small(page.collectives), color="transparent"))
    return f"<div>{gutter_table(rows)}</div>"


def _part(page: Page, part: Part) -> Iterator[AnyRow]:
    if isinstance(part, Block):
        yield _row(page, part, outputs_html(part))
    elif part.kind == "line":
        yield from _lines(page, part)
    elif part.kind == "object":
        yield _gallery(part)
    else:
        yield from _stack(page, part.blocks)


def _row(page: Page, block: Block, content: str) -> Row:
    return Row((Label(name_ranks(block.ranks), page.fate(block.ranks)),), content)


# One below the other ---------------------------------------------------------------------------


def _stack(page: Page, blocks: Sequence[Block]) -> Iterator[Row]:
    """Show whole blocks; where they would bury one another, all but one are closed."""
    is_too_long = len(blocks) > MAX_OPEN_BLOCKS and sum(map(height, blocks)) > MAX_OPEN_LINES
    opened = _block_to_open(page, blocks)
    for block in blocks:
        is_closed = is_too_long and block is not opened and height(block) > SHORT_BLOCK_LINES
        yield _row(page, block, closed_html(block) if is_closed else outputs_html(block))


def _block_to_open(page: Page, blocks: Sequence[Block]) -> Block:
    """Choose the block of the first rank that failed by itself, else the first."""
    failed = (rank for cause in page.causes for rank in cause.ranks)
    return next((block for rank in failed for block in blocks if rank in block.ranks), blocks[0])


# Beside one another ----------------------------------------------------------------------------


def _lines(page: Page, variants: Variants) -> Iterator[AnyRow]:
    """Show one line of each rank, with what differs marked."""
    texts = [
        (block.ranks, output.text.removesuffix("\n"))
        for block in variants.blocks
        for output in block.outputs
        if isinstance(output, Text)
    ]
    html = marked(texts)
    if any(isinstance(o, Text) and o.name == "stderr" for o in variants.blocks[0].outputs):
        html = [f'<span style="{STDERR}">{line}</span>' for line in html]
        html[0] = STDERR_MARK + html[0]
    yield from line_rows(
        [
            Line(ranks, line, text_length(text), page.fate(ranks))
            for (ranks, text), line in zip(texts, html, strict=True)
        ]
    )


def _table(table: ScalarTable) -> Iterator[AnyRow]:
    aligned = table.aligned()
    values = [value.rstrip() for value in aligned[: len(table.rows)]]
    lines = zip(table.rows, values, strict=True)
    yield from line_rows([Line((rank,), value, len(value)) for (rank, _), value in lines])
    totals = zip(table.totals, aligned[len(values) :], strict=True)
    yield LineRow(
        tuple(
            (Label(total.name), f"{value} {faint(total.ranks)}" if total.ranks else value.rstrip())
            for total, value in totals
        )
    )


def _gallery(variants: Variants) -> Row:
    """Show the objects of the ranks side by side, as many as fit; images shrink a little."""
    blocks = variants.blocks
    ranks = [rank for block in blocks for rank in block.ranks]
    shown = (block.outputs[0] for block in blocks)
    has_images = any(isinstance(output, Display) and is_image(output) for output in shown)
    width = _image_width(len(blocks)) if has_images else 100
    items = [_gallery_item(block, width) for block in blocks]
    content = "".join(items[:MAX_OPEN_OBJECTS])
    if rest := items[MAX_OPEN_OBJECTS:]:
        content += details(faint(f"{len(rest)} more"), "".join(rest))
    return Row((Label(name_ranks(ranks)),), content)


def _image_width(number: int) -> int:
    """Return which share of the width an image may have, in percent."""
    if number in (2, 4):
        return 48
    return 31 if number <= 6 else 23


def _gallery_item(block: Block, width: int) -> str:
    caption = f'<div style="{FAINT};{SMALL}">{name_ranks(block.ranks)}</div>'
    return (
        f'<div style="display:inline-block;vertical-align:top;margin:0 16px 6px 0;'
        f'max-width:{width}%">{caption}{object_html(block.outputs[0])}</div>'
    )
