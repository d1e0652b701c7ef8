from __future__ import annotations

import pytest

from nbdist.errors import SetupError
from nbdist.runtime.slurm import (
    is_slurm_rank,
    job_name,
    job_port,
    parse_node_list,
    parse_tasks_per_node,
    read_place,
)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", ()),
        ("login", ("login",)),
        ("a,b", ("a", "b")),
        ("n[1-2]", ("n1", "n2")),
        ("n[1-3,07],login,g-[01-02]-a", ["n1", "n2", "n3", "n07", "login", "g-01-a", "g-02-a"]),
        ("n[08-11]", ("n08", "n09", "n10", "n11")),
        ("n[099-101]", ("n099", "n100", "n101")),
        ("r[1-2]n[1-2]", ("r1n1", "r1n2", "r2n1", "r2n2")),
        ("n[5]", ("n5",)),
        ("[1-2]", ("1", "2")),
        (
            "n1.example.org,n[2-3].example.org",
            ["n1.example.org", "n2.example.org", "n3.example.org"],
        ),
        ("10.0.0.[1-2]", ("10.0.0.1", "10.0.0.2")),
    ],
)
def test_a_node_list_is_expanded_in_order(text: str, hosts: tuple[str, ...] | list[str]) -> None:
    assert parse_node_list(text) == tuple(hosts)


@pytest.mark.parametrize(
    "text", ["n[1-", "n1]", "n[]", "n[3-1]", "n[a-b]", "a,,b", "n[1,]", ",", "a b"]
)
def test_what_is_no_node_list_is_named(text: str) -> None:
    with pytest.raises(SetupError, match="in the node list"):
        parse_node_list(text)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("4", (4,)),
        ("4,2", (4, 2)),
        ("2(x2)", (2, 2)),
        ("2(x2),1", (2, 2, 1)),
        ("1,3(x2),1", (1, 3, 3, 1)),
    ],
)
def test_ranks_per_host_are_expanded(text: str, counts: tuple[int, ...]) -> None:
    assert parse_tasks_per_node(text) == counts


@pytest.mark.parametrize("text", ["", "x", "2(x)", "2x2", "2,", "2(x2", "-1"])
def test_ranks_per_host_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(SetupError, match="ranks per host"):
        parse_tasks_per_node(text)


def srun(rank: int, local_rank: int, node_rank: int, layout: str, **more: str) -> dict[str, str]:
    num_ranks, num_nodes = sum(parse_tasks_per_node(layout)), len(parse_tasks_per_node(layout))
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local_rank),
        "SLURM_NODEID": str(node_rank),
        "SLURM_NTASKS": str(num_ranks),
        "SLURM_NNODES": str(num_nodes),
        "SLURM_TASKS_PER_NODE": layout,
        "SLURM_JOB_NODELIST": f"n[1-{num_nodes}]",
        **more,
    }


def test_an_uneven_layout_is_read_right() -> None:
    on_first, on_second = read_place(srun(3, 3, 0, "4,2")), read_place(srun(5, 1, 1, "4,2"))

    assert (on_first.local_rank, on_first.local_world_size, on_first.node_rank) == (3, 4, 0)
    assert (on_second.local_rank, on_second.local_world_size, on_second.node_rank) == (1, 2, 1)
    assert on_second.world_size == 6
    assert on_second.hosts == ("n1", "n2")


def test_cyclic_ranks_keep_the_local_rank_that_slurm_gave() -> None:
    place = read_place(srun(1, 0, 1, "2(x2)"))

    assert (place.rank, place.local_rank, place.node_rank) == (1, 0, 1)


def test_the_step_wins_over_the_job() -> None:
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "n2",
    }

    place = read_place({**srun(1, 1, 0, "2(x2)"), **step})

    assert (place.world_size, place.local_world_size, place.hosts) == (2, 2, ("n2",))


@pytest.mark.parametrize("rank", range(6))
def test_without_local_ids_hosts_are_filled_one_after_the_other(rank: int) -> None:
    env = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "6", "SLURM_TASKS_PER_NODE": "4,2"}

    place = read_place(env)

    assert (place.node_rank, place.local_rank) == divmod(rank, 4)


@pytest.mark.parametrize(
    "counts",
    [
        {"SLURM_NTASKS": "4", "SLURM_NNODES": "2"},
        {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"},
        {"SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "n[1-2]"},
        {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"},
        {"SLURM_NPROCS": "4", "SLURM_JOB_NUM_NODES": "2"},
        {"SLURM_TASKS_PER_NODE": "2(x2)"},
    ],
)
def test_the_same_layout_is_told_in_many_ways(counts: dict[str, str]) -> None:
    place = read_place({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", **counts})

    assert (place.world_size, place.local_world_size, place.node_rank) == (4, 2, 1)


def test_six_ranks_on_four_hosts_are_not_guessed() -> None:
    with pytest.raises(SetupError, match="SLURM_TASKS_PER_NODE is not set"):
        read_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "4"})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID is 4"),
        ({"SLURM_PROCID": "one"}, "SLURM_PROCID is 'one'"),
        ({"SLURM_NTASKS": "5"}, "SLURM_NTASKS says 5"),
        ({"SLURM_LOCALID": "2"}, "SLURM_LOCALID 2"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID 2"),
    ],
)
def test_a_contradiction_names_the_variable(change: dict[str, str], named: str) -> None:
    with pytest.raises(SetupError, match=named):
        read_place({**srun(1, 1, 0, "2(x2)"), **change})


def test_a_missing_count_is_named() -> None:
    with pytest.raises(SetupError, match=r"SLURM_NTASKS is not set.*\n.*`srun`"):
        read_place({"SLURM_PROCID": "0"})


def test_a_batch_script_is_no_rank_but_what_it_starts_with_srun_is() -> None:
    batch = {**srun(0, 0, 0, "2(x2)"), "ENVIRONMENT": "BATCH"}

    assert not is_slurm_rank(batch)
    assert is_slurm_rank({**batch, "SLURM_STEP_ID": "0"})
    assert not is_slurm_rank({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"})


def test_every_job_and_step_has_a_port_of_its_own() -> None:
    ports = [
        job_port({"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)})
        for job in range(70_000, 70_100)
        for step in range(20)
    ]

    assert len(set(ports)) == len(ports)
    assert all(port is not None and 20_000 <= port < 32_000 for port in ports)


def test_the_ranks_of_a_step_compute_the_same_port() -> None:
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "1"}

    assert job_port({**job, "SLURM_PROCID": "0"}) == job_port({**job, "SLURM_PROCID": "3"})
    assert job_port({"SLURM_PROCID": "0"}) is None


def test_a_requeued_job_has_another_name() -> None:
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}

    assert job_name(job) == "4711.0"
    assert job_name({**job, "SLURM_RESTART_COUNT": "1"}) == "4711.0.1"
