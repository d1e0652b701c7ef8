from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nbdist.errors import SetupError, UsageError
from nbdist.runtime import collectives, group
from nbdist.runtime.collectives import choose_carrier
from nbdist.runtime.environment import local_env
from tests.runtime.launching import Facts, run_by_hand, slurm_env

CPU = torch.device("cpu")
GPU = torch.device("cuda", 1)
BOTH = frozenset({"cpu", "cuda"})


@pytest.fixture(params=["no group", "group of one"])
def one_rank(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "group of one":
        group.setup(SimpleNamespace(device="cpu"))
    yield
    group.cleanup()


# Which device carries --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "of_rank", "carried", "carrier"),
    [
        (CPU, CPU, BOTH, CPU),
        (CPU, GPU, BOTH, CPU),
        (GPU, GPU, BOTH, GPU),
        (CPU, GPU, frozenset({"cuda"}), GPU),
        (GPU, GPU, frozenset({"cpu"}), CPU),
        (torch.device("cuda"), GPU, BOTH, GPU),
        (torch.device("cuda", 0), GPU, BOTH, torch.device("cuda", 0)),
        (torch.device("mps"), CPU, BOTH, CPU),
    ],
)
def test_a_tensor_travels_where_it_is_if_the_group_can(
    wanted: torch.device, of_rank: torch.device, carried: frozenset[str], carrier: torch.device
) -> None:
    assert choose_carrier(wanted, of_rank, carried) == carrier


# One rank --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0)])
def test_every_dtype_travels(dtype: torch.dtype, shape: tuple[int, ...], one_rank: None) -> None:
    tensor = torch.ones(shape).to(dtype)

    total = collectives.all_reduce(tensor)
    [part] = collectives.all_gather(tensor)
    collectives.broadcast(tensor)

    assert (part.dtype, part.shape) == (dtype, tensor.shape)
    assert torch.equal(part.to(torch.complex64), torch.ones(shape, dtype=torch.complex64))
    assert total.shape == tensor.shape
    assert total.dtype is (torch.int64 if dtype is torch.bool else dtype)


@pytest.mark.parametrize(
    ("data", "total", "mean"),
    [
        (3, 3, 3.0),
        (-3, -3, -3.0),
        (-(2**63), -(2**63), -(2.0**63)),
        (True, 1, 1.0),
        (0.25, 0.25, 0.25),
        (float("inf"), float("inf"), float("inf")),
        (np.int8(3), 3, 3.0),
        (np.bool_(True), 1, 1.0),
        (np.float16(0.5), 0.5, 0.5),
    ],
)
def test_a_number_stays_a_number(data: Any, total: float, mean: float, one_rank: None) -> None:
    reduced, average = collectives.all_reduce(data), collectives.all_reduce(data, average=True)

    assert (reduced, type(reduced)) == (total, type(total))
    assert (average, type(average)) == (mean, float)


def test_a_result_shares_no_memory_with_the_input(one_rank: None) -> None:
    tensor, array = torch.ones(3, requires_grad=True), np.ones(3)
    array.setflags(write=False)

    results = [collectives.all_reduce(tensor), collectives.all_gather(tensor)[0]]
    arrays = [collectives.all_reduce(array), collectives.all_gather(array)[0]]
    for result in results:
        result += 1
    for result_array in arrays:
        result_array += 1

    assert not any(result.requires_grad for result in results)
    assert tensor.tolist() == [1, 1, 1]
    assert array.tolist() == [1, 1, 1]


def test_a_conjugated_view_is_summed_as_what_it_shows(one_rank: None) -> None:
    tensor = torch.tensor([1 + 2j]).conj()

    assert collectives.all_reduce(tensor).tolist() == [1 - 2j]


def test_an_array_of_foreign_byte_order_is_taken(one_rank: None) -> None:
    assert collectives.all_reduce(np.array([1, 2], dtype=">i4")).tolist() == [1, 2]


@pytest.mark.parametrize(
    "data",
    ["text", None, ["a"], [[1], [2, 3]], [], 1j, 2**63, np.array(["text"]), np.array([None])],
)
def test_what_cannot_be_summed_is_refused_with_what_can(data: Any, one_rank: None) -> None:
    with pytest.raises(UsageError, match="all_gather_objects"):
        collectives.all_reduce(data)
    with pytest.raises(UsageError, match="all_gather_objects"):
        collectives.all_gather(data)


def test_gathered_objects_are_copies(one_rank: None) -> None:
    thing = {"a": [1]}

    [copy] = collectives.all_gather_objects(thing)
    first = collectives.gather_objects(thing)

    assert first == [thing]
    assert copy == thing
    assert copy["a"] is not thing["a"]


def test_what_cannot_be_pickled_fails_on_one_rank_too(one_rank: None) -> None:
    with pytest.raises(Exception, match=r"pickle|local object"):
        collectives.all_gather_objects(lambda: None)


def test_a_broadcast_list_stays_what_it_is(one_rank: None) -> None:
    objects: list[Any] = [1, "a"]

    assert collectives.broadcast_object_list(objects) is objects
    assert objects == [1, "a"]
    assert collectives.broadcast_object_list([]) == []


def test_a_source_that_does_not_exist_is_refused(one_rank: None) -> None:
    with pytest.raises(UsageError, match="no rank 1 in this group; its ranks are"):
        collectives.broadcast(torch.ones(1), src=1)


def test_a_broadcast_of_no_tensor_names_the_way_for_objects(one_rank: None) -> None:
    with pytest.raises(UsageError, match="broadcast_object_list"):
        collectives.broadcast(3)  # type: ignore[call-overload]  # the user's mistake


def test_a_rank_without_a_group_does_not_sum_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in local_env(0, 29501, world_size=2).items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SetupError, match="setup"):
        collectives.all_reduce(1)


# Three ranks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> list[Facts]:
    folder = tmp_path_factory.mktemp("meet")
    return run_by_hand("subgroup_script.py", [slurm_env(rank, 3) for rank in range(3)], folder)


@pytest.mark.ranks
@pytest.mark.timeout(120)
def test_average_divides_by_the_group_not_the_world(trio: list[Facts]) -> None:
    assert [facts["world"] for facts in trio] == [1.0, 1.0, 1.0]
    assert [trio[rank]["average"] for rank in (0, 2)] == [1.0, 1.0]
    assert [trio[rank]["tensors"] for rank in (0, 2)] == [[1.0], [1.0]]
    assert [trio[rank]["list"] for rank in (0, 2)] == [2, 2]


@pytest.mark.ranks
@pytest.mark.timeout(120)
def test_objects_of_a_group_are_gathered_on_its_first_rank(trio: list[Facts]) -> None:
    assert [trio[rank]["objects"] for rank in (1, 2)] == [["of 1", "of 2"], None]
    assert [trio[rank]["all objects"] for rank in (1, 2)] == [["of 1", "of 2"]] * 2


@pytest.mark.ranks
@pytest.mark.timeout(120)
def test_the_source_of_a_broadcast_is_a_rank_of_the_world(trio: list[Facts]) -> None:
    for rank in (1, 2):
        assert trio[rank]["broadcast"] == [2]
        assert trio[rank]["broadcast list"] == [2]
        assert "its ranks are [1, 2]" in trio[rank]["wrong source"]
