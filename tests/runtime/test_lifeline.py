"""On real ranks: whom the lifeline frees, and whether the same objects work afterwards."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nbdist.runtime.backends import abort_together, abort_watched
from nbdist.runtime.lifeline import Lifeline
from nbdist.runtime.meeting import in_order
from tests.runtime.real_ranks import FREED_MS, cases, run_ranks

SCRIPT = "lifeline_script.py"


# Decisions ----------------------------------------------------------------------------------------


class FakeNccl:
    """Notes in which order it is called."""

    def __init__(self, calls: list[str], name: str) -> None:
        self.calls, self.name = calls, name

    def _group_start(self) -> None:
        self.calls.append("start")

    def _group_end(self) -> None:
        self.calls.append("end")

    def abort(self) -> None:
        self.calls.append(self.name)
        if self.name == "broken":
            raise RuntimeError("ncclSystemError")


def test_communicators_are_aborted_inside_one_group() -> None:
    calls: list[str] = []

    abort_together([FakeNccl(calls, "a"), FakeNccl(calls, "b")])
    abort_together([])

    assert calls == ["start", "a", "b", "end"]


def test_the_group_is_closed_when_an_abort_fails() -> None:
    calls: list[str] = []

    with pytest.raises(RuntimeError, match="ncclSystemError"):
        abort_together([FakeNccl(calls, "broken"), FakeNccl(calls, "b")])

    assert calls == ["start", "broken", "end"]


def test_an_abort_that_hangs_is_left_behind() -> None:
    release = threading.Event()

    def hang(_backends: Any) -> None:
        release.wait(10)

    is_over = abort_watched(hang, [], "nccl", timeout_s=0.05)
    release.set()

    assert not is_over
    assert abort_watched(lambda _: None, [], "nccl", timeout_s=5)


def test_an_abort_of_another_generation_is_ignored() -> None:
    lifeline = Lifeline()

    assert lifeline.abort("too late", generation=1) == 0
    assert lifeline.aborted is None


@pytest.mark.parametrize(
    ("states", "merged"),
    [
        (["abc", "abc"], "abc"),
        (["ab", "ac", "bc"], "abc"),
        (["ac", "abc"], "abc"),
        ([None, "ab"], "ab"),
        (["ab", None, "abc"], "abc"),
    ],
)
def test_groups_are_made_in_an_order_that_is_every_ranks_own(
    states: list[str | None], merged: str
) -> None:
    found = in_order(
        [{"groups": names and [{"name": name, "ranks": [0]} for name in names]} for names in states]
    )

    assert "".join(name for name, _ in found) == merged


# Real ranks ---------------------------------------------------------------------------------------


@pytest.mark.recovery
@pytest.mark.ranks
def test_an_abort_frees_every_kind_of_call_and_the_same_objects_work_again() -> None:
    first, second = run_ranks(SCRIPT, "stuck", 2)

    assert len(cases(first)) == 12
    for name, (error, freed_ms, _, again) in cases(first).items():
        assert error != "ok", name
        assert freed_ms < FREED_MS, name
        assert again == second[name][3] == "ok", name


@pytest.mark.recovery
@pytest.mark.ranks
def test_training_through_failures_is_bitwise_equal_to_training_without() -> None:
    for facts in run_ranks(SCRIPT, "training", 2):
        assert len(cases(facts)) == 5
        for kind, (is_equal, differing, _, notes) in cases(facts).items():
            assert is_equal, (kind, differing, notes)
            assert len(notes) == 5, kind
            assert all(error != "ok" for error, *_ in notes), (kind, notes)


@pytest.mark.recovery
@pytest.mark.ranks
def test_after_fifty_rebuilds_nothing_has_grown() -> None:
    for facts in run_ranks(SCRIPT, "many_recoveries", 2):
        threads, files, memory_mib, slots = zip(facts["second"], facts["last"], strict=True)

        assert threads[1] <= threads[0] + 2
        assert files[1] <= files[0] + 6
        assert memory_mib[1] <= memory_mib[0] + 8
        assert slots[1] == slots[0]


@pytest.mark.recovery
@pytest.mark.ranks
def test_a_dead_rank_is_named_and_a_fresh_one_takes_its_place() -> None:
    first, third = run_ranks(SCRIPT, "replaced", 3)

    for facts in (first, third):
        assert facts["error"].startswith("PeerFailed: rank 1 died: signal 9 (SIGKILL)")
        assert facts["noticed_ms"] < FREED_MS
        assert facts["has_state"]
        assert facts["names"] == ["0", "1", "2"]
    assert (first["total"], third["total"]) == ([3, 3], [6, 6])
