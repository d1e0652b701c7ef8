"""What a script may ask of the session's group, and what contradicts it; no rank is needed."""

from __future__ import annotations

from typing import Any

import pytest

from nbdist.runtime.session_group import World, contradiction, unused

CPU = World(1, 4, {"cpu": "gloo"})
GPU = World(1, 4, {"cpu": "gloo", "cuda": "nccl"})
SHARED = World(1, 4, {"cpu": "gloo", "cuda": "gloo"})


@pytest.mark.parametrize(
    ("world", "asked"),
    [
        (CPU, {}),
        (CPU, {"backend": None, "rank": -1, "world_size": -1}),
        (CPU, {"backend": "gloo", "rank": 1, "world_size": 4}),
        (CPU, {"backend": "GLOO"}),
        (CPU, {"backend": "cpu:gloo"}),
        (CPU, {"init_method": "tcp://10.0.0.1:29500?rank=1&world_size=4"}),
        (CPU, {"init_method": "file:///tmp/where"}),
        (GPU, {"backend": "nccl"}),
        (GPU, {"backend": "gloo"}),
        (GPU, {"backend": "cuda:nccl,cpu:gloo"}),
        (SHARED, {"backend": "gloo"}),
    ],
)
def test_what_agrees_with_the_group_joins_it(world: World, asked: dict[str, Any]) -> None:
    assert contradiction(asked, world) is None


@pytest.mark.parametrize(
    ("world", "asked", "said"),
    [
        (CPU, {"world_size": 2}, "world_size is 2, but nbdist's group has 4 ranks"),
        (CPU, {"rank": 0, "world_size": 4}, "rank is 0, but this is rank 1"),
        (CPU, {"backend": "nccl"}, "backend is 'nccl', but nbdist's group has cpu:gloo"),
        (CPU, {"backend": "fake"}, "backend is 'fake', but nbdist's group has cpu:gloo"),
        (
            CPU,
            {"backend": "cpu:gloo,cuda:nccl"},
            "backend is 'cpu:gloo,cuda:nccl', but nbdist's group has cpu:gloo",
        ),
        (
            SHARED,
            {"backend": "nccl"},
            "backend is 'nccl', but nbdist's group has cpu:gloo,cuda:gloo",
        ),
        (CPU, {"init_method": "tcp://h:1?world_size=2"}, "world_size is 2, but nbdist's group"),
    ],
)
def test_what_contradicts_the_group_is_named_with_both_values(
    world: World, asked: dict[str, Any], said: str
) -> None:
    assert str(contradiction(asked, world)).startswith(said)


def test_what_means_nothing_to_a_group_that_is_there_is_named() -> None:
    asked = {"init_method": "tcp://h:1", "store": object(), "pg_options": object(), "device_id": 0}

    assert unused(asked) == ["init_method", "store", "pg_options", "device_id"]
    assert unused({"init_method": "env://", "backend": "gloo", "timeout": object()}) == []


def test_a_world_says_how_many_ranks_it_has() -> None:
    assert f"{GPU}, {GPU.backend}" == "nbdist's group of 4 ranks, cpu:gloo,cuda:nccl"
    assert str(World(0, 1, {})) == "nbdist's group of 1 rank"
