from __future__ import annotations

import pytest
import torch

from nbdist.errors import SetupError
from nbdist.runtime import device as device_module
from nbdist.runtime.device import assign_device, choose_device, get_device


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_assigned", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(("local_rank", "num_gpus", "index"), [(0, 4, 0), (3, 4, 3), (0, 1, 0)])
def test_each_local_rank_has_a_gpu_of_its_own(local_rank: int, num_gpus: int, index: int) -> None:
    assert choose_device(local_rank, num_gpus) == torch.device("cuda", index)


def test_a_rank_that_sees_one_gpu_only_takes_it() -> None:
    assert choose_device(3, 1) == torch.device("cuda", 0)


def test_the_cpu_can_be_asked_for_where_there_are_gpus() -> None:
    assert choose_device(0, 4, cpu=True) == torch.device("cpu")


def test_more_ranks_than_gpus_are_refused_with_both_ways_out() -> None:
    with pytest.raises(
        SetupError, match=r"local rank 2 has no GPU of its own: there are 2"
    ) as error:
        choose_device(2, 2)

    assert "device=cpu" in str(error.value)
    assert "oversubscribe=true" in str(error.value)


def test_the_gpus_of_the_config_are_taken_in_its_order() -> None:
    assert [choose_device(n, 4, gpus=[3, 1]).index for n in range(2)] == [3, 1]
    with pytest.raises(SetupError, match="local rank 2 has no GPU"):
        choose_device(2, 4, gpus=[3, 1])


@pytest.mark.parametrize("gpus", [[0, 4], []])
def test_gpus_that_are_not_there_are_refused_with_those_that_are(gpus: list[int]) -> None:
    with pytest.raises(SetupError, match=r"sees 4: \[0, 1, 2, 3\]"):
        choose_device(0, 4, gpus=gpus)


def test_ranks_share_gpus_when_asked_to() -> None:
    assert [choose_device(n, 2, oversubscribe=True).index for n in range(4)] == [0, 1, 0, 1]


def test_cuda_where_there_is_none_is_refused(no_gpu: None) -> None:
    with pytest.raises(SetupError, match=r"sees none.*\n.*cpu=True"):
        assign_device(0)


def test_the_assigned_device_is_remembered(no_gpu: None) -> None:
    assert get_device() == torch.device("cpu")

    assert assign_device(1, cpu=True) == torch.device("cpu")

    assert get_device() == torch.device("cpu")


def test_an_assigned_gpu_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(device_module, "_assigned", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)

    assert assign_device(2) == torch.device("cuda", 2)

    assert current == [torch.device("cuda", 2)]
    assert get_device() == torch.device("cuda", 2)


@pytest.mark.gpu
def test_a_real_gpu_is_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_assigned", None)

    assert assign_device(0).index == torch.cuda.current_device()
