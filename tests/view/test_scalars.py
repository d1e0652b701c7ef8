from __future__ import annotations

from math import inf, nan

import pytest

from nbdist.view.consolidate import Shown
from nbdist.view.scalars import ScalarTable, split_scalars
from tests.view.build import result, stdout


def totals_of(*values: float) -> list[str]:
    """Return what the totals of *values* say."""
    totals = table_of(*values).totals
    return [" ".join(filter(None, (one.name, one.value, one.ranks))) for one in totals]


def table_of(*values: float) -> ScalarTable:
    table, _ = split_scalars({rank: [result(repr(v), v)] for rank, v in enumerate(values)})
    assert table is not None
    return table


def test_whole_numbers_stay_whole() -> None:
    table = table_of(1, 3, 2)

    assert table.rows == ((0, "1"), (1, "3"), (2, "2"))
    assert totals_of(1, 3, 2) == ["min 1 (rank 0)", "mean 2", "max 3 (rank 1)"]


def test_the_mean_of_whole_numbers_may_be_broken() -> None:
    assert totals_of(1, 2) == ["min 1 (rank 0)", "mean 1.5", "max 2 (rank 1)"]


def test_the_ranks_of_the_extremes_are_named() -> None:
    assert totals_of(0.5, 0.5, 2.0) == [
        "min 0.5 (ranks 0, 1)",
        "mean 1.0",
        "max 2.0 (rank 2)",
    ]


def test_nan_is_named_and_left_out_of_the_totals() -> None:
    assert totals_of(1.0, nan, 3.0) == [
        "min 1.0 (rank 0)",
        "mean 2.0",
        "max 3.0 (rank 2)",
        "NaN (rank 1)",
    ]


def test_infinity_counts() -> None:
    assert totals_of(1.0, inf) == ["min 1.0 (rank 0)", "mean inf", "max inf (rank 1)"]
    assert totals_of(-inf, inf)[1] == "mean nan"


def test_large_numbers_do_not_overflow() -> None:
    assert totals_of(1e308, 1.5e308)[1] == "mean 1.25e+308"


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        (["0.7625", "1.6500", "0.1358", "11.8250"], "3.5933"),
        (["0.5000", "1.0000"], "0.7500"),
        (["4.8770", "4.8928", "4.8827"], "4.8842"),
        (["1.5", "20.0"], "10.75"),
        (["1", "2", "2"], "1.7"),
        (["-0.0001", "0.0000", "0.0001"], "0.0000"),
        (["1.2346e-05", "3.1e-04"], "0.00016117"),
        (["123456.78", "2.5"], "61729.64"),
        (["2.302585092994046", "1.0"], "1.65129"),
        (["1.0000000000000002", "3.0"], "2.0"),
    ],
)
def test_the_mean_has_the_digits_of_the_values(values: list[str], mean: str) -> None:
    plain = [f"tensor({value})" for value in values]
    numbers = [float(value) if set(value) & {".", "e"} else int(value) for value in values]

    table, _ = split_scalars(
        {rank: [result(plain[rank], number)] for rank, number in enumerate(numbers)}
    )

    assert table is not None
    assert [value for _, value in table.rows] == values
    assert table.totals[1].value == mean


@pytest.mark.parametrize(
    ("plain", "scalar", "text"),
    [
        ("tensor(0.6931)", 0.6931471824645996, "0.6931"),
        ("tensor(1.2346e-05, grad_fn=<MeanBackward0>)", 1.23456e-05, "1.2346e-05"),
        ("tensor(2.)", 2.0, "2.0"),
        ("tensor(7, device='cuda:0')", 7, "7"),
        ("tensor(nan)", nan, "nan"),
        ("np.float64(-0.25)", -0.25, "-0.25"),
        ("Loss: low", 0.25, "0.25"),
        ("Scaled(3)", 0.25, "0.25"),
        ("-inf", -inf, "-inf"),
    ],
)
def test_a_value_is_shown_as_its_rank_wrote_it(plain: str, scalar: float, text: str) -> None:
    table, _ = split_scalars({0: [result(plain, scalar)], 1: [result("41", 41)]})

    assert table is not None
    assert table.rows[0] == (0, text)


def test_values_that_look_alike_but_differ_are_shown_in_full() -> None:
    a, b = result("tensor(0.1000)", 0.10000001), result("tensor(0.1000)", 0.10000002)

    table, _ = split_scalars({0: [a], 1: [b]})

    assert table is not None
    assert table.rows == ((0, "0.10000001"), (1, "0.10000002"))


@pytest.mark.parametrize(
    ("values", "aligned"),
    [
        (["0.5", "33.25"], [" 0.5", "33.25"]),
        (["7", "-10", "1.5"], ["  7", "-10", "  1.5"]),
        (["1e-05", "12.5"], [" 1e-05", "12.5"]),
        (["nan", "-inf", "1.0"], [" nan", "-inf", "   1.0"]),
        ([".5", "1.5"], [" .5", "1.5"]),
    ],
)
def test_decimal_points_stand_below_one_another(values: list[str], aligned: list[str]) -> None:
    table = ScalarTable(tuple(enumerate(values)), ())

    assert [value.rstrip() for value in table.aligned()] == aligned


def test_the_totals_are_aligned_with_the_values() -> None:
    assert table_of(0.5, 33.25).aligned() == [" 0.5 ", "33.25", " 0.5 ", "16.88", "33.25"]


def test_what_comes_before_the_results_is_left() -> None:
    before = stdout("evaluating\n")

    table, rest = split_scalars({0: [before, result("1", 1)], 1: [before, result("2", 2)]})

    assert table is not None
    assert rest == {0: (before,), 1: (before,)}


@pytest.mark.parametrize(
    "outputs",
    [
        {0: [result("1", 1)]},
        {0: [result("1", 1)], 1: [result("1", 1)]},
        {0: [result("nan", nan)], 1: [result("nan", nan)]},
        {0: [result("1", 1)], 1: []},
        {0: [result("1", 1)], 1: [stdout("2\n")]},
        {0: [result("1", 1)], 1: [result("2", 2), stdout("late\n")]},
        {0: [result("True", True)], 1: [result("False", False)]},
        {},
    ],
    ids=["alone", "equal", "all nan", "none", "no result", "not last", "booleans", "no ranks"],
)
def test_there_is_no_table_without_need(outputs: dict[int, list[Shown]]) -> None:
    table, rest = split_scalars(outputs)

    assert table is None
    assert rest == {rank: tuple(shown) for rank, shown in outputs.items()}
