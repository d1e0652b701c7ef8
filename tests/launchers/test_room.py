from __future__ import annotations

import pytest

from nbdist.config import load_config
from nbdist.errors import LaunchError
from nbdist.launchers import room
from nbdist.launchers.room import check_room, too_much

GIB = 2**30


def test_many_ranks_for_each_core_are_too_much() -> None:
    [reason] = too_much(200, cores=2, free_bytes=64 * GIB)

    assert reason == "it has 2 CPU cores, which is 100 ranks for each"


def test_ranks_that_take_more_than_is_free_are_too_much() -> None:
    [reason] = too_much(20, cores=16, free_bytes=GIB)

    assert reason == "they need 1.4 GiB of memory before they hold anything, and 1 GiB are free"


def test_what_people_do_has_room() -> None:
    assert too_much(8, cores=1, free_bytes=4 * GIB) == []
    assert too_much(64, cores=2, free_bytes=16 * GIB) == []


def test_the_refusal_has_the_numbers_and_the_way_to_start_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(room, "available_cores", lambda: 2)
    monkeypatch.setattr(room, "free_memory", lambda: 64 * GIB)

    check_room(load_config(None, ["nproc=64", "device=cpu"]))
    with pytest.raises(LaunchError) as caught:
        check_room(load_config(None, ["nproc=200", "device=cpu"]))

    assert "200 ranks" in str(caught.value)
    assert "`--yes` (`yes=True` in Python)" in str(caught.value)
