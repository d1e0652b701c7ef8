"""Seed every source of random numbers of a rank.

Not covered: the hash seed of strings (fixed when Python starts), generators that the user has made,
and kernels that torch knows no deterministic form of (with ``deterministic`` they raise).
"""

from __future__ import annotations

import operator
import os
import random
from typing import Any

import numpy as np
import torch

from nbdist.errors import SetupError, did_you_mean

# NumPy's global generator takes no larger seed.
_NUM_SEEDS = 2**32


def set_seed(seed: int, *, deterministic: bool = False) -> None:
    """Seed Python, NumPy, torch on the CPU and every CUDA device.

    Args:
        seed: From 0 to 2**32 - 1. Nothing is folded: two seeds never mean the same numbers.
        deterministic: Also switch torch's deterministic algorithms on, for the rest of the process;
            ``False`` leaves them as they are. cuBLAS reads its part (``CUBLAS_WORKSPACE_CONFIG``)
            when first used, so call this before any work on a GPU.

    Raises:
        SetupError: The seed is no such number.
    """
    seed = _check_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # all CUDA devices too, also when CUDA starts later
    if deterministic:
        _use_deterministic_algorithms()


def rank_seed(seed: int, rank: int, per_rank: str = "same") -> int:
    """Choose the seed of one rank.

    Args:
        seed: The seed of the session, from 0 to 2**32 - 1.
        rank: Rank in the world.
        per_rank: ``same`` on all ranks, or ``offset``: ``seed + rank``, which starts again at 0
            beyond 2**32 - 1.

    Raises:
        SetupError: The seed is no such number, or *per_rank* is another word.
    """
    seed = _check_seed(seed)
    if per_rank == "same":
        return seed
    if per_rank == "offset":
        return (seed + rank) % _NUM_SEEDS
    raise SetupError(
        f"seed_per_rank is {per_rank!r}. {did_you_mean(str(per_rank), ('same', 'offset'))}"
    )


def _check_seed(seed: Any) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or not 0 <= number < _NUM_SEEDS:
        raise SetupError(
            f"seed is {seed!r}; a whole number from 0 to {_NUM_SEEDS - 1} would be right."
        )
    return number


def _use_deterministic_algorithms() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
