"""Hand-computed, by the definitions of nccl-tests' PERFORMANCE.md."""

from __future__ import annotations

import pytest

from nbdist.view.bandwidth import algorithm_bandwidth, bus_factor, data_size


def test_algbw_is_size_by_time() -> None:
    assert algorithm_bandwidth(4_000_000_000, 0.5) == 8e9


@pytest.mark.parametrize(
    ("op", "num_ranks", "factor"),
    [
        ("all_reduce", 2, 1.0),
        ("all_reduce", 4, 1.5),
        ("all_reduce", 8, 1.75),
        ("all_gather", 4, 0.75),
        ("all_gather_into_tensor", 8, 0.875),
        ("reduce_scatter", 2, 0.5),
        ("reduce_scatter_tensor", 4, 0.75),
        ("all_to_all", 4, 0.75),
        ("all_to_all_single", 8, 0.875),
        ("gather", 4, 0.75),
        ("scatter", 4, 0.75),
        ("broadcast", 8, 1.0),
        ("reduce", 8, 1.0),
        ("send", 2, 1.0),
        ("recv", 2, 1.0),
    ],
)
def test_the_bus_factor_is_that_of_nccl_tests(op: str, num_ranks: int, factor: float) -> None:
    assert bus_factor(op, num_ranks) == factor


def test_what_moves_no_data_has_no_bus_bandwidth() -> None:
    assert bus_factor("barrier", 4) is None
    assert bus_factor("monitored_barrier", 4) is None


def test_a_ring_all_reduce_of_a_gigabyte_by_hand() -> None:
    # 1 GB on 4 ranks: each link carries 2 · 3/4 GB; in 0.15 s that is 10 GB/s.
    algbw = algorithm_bandwidth(data_size("all_reduce", [10**9] * 4, 4), 0.15)

    assert algbw * (bus_factor("all_reduce", 4) or 0) == pytest.approx(10e9)


def test_the_size_of_a_gather_is_all_that_is_gathered() -> None:
    assert data_size("all_gather", [100, 100, 100, 100], 4) == 400
    assert data_size("gather", [100, 300], 2) == 400


def test_of_ranks_that_are_not_known_the_others_size_is_taken() -> None:
    assert data_size("all_gather_into_tensor", [100, 100], 4) == 400


def test_the_size_of_all_else_is_what_one_rank_puts_in() -> None:
    assert data_size("all_reduce", [100, 100], 2) == 100
    assert data_size("reduce_scatter", [400, 400, 400, 400], 4) == 400
    assert data_size("all_to_all_single", [400, 300], 2) == 400


def test_only_the_root_of_a_scatter_puts_something_in() -> None:
    assert data_size("scatter", [0, 800, 0, 0], 4) == 800
    assert data_size("barrier", [], 4) == 0
