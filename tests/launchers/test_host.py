from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdist.launchers.host import available_cores, free_memory


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_a_quota_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path, affinity=6) == 6


def test_the_affinity_of_this_process_is_asked_from_the_system(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1)],
)
def test_a_quota_of_cgroup_v2_is_rounded_down_but_not_to_nothing(
    tmp_path: Path, quota: str, cores: int
) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota}\n"})

    assert available_cores(tmp_path, affinity=8) == cores


def test_the_smallest_quota_of_all_cgroups_around_us_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job\n",
            "sys/fs/cgroup/user.slice/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/user.slice/job/cpu.max": "600000 100000\n",
        },
    )

    assert available_cores(tmp_path, affinity=8) == 2


@pytest.mark.parametrize("path", ["/docker/abc", "/../../abc"])
def test_a_path_of_the_host_is_looked_up_at_the_top_of_the_container(
    tmp_path: Path, path: str
) -> None:
    write(
        tmp_path,
        {"proc/self/cgroup": f"0::{path}\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"},
    )

    assert available_cores(tmp_path, affinity=8) == 3


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_cgroup_v1_counts(tmp_path: Path, folder: str) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n",
            f"sys/fs/cgroup/{folder}/job/cpu.cfs_quota_us": "300000\n",
            f"sys/fs/cgroup/{folder}/job/cpu.cfs_period_us": "100000\n",
        },
    )

    assert available_cores(tmp_path, affinity=8) == 3


def test_cgroup_v1_without_a_quota_says_minus_one(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )

    assert available_cores(tmp_path, affinity=8) == 8


def test_more_quota_than_cores_gives_the_cores(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1600000 100000\n"})

    assert available_cores(tmp_path, affinity=2) == 2


def test_on_this_machine_there_is_a_core() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


# Memory -------------------------------------------------------------------------------------------


def test_free_memory_is_what_the_machine_has_where_no_cgroup_limits_it(tmp_path: Path) -> None:
    assert free_memory(tmp_path, available=5000) == 5000


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/job", {"job/memory.max": "1000", "job/memory.current": "400"}),
        ("0::/job", {"memory.max": "1000", "memory.current": "400", "job/memory.max": "max"}),
        (
            "4:memory:/job",
            {
                "memory/job/memory.limit_in_bytes": "1000",
                "memory/job/memory.usage_in_bytes": "400",
            },
        ),
    ],
)
def test_free_memory_is_what_the_limits_of_the_cgroups_leave(
    tmp_path: Path, line: str, files: dict[str, str]
) -> None:
    in_mount = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}

    write(tmp_path, {"proc/self/cgroup": line, **in_mount})

    assert free_memory(tmp_path, available=5000) == 600
