"""Readings, budgets and verdicts.

Pure: readings in, results out. A reading is what one visit found. A result is all readings of one
row at one number of ranks: each peer's median, nbdist's ratios to them, and whether it kept its
budgets.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OURS = "nbdist"
PLAIN = "plain"


@dataclass(frozen=True)
class Budget:
    """An upper limit for nbdist.

    Attributes:
        limit: A factor, or a value in the row's unit where *of* is ``None``.
        of: The peer whose median is multiplied.
        num_ranks: Where it holds; ``None`` for every number of ranks.
    """

    limit: float
    of: str | None = None
    num_ranks: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table for each number of ranks.

    Attributes:
        key: Names it in readings.
        title: Names it to the reader.
        unit: Of what is shown.
        scale: What a reading is multiplied with to be shown in *unit*.
        budgets: All that apply must be kept.
    """

    key: str
    title: str
    unit: str
    scale: float = 1.0
    budgets: tuple[Budget, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What one visit found.

    Attributes:
        row: Key of its row.
        peer: Name of the peer.
        num_ranks: How many ranks there were.
        values: One for each repetition, in seconds, bytes or as a plain ratio.
        plain: The same of a plain kernel, taken in turns with *values*; empty where it has no like.
    """

    row: str
    peer: str
    num_ranks: int
    values: tuple[float, ...]
    plain: tuple[float, ...] = ()


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of what was measured."""

    low: float
    median: float
    high: float
    num_values: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values), len(values))


@dataclass(frozen=True)
class Verdict:
    """Whether one budget was kept.

    Attributes:
        budget: The budget.
        measured: In the unit of its limit: a ratio or a value. ``None``: there is nothing to judge.
    """

    budget: Budget
    measured: float | None

    @property
    def is_kept(self) -> bool | None:
        return None if self.measured is None else self.measured <= self.budget.limit


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        row: What was measured.
        num_ranks: With how many ranks.
        spreads: By peer; `PLAIN` is the kernel that ran in turns with nbdist, where there is one.
        ratios: nbdist's median as a multiple of each peer's.
        verdicts: One for each budget that holds here.
    """

    row: Row
    num_ranks: int
    spreads: dict[str, Spread]
    ratios: dict[str, float]
    verdicts: tuple[Verdict, ...]


def summarise(rows: Iterable[Row], readings: Sequence[Reading]) -> list[Result]:
    """Gather *readings* into one result for each row and number of ranks, in that order."""
    return [
        judge(row, num_ranks, spreads_of(there))
        for row in rows
        for num_ranks in sorted({r.num_ranks for r in readings if r.row == row.key})
        if (there := [r for r in readings if (r.row, r.num_ranks) == (row.key, num_ranks)])
    ]


def spreads_of(readings: Sequence[Reading]) -> dict[str, Spread]:
    """Merge the visits to each peer."""
    peers = dict.fromkeys(reading.peer for reading in readings)
    values = {peer: [v for r in readings if r.peer == peer for v in r.values] for peer in peers}
    # Only the plain kernel of the same minutes is a fair measure of ours.
    beside_us = [v for r in readings if r.peer == OURS for v in r.plain]
    values[PLAIN] = beside_us or [v for r in readings for v in r.plain]
    return {peer: Spread.of(found) for peer, found in values.items() if found}


def judge(row: Row, num_ranks: int, spreads: dict[str, Spread]) -> Result:
    ours = spreads.get(OURS)
    ratios = {
        peer: ours.median / spread.median
        for peer, spread in spreads.items()
        if ours is not None and peer != OURS and spread.median > 0
    }
    measured_here = None if ours is None else ours.median * row.scale
    verdicts = tuple(
        Verdict(budget, measured_here if budget.of is None else ratios.get(budget.of))
        for budget in row.budgets
        if budget.num_ranks in (None, num_ranks)
    )
    return Result(row, num_ranks, spreads, ratios, verdicts)


def per_extra_rank(readings: Sequence[Reading], *, total: str, key: str) -> list[Reading]:
    """Derive what each rank beyond the fewest costs, from the readings of the row *total*.

    Returns:
        Readings of the row *key*, none for the fewest ranks of each peer.
    """
    derived = []
    for peer in dict.fromkeys(r.peer for r in readings if r.row == total):
        totals = [r for r in readings if (r.row, r.peer) == (total, peer)]
        fewest = min(r.num_ranks for r in totals)
        base = statistics.median(v for r in totals if r.num_ranks == fewest for v in r.values)
        derived += [
            Reading(
                key, peer, r.num_ranks, tuple((v - base) / (r.num_ranks - fewest) for v in r.values)
            )
            for r in totals
            if r.num_ranks > fewest
        ]
    return derived
