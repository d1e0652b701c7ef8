from __future__ import annotations

import socket

import pytest

from nbdist.errors import SetupError
from nbdist.runtime.environment import (
    ALONE,
    RankEnvironment,
    current_environment,
    free_port,
    local_env,
    read_environment,
)

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "6",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "29501",
}
SLURM = {
    "SLURM_JOB_ID": "10",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "2",
    "SLURM_TASKS_PER_NODE": "2(x2)",
    "SLURM_JOB_NODELIST": "n[1-2]",
}


def without(env: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in names}


def test_nothing_set_is_one_process_alone() -> None:
    assert read_environment({}) == ALONE
    assert read_environment({"MASTER_ADDR": "n1", "SLURM_JOB_ID": "7"}) == ALONE
    assert read_environment({"RANK": "", "WORLD_SIZE": ""}) == ALONE


def test_all_of_torchrun_is_read() -> None:
    assert read_environment(TORCHRUN) == RankEnvironment(5, 1, 6, 2, 1, "n1", 29501, "torchrun")


def test_all_of_slurm_is_read() -> None:
    environment = read_environment(SLURM)

    assert environment == RankEnvironment(3, 1, 4, 2, 1, "n1", 21_010, "slurm")


def test_torchrun_under_slurm_wins() -> None:
    assert read_environment({**SLURM, **TORCHRUN}).source == "torchrun"


def test_a_job_script_that_exports_a_world_size_is_still_slurm() -> None:
    by_hand = {"WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}

    environment = read_environment({**SLURM, **by_hand})

    assert environment.source == "slurm"
    assert (environment.master_addr, environment.master_port) == ("10.0.0.1", 1234)


def test_a_batch_script_is_alone() -> None:
    assert read_environment({**SLURM, "SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}) == ALONE


def test_a_rank_of_a_session_says_so_and_a_torchrun_inside_it_too() -> None:
    session = {**TORCHRUN, "NBDIST_SESSION": "abc", "TORCHELASTIC_RUN_ID": "abc"}

    assert read_environment(session).source == "nbdist"
    assert read_environment({**session, "TORCHELASTIC_RUN_ID": "x"}).source == "torchrun"


@pytest.mark.parametrize("missing", ["WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"])
def test_a_half_set_environment_names_what_is_missing(missing: str) -> None:
    with pytest.raises(SetupError, match=f"{missing} is not"):
        read_environment(without(TORCHRUN, missing))


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
def test_a_rank_number_is_needed_when_the_rest_is_set(name: str) -> None:
    with pytest.raises(SetupError, match=f"{name} is set .* but RANK is not"):
        read_environment({name: "2"})


@pytest.mark.parametrize(
    "name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"]
)
@pytest.mark.parametrize("value", ["two", "-1", "1.5", "0x1", "²"])
def test_what_is_no_number_is_named(name: str, value: str) -> None:
    with pytest.raises(SetupError, match=f"{name} is '{value}'; a whole number"):
        read_environment({**TORCHRUN, name: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"RANK": "6"}, "RANK is 6, but WORLD_SIZE is 6"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK is 2, but LOCAL_WORLD_SIZE is 2"),
    ],
)
def test_a_rank_beyond_its_world_is_refused(change: dict[str, str], named: str) -> None:
    with pytest.raises(SetupError, match=named):
        read_environment({**TORCHRUN, **change})


def test_on_one_host_torchs_own_four_variables_are_enough() -> None:
    four = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}

    environment = read_environment(four)

    assert (environment.local_rank, environment.local_world_size) == (1, 2)


def test_one_rank_needs_no_master() -> None:
    environment = read_environment({"RANK": "0", "WORLD_SIZE": "1"})

    assert (environment.master_addr, environment.master_port) == (None, None)
    assert environment.local_world_size == 1


def test_the_environment_of_one_process_alone_has_a_free_port() -> None:
    env = local_env()

    environment = read_environment(env)
    assert (environment.rank, environment.world_size, environment.local_rank) == (0, 1, 0)
    assert environment.master_addr == "127.0.0.1"
    assert environment.master_port


def test_the_environments_of_several_ranks_differ_in_the_rank_only() -> None:
    envs = [local_env(rank, 29501, "10.0.0.1", world_size=2) for rank in range(2)]

    assert [read_environment(env).local_rank for env in envs] == [0, 1]
    assert without(envs[0], "RANK", "LOCAL_RANK") == without(envs[1], "RANK", "LOCAL_RANK")
    assert envs[1]["MASTER_ADDR"] == "10.0.0.1"


def test_a_world_size_that_is_not_told_is_not_invented() -> None:
    env = local_env(1, 29501, "127.0.0.1")

    assert env["RANK"] == "1"
    assert "WORLD_SIZE" not in env


def test_several_ranks_without_a_port_are_refused() -> None:
    with pytest.raises(SetupError, match="port"):
        local_env(1, world_size=2)
    with pytest.raises(SetupError, match="RANK is 2"):
        local_env(2, 29501, world_size=2)


def test_a_free_port_can_be_listened_on() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_this_process_is_alone() -> None:
    assert current_environment() == ALONE
