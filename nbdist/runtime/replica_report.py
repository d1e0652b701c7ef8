"""What `replica_check` found, in the words that a user reads.

model: 24 tensors (1.2 MiB) are equal on ranks 0–3

model: 1 of 24 tensors differs:
  head.weight on rank 1 (max 3.1e-02, 120 of 4096 elements)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nbdist.sizes import describe_size

MAX_LINES = 8


@dataclass(frozen=True)
class Distance:
    """How far a tensor is from that of the reference rank.

    Attributes:
        largest: Largest absolute difference of two numbers.
        num_differing: Elements that differ; a NaN equals a NaN.
        num_elements: Of the tensor.
        num_nan: Elements that are NaN on one of the two only; not in *largest*.
    """

    largest: float
    num_differing: int
    num_elements: int
    num_nan: int = 0

    def __str__(self) -> str:
        if not self.num_differing:
            return f"same numbers, other bits; {self.num_elements} elements"
        elements = f"{self.num_differing} of {self.num_elements} elements"
        if self.num_nan == self.num_differing:
            return f"{elements}, all NaN on one side"
        nan = f", {self.num_nan} of them NaN on one side" if self.num_nan else ""
        return f"max {self.largest:.1e}, {elements}{nan}"


@dataclass(frozen=True)
class Difference:
    """An entry that is not equal on all ranks.

    Attributes:
        name: Of the entry: ``head.weight``.
        reference: The rank that the others are compared with.
        ranks: Those that differ from it.
        reason: What differs, where that is not the content of tensors.
        is_of_form: It is missing somewhere, or has another type, dtype or shape.
        distances: By rank, for tensors of one dtype and shape.
    """

    name: str
    reference: int
    ranks: tuple[int, ...]
    reason: str = ""
    is_of_form: bool = False
    distances: Mapping[int, Distance] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name} on {name_ranks(self.ranks)} ({self.reason})"
        parts = [f"{name_ranks([rank])} ({far})" for rank, far in sorted(self.distances.items())]
        return f"{self.name} on {', '.join(parts)}"


@dataclass(frozen=True)
class Report:
    """Whether a value is equal on all ranks.

    Attributes:
        name: Of the value.
        ranks: That were compared.
        num_tensors: Entries that are tensors.
        num_values: Entries that are plain values.
        size_bytes: Of the tensors of one rank.
        differences: What is not equal; after a repair, what was not.
        num_sharded: Tensors that were left out, since each rank has a part of its own.
        unread: Entries that could not be compared.
        has_synced_buffers: It is a DDP module whose buffers differ between two forwards anyway.
        source: The rank whose values were set on the others; ``None`` for a check.
        unrepaired: Why some entries are as they were, by name.
    """

    name: str
    ranks: tuple[int, ...]
    num_tensors: int
    num_values: int
    size_bytes: int
    differences: tuple[Difference, ...] = ()
    num_sharded: int = 0
    unread: tuple[str, ...] = ()
    has_synced_buffers: bool = False
    source: int | None = None
    unrepaired: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_equal(self) -> bool:
        """Whether all that was compared is equal (or was, before a repair)."""
        return not self.differences

    def __str__(self) -> str:
        return "\n".join([self._headline(), *self._lines()])

    __repr__ = __str__  # as the last line of a cell

    def _headline(self) -> str:
        if self.source is not None and self.differences:
            done = len(self.differences) - len(self.unrepaired)
            return f"{self.name}: {done} of {self._things()} set to those of rank {self.source}:"
        if self.differences:
            verb = "differs" if len(self.differences) == 1 else "differ"
            return f"{self.name}: {len(self.differences)} of {self._things()} {verb}:"
        if not self.num_tensors + self.num_values:
            return f"{self.name}: nothing to compare"
        size = f" ({describe_size(self.size_bytes)})" if self.num_tensors else ""
        if len(self.ranks) == 1:
            return f"{self.name}: {self._things()}{size}; there is one rank only"
        verb = "is" if self.num_tensors + self.num_values == 1 else "are"
        return f"{self.name}: {self._things()}{size} {verb} equal on {name_ranks(self.ranks)}"

    def _things(self) -> str:
        tensors = count_of(self.num_tensors, "tensor") if self.num_tensors else ""
        values = count_of(self.num_values, "value") if self.num_values else ""
        return " and ".join(part for part in (tensors, values) if part)

    def _lines(self) -> Iterator[str]:
        for difference in self.differences[:MAX_LINES]:
            why = self.unrepaired.get(difference.name)
            yield f"  {difference}" + (f": left as it is, {why}" if why else "")
        if (more := len(self.differences) - MAX_LINES) > 0:
            yield f"  and {more} more"
        if self.num_sharded:
            yield f"  not compared: {count_of(self.num_sharded, 'sharded tensor')}"
        if self.unread:
            yield f"  not compared, being neither dense nor picklable: {', '.join(self.unread)}"
        if self.has_synced_buffers and self.differences:
            yield "  DDP sets buffers to those of rank 0 in its next forward"


# Words ------------------------------------------------------------------------------------------


def name_ranks(ranks: Iterable[int]) -> str:
    """Name *ranks*: ``rank 3``, ``ranks 0, 2``, and ``ranks 0–3`` where three or more follow."""
    numbers = sorted(ranks)
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"ranks {numbers[0]}–{numbers[-1]}"
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def count_of(number: int, what: str) -> str:
    """Return ``1 tensor`` or ``3 tensors``."""
    return f"{number} {what}{'s' * (number != 1)}"
