from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from nbdist.errors import RankError
from nbdist.packing import TensorBytes
from nbdist.sessions.values import RankTensor, RankValues, describe, tensor_from


def tensor(
    data: np.ndarray[Any, Any], dtype: str | None = None, device: str = "cuda:1"
) -> RankTensor:
    name = dtype or str(data.dtype)
    return tensor_from(TensorBytes(memoryview(data.tobytes()), name, data.shape, device))


def test_values_are_found_by_rank_and_iterated_in_rank_order() -> None:
    values = RankValues({2: "c", 0: "a"})

    assert (values[0], values[2]) == ("a", "c")
    assert list(values) == ["a", "c"]
    assert values.ranks == (0, 2)
    assert len(values) == 2
    assert list(values.items()) == [(0, "a"), (2, "c")]
    assert (list(values.keys()), list(values.values())) == ([0, 2], ["a", "c"])


def test_a_rank_without_a_value_is_answered_with_those_that_have_one() -> None:
    with pytest.raises(RankError, match="there are those of: 0, 2"):
        RankValues({2: "c", 0: "a"})[1]
    with pytest.raises(RankError, match="none"):
        RankValues({})[0]


def test_the_mean_of_numbers_is_a_number() -> None:
    mean = RankValues({0: 1, 1: 2.5}).mean()

    assert (type(mean), mean) == (float, 1.75)


def test_stack_and_mean_of_tensors_are_arrays() -> None:
    values = RankValues({0: tensor(np.array([1.0, 2.0])), 1: tensor(np.array([3.0, 6.0]))})

    assert values.stack().tolist() == [[1, 2], [3, 6]]
    assert values.mean().tolist() == [2, 4]
    assert type(values.mean()) is np.ndarray


def test_shapes_that_differ_cannot_be_stacked() -> None:
    with pytest.raises(ValueError, match="shape"):
        RankValues({0: np.ones(2), 1: np.ones(3)}).stack()


def test_there_is_one_line_a_rank() -> None:
    values = RankValues({0: tensor(np.ones((2, 3), np.float32)), 10: {"a": 1}})

    assert repr(values) == "rank  0: tensor (2, 3) float32 cuda:1\nrank 10: {'a': 1}"
    assert repr(RankValues({})) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("two\nlines", r"'two\nlines'"),
        (np.ones((2, 2)), "array (2, 2) float64"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_a_value_is_described_in_one_line(value: Any, text: str) -> None:
    assert describe(value) == text


def test_a_long_description_is_cut() -> None:
    assert len(describe("x" * 1000)) == 100
    assert "\n" not in describe(np.arange(1000).tolist())


def test_a_tensor_without_dimensions_shows_its_number() -> None:
    assert describe(tensor(np.array(2.5, np.float32))) == "2.5 (float32, cuda:1)"


def test_a_tensor_remembers_type_and_device_through_slices_and_copies() -> None:
    whole = tensor(np.array([0x3F80, 0x4000], np.uint16), "bfloat16")

    assert whole.tolist() == [1.0, 2.0]
    others: tuple[Any, ...] = (whole[:1], whole.copy(), whole.reshape(2, 1), copy.deepcopy(whole))
    for other in others:
        assert (other.torch_dtype, other.device) == ("bfloat16", "cuda:1")


def test_a_tensor_survives_a_pickle_of_the_notebook() -> None:
    again = pickle.loads(pickle.dumps(tensor(np.arange(3.0))))

    assert again.tolist() == [0, 1, 2]


def test_the_true_tensor_owns_its_memory_and_is_on_the_cpu() -> None:
    import torch

    there = tensor(np.array([0x3F80, 0x4000], np.uint16), "bfloat16")

    true = there.torch()
    true.add_(1)

    assert (true.dtype, true.device.type, true.tolist()) == (torch.bfloat16, "cpu", [2.0, 3.0])
    assert there.tolist() == [1.0, 2.0]
