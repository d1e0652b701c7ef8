"""What a cell shows, decided once for text and HTML alike.

RankOutput per rank ── consolidate, unite, fold, merge, group ──▶ Page ──▶ text.py, html.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from nbdist.view.collectives import collectives_line, held_up
from nbdist.view.consolidate import Left, Shown, consolidate
from nbdist.view.failures import Cause, Waiting, group_failures
from nbdist.view.fold import Block, fold
from nbdist.view.merge import Part, Variants, blocks_of, merge
from nbdist.view.mime import WIDGET
from nbdist.view.progress import Bar, unite
from nbdist.view.scalars import ScalarTable, split_scalars
from nbdist.view.trim import trim
from nbdist.wire import CallCount, Display, Progress, RankOutput, Text

LOG_HAS_THE_REST = "What is left out is in `%dist log`."
WIDGETS_ARE_DEAD = "Widgets of ranks are not live: they are shown as text."


@dataclass(frozen=True)
class Page:
    """All there is to show of a cell.

    What went wrong is read first, a stop last: that was the user's own wish. Where ranks stand one
    below the other, those that failed come first.

    Attributes:
        parts: What the ranks put out; nothing in it is empty.
        table: The numbers they ended with, where those differ.
        causes: Why it failed, each cause once.
        waiting: Ranks that failed only since others did.
        collectives: What collectives were called, in one line; empty if none was.
        notes: What the user should know beside the output: a hang it was stopped in, say.
    """

    parts: tuple[Part, ...]
    table: ScalarTable | None
    causes: tuple[Cause, ...]
    waiting: tuple[Waiting, ...]
    collectives: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing was put out, nothing went wrong, and nothing was called."""
        has_output = bool(self.parts or self.table or self.causes or self.waiting)
        return not (has_output or self.collectives or self.notes)

    @property
    def begins_with_causes(self) -> bool:
        """Something failed, and was not only stopped."""
        return any(cause.status != "stopped" for cause in self.causes)

    def fate(self, ranks: Iterable[int]) -> str:
        """Say that the cell ``failed`` or ``died`` on all of *ranks*, else nothing."""
        for cause in self.causes:
            if cause.status != "stopped" and set(ranks) <= set(cause.ranks):
                return "died" if cause.status == "dead" else "failed"
        return ""


def lay_out(
    ranks: Iterable[RankOutput],
    *,
    is_folded: bool = True,
    is_trimmed: bool = True,
    has_text: bool = True,
    calls: Mapping[int, Sequence[CallCount]] | None = None,
    world_size: int | None = None,
    notes: Sequence[str] = (),
) -> Page:
    """Decide what is shown of the outputs of *ranks*, given in any order.

    Args:
        ranks: What each rank made of the cell.
        is_folded: Show once what ranks have in common.
        is_trimmed: Leave out the middle of what is too long for a page.
        has_text: Show stdout, stderr and progress; ``False`` where they were streamed already.
        calls: What collectives each rank called.
        world_size: Number of ranks in the session, as far as known.
        notes: What stands below all else.
    """
    ranks = list(ranks)
    left = {
        output.rank: tuple(
            left
            for left in consolidate(output.outputs)
            if has_text or not isinstance(left, Text | Progress)
        )
        for output in ranks
    }
    outputs = unite({rank: tuple(map(_as_dead, outputs)) for rank, outputs in left.items()})
    table, parts = _fold(outputs) if is_folded else (None, _one_by_one(outputs))
    calls = calls or {}
    late = held_up(calls, [output.rank for output in ranks])
    failures = group_failures(ranks, is_folded=is_folded, held_up_by=late)
    failed = {r for cause in failures.causes if cause.status != "stopped" for r in cause.ranks}
    whole = tuple(_failed_first(_with_own_bars(part), failed) for part in parts)
    shown = trim(whole) if is_trimmed else whole
    return Page(
        parts=shown,
        table=table,
        causes=failures.causes,
        waiting=failures.waiting,
        collectives=collectives_line(calls, world_size),
        notes=(
            *notes,
            *([LOG_HAS_THE_REST] if shown != whole else []),
            *([WIDGETS_ARE_DEAD] if any(map(_is_widget, chain(*left.values()))) else []),
        ),
    )


def _is_widget(output: Left) -> bool:
    return isinstance(output, Display) and WIDGET in output.data


def _as_dead(output: Left) -> Left:
    """Leave out of *output* which widget it is: that is random, and leads nowhere."""
    if not isinstance(output, Display) or WIDGET not in output.data:
        return output
    data = {mime: value for mime, value in output.data.items() if mime != WIDGET}
    return dataclasses.replace(output, data=data)


def _fold(
    outputs: Mapping[int, tuple[Shown, ...]],
) -> tuple[ScalarTable | None, tuple[Part, ...]]:
    table, rest = split_scalars(outputs)
    return table, merge([block for block in fold(rest) if block.outputs])


def _with_own_bars(part: Part) -> Part:
    """Let the bars of each block say only how far its own ranks came."""
    blocks = tuple(
        Block(b.ranks, tuple(o.of(b.ranks) if isinstance(o, Bar) else o for o in b.outputs))
        if any(isinstance(output, Bar) for output in b.outputs)
        else b
        for b in blocks_of(part)
    )
    return blocks[0] if isinstance(part, Block) else Variants(part.kind, blocks)


def _failed_first(part: Part, failed: Container[int]) -> Part:
    """Let the blocks of ranks that *failed* by themselves come first where each stands alone."""
    if isinstance(part, Block) or part.kind != "whole":
        return part
    in_order = sorted(
        part.blocks, key=lambda block: not any(rank in failed for rank in block.ranks)
    )
    return Variants("whole", tuple(in_order))


def _one_by_one(outputs: Mapping[int, tuple[Shown, ...]]) -> tuple[Part, ...]:
    blocks = tuple(Block((rank,), outputs[rank]) for rank in sorted(outputs) if outputs[rank])
    return (Variants("whole", blocks),) if len(blocks) > 1 else blocks
