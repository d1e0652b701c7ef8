from __future__ import annotations

import os
from dataclasses import replace

import pytest

from nbdist.sessions.load import CpuSight, overload, sight_of

BEFORE = CpuSight(at=10.0, cpu_s=1.0, wants_cpu=True, num_runnable=250, num_cores=2)
STARVED = replace(BEFORE, at=11.0, cpu_s=1.1)


def test_a_process_that_wants_to_run_among_many_and_does_not_is_starved() -> None:
    assert overload(BEFORE, STARVED) == ("the machine is overloaded (250 threads want its 2 cores)")


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(replace(STARVED, cpu_s=1.9), id="it has had its share"),
        pytest.param(replace(STARVED, wants_cpu=False), id="it sleeps"),
        pytest.param(replace(STARVED, num_runnable=3), id="there is room"),
        pytest.param(BEFORE, id="no time has passed"),
        pytest.param(None, id="it cannot be seen"),
    ],
)
def test_any_other_is_not(now: CpuSight | None) -> None:
    assert overload(BEFORE, now) == ""


def test_what_was_not_seen_before_is_not_judged() -> None:
    assert overload(None, STARVED) == ""


def test_this_process_can_be_looked_at() -> None:
    sight = sight_of(os.getpid())

    assert sight is not None
    assert sight.cpu_s > 0
    assert sight.num_runnable >= 1
    assert sight_of(2**22 + 1) is None
