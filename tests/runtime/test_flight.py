"""What the flight recorder tells of two real ranks without the guard, and what reading it costs."""

from __future__ import annotations

import pickle
import time
from typing import Any

import pytest

from nbdist.runtime import flight, torch_private
from nbdist.runtime.flight import flight_calls, forget_flight
from tests.runtime.real_ranks import Facts, run_ranks

WORLD = (0, 1)


@pytest.fixture(scope="module")
def ranks() -> list[Facts]:
    return run_ranks("flight_script.py", "positions", 2)


def by_group(calls: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {call["group"]: call for call in calls}


@pytest.mark.ranks
def test_a_rank_without_collectives_has_no_calls(ranks: list[Facts]) -> None:
    assert [facts["at_first"] for facts in ranks] == [[], []]


@pytest.mark.ranks
def test_each_group_is_named_with_its_latest_call(ranks: list[Facts]) -> None:
    for rank, facts in enumerate(ranks):
        calls = sorted(facts["idle"], key=lambda call: call["group"])

        assert [(call["seq"], call["text"]) for call in calls] == [
            (3, "all_reduce(float32[10])"),
            (1, "barrier()"),
        ]
        assert {(c["rank"], *c["ranks"], c["kind"], c["phase"]) for c in calls} == {
            (rank, 0, 1, "group", "idle")
        }


@pytest.mark.ranks
def test_a_call_under_way_is_told_from_one_that_is_over(ranks: list[Facts]) -> None:
    [world] = [c for c in ranks[0]["under_way"] if c["text"].startswith("all_reduce")]

    assert (world["seq"], world["phase"], world["text"]) == (
        4,
        "issued",
        "all_reduce(float32[2, 3])",
    )
    assert abs(world["since"] - time.time()) < 600
    assert by_group(ranks[1]["under_way"])[world["group"]]["seq"] == 3


@pytest.mark.ranks
def test_its_end_is_seen(ranks: list[Facts]) -> None:
    for facts in ranks:
        assert {call["phase"] for call in facts["over"]} == {"idle"}
        assert sorted(call["seq"] for call in facts["over"]) == [1, 4]


@pytest.mark.ranks
def test_after_a_rebuild_the_calls_count_from_one_again() -> None:
    for facts in run_ranks("flight_script.py", "rebuilt", 2):
        assert facts["forgotten"] == []
        assert [(call["seq"], call["ranks"]) for call in facts["again"]] == [(1, [0, 1])]


# A recorder that we play ourselves -------------------------------------------------------------


class Recorder:
    """Speaks the recorder's format, and counts how often all of it is read."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.num_dumps = 0

    def add(self, seq: int, *, name: str = "0", is_over: bool = True, **more: Any) -> None:
        entry = {
            "record_id": len(self.entries),
            "process_group": (name, "default_pg"),
            "collective_seq_id": seq,
            "profiling_name": "gloo:all_reduce",
            "time_created_ns": time.time_ns(),
            "input_sizes": [[10]],
            "input_dtypes": ["Float"],
            "retired": is_over,
            "is_p2p": False,
        }
        self.entries.append({**entry, **more})

    def status(self, **_: bool) -> bytes:
        return str(len(self.entries)).encode()

    def dump(self, **_: bool) -> bytes:
        self.num_dumps += 1
        return pickle.dumps({"entries": self.entries})


class Group:
    def __init__(self, name: str) -> None:
        self.group_name = name


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    parts = {"_dump_fr_trace_json": recorder.status, "_dump_fr_trace": recorder.dump}
    monkeypatch.setattr(flight, "_recorder", parts.get)
    monkeypatch.setattr(torch_private, "living_groups", lambda: [Group("0"), Group("dp")])
    monkeypatch.setattr(torch_private, "group_ranks", lambda group: WORLD)
    forget_flight()
    return recorder


def test_an_idle_rank_is_read_once(recorder: Recorder) -> None:
    recorder.add(1)

    looks = [flight_calls(0) for _ in range(5)]

    assert recorder.num_dumps == 1
    assert looks == [looks[0]] * 5
    assert looks[0][0].seq == 1


def test_a_call_under_way_is_looked_at_each_time(recorder: Recorder) -> None:
    recorder.add(1, is_over=False)
    assert flight_calls(0)[0].phase == "issued"

    recorder.entries[0]["retired"] = True

    assert flight_calls(0)[0].phase == "idle"


def test_a_new_call_is_seen(recorder: Recorder) -> None:
    recorder.add(1)
    flight_calls(0)

    recorder.add(2)

    assert flight_calls(0)[0].seq == 2


def test_what_was_recorded_last_counts_whatever_its_number(recorder: Recorder) -> None:
    recorder.add(9)
    recorder.add(1)

    assert [call.seq for call in flight_calls(0)] == [1]


def test_messages_and_groups_of_others_are_left_out(recorder: Recorder) -> None:
    recorder.add(1, name="dp")
    recorder.add(7, name="dp", is_p2p=True)
    recorder.add(5, name="destroyed")

    assert [(call.group, call.seq) for call in flight_calls(0)] == [("dp", 1)]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "all_reduce(float32[10])"),
        ({"profiling_name": "nccl:_all_gather_base"}, "all_gather_base(float32[10])"),
        ({"profiling_name": "gloo:barrier", "input_sizes": []}, "barrier()"),
        ({"input_dtypes": ["Float8_e4m3fn"]}, "all_reduce(Float8_e4m3fn[10])"),
        (
            {"input_sizes": [[1]] * 9, "input_dtypes": ["Long"] * 9},
            "all_reduce(9 tensors, first int64[1])",
        ),
    ],
)
def test_a_call_is_written_for_people(recorder: Recorder, more: dict[str, Any], text: str) -> None:
    recorder.add(1, **more)

    assert flight_calls(0)[0].text == text


def test_a_torch_without_a_recorder_costs_only_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "_recorder", lambda name: None)

    assert flight_calls(0) == ()


def test_a_recorder_of_another_format_costs_only_the_calls(recorder: Recorder) -> None:
    recorder.entries.append({"unknown": 1})

    assert flight_calls(0) == ()
