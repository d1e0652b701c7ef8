"""Programs written for DPR's and fairchem's helpers run with their import changed only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nbdist.errors import SetupError
from nbdist.runtime import device, free_port, group, synonyms
from nbdist.runtime.environment import RankEnvironment
from tests.runtime.launching import HERE, Facts, run_by_hand, run_torchrun
from tests.sessions.driving import finished, printed, ranks

SCRIPT = "familiar_script.py"


def run_in_cell() -> list[Facts]:
    with ranks(2) as session:
        run = finished(session, Path(HERE, SCRIPT).read_text())
        return [json.loads(printed(run, rank)) for rank in (0, 1)]


@pytest.fixture(scope="module", params=["torchrun", "by hand", "cell"])
def pair(request: pytest.FixtureRequest) -> list[Facts]:
    if request.param == "torchrun":
        return run_torchrun(SCRIPT, 2)
    if request.param == "by hand":
        port = str(free_port())
        return run_by_hand(SCRIPT, [{"WORKER": str(rank), "PORT": port} for rank in range(2)])
    return run_in_cell()


@pytest.fixture(scope="module", params=["group of one", "no group"])
def alone(request: pytest.FixtureRequest) -> Facts:
    [facts] = run_by_hand(SCRIPT, [{"WITHOUT_GROUP": "1"} if request.param == "no group" else {}])
    return facts


ERRORS = {
    "unknown init method": "ValueError",
    "missing variable": "RuntimeError",
    "no tensor": "ValueError",
}


@pytest.mark.ranks
@pytest.mark.timeout(120)
def test_two_ranks_get_what_their_authors_expected(pair: list[Facts]) -> None:
    for rank, facts in enumerate(pair):
        assert facts == {
            "rank": rank,
            "size": 2,
            "is_master": rank == 0,
            "device": "cpu",
            "sum": 3,
            "average": [1.0, 1.0],
            "list": [2, 1],
            "by name": 1.0,
            "gathered": [[0.5, 0.5], [1.5, 1.5]],
            "gathered lists": [[0, 1], [1, 1]],
            "objects": [{"rank": 0}, {"rank": 1}] if rank == 0 else None,
            "all objects": 0,
            "broadcast": [0.5, 0.5],
            "broadcast later": [1, 1, 1],
            "broadcast turned": [[1.0, 3.0], [2.0, 4.0]],
            "is completed": True,
            "broadcast things": [{"from": 0}, None],
            "url": f"world_size=2&rank={rank}",
            "file": f"file:///x/y?world_size=2&rank={rank}",
            "after cleanup": facts["after cleanup"],  # a session keeps its group
            **ERRORS,
        }


@pytest.mark.ranks
def test_one_process_gets_the_same_types(alone: Facts) -> None:
    assert alone == {
        "rank": 0,
        "size": 1,
        "is_master": True,
        "device": "cpu",
        "sum": 1,
        "average": [0.5, 0.5],
        "list": [1, 0],
        "by name": 1.0,
        "gathered": [[0.5, 0.5]],
        "gathered lists": [[0, 1]],
        "objects": [{"rank": 0}],
        "all objects": 0,
        "broadcast": [0.5, 0.5],
        "broadcast later": [0, 0, 0],
        "broadcast turned": [[0.0, 2.0], [1.0, 3.0]],
        "is completed": True,
        "broadcast things": [{"from": 0}, None],
        "url": "world_size=1&rank=0",
        "file": "file:///x/y?world_size=1&rank=0",
        "after cleanup": False,
        **ERRORS,
    }


def test_a_config_of_fairchem_is_read_with_its_units() -> None:
    settings = group.GroupSettings.from_config(
        {"cpu": True, "distributed_backend": "gloo", "timeout": 3, "submit": False}
    )

    assert (settings.device, settings.backend, settings.timeout_s) == ("cpu", "gloo", 180.0)
    assert group.GroupSettings.from_config({"cpu": False}).device == "cuda"
    assert group.GroupSettings.from_config({"timeout_s": 5, "timeout": 3}).timeout_s == 5


def test_a_world_size_that_is_not_there_is_refused_before_anything_is_made() -> None:
    with pytest.raises(SetupError, match=r"world_size is 2 .* started 1"):
        group.setup({"cpu": True, "world_size": 2})

    assert not group.initialized()


def test_a_rank_of_nbdist_keeps_the_device_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    place = RankEnvironment(1, 1, 2, 2, 0, "127.0.0.1", 1, "nbdist")
    monkeypatch.setattr(synonyms, "_has_group", lambda: True)
    monkeypatch.setattr(synonyms, "current_environment", lambda: place)
    monkeypatch.setattr(device, "_assigned", torch.device("cuda", 3))

    assert synonyms.assign_device_for_local_rank(False, 1) == torch.device("cuda", 3)
    assert synonyms.get_device_for_local_rank() == "cuda:3"
    assert synonyms.assign_device_for_local_rank(True, 1) == torch.device("cpu")
