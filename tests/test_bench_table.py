"""The pure half of the benchmark: what becomes of readings."""

import json

import pytest

from tests.bench.measures import MEASURES, rows
from tests.bench.results import Budget, Reading, Row, per_extra_rank, summarise
from tests.bench.table import as_json, markdown, three_digits

EMPTY = Row("empty", "an empty cell", "ms", 1e3, (Budget(2.5, "plain", 2), Budget(0.75, "%%px")))
WIDGET = Row("widget", "first line in the live view", "ms", 1e3, (Budget(550.0),))


def cells_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_a_kept_budget_passes() -> None:
    readings = [
        Reading("empty", "nbdist", 2, (0.010,), plain=(0.005,)),
        Reading("empty", "%%px", 2, (0.020,), plain=(0.005,)),
    ]

    (result,) = summarise([EMPTY], readings)

    assert result.ratios == {"plain": pytest.approx(2.0), "%%px": pytest.approx(0.5)}
    assert [verdict.is_kept for verdict in result.verdicts] == [True, True]
    assert cells_of(markdown([result]))[-1][-1] == "pass"


def test_one_budget_of_two_missed_is_a_miss() -> None:
    readings = [
        Reading("empty", "nbdist", 2, (0.010,), plain=(0.005,)),
        Reading("empty", "%%px", 2, (0.012,)),
    ]

    (result,) = summarise([EMPTY], readings)

    assert [verdict.is_kept for verdict in result.verdicts] == [True, False]
    assert cells_of(markdown([result]))[-1][-1] == "**MISS**"


def test_a_budget_holds_only_for_its_number_of_ranks() -> None:
    readings = [
        Reading("empty", "nbdist", 4, (0.090,), plain=(0.005,)),
        Reading("empty", "%%px", 4, (0.200,)),
    ]

    (result,) = summarise([EMPTY], readings)

    assert [verdict.budget.of for verdict in result.verdicts] == ["%%px"]


def test_without_the_peer_a_budget_names_nothing_is_claimed() -> None:
    (result,) = summarise([EMPTY], [Reading("empty", "nbdist", 2, (0.01,), plain=(0.005,))])

    assert [verdict.is_kept for verdict in result.verdicts] == [True, None]
    assert cells_of(markdown([result]))[-1][-1] == ""


def test_an_absolute_budget_is_in_the_unit_of_its_row() -> None:
    slow, quick = (
        summarise([WIDGET], [Reading("widget", "nbdist", 2, (s,))])[0] for s in (0.6, 0.5)
    )

    assert [verdict.is_kept for verdict in slow.verdicts] == [False]
    assert [verdict.is_kept for verdict in quick.verdicts] == [True]


def test_nbdist_is_compared_with_the_plain_kernel_of_its_own_minutes() -> None:
    readings = [
        Reading("empty", "%%px", 2, (0.020,), plain=(0.050,)),
        Reading("empty", "nbdist", 2, (0.010,), plain=(0.004,)),
    ]

    (result,) = summarise([EMPTY], readings)

    assert result.spreads["plain"].median == pytest.approx(0.004)


def test_repeated_visits_are_merged() -> None:
    readings = [Reading("empty", "%%px", 2, (value,)) for value in (0.03, 0.01, 0.02)]

    (result,) = summarise([EMPTY], readings)

    assert result.spreads["%%px"].median == pytest.approx(0.02)
    assert result.spreads["%%px"].num_values == 3
    assert cells_of(markdown([result]))[-1][4] == "20.0 (10.0–30.0)"


def test_an_extra_rank_costs_what_it_adds_to_the_fewest() -> None:
    readings = [Reading("memory", "%%px", n, (mb * 1e6,)) for n, mb in ((2, 600), (4, 1000))]

    derived = per_extra_rank(readings, total="memory", key="extra")

    assert derived == [Reading("extra", "%%px", 4, (200e6,))]


def test_one_number_of_ranks_tells_nothing_about_an_extra_one() -> None:
    assert per_extra_rank([Reading("memory", "%%px", 2, (6e8,))], total="memory", key="x") == []


def test_every_line_has_as_many_cells_as_the_head() -> None:
    readings = [Reading(row.key, "nbdist", 2, (1.0,), plain=(1.0,)) for row in rows()]

    table = cells_of(markdown(summarise(rows(), readings)))

    assert len(table) == 2 + len(rows())
    assert {len(cells) for cells in table} == {len(table[0])}


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.0512, "0.051"),
        (4.8391, "4.84"),
        (9.795, "9.79"),
        (27.84, "27.8"),
        (615.2, "615"),
        (2290.4, "2290"),
    ],
)
def test_numbers_keep_three_digits(number: float, shown: str) -> None:
    assert three_digits(number) == shown


def test_json_holds_results_and_readings() -> None:
    readings = [Reading("empty", "nbdist", 2, (0.010,), plain=(0.005,))]

    found = json.loads(json.dumps(as_json(summarise([EMPTY], readings), readings)))

    assert found["results"][0]["budgets"][0]["is_kept"] is True
    assert found["readings"][0]["plain"] == [0.005]


def test_rows_have_keys_of_their_own() -> None:
    keys = [row.key for row in rows()]

    assert len(set(keys)) == len(keys)
    assert all(measure.rows for measure in MEASURES.values())
