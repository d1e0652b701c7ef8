"""What meetings of the ranks leave in the store."""

from __future__ import annotations

from nbdist.runtime.meeting import left_over


def test_old_groups_and_agreements_are_left_over() -> None:
    keys = ["gen2/0//cpu//0/1", "gen2/made/1", "settle/2/0", "settle/10/3"]

    assert left_over(keys, 3, 11) == keys


def test_the_groups_there_are_and_the_latest_agreement_are_kept() -> None:
    assert left_over(["gen3/0//cpu//0/1", "gen3/groups/0", "settle/11/0"], 3, 11) == []


def test_keys_of_the_user_are_kept() -> None:
    assert left_over(["gen1", "generation/1", "my/gen1/x", "settle/x"], 3, 11) == []
