"""On real ranks: groups that are made again, by the user or after an abort."""

from __future__ import annotations

import pytest

from tests.runtime.real_ranks import run_ranks

SCRIPT = "remade_script.py"

pytestmark = [pytest.mark.ranks, pytest.mark.recovery]


def test_a_world_that_is_made_again_works_though_a_rank_never_called_in_the_first() -> None:
    for facts in run_ranks(SCRIPT, "worlds", 3):
        assert facts["on"] == facts["trace"] == [3, True]


def test_subgroups_of_an_old_name_are_new_groups() -> None:
    first, second, _ = run_ranks(SCRIPT, "subgroups", 3)

    for facts in (first, second):
        assert (facts["total"], facts["local"], facts["local_again"]) == (2, 2, 2)


def test_a_fresh_rank_counts_groups_as_the_others_do() -> None:
    first, second = run_ranks(SCRIPT, "dies", 3)

    assert first["sums"] == [3, 2, 3, 2]
    assert second["sums"] == [3, 3]


def test_a_group_made_anew_gives_out_its_new_backend() -> None:
    for facts in run_ranks(SCRIPT, "backends", 2):
        assert facts["sums"] == facts["coalesced"] == [2, 2]


def test_parts_of_a_split_group_are_groups_like_any_other() -> None:
    [facts] = run_ranks(SCRIPT, "splits", 1)

    assert facts["counted"] == 3  # with the world
    assert len(set(facts["names"])) == 2
    assert facts["sums"] == facts["remade"] == [1, 1]
