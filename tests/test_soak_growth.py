"""What a soak makes of its samples."""

from __future__ import annotations

from collections.abc import Sequence

from tests.soak.growth import BOUNDS, Quantity, Sample, growths, markdown

THREADS = Quantity("agent", "threads")
DESCRIPTORS = Quantity("rank 0", "descriptors")


def samples(quantity: Quantity, amounts: Sequence[float], every: int = 100) -> list[Sample]:
    return [Sample(i * every, {quantity: amount}) for i, amount in enumerate(amounts)]


def test_a_quantity_that_stays_grows_by_nothing() -> None:
    [growth] = growths(samples(THREADS, [1, 1, 1]))

    assert growth.per_1000 == 0
    assert growth.is_within


def test_growth_is_the_slope_for_1000_cells() -> None:
    [growth] = growths(samples(THREADS, [1, 2, 3]))

    assert round(growth.per_1000, 6) == 10
    assert not growth.is_within


def test_what_only_swings_is_within_its_bound() -> None:
    swing = BOUNDS["rank 0", "descriptors"].swing

    [growth] = growths(samples(DESCRIPTORS, [50, 50 + swing, 50, 50 + swing]))

    assert growth.is_within


def test_a_slow_leak_is_beyond_its_bound_in_a_long_soak() -> None:
    leak = [50 + 0.05 * cells for cells in range(0, 1400, 100)]

    [growth] = growths(samples(DESCRIPTORS, leak))

    assert not growth.is_within


def test_what_was_not_counted_in_every_sample_is_left_out() -> None:
    assert growths([Sample(0, {}), *samples(THREADS, [1, 1])]) == []


def test_the_table_says_what_is_beyond_its_bound() -> None:
    assert markdown(growths(samples(THREADS, [1, 2, 3]))).splitlines()[2:] == [
        "| agent | threads | 1.0 | 3.0 | +10.0 | 0 (swing 0) | **MISS** |"
    ]
