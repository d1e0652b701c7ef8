"""What a cell shows, decided once for text and HTML alike.

RankOutput per rank ── consolidate, unite, fold, merge, group ──▶ Page ──▶ text.py, html.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nbdist.view.collectives import collectives_line, held_up
from nbdist.view.consolidate import Shown, consolidate
from nbdist.view.failures import Cause, Waiting, group_failures
from nbdist.view.fold import Block, fold
from nbdist.view.merge import Part, Variants, blocks_of, merge
from nbdist.view.progress import Bar, unite
from nbdist.view.scalars import ScalarTable, split_scalars
from nbdist.view.trim import trim
from nbdist.wire import CallCount, Progress, RankOutput, Text


@dataclass(frozen=True)
class Page:
    """All there is to show of a cell, in reading order.

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
    has_text: bool = True,
    calls: Mapping[int, Sequence[CallCount]] | None = None,
    world_size: int | None = None,
    notes: Sequence[str] = (),
) -> Page:
    """Decide what is shown of the outputs of *ranks*, given in any order.

    Args:
        ranks: What each rank made of the cell.
        is_folded: Show once what ranks have in common.
        has_text: Show stdout, stderr and progress; ``False`` where they were streamed already.
        calls: What collectives each rank called.
        world_size: Number of ranks in the session, as far as known.
        notes: What stands below all else.
    """
    ranks = list(ranks)
    outputs = unite(
        {
            output.rank: tuple(
                left
                for left in consolidate(output.outputs)
                if has_text or not isinstance(left, Text | Progress)
            )
            for output in ranks
        }
    )
    table, parts = _fold(outputs) if is_folded else (None, _one_by_one(outputs))
    calls = calls or {}
    late = held_up(calls, [output.rank for output in ranks])
    failures = group_failures(ranks, is_folded=is_folded, held_up_by=late)
    return Page(
        parts=trim([_with_own_bars(part) for part in parts]),
        table=table,
        causes=failures.causes,
        waiting=failures.waiting,
        collectives=collectives_line(calls, world_size),
        notes=tuple(notes),
    )


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


def _one_by_one(outputs: Mapping[int, tuple[Shown, ...]]) -> tuple[Part, ...]:
    blocks = tuple(Block((rank,), outputs[rank]) for rank in sorted(outputs) if outputs[rank])
    return (Variants("whole", blocks),) if len(blocks) > 1 else blocks
