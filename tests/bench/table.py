"""Turn results into one Markdown table, and into JSON.

Pure: knows nothing of kernels and files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tests.bench.results import OURS, PLAIN, Budget, Reading, Result, Row, Spread, Verdict

PEERS = (PLAIN, "torchrun", "%%px", "jupyter-distributed")
RATIOS = (PLAIN, "torchrun", "%%px")
NOTHING = "—"


def markdown(results: Sequence[Result]) -> str:
    """Lay *results* out as a table: peers, nbdist, its ratios, its budgets, pass or miss."""
    head = ["what", "N", *PEERS, OURS, *(f"÷ {peer}" for peer in RATIOS), "budget", ""]
    rule = ["---"] + ["--:"] * (len(head) - 3) + ["---", "---"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *map(line, results)])


def line(result: Result) -> list[str]:
    values = [value(result.spreads.get(peer), result.row) for peer in (*PEERS, OURS)]
    ratios = [f"{result.ratios[p]:.2f}×" if p in result.ratios else NOTHING for p in RATIOS]
    budgets = "; ".join(limit(v.budget, result.row) for v in result.verdicts) or NOTHING
    title = f"{result.row.title}, {result.row.unit}"
    return [title, str(result.num_ranks), *values, *ratios, budgets, verdict(result.verdicts)]


def value(spread: Spread | None, row: Row) -> str:
    """Show the median, and in brackets the smallest and the largest where there are some."""
    if spread is None:
        return NOTHING
    low, median, high = (
        three_digits(v * row.scale) for v in (spread.low, spread.median, spread.high)
    )
    return median if low == high else f"{median} ({low}–{high})"


def three_digits(number: float) -> str:
    """Round to three digits that count, without an exponent."""
    num_before_point = len(str(int(abs(number)))) if abs(number) >= 1 else 0
    return f"{number:.{max(0, 3 - num_before_point)}f}"


def limit(budget: Budget, row: Row) -> str:
    if budget.of is None:
        return f"≤ {budget.limit:g} {row.unit}"
    return f"≤ {budget.limit:g}× {budget.of}"


def verdict(verdicts: Sequence[Verdict]) -> str:
    """Say ``pass``, ``MISS``, or nothing where nothing could be judged."""
    kept = [v.is_kept for v in verdicts]
    if False in kept:
        return "**MISS**"
    return "pass" if kept and None not in kept else ""


def as_json(results: Sequence[Result], readings: Sequence[Reading]) -> dict[str, Any]:
    """Return all that was measured, and what became of it, ready for `json.dumps`."""
    return {
        "results": [
            {
                "row": result.row.key,
                "num_ranks": result.num_ranks,
                "unit": result.row.unit,
                "scale": result.row.scale,
                "peers": {peer: dataclasses.asdict(s) for peer, s in result.spreads.items()},
                "ratios": result.ratios,
                "budgets": [
                    {**dataclasses.asdict(v.budget), "measured": v.measured, "is_kept": v.is_kept}
                    for v in result.verdicts
                ],
            }
            for result in results
        ],
        "readings": [dataclasses.asdict(reading) for reading in readings],
    }
