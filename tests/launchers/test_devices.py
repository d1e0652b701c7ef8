from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nbdist.config import Config
from nbdist.errors import LaunchError
from nbdist.launchers.devices import (
    DevicePlan,
    count_by_nvml,
    count_gpus,
    device_environment,
    plan_devices,
)

# Planning -------------------------------------------------------------------------------------


def test_with_gpus_there_is_one_rank_for_each() -> None:
    plan = plan_devices(Config(), gpus_visible=4, cores=16)

    assert plan == DevicePlan("cuda", 4, (0, 1, 2, 3), "cpu:gloo,cuda:nccl", threads=4)


def test_without_gpus_there_are_two_cpu_ranks() -> None:
    plan = plan_devices(Config(), gpus_visible=0, cores=2)

    assert plan == DevicePlan("cpu", 2, (), "cpu:gloo", threads=1)


def test_fewer_ranks_than_gpus_take_the_first_ones() -> None:
    assert plan_devices(Config(nproc=2), gpus_visible=4, cores=8).gpus == (0, 1)


def test_chosen_gpus_decide_the_number_of_ranks() -> None:
    plan = plan_devices(Config(gpus=[3, 1]), gpus_visible=4, cores=8)

    assert (plan.nproc, plan.gpus) == (2, (3, 1))


def test_cpu_ranks_on_a_machine_with_gpus_use_none() -> None:
    plan = plan_devices(Config(device="cpu", nproc=3, gpus=[0]), gpus_visible=1, cores=3)

    assert plan == DevicePlan("cpu", 3, (), "cpu:gloo", threads=1)


def test_more_ranks_than_gpus_is_an_error_with_both_counts_and_both_ways_out() -> None:
    with pytest.raises(LaunchError) as caught:
        plan_devices(Config(nproc=4), gpus_visible=2, cores=8)

    assert str(caught.value) == (
        "4 ranks are asked for on this host, but only 2 GPUs are visible.\n"
        "Use `device=cpu` for CPU ranks, or `oversubscribe=true` to let ranks share GPUs."
    )


def test_more_ranks_than_chosen_gpus_is_an_error_that_names_both() -> None:
    with pytest.raises(LaunchError, match="`gpus` names only 1 of the 2"):
        plan_devices(Config(nproc=2, gpus=[1]), gpus_visible=2, cores=8)


def test_oversubscribed_ranks_share_the_gpus_in_turn_and_avoid_nccl() -> None:
    plan = plan_devices(Config(nproc=5, oversubscribe=True), gpus_visible=2, cores=8)

    assert plan.gpus == (0, 1, 0, 1, 0)
    assert plan.backend == "cpu:gloo,cuda:gloo"


def test_oversubscribe_changes_nothing_where_there_are_enough_gpus() -> None:
    plan = plan_devices(Config(nproc=2, oversubscribe=True), gpus_visible=2, cores=8)

    assert plan.backend == "cpu:gloo,cuda:nccl"


@pytest.mark.parametrize("config", [Config(device="cuda"), Config(gpus=[0])])
def test_a_gpu_where_there_is_none_is_an_error(config: Config) -> None:
    with pytest.raises(LaunchError, match="no GPU is visible"):
        plan_devices(config, gpus_visible=0, cores=8)


def test_a_gpu_that_does_not_exist_is_answered_with_those_there_are() -> None:
    with pytest.raises(LaunchError, match=r"There is no GPU 5\. Visible: 0, 1\."):
        plan_devices(Config(gpus=[1, 5]), gpus_visible=2, cores=8)


def test_a_backend_is_taken_as_it_is_given() -> None:
    plan = plan_devices(Config(backend="gloo"), gpus_visible=0, cores=2)

    assert plan.backend == "gloo"


@pytest.mark.parametrize("backend", ["nccl", "cpu:gloo,cuda:nccl"])
def test_nccl_on_cpu_ranks_is_an_error(backend: str) -> None:
    with pytest.raises(LaunchError, match="backend=gloo"):
        plan_devices(Config(backend=backend, device="cpu"), gpus_visible=2, cores=2)


@pytest.mark.parametrize(("nproc", "cores", "threads"), [(2, 8, 4), (3, 8, 2), (4, 2, 1)])
def test_the_ranks_divide_the_cores(nproc: int, cores: int, threads: int) -> None:
    assert plan_devices(Config(nproc=nproc), gpus_visible=0, cores=cores).threads == threads


def test_threads_of_the_configuration_win() -> None:
    assert plan_devices(Config(threads=7), gpus_visible=0, cores=2).threads == 7


# What one rank sees ---------------------------------------------------------------------------


def test_a_cpu_rank_has_no_index() -> None:
    plan = plan_devices(Config(), gpus_visible=0, cores=2)

    assert device_environment(plan, 1, {}).index is None


def test_with_all_gpus_the_index_is_the_local_rank() -> None:
    plan = plan_devices(Config(), gpus_visible=4, cores=4)

    assert [device_environment(plan, rank, {}).index for rank in range(4)] == [0, 1, 2, 3]
    assert device_environment(plan, 3, {}).environment == {}


@pytest.mark.parametrize(
    ("outer", "visible"),
    [
        ({}, "3,1"),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, "7,5"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b,GPU-c,GPU-d"}, "GPU-d,GPU-b"),
    ],
)
def test_chosen_gpus_become_the_only_visible_ones(outer: dict[str, str], visible: str) -> None:
    plan = plan_devices(Config(gpus=[3, 1]), gpus_visible=4, cores=4)

    seen = [device_environment(plan, rank, outer) for rank in range(2)]

    assert [rank.index for rank in seen] == [0, 1]
    assert [rank.environment for rank in seen] == [{"CUDA_VISIBLE_DEVICES": visible}] * 2


def test_ranks_that_share_a_gpu_have_the_same_index() -> None:
    plan = plan_devices(Config(nproc=4, oversubscribe=True), gpus_visible=2, cores=4)

    assert [device_environment(plan, rank, {}).index for rank in range(4)] == [0, 1, 0, 1]


def test_the_only_gpu_that_a_scheduler_shows_is_index_0() -> None:
    plan = plan_devices(Config(), gpus_visible=4, cores=4)

    assert device_environment(plan, 3, {}, gpus_visible=1).index == 0


# Counting -------------------------------------------------------------------------------------


def no_nvml() -> None:
    return None


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A file system root with four GPUs."""
    (tmp_path / "dev").mkdir()
    for name in ["nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm", "null"]:
        (tmp_path / "dev" / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "number"),
    [
        (None, 4),
        ("", 0),
        ("-1", 0),
        ("none", 0),
        ("0", 1),
        ("2,3", 2),
        (" 2 , 3 ", 2),
        ("0,-1,1", 1),
        ("0,9,1", 1),
        ("0,x", 1),
        ("0,0", 0),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 1),
        ("GPU-a,GPU-b", 2),
        ("GPU-a,GPU-a", 0),
        ("MIG-a", 1),
        ("MIG-a,MIG-b", 1),
        ("MIG-GPU-a/1/0", 1),
    ],
)
def test_of_four_gpus_cuda_would_show(machine: Path, visible: str | None, number: int) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    assert count_gpus(environ, machine, no_nvml) == number


def test_gpus_that_have_no_device_files_yet_are_counted_by_the_driver(tmp_path: Path) -> None:
    for bus in ["0000:01:00.0", "0000:02:00.0"]:
        (tmp_path / "proc" / "driver" / "nvidia" / "gpus" / bus).mkdir(parents=True)

    assert count_gpus({}, tmp_path, no_nvml) == 2


def test_a_container_counts_only_the_gpus_it_was_given(machine: Path) -> None:
    for bus in range(8):
        (machine / "proc" / "driver" / "nvidia" / "gpus" / f"0000:0{bus}:00.0").mkdir(parents=True)

    assert count_gpus({}, machine, no_nvml) == 4


@pytest.mark.parametrize("visible", ["0", "GPU-a", "MIG-a"])
def test_a_machine_without_gpus_has_none_whatever_is_named(tmp_path: Path, visible: str) -> None:
    assert count_gpus({"CUDA_VISIBLE_DEVICES": visible}, tmp_path, no_nvml) == 0


def test_the_driver_is_asked_first(machine: Path) -> None:
    assert count_gpus({}, machine, lambda: 2) == 2


def test_without_nvidia_ml_py_the_driver_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert count_by_nvml() is None


class FakeNvmlError(Exception):
    """Stands for pynvml.NVMLError."""


def fake_nvml(number: int, failing: str = "") -> SimpleNamespace:
    def answer(name: str, value: int | None = None) -> int | None:
        if name == failing:
            raise FakeNvmlError
        return value

    return SimpleNamespace(
        NVMLError=FakeNvmlError,
        nvmlInit=lambda: answer("init"),
        nvmlDeviceGetCount=lambda: answer("count", number),
        nvmlShutdown=lambda: answer("shutdown"),
    )


def test_the_driver_says_how_many_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(3))

    assert count_by_nvml() == 3


@pytest.mark.parametrize("failing", ["init", "count"])
def test_a_driver_that_does_not_answer_is_left_out(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(3, failing))

    assert count_by_nvml() is None
