"""On real ranks: what the guard refuses, whom it frees, and what it must let pass."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

from nbdist.runtime import torch_private
from nbdist.runtime.torch_private import probe
from tests.runtime.real_ranks import FREED_MS, Facts, cases, run_ranks

SCRIPT = "guard_script.py"


@cache
def facts_of(case: str, num_ranks: int) -> list[Facts]:
    return run_ranks(SCRIPT, case, num_ranks)


def test_this_torch_has_every_private_name() -> None:
    support = probe()

    assert support.missing == ()
    assert support.guard
    assert support.abort
    assert support.rebuild
    assert support.reset


def test_a_name_that_is_not_there_costs_its_ability_alone() -> None:
    support = probe([("rebuild", "no.such.name"), ("guard", "_C.DispatchKey.BackendSelect")])

    assert support.missing == ("no.such.name",)
    assert (support.guard, support.abort, support.rebuild) == (True, True, False)


PROBE_FSDP = """
import sys
from nbdist.runtime.torch_private import probe

names = ["reset_iter_state", "_get_fsdp_state", "no_such_method"]
wanted = [("reset", f"distributed.fsdp.FSDPModule.{name}") for name in names]
without = probe(wanted)
assert "torch.distributed.fsdp" not in sys.modules
import torch.distributed.fsdp
assert without == probe(wanted)
print(*without.missing)
"""


def test_the_names_of_fsdp_are_found_without_importing_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE_FSDP], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["distributed.fsdp.FSDPModule.no_such_method"]


def test_messages_are_told_apart_by_who_calls() -> None:
    assert not torch_private.is_blocking_message(None)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[.../tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4"), True),
        (RuntimeError("writev: Broken pipe"), True),
        (RuntimeError("Socket closed"), True),
        (RuntimeError("Read error [127.0.0.1]:4: Connection reset by peer"), True),
        (RuntimeError("NCCL error: remote process exited"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_the_end_of_a_peer_is_known_by_what_the_native_call_says(
    error: Exception, is_lost: bool
) -> None:
    assert torch_private.is_lost_connection(error) == is_lost


@pytest.mark.recovery
@pytest.mark.ranks
def test_every_mismatch_is_named_on_every_rank_and_costs_nothing() -> None:
    for facts in facts_of("mismatches", 2):
        assert len(cases(facts)) == 36
        for name, (error, is_usable) in cases(facts).items():
            assert error.startswith("CollectiveMismatch"), (name, error)
            assert error.count("guard_script.py:") == 2, (name, error)
            assert "rank 0: " in error, name
            assert "rank 1: " in error, name
            assert is_usable, name


@pytest.mark.recovery
@pytest.mark.ranks
def test_an_asynchronous_mismatch_is_named_and_the_groups_are_made_anew() -> None:
    for facts in facts_of("async_mismatches", 2):
        for name, (error, is_usable, _) in cases(facts).items():
            assert error.startswith("CollectiveMismatch"), (name, error)
            assert is_usable, name


@pytest.mark.recovery
@pytest.mark.ranks
def test_a_peer_that_raises_frees_those_who_wait_and_is_named() -> None:
    for facts in facts_of("peer_raises", 3):
        for name, (error, damaged, is_usable, ms) in cases(facts).items():
            if facts["rank"] == 1:
                assert error == "ValueError: user bug"
            else:
                assert error.startswith("PeerFailed: rank 1 raised ValueError: user bug"), name
                assert ms < FREED_MS, name
            assert damaged == [], name
            assert is_usable, name


@pytest.mark.recovery
@pytest.mark.ranks
def test_a_signal_ends_the_wait_and_the_late_peer_does_not_hang() -> None:
    first, second = facts_of("interrupted", 2)

    for name in ("all_reduce", "barrier", "recv", "send"):
        assert first[name] == ["KeyboardInterrupt: ", [], True], name
        assert second[name][0].startswith("PeerFailed: rank 0 gave up"), name
        assert second[name][1:] == [[], True], name
        assert first[f"{name} ms"] < FREED_MS, name


@pytest.mark.recovery
@pytest.mark.ranks
def test_waiting_costs_no_time_of_the_processor_and_is_seen_from_outside() -> None:
    first, second = facts_of("quiet_wait", 2)

    assert first["share_of_processor"] < 0.2
    phase, seq, text = second["seen"]
    assert (phase, seq, text) == ("waiting", 1, "all_reduce(float32[1], sum)")
    assert second["before"] <= second["since"] <= second["after"]


@pytest.mark.recovery
@pytest.mark.ranks
@pytest.mark.parametrize(("case", "num_ranks"), [("legal_two", 2), ("legal_three", 3)])
def test_legal_programs_run_as_without_the_guard(case: str, num_ranks: int) -> None:
    for facts in facts_of(case, num_ranks):
        for name, outcome in cases(facts).items():
            if name != "slots":
                assert outcome[0] == "ok", (facts["rank"], name, outcome[0])


@pytest.mark.recovery
@pytest.mark.ranks
def test_slots_of_destroyed_groups_are_used_again() -> None:
    assert facts_of("legal_two", 2)[0]["slots"] < 12
