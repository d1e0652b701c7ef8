"""Keep a page within what a browser and a notebook file can hold.

Text only: displays stay. What is cut out lies between the first and the last lines, and is counted;
the rank's log has the end of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nbdist.view.consolidate import Shown
from nbdist.view.fold import Block
from nbdist.wire import Dropped, Text

MAX_PAGE_CHARS = 2_000_000  # of text, all blocks together
MIN_BLOCK_CHARS = 20_000


def trim(blocks: Sequence[Block], max_chars: int = MAX_PAGE_CHARS) -> tuple[Block, ...]:
    """Cut the middle out of blocks whose text is too long for their share of *max_chars*."""
    share = max(MIN_BLOCK_CHARS, max_chars // max(1, len(blocks)))
    return tuple(
        dataclasses.replace(block, outputs=tuple(_trim_outputs(block.outputs, share)))
        if sum(map(_num_chars, block.outputs)) > share
        else block
        for block in blocks
    )


def _trim_outputs(outputs: Sequence[Shown], max_chars: int) -> list[Shown]:
    """Keep the first quarter and the last three quarters of *max_chars* of the text."""
    total = sum(map(_num_chars, outputs))
    cut_from, cut_to = max_chars // 4, total - max_chars * 3 // 4
    kept: list[Shown] = []
    position, num_cut = 0, 0
    for output in outputs:
        start, position = position, position + _num_chars(output)
        if not isinstance(output, Text) or position <= cut_from or start >= cut_to:
            if num_cut and start >= cut_to:
                kept.append(Dropped(num_cut))
                num_cut = 0
            kept.append(output)
            continue
        head = _whole_lines_before(output.text, max(0, cut_from - start))
        tail = _whole_lines_after(output.text, min(len(output.text), cut_to - start))
        num_cut += len(output.text) - len(head) - len(tail)
        kept.extend([Text(output.name, head)] if head else [])
        if tail:
            kept.extend([Dropped(num_cut), Text(output.name, tail)])
            num_cut = 0
    return [*kept, Dropped(num_cut)] if num_cut else kept


def _num_chars(output: Shown) -> int:
    return len(output.text) if isinstance(output, Text) else 0


def _whole_lines_before(text: str, position: int) -> str:
    end = text.rfind("\n", 0, position) + 1
    return text[: end or position]


def _whole_lines_after(text: str, position: int) -> str:
    start = text.find("\n", position) + 1
    return text[start or position :]
