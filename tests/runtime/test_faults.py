"""On real ranks: one raises before, inside or after a call; the other is freed, nothing is lost."""

from __future__ import annotations

import pytest

from tests.runtime.real_ranks import FREED_MS, cases, run_ranks

SCRIPT = "fault_script.py"

pytestmark = [pytest.mark.ranks, pytest.mark.recovery]


@pytest.mark.parametrize(("case", "count"), [("collectives", 38), ("inside", 16), ("modules", 16)])
def test_who_waits_for_a_rank_that_raised_is_freed_and_the_same_objects_work(
    case: str, count: int
) -> None:
    first, second = run_ranks(SCRIPT, case, 2)

    assert len(cases(first)) == count
    for name, (error, freed_ms, *_) in cases(first).items():
        assert error.startswith("PeerFailed: rank 1 raised ValueError: user bug"), (name, error)
        assert freed_ms < FREED_MS, name
        assert second[name][0] == "ValueError: user bug", name
        for facts in (first, second):
            *_, again, total = facts[name]
            assert (again, total) == ("ok", [2, 2]), name
