"""On real ranks: torch's own tests of its collectives come out alike with us in front of them."""

from __future__ import annotations

import pytest

from tests.runtime.real_ranks import cases, run_ranks


@pytest.mark.ranks
@pytest.mark.recovery
def test_torchs_own_tests_come_out_as_they_do_without_us() -> None:
    for facts in run_ranks("torch_own_script.py", "run_both_ways", 3):
        outcomes = cases(facts)

        assert {name: pair for name, pair in outcomes.items() if pair[0] != pair[1]} == {}
        assert {outcome for pair in outcomes.values() for outcome in pair} == {"ok", "skipped"}
        assert sum(pair == ["ok", "ok"] for pair in outcomes.values()) > 75
