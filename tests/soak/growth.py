"""What a session grew by per 1,000 cells, beside its bound, as a Markdown table.

Pure: samples in, rows and text out.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MB = 2**20


@dataclass(frozen=True)
class Bound:
    """How much something may grow.

    Attributes:
        per_1000: For every 1,000 cells, in the unit of its quantity.
        swing: What it may swing by beside that, however long the soak.
    """

    per_1000: float
    swing: float


@dataclass(frozen=True)
class Quantity:
    """Something counted for a role.

    Attributes:
        role: Whose: ``rank 0``, ``agent``, ``session folder``.
        what: ``descriptors``, ``threads``, ``memory, MB``, ``files``, ``size, MB``.
    """

    role: str
    what: str


@dataclass(frozen=True)
class Sample:
    """What was counted after so many cells."""

    num_cells: int
    amounts: Mapping[Quantity, float]


@dataclass(frozen=True)
class Growth:
    """What became of one quantity.

    Attributes:
        quantity: Which.
        first: In the first sample.
        last: In the last one.
        per_1000: Slope of a straight line through all samples.
        num_cells: Between the first sample and the last.
        bound: What it may be.
    """

    quantity: Quantity
    first: float
    last: float
    per_1000: float
    num_cells: int
    bound: Bound

    @property
    def is_within(self) -> bool:
        """Whether it grew by no more than its bound."""
        thousands = self.num_cells / 1000
        return self.per_1000 * thousands <= self.bound.per_1000 * thousands + self.bound.swing


# Twice what thousands of cells on a quiet machine showed, and what replaced ranks swing by.
BOUNDS = {
    ("kernel", "descriptors"): Bound(2, 6),
    ("kernel", "threads"): Bound(0, 3),
    ("kernel", "memory, MB"): Bound(25, 15),
    ("agent", "descriptors"): Bound(1, 4),
    ("agent", "threads"): Bound(0, 0),
    ("agent", "memory, MB"): Bound(1, 3),
    ("controller", "descriptors"): Bound(1, 4),
    ("controller", "threads"): Bound(0, 0),
    ("controller", "memory, MB"): Bound(6, 4),
    ("store", "descriptors"): Bound(1, 6),
    ("store", "threads"): Bound(0, 0),
    ("store", "memory, MB"): Bound(1, 2),
    ("rank 0", "descriptors"): Bound(2, 16),
    ("rank 0", "threads"): Bound(1, 8),
    ("rank 0", "memory, MB"): Bound(20, 40),
    ("other ranks", "descriptors"): Bound(2, 16),
    ("other ranks", "threads"): Bound(1, 8),
    ("other ranks", "memory, MB"): Bound(20, 40),
    ("session folder", "files"): Bound(80, 20),  # one for each process that was a rank
    ("session folder", "size, MB"): Bound(80, 20),
    ("shared memory", "files"): Bound(0, 0),
    ("shared memory", "size, MB"): Bound(0, 2),  # a page counts once a group has written there
}


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Return what each quantity has grown by, in the order of `BOUNDS`.

    Args:
        samples: At least two, oldest first.
    """
    return [
        growth_of(Quantity(role, what), samples, bound)
        for (role, what), bound in BOUNDS.items()
        if all(Quantity(role, what) in sample.amounts for sample in samples)
    ]


def growth_of(quantity: Quantity, samples: Sequence[Sample], bound: Bound) -> Growth:
    cells = [sample.num_cells for sample in samples]
    amounts = [sample.amounts[quantity] for sample in samples]
    slope = statistics.linear_regression(cells, amounts).slope
    return Growth(quantity, amounts[0], amounts[-1], slope * 1000, cells[-1] - cells[0], bound)


def markdown(found: Sequence[Growth]) -> str:
    """Lay out *found* as a table."""
    head = ["role", "what", "begin", "end", "per 1,000 cells", "bound", ""]
    rule = ["---", "---", "--:", "--:", "--:", "--:", "---"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *map(line, found)])


def line(growth: Growth) -> list[str]:
    return [
        growth.quantity.role,
        growth.quantity.what,
        f"{growth.first:.1f}",
        f"{growth.last:.1f}",
        f"{growth.per_1000:+.1f}",
        f"{growth.bound.per_1000:g} (swing {growth.bound.swing:g})",
        "pass" if growth.is_within else "**MISS**",
    ]
