"""One script under torchrun, under what Slurm sets, and alone: same types, right values."""

from __future__ import annotations

import pytest

from nbdist.runtime import free_port, local_env
from tests.runtime.launching import Facts, run_alone, run_by_hand, run_torchrun, slurm_env

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

SCRIPT = "alike_script.py"


@pytest.fixture(scope="module")
def alone() -> Facts:
    return run_alone(SCRIPT)


@pytest.fixture(scope="module", params=["torchrun", "slurm", "local_env"])
def pair(request: pytest.FixtureRequest) -> list[Facts]:
    if request.param == "torchrun":
        return run_torchrun(SCRIPT, 2)
    if request.param == "slurm":
        return run_by_hand(SCRIPT, [slurm_env(rank, 2) for rank in range(2)])
    port = free_port()
    return run_by_hand(SCRIPT, [local_env(rank, port, world_size=2) for rank in range(2)])


def test_each_rank_knows_its_place(pair: list[Facts]) -> None:
    assert [facts["rank"] for facts in pair] == [0, 1]
    assert [facts["local_rank"] for facts in pair] == [0, 1]
    assert [facts["is_master"] for facts in pair] == [True, False]
    assert [facts["group_size"] for facts in pair] == [2, 2]
    assert [facts["info"] for facts in pair] == [
        [rank, rank, 2, 2, "cpu:gloo,cuda:gloo"] for rank in range(2)
    ]
    assert all(facts["device"] == "cpu" and facts["initialized"] for facts in pair)


def test_one_process_is_a_world_of_one_with_a_real_group(alone: Facts) -> None:
    assert alone["info"] == [0, 0, 1, 1, "cpu:gloo,cuda:gloo"]
    assert alone["initialized"]
    assert alone["group_size"] == 1


def test_seeds_are_offset_by_rank(alone: Facts, pair: list[Facts]) -> None:
    assert [facts["seed"] for facts in [alone, *pair]] == [7, 7, 8]


SUMS = {
    "int": (["int", 1], ["int", 3]),
    "large int": (["int", 2**62 + 1], ["int", 2**63 + 2]),
    "bool": (["int", 1], ["int", 1]),
    "float": (["float", 0.5], ["float", 1.0]),
    "mixed": (["float", 0.5], ["float", 1.5]),
    "int average": (["float", 1.0], ["float", 1.5]),
    "numpy number": (["float", 0.5], ["float", 1.0]),
    "array": (["array int16", [2, 1]], ["array int16", [4, 2]]),
    "array without dims": (["array float64", 0.5], ["array float64", 1.0]),
    "array average": (["array float64", [0, 3]], ["array float64", [0.5, 3]]),
    "tensor": (["tensor torch.float32 cpu", [1, 1]], ["tensor torch.float32 cpu", [3, 3]]),
    "tensor average": (
        ["tensor torch.float32 cpu", [1, 1]],
        ["tensor torch.float32 cpu", [1.5, 1.5]],
    ),
    "scalar tensor": (["tensor torch.int8 cpu", 2], ["tensor torch.int8 cpu", 4]),
    "strided": (
        ["tensor torch.int64 cpu", [[0, 3], [1, 4], [2, 5]]],
        ["tensor torch.int64 cpu", [[1, 7], [3, 9], [5, 11]]],
    ),
    "bool tensor": (["tensor torch.int64 cpu", [1, 1]], ["tensor torch.int64 cpu", [2, 1]]),
    "int tensor average": (
        ["tensor torch.float32 cpu", [0, 3]],
        ["tensor torch.float32 cpu", [0.5, 3]],
    ),
    "half average": (["tensor torch.bfloat16 cpu", [1]], ["tensor torch.bfloat16 cpu", [1]]),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_has_the_type_that_came_in(name: str, alone: Facts, pair: list[Facts]) -> None:
    of_one, of_two = SUMS[name]

    assert alone[name] == of_one
    assert [facts[name] for facts in pair] == [of_two, of_two]


def test_the_input_of_a_sum_is_not_changed(pair: list[Facts]) -> None:
    for rank, facts in enumerate(pair):
        strided = [[row + rank, row + 3 + rank] for row in range(3)]
        assert facts["unchanged"] == [[rank + 1, rank + 1], True, strided]


def test_gathering_gives_one_entry_per_rank(alone: Facts, pair: list[Facts]) -> None:
    int16 = "tensor torch.int16 cpu"

    assert alone["gathered numbers"] == ["list", [["bool", True]]]
    assert alone["gathered arrays"] == ["list", [["array int64", [0]]]]
    assert alone["gathered tensors"] == ["list", [[int16, [0, 5]]]]
    for facts in pair:
        assert facts["gathered numbers"] == ["list", [["bool", True], ["bool", False]]]
        assert facts["gathered arrays"] == ["list", [["array int64", [0]], ["array int64", [1]]]]
        assert facts["gathered tensors"] == ["list", [[int16, [0, 5]], [int16, [1, 5]]]]


def test_a_broadcast_overwrites_in_place(alone: Facts, pair: list[Facts]) -> None:
    of_rank_1 = [[1, 4], [2, 5], [3, 6]]

    assert alone["broadcast in place"] == [[0, 3], [1, 4], [2, 5]]
    for facts in pair:
        assert facts["broadcast"] == ["tensor torch.int64 cpu", of_rank_1]
        assert facts["broadcast in place"] == of_rank_1
        assert facts["broadcast bools"] == ["tensor torch.bool cpu", True]
        assert facts["broadcast leaf"] is True


def test_broadcast_lists_may_differ_in_length(alone: Facts, pair: list[Facts]) -> None:
    assert alone["broadcast list"] == [{"from": 0}]
    assert [facts["broadcast list"] for facts in pair] == [[{"from": 1}] * 2] * 2


def test_objects_beyond_16_kib_are_gathered_everywhere(alone: Facts, pair: list[Facts]) -> None:
    assert alone["objects"] == [[100_000, 0]]
    assert [facts["objects"] for facts in pair] == [[[100_000, 0], [200_000, 1]]] * 2


def test_objects_are_gathered_on_rank_0_only(alone: Facts, pair: list[Facts]) -> None:
    assert alone["objects on rank 0"] == [{"rank": 0}]
    assert [facts["objects on rank 0"] for facts in pair] == [[{"rank": 0}, {"rank": 1}], None]


def test_average_divides_by_the_group_not_the_world(pair: list[Facts]) -> None:
    assert [facts["own group average"] for facts in pair] == [["float", 1.0], ["float", 2.0]]
    assert [facts["own group list"] for facts in pair] == [[0], [1]]


def test_a_group_of_others_is_refused(pair: list[Facts]) -> None:
    for rank, facts in enumerate(pair):
        assert facts["other group"].startswith(f"rank {rank} is not in this group")


def test_a_second_group_can_follow_the_first(alone: Facts, pair: list[Facts]) -> None:
    assert [facts["after cleanup"] for facts in [alone, *pair]] == [False] * 3
    assert [facts["second group"] for facts in [alone, *pair]] == [1, 2, 2]
