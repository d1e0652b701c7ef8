from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DistributedSampler

from nbdist.rank.identity import identities
from nbdist.rank.placed import Place

HERE = Place(1, torch.device("cpu"))
ON_GPU = Place(1, torch.device("cuda", 3))


def trainer(**attributes: Any) -> SimpleNamespace:
    return SimpleNamespace(lr=0.1, steps=1, model=torch.nn.Linear(1, 1), **attributes)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (trainer(gpu_id=1), (".gpu_id = 1",)),
        (trainer(local_rank=1, is_main=False), (".local_rank = 1", ".is_main = False")),
        (trainer(state=SimpleNamespace(process_index=1)), (".state.process_index = 1",)),
        (trainer(is_local_main_process=True), (".is_local_main_process = True",)),
        ({"rank": 1, "lr": 1}, ("['rank'] = 1",)),
        (trainer(rank=8, gpu_id=0), ()),
        (trainer(ranking=1, is_open=True, device="cpu"), ()),
        (DistributedSampler(torch.utils.data.TensorDataset(torch.ones(2)), 2, 1), ()),
        ("rank 1", ()),
    ],
)
def test_what_names_its_rank_is_found(value: Any, found: tuple[str, ...]) -> None:
    assert identities(value, HERE) == found


def test_the_gpu_of_a_rank_is_its_own_as_well() -> None:
    assert identities(trainer(gpu_id=3, device="cuda:3"), ON_GPU) == (
        ".gpu_id = 3",
        ".device = 'cuda:3'",
    )


def test_what_holds_itself_ends() -> None:
    first = trainer()
    first.itself, first.rank = first, 1

    assert identities(first, HERE) == (".rank = 1",)


def test_a_long_list_is_cut() -> None:
    assert len(identities({f"{i}_rank": 1 for i in range(100)}, HERE)) == 8
