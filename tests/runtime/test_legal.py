"""On real ranks: the guard breaks no legal program, and holds none up."""

from __future__ import annotations

from functools import cache

import pytest

from tests.runtime.real_ranks import Facts, cases, run_ranks

SCRIPT = "legal_script.py"
PATIENCE_S = 200.0  # all programs in all modes, on a machine that others use as well
HELD_UP_S = 3.0  # more than without the guard; what hangs, hangs for the timeout of 8 s

pytestmark = [pytest.mark.ranks, pytest.mark.recovery, pytest.mark.timeout(220)]


@cache
def facts_of(num_ranks: int) -> list[Facts]:
    return run_ranks(SCRIPT, "run", num_ranks, patience_s=PATIENCE_S)


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("mode", ["off", "on", "trace"])
def test_legal_programs_run_as_without_the_guard(num_ranks: int, mode: str) -> None:
    for facts in facts_of(num_ranks):
        for name, by_mode in cases(facts).items():
            outcome, seconds = by_mode[mode]
            assert outcome == "ok", (facts["rank"], name)
            assert seconds < by_mode["off"][1] + HELD_UP_S, (facts["rank"], name)
