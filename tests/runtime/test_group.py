from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from nbdist.config import Config, load_config
from nbdist.errors import SetupError
from nbdist.runtime import device as device_module
from nbdist.runtime.environment import local_env
from nbdist.runtime.group import (
    GroupSettings,
    choose_backend,
    cleanup,
    get_default_group,
    get_init_method,
    get_local_rank,
    get_rank,
    get_world_size,
    has_group,
    initialized,
    is_master,
    setup,
    synchronize,
    wants_cpu,
)

CPU = torch.device("cpu")
GPU = torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def no_group_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device_module, "_assigned", None)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


# Decisions -------------------------------------------------------------------------------------


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert [wants_cpu("auto", 0), wants_cpu("auto", 2)] == [True, False]
    assert [wants_cpu("cpu", 2), wants_cpu("cuda", 0)] == [True, False]


def test_an_unknown_device_is_answered_with_the_right_ones() -> None:
    with pytest.raises(SetupError, match="Did you mean 'cuda'"):
        wants_cpu("cudo", 0)


def test_the_backend_carries_both_devices_where_there_is_a_gpu() -> None:
    assert choose_backend("auto", CPU) == "gloo"
    assert choose_backend("auto", GPU) == "cpu:gloo,cuda:nccl"
    assert choose_backend("auto", GPU, is_shared=True) == "gloo"
    assert choose_backend("nccl", GPU) == "nccl"


def test_settings_are_what_a_config_has_of_them() -> None:
    settings = GroupSettings.from_config(SimpleNamespace(seed=7, timeout_s=None, nproc=4))

    assert settings.seed == 7
    assert settings.timeout_s == Config().timeout_s
    assert GroupSettings.from_config(None) == GroupSettings.from_config(Config())


def test_tcp_meets_at_the_first_host_at_the_port_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "10")

    of_4 = "?world_size=4&rank=3"
    assert get_init_method("tcp", 4, 3, "n[3-4],n1", None) == f"tcp://n3:21010{of_4}"
    assert get_init_method("tcp", 4, 3, ["a", "b"]) == f"tcp://a:21010{of_4}"
    assert get_init_method("tcp", 4, 3, ["fe80::1"]) == f"tcp://[fe80::1]:21010{of_4}"


def test_a_port_that_the_user_chose_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "10")
    monkeypatch.setenv("MASTER_PORT", "1234")

    assert get_init_method("tcp", 4, 0, "n3").startswith("tcp://n3:1234?")


def test_one_rank_alone_needs_no_node_list() -> None:
    assert get_init_method("tcp", 1, 0).startswith("tcp://127.0.0.1:")


def test_file_is_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    of_2 = "?world_size=2&rank=1"
    assert get_init_method("file", 2, 1, None, "meet") == f"file://{tmp_path}/meet{of_2}"
    assert get_init_method("file", 2, 1, filename=Path("/a/b")) == f"file:///a/b{of_2}"


def test_who_is_not_told_reads_rank_and_world_size_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in local_env(1, 29501, world_size=2).items():
        monkeypatch.setenv(name, value)

    assert get_init_method("file", None, filename="/m") == "file:///m?world_size=2&rank=1"


@pytest.mark.parametrize("kind", ["tcp", "file"])
def test_torch_needs_nothing_but_the_url(kind: str, tmp_path: Path) -> None:
    url = get_init_method(kind, 1, 0, filename=tmp_path / "meet")

    dist.init_process_group("gloo", init_method=url)

    assert dist.get_world_size() == 1


@pytest.mark.parametrize(
    ("kind", "rank", "node_list", "named"),
    [
        ("tpc", 0, "n1", "unknown init method 'tpc'. Did you mean 'tcp'"),
        ("mpi", 0, "n1", "There are: file, tcp"),
        ("tcp", 0, None, "SLURM_JOB_NODELIST"),
        ("tcp", 0, "n1", "SLURM_JOB_ID is not set"),
        ("file", 0, None, "filename"),
        ("tcp", 2, "n1", "rank 2 does not exist"),
    ],
)
def test_what_an_init_method_lacks_is_named(
    kind: str, rank: int, node_list: str | None, named: str
) -> None:
    with pytest.raises(SetupError, match=named):
        get_init_method(kind, 2, rank, node_list)


# One process -----------------------------------------------------------------------------------


def test_alone_setup_makes_a_real_group_of_one() -> None:
    info = setup(load_config(overrides=["device=cpu", "seed=3"]))

    assert initialized()
    assert (info.rank, info.local_rank, info.world_size, info.device) == (0, 0, 1, CPU)
    assert get_default_group().size() == 1
    assert torch.initial_seed() == 3
    synchronize()


def test_a_second_setup_does_nothing() -> None:
    first = setup(SimpleNamespace(device="cpu", seed=3))
    group = get_default_group()

    second = setup(SimpleNamespace(device="cpu", seed=4))

    assert second == first
    assert get_default_group() is group
    assert torch.initial_seed() == 3


def test_cleanup_may_be_called_twice_and_setup_again_after_it() -> None:
    setup(SimpleNamespace(device="cpu"))

    cleanup()
    cleanup()

    assert not initialized()
    assert setup(SimpleNamespace(device="cpu")).world_size == 1


def test_a_group_that_somebody_else_made_is_used_and_left_to_its_maker() -> None:
    store = dist.HashStore()  # type: ignore[attr-defined]  # re-exported without `as`
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)

    info = setup()
    cleanup()

    assert info.world_size == 1
    assert initialized()


def test_the_questions_have_answers_before_setup() -> None:
    assert (get_rank(), get_local_rank(), get_world_size(), is_master()) == (0, 0, 1, True)
    assert not initialized()
    synchronize()


def test_before_setup_the_environment_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in local_env(1, 29501, world_size=2).items():
        monkeypatch.setenv(name, value)

    assert (get_rank(), get_local_rank(), get_world_size(), is_master()) == (1, 1, 2, False)


def test_a_rank_that_forgot_setup_does_not_go_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in local_env(1, 29501, world_size=2).items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SetupError, match=r"rank 1 of 2 \(torchrun\).*\n.*setup"):
        has_group()


def test_no_group_yet_is_an_error_that_says_so() -> None:
    with pytest.raises(SetupError, match="no process group yet"):
        get_default_group()


def test_ranks_that_do_not_meet_are_told_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SetupError, match="rank 0 of 2 could not join the group at file://"):
        setup(SimpleNamespace(device="cpu", init_method="file", timeout_s=0.5))

    assert not initialized()
