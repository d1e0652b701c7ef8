from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from nbdist.errors import SetupError
from nbdist.runtime.seed import rank_seed, set_seed


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), torch.rand(1).item()


@pytest.fixture
def plain_algorithms() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def test_one_seed_gives_the_same_numbers_everywhere() -> None:
    set_seed(7)
    first = draw()

    set_seed(7)

    assert draw() == first


def test_another_seed_gives_other_numbers_everywhere() -> None:
    set_seed(7)
    first = draw()

    set_seed(8)

    assert all(one != other for one, other in zip(draw(), first, strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(7)])
def test_every_seed_that_numpy_takes_is_taken(seed: int) -> None:
    set_seed(seed)

    assert torch.initial_seed() == seed


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "7", None, True])
def test_what_is_no_seed_is_refused_with_the_range(seed: Any) -> None:
    with pytest.raises(SetupError, match="0 to 4294967295 would be right"):
        set_seed(seed)
    with pytest.raises(SetupError, match="seed is"):
        rank_seed(seed, 0, "same")


def test_deterministic_algorithms_stay_on_once_they_are(plain_algorithms: None) -> None:
    assert not torch.are_deterministic_algorithms_enabled()

    set_seed(7, deterministic=True)
    set_seed(8)

    assert torch.are_deterministic_algorithms_enabled()


def test_ranks_share_a_seed_or_count_up_from_it() -> None:
    assert [rank_seed(7, rank, "same") for rank in range(3)] == [7, 7, 7]
    assert [rank_seed(7, rank, "offset") for rank in range(3)] == [7, 8, 9]


def test_an_offset_beyond_the_largest_seed_starts_again() -> None:
    assert rank_seed(2**32 - 1, 1, "offset") == 0


def test_an_unknown_way_to_seed_is_answered_with_the_right_ones() -> None:
    with pytest.raises(SetupError, match="Did you mean 'offset'"):
        rank_seed(7, 0, "offsets")
