"""Keep a page within what a browser and a notebook file can hold.

Text only: displays stay. What is cut out lies between the first and the last lines, and is counted;
the rank's log has the end of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbdist.view.consolidate import Shown
from nbdist.view.fold import Block
from nbdist.view.merge import Part, Variants, blocks_of
from nbdist.wire import Dropped, Text

MAX_PAGE_CHARS = 2_000_000  # of text, all parts together
MIN_BLOCK_CHARS = 20_000


def trim(parts: Sequence[Part], max_chars: int = MAX_PAGE_CHARS) -> tuple[Part, ...]:
    """Cut the middle out of texts that are too long for their share of *max_chars*.

    Lines that stand beside those of other ranks stay; they are short.
    """
    share = _share(
        [sum(map(_num_chars, b.outputs)) for p in parts for b in blocks_of(p)], max_chars
    )
    return tuple(_trim_part(part, share) for part in parts)


def _share(lengths: Sequence[int], max_chars: int) -> int:
    """Return how many characters a text may have so that all together keep to *max_chars*.

    What short texts leave over is for the longer ones.
    """
    left, share = max_chars, max_chars
    for num_done, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - num_done)
        if length > share:
            break
        left -= length
    return max(MIN_BLOCK_CHARS, share)


def _trim_part(part: Part, share: int) -> Part:
    if isinstance(part, Block):
        return _trim_block(part, share)
    if part.kind == "line":
        return part
    return Variants(part.kind, tuple(_trim_block(block, share) for block in part.blocks))


def _trim_block(block: Block, share: int) -> Block:
    if sum(map(_num_chars, block.outputs)) <= share:
        return block
    return Block(block.ranks, tuple(_trim_outputs(block.outputs, share)))


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
