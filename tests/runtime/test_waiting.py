"""On real ranks: whoever waits for a native call is freed, even where gloo forgets to."""

from __future__ import annotations

import pytest

from tests.runtime.real_ranks import FREED_MS, cases, run_ranks

SCRIPT = "waiting_script.py"

pytestmark = [pytest.mark.ranks, pytest.mark.recovery]


def test_an_abort_frees_who_waits_for_a_transfer_that_is_half_done() -> None:
    first, second = run_ranks(SCRIPT, "half_sent", 2)

    assert len(cases(first)) == 7
    for name, (error, freed_ms, again) in cases(first).items():
        assert error != "ok", name
        assert freed_ms < FREED_MS, name
        assert again == second[name][2] == "ok", name


def test_a_signal_ends_the_wait_for_an_asynchronous_call() -> None:
    first, second = run_ranks(SCRIPT, "interrupted", 2)

    for name in ("asynchronous", "irecv"):
        error, ms = first[name]
        assert error == "KeyboardInterrupt: ", name
        assert ms < FREED_MS, name
        for facts in (first, second):
            assert facts[f"{name} afterwards"] == [True, [2, 2]], name


def test_a_work_is_to_its_caller_what_it_is_without_us() -> None:
    first, second = run_ranks(SCRIPT, "works", 2)

    for facts in (first, second):
        assert (facts["class_"], facts["is_over"], facts["is_completed"]) == ("Work", True, True)
        assert facts["value"] == [[2, 2, 2]]
    assert first["source"] == 1
    assert "timed out" in first["timeout"].lower()
