"""What a cell shows, decided once for text and HTML alike.

RankOutput per rank ── consolidate, fold, group ──▶ Page ──▶ text.py, html.py
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nbdist.view.consolidate import consolidate
from nbdist.view.failures import Cause, Waiting, group_failures
from nbdist.view.fold import Block, fold
from nbdist.view.scalars import ScalarTable, split_scalars
from nbdist.view.trim import trim
from nbdist.wire import RankOutput, Text


@dataclass(frozen=True)
class Page:
    """All there is to show of a cell, in reading order.

    Attributes:
        blocks: What the ranks put out; no block is empty.
        table: The numbers they ended with, where those differ.
        causes: Why it failed, each cause once.
        waiting: Ranks that failed only since others did.
    """

    blocks: tuple[Block, ...]
    table: ScalarTable | None
    causes: tuple[Cause, ...]
    waiting: tuple[Waiting, ...]

    @property
    def is_empty(self) -> bool:
        """Nothing was put out and nothing went wrong."""
        return not (self.blocks or self.table or self.causes or self.waiting)

    def fate(self, block: Block) -> str:
        """Say that the cell ``failed`` or ``died`` on all ranks of *block*, else nothing."""
        for cause in self.causes:
            if cause.status != "stopped" and set(block.ranks) <= set(cause.ranks):
                return "died" if cause.status == "dead" else "failed"
        return ""


def lay_out(ranks: Iterable[RankOutput], *, is_folded: bool = True, has_text: bool = True) -> Page:
    """Decide what is shown of the outputs of *ranks*, given in any order.

    Args:
        ranks: What each rank made of the cell.
        is_folded: Show once what ranks have in common.
        has_text: Show stdout and stderr; ``False`` where they were streamed already.
    """
    ranks = list(ranks)
    outputs = {
        output.rank: tuple(
            shown
            for shown in consolidate(output.outputs)
            if has_text or not isinstance(shown, Text)
        )
        for output in ranks
    }
    table = None
    if is_folded:
        table, outputs = split_scalars(outputs)
        blocks = fold(outputs)
    else:
        blocks = tuple(Block((rank,), outputs[rank]) for rank in sorted(outputs))
    failures = group_failures(ranks, is_folded=is_folded)
    return Page(
        blocks=trim([block for block in blocks if block.outputs]),
        table=table,
        causes=failures.causes,
        waiting=failures.waiting,
    )
