"""Are replicas equal? What is compared, how differences are told, how they are set right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from nbdist.errors import UsageError
from nbdist.runtime.replica_check import Fact, _why_unrepairable, check, compare, distance, fact_of
from nbdist.runtime.replica_check import repair as repair_alone
from nbdist.runtime.replica_entries import entries_of
from nbdist.runtime.replica_report import Difference, Distance, Report, name_ranks
from tests.runtime.real_ranks import Facts, run_ranks

# Taking apart -------------------------------------------------------------------------------------


def names(value: Any) -> list[str]:
    return list(entries_of(value, "value").found)


def test_a_module_has_parameters_and_buffers_by_name() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))

    assert names(model)[:3] == ["0.weight", "0.bias", "1.weight"]
    assert "1.running_mean" in names(model)


def test_an_optimizer_has_its_state_by_the_number_of_the_parameter() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()

    found = names(optimizer)

    assert {"state.0.step", "state.1.exp_avg", "param_groups[0].lr"} <= set(found)
    assert not any("params" in name.split(".")[-1] for name in found)


def test_containers_are_taken_apart_and_plain_tuples_are_not() -> None:
    value = {"a": [torch.ones(1), 2], "b": {"c": np.ones(2)}, "betas": (0.9, 0.99), "t": ([1],)}

    assert names(value) == ["a[0]", "a[1]", "b.c", "betas", "t[0][0]"]


def test_whatever_has_a_state_dict_is_compared_by_it() -> None:
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)

    assert {"step_size", "last_epoch", "base_lrs[0]"} <= set(names(scheduler))


def test_what_cannot_be_pickled_is_named_and_left_out() -> None:
    entries = entries_of(
        {"numbers": (n for n in range(3)), "x": 1, "s": torch.eye(2).to_sparse()}, "v"
    )

    assert list(entries.found) == ["x"]
    assert entries.unread == ["numbers", "s"]


def test_a_value_with_nothing_to_compare_is_refused() -> None:
    with pytest.raises(UsageError, match="steps is a generator, in which there is nothing"):
        check((n for n in range(3)), name="steps")


# What counts as equal -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "is_equal"),
    [
        (torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.nan]), True),
        (torch.arange(6.0).reshape(2, 3).t(), torch.arange(6.0).reshape(2, 3).t().clone(), True),
        (torch.ones(4)[::2], torch.ones(2), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), False),
        (torch.ones(2), torch.ones(2, 1), False),
        (torch.empty(0), torch.empty(0), True),
        (torch.ones((), dtype=torch.bfloat16), torch.ones((), dtype=torch.bfloat16), True),
        (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j]), True),
        (1, True, False),
        (1, 1.0, False),
        (("a", "a"), ("a", "".join(["a"])), True),
        (math.nan, math.nan, True),
        (None, None, True),
    ],
)
def test_equal_means_the_same_bytes_in_the_same_form(one: Any, other: Any, is_equal: bool) -> None:
    assert (fact_of(one) == fact_of(other)) is is_equal


def fact(content: str, form: str = "tensor float32 [2]") -> Fact:
    return Fact(form, content, text=content)


def differences(values: Sequence[Fact | None], reference: int | None = None) -> list[Difference]:
    facts = {rank: {"w": value} if value else {} for rank, value in enumerate(values)}
    return compare(facts, reference)


@pytest.mark.parametrize(
    ("values", "reference", "ranks"),
    [
        ("aab", 0, (2,)),
        ("abb", 1, (0,)),
        ("abbb", 1, (0,)),
        ("ab", 0, (1,)),
        ("aabb", 0, (2, 3)),
        ("abc", 0, (1, 2)),
        ("bbac", 0, (2, 3)),
    ],
)
def test_the_majority_is_right_and_the_first_where_there_is_none(
    values: str, reference: int, ranks: tuple[int, ...]
) -> None:
    [found] = differences([fact(value) for value in values])

    assert (found.reference, found.ranks) == (reference, ranks)


def test_the_user_may_name_the_rank_that_is_right() -> None:
    [found] = differences([fact(value) for value in "aab"], reference=2)

    assert (found.reference, found.ranks) == (2, (0, 1))


def test_equal_values_make_no_difference() -> None:
    assert differences([fact("a")] * 3) == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([fact("a"), fact("a"), None], "w on rank 2 (missing there)"),
        ([None, None, fact("a")], "w on rank 2 (only there)"),
        (
            [fact("a"), fact("b", "tensor float32 [3]")],
            "w on rank 1 (tensor float32 [3], not tensor float32 [2])",
        ),
        ([fact("1", "int"), fact("2", "int")], "w on rank 1 (2, not 1)"),
        ([fact("1", "int"), fact("1.0", "float")], "w on rank 1 (float, not int)"),
    ],
)
def test_other_differences_are_told_in_words(values: list[Fact | None], text: str) -> None:
    [found] = differences(values)

    assert str(found) == text


# How far ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.5, 2.0], Distance(1.0, 2, 3)),
        ([math.nan, 1.0], [math.nan, 3.0], Distance(2.0, 1, 2)),
        ([math.nan, 1.0], [5.0, 1.0], Distance(0.0, 1, 2, num_nan=1)),
        ([math.inf, 1.0], [math.inf, 1.5], Distance(0.5, 1, 2)),
        ([math.inf], [0.0], Distance(math.inf, 1, 1)),
        ([0.0], [-0.0], Distance(0.0, 0, 1)),
        ([True, False], [True, True], Distance(1.0, 1, 2)),
        ([2**60], [2**60 + 2**20], Distance(2.0**20, 1, 1)),
        ([1 + 1j, 2j], [1 + 1j, 4j], Distance(2.0, 1, 2)),
        ([], [], Distance(0.0, 0, 0)),
    ],
)
def test_distance_counts_elements_and_takes_nan_for_equal_to_nan(
    mine: list[Any], theirs: list[Any], expected: Distance
) -> None:
    assert distance(torch.tensor(mine), torch.tensor(theirs)) == expected


@pytest.mark.parametrize(
    ("far", "text"),
    [
        (Distance(0.03125, 120, 4096), "max 3.1e-02, 120 of 4096 elements"),
        (Distance(2.0, 3, 4, num_nan=1), "max 2.0e+00, 3 of 4 elements, 1 of them NaN on one side"),
        (Distance(0.0, 1, 4, num_nan=1), "1 of 4 elements, all NaN on one side"),
        (Distance(0.0, 0, 4), "same numbers, other bits; 4 elements"),
    ],
)
def test_a_distance_reads_as_one_phrase(far: Distance, text: str) -> None:
    assert str(far) == text


# What the user reads ------------------------------------------------------------------------------


def report(**fields: Any) -> Report:
    basis = {"name": "model", "ranks": (0, 1, 2, 3), "num_tensors": 24, "num_values": 0}
    return Report(**{**basis, "size_bytes": 1_258_291, **fields})


def test_equal_replicas_take_one_line() -> None:
    assert str(report()) == "model: 24 tensors (1.2 MiB) are equal on ranks 0–3"


def test_differences_are_listed_with_the_rank() -> None:
    far = {1: Distance(0.03125, 120, 4096)}
    found = Difference("head.weight", 0, (1,), distances=far)

    assert str(report(differences=(found,))).splitlines() == [
        "model: 1 of 24 tensors differs:",
        "  head.weight on rank 1 (max 3.1e-02, 120 of 4096 elements)",
    ]


def test_a_long_list_is_cut() -> None:
    found = [Difference(f"w{n}", 0, (1,), reason="missing there") for n in range(20)]

    lines = str(report(differences=tuple(found))).splitlines()

    assert len(lines) == 10
    assert lines[-1] == "  and 12 more"


def test_what_was_not_compared_is_said() -> None:
    text = str(report(num_tensors=0, num_sharded=3, unread=("hook",)))

    assert text.splitlines() == [
        "model: nothing to compare",
        "  not compared: 3 sharded tensors",
        "  not compared, being neither dense nor picklable: hook",
    ]


def test_ranks_in_a_row_are_a_range() -> None:
    assert [name_ranks(r) for r in ([3], [0, 1], [0, 1, 2], [0, 2, 3])] == [
        "rank 3",
        "ranks 0, 1",
        "ranks 0–2",
        "ranks 0, 2, 3",
    ]


@pytest.mark.parametrize(
    ("forms", "why"),
    [
        ([fact("a"), fact("b")], ""),
        ([fact("a"), None], "since not all ranks have it"),
        ([fact("a"), fact("b", "tensor float32 [3]")], "since it has another dtype or shape"),
        ([fact("a"), fact("b", "int")], "since it is a tensor on some ranks only"),
        ([fact("1", "int"), fact("b", "str")], ""),
        (
            [fact("1", "int"), Fact("int", "2", is_settable=False)],
            "since it cannot be changed in place",
        ),
    ],
)
def test_a_repair_says_what_it_cannot_do(forms: list[Fact | None], why: str) -> None:
    assert _why_unrepairable(forms) == why


def test_one_rank_alone_gets_the_same_kind_of_answer() -> None:
    model = torch.nn.Linear(2, 2)

    assert str(check(model, name="net")) == "net: 2 tensors (24 B); there is one rank only"
    assert check(model).is_equal
    assert repair_alone(model).is_equal
    assert str(check(3)) == "value: 1 value; there is one rank only"


# On real ranks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked() -> list[Facts]:
    return run_ranks("replicas_script.py", "checking", 3)


@pytest.mark.ranks
def test_all_ranks_read_the_same_report(checked: list[Facts]) -> None:
    own = {"rank", "pair"}
    first, *others = [{k: v for k, v in facts.items() if k not in own} for facts in checked]

    assert others == [first, first]
    assert first["equal"] == "net: 7 tensors (680 B) are equal on ranks 0–2"
    assert first["equal_optimizer"].startswith("opt: 12 tensors and ")
    assert first["differs"].splitlines() == [
        "net: 2 of 7 tensors differ:",
        "  0.weight on rank 2 (max 5.0e-01, 3 of 128 elements)",
        "  0.bias on rank 2 (1 of 8 elements, all NaN on one side)",
    ]
    assert first["opt_differs"].splitlines()[1:] == [
        "  state.0.step on rank 2 (max 1.0e+00, 1 of 1 elements)",
        "  param_groups[0].lr on rank 2 (0.5, not 0.01)",
    ]


@pytest.mark.ranks
def test_a_repair_leaves_the_objects_and_the_training_works(checked: list[Facts]) -> None:
    for facts in checked:
        assert facts["repaired"].startswith("net: 2 of 7 tensors set to those of rank 0:")
        assert "are equal on ranks 0–2" in facts["after"]
        assert facts["opt_after"]
        assert (facts["lr"], facts["same_objects"], facts["error"]) == (0.01, True, "ok")


@pytest.mark.ranks
def test_an_optimizer_that_has_not_stepped_gets_the_whole_state(checked: list[Facts]) -> None:
    assert [facts["unstepped"] for facts in checked] == [False] * 3
    assert all("are equal on ranks 0–2" in facts["stepped"] for facts in checked)


@pytest.mark.ranks
def test_other_shapes_and_missing_entries_end_nothing(checked: list[Facts]) -> None:
    assert checked[0]["forms"].splitlines()[1:] == [
        "  a on rank 0 (tensor float32 [3], not tensor float32 [2])",
        "  b[1] on rank 0 (True, not False)",
        "  only on rank 2 (only there)",
    ]
    assert [facts["b"] for facts in checked] == [[1, True]] * 3
    assert "a on ranks 1, 2" in checked[0]["unrepaired"]
    assert "left as it is, since not all ranks have it" in checked[0]["unrepaired"]


@pytest.mark.ranks
def test_only_replicated_parts_of_dtensors_are_compared(checked: list[Facts]) -> None:
    assert checked[1]["sharded"].splitlines() == [
        "parts: 1 of 1 tensor differs:",
        "  whole on rank 2 (max 9.0e+00, 1 of 4 elements)",
        "  not compared: 1 sharded tensor",
    ]
    assert [facts["whole"] for facts in checked] == [[0.0, 1.0, 2.0, 3.0]] * 3


@pytest.mark.ranks
def test_a_group_is_named_by_the_ranks_of_the_world(checked: list[Facts]) -> None:
    assert checked[0]["pair"].splitlines()[1].startswith("  tensor on rank 2 ")
    assert "pair" not in checked[1]
    assert checked[0]["wrong"].startswith("UsageError: there is no rank 7")
