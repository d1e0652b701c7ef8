"""What is recorded of each call: in the ring, and on real ranks of which one comes later."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from nbdist.runtime.signature import Signature
from nbdist.runtime.slots import GroupKey
from nbdist.runtime.trace import CallTrace, entry_of
from nbdist.wire import RankTrace
from tests.runtime.real_ranks import Facts, run_ranks

SCRIPT = "trace_script.py"
LATE_S = 0.4
SOON_S = 0.25  # on two busy cores; well below what a rank is late

WORLD = GroupKey("0", (0, 1))
SUM = Signature("all_reduce", "all_reduce(float32[10], sum)", key=7, size_bytes=40)


def posted(trace: CallTrace, number: int = 1, **more: Any) -> None:
    for seq in range(1, number + 1):
        trace.post(WORLD, SUM, "In[3]:2", began=float(seq), seq=seq, **more)


def told(trace: CallTrace, cells: Any = None) -> RankTrace:
    return trace.told(0, "on", cells)


# The ring ----------------------------------------------------------------------------------------


def test_a_call_is_told_with_all_that_is_known() -> None:
    trace = CallTrace()
    trace.begin_cell("c1", "In[3]")
    posted(trace)

    [call] = told(trace).calls

    assert (call.site.op, call.site.text) == ("all_reduce", "all_reduce(float32[10], sum)")
    assert (call.site.source, call.site.group, call.site.ranks) == ("In[3]:2", "0", (0, 1))
    assert (call.site.size_bytes, call.seq, call.cell_id) == (40, 1, "c1")
    assert (call.began, call.returned, call.is_failed) == (1.0, 0.0, False)


def test_the_ring_keeps_the_last_calls_and_the_cell_counts_all() -> None:
    trace = CallTrace(num_calls=10)
    trace.begin_cell("c1", "In[3]")
    posted(trace, 25)

    found = told(trace)

    assert [call.seq for call in found.calls] == list(range(16, 26))
    assert found.cells[0].num_calls == 25


def test_calls_of_one_line_share_what_is_alike() -> None:
    trace = CallTrace()
    posted(trace, 1000)

    assert len({id(call.site) for call in told(trace).calls}) == 1
    assert len(told(trace).to_json()["sites"]) == 1


def test_what_differs_is_told_apart() -> None:
    trace = CallTrace()
    posted(trace)
    posted(trace, is_async=True)
    posted(trace, ends=(1, 0))
    trace.post(GroupKey("0", (0, 1), 1), SUM, "In[3]:2", began=1.0)
    trace.post(WORLD, SUM, "In[3]:9", began=1.0)

    assert len({call.site for call in told(trace).calls}) == 5


def test_ever_new_lines_take_no_more_memory() -> None:
    trace = CallTrace(num_calls=10)
    for line in range(5000):
        trace.post(WORLD, SUM, f"In[3]:{line}", began=1.0)

    assert len(trace._sites) <= 2000
    assert [call.site.source for call in told(trace).calls][-1] == "In[3]:4999"


def test_calls_belong_to_the_cell_that_runs() -> None:
    trace = CallTrace()
    posted(trace)
    trace.begin_cell("c1", "In[3]")
    posted(trace)
    trace.end_cell()
    posted(trace)

    assert [call.cell_id for call in told(trace).calls] == ["", "c1", ""]
    [cell] = told(trace).cells
    assert (cell.label, cell.num_calls) == ("In[3]", 1)
    assert cell.ended >= cell.began > 0


def test_a_cell_that_runs_has_not_ended_and_ends_once() -> None:
    trace = CallTrace()
    trace.begin_cell("c1", "In[3]")
    assert told(trace).cells[0].ended == 0

    trace.end_cell()
    ended = told(trace).cells[0].ended
    trace.end_cell()

    assert told(trace).cells[0].ended == ended > 0


@pytest.fixture
def four_cells() -> CallTrace:
    trace = CallTrace()
    for number, calls in ((1, 2), (2, 0), (3, 1), (4, 0)):
        trace.begin_cell(f"c{number}", f"In[{number}]")
        posted(trace, calls)
        trace.end_cell()
    return trace


def test_the_last_cell_is_the_last_that_called_any_with_those_after_it(
    four_cells: CallTrace,
) -> None:
    found = told(four_cells, "last")

    assert [cell.label for cell in found.cells] == ["In[3]", "In[4]"]
    assert [call.cell_id for call in found.calls] == ["c3"]
    assert found.known == ("In[1]", "In[3]")


def test_cells_are_chosen_by_their_labels(four_cells: CallTrace) -> None:
    found = told(four_cells, ["In[1]"])

    assert [cell.label for cell in found.cells] == ["In[1]"]
    assert [call.cell_id for call in found.calls] == ["c1", "c1"]


def test_a_rank_that_called_nothing_tells_of_no_cell_as_its_last() -> None:
    trace = CallTrace()
    trace.begin_cell("c1", "In[1]")

    assert told(trace, "last").calls == ()
    assert [cell.label for cell in told(trace, "last").cells] == ["In[1]"]


def test_a_work_that_is_not_recorded_is_noted_nowhere() -> None:
    class OtherWork:
        pass

    trace = CallTrace()
    posted(trace)
    with entry_of(OtherWork()):
        pass

    assert told(trace).calls[0].wait_began == 0


def test_an_error_in_the_native_call_is_noted_and_goes_on() -> None:
    trace = CallTrace()
    entry = trace.post(WORLD, SUM, "In[3]:2", began=1.0)

    def refuse(_: object) -> None:
        raise RuntimeError("refused")

    with pytest.raises(RuntimeError, match="refused"):
        trace.issue(entry, refuse, lambda: None)

    [call] = told(trace).calls
    assert call.is_failed
    assert call.returned > 0


# On real ranks -----------------------------------------------------------------------------------


@cache
def facts_of(case: str, num_ranks: int = 2) -> list[Facts]:
    return run_ranks(SCRIPT, case, num_ranks)


def only(calls: list[dict[str, Any]]) -> dict[str, Any]:
    [call] = calls
    return call


@pytest.mark.ranks
@pytest.mark.parametrize("mode", ["on", "trace"])
@pytest.mark.parametrize(
    ("name", "early", "is_held"),
    [
        ("all_reduce", 0, True),
        ("asynchronous", 0, False),
        ("message", 1, True),
        ("imessage", 1, False),
    ],
)
def test_who_comes_early_waits_and_the_wait_is_known(
    mode: str, name: str, early: int, is_held: bool
) -> None:
    facts = [only(of_rank[f"{mode} {name}"]) for of_rank in facts_of("kinds")]
    first, last = facts[early], facts[1 - early]

    in_guard = is_held and mode == "on"
    assert first["held_s" if in_guard else "wait_s"] > SOON_S
    assert first["wait_s" if in_guard else "held_s"] < SOON_S
    assert last["began"] - first["began"] > SOON_S
    assert first["is_waited"]
    assert last["is_waited"]
    assert first["is_async"] == last["is_async"] == (not is_held)
    assert first["seq"] == last["seq"] > 0


@pytest.mark.ranks
def test_a_call_is_recorded_with_its_data_and_line() -> None:
    for facts in facts_of("kinds"):
        reduced, message = only(facts["on all_reduce"]), only(facts["on message"])
        assert reduced["text"] == "all_reduce(float32[1000], sum)"
        assert (reduced["kind"], reduced["ranks"], reduced["size_bytes"]) == ("group", [0, 1], 4000)
        assert reduced["source"] == "trace_script.py"
        assert (message["kind"], message["ranks"]) == ("p2p", [0, 1])
        assert message["op"] == ("send" if facts["rank"] == 0 else "recv")


@pytest.mark.ranks
def test_functional_collectives_are_waited_for_in_python() -> None:
    for facts in facts_of("kinds"):
        assert only(facts["trace functional"])["is_waited"]
    assert only(facts_of("kinds")[0]["trace functional"])["wait_s"] > SOON_S


@pytest.mark.ranks
def test_the_end_of_a_backward_s_call_is_known() -> None:
    first, second = (only(facts["calls"]) for facts in facts_of("ddp"))

    assert not first["is_waited"]
    assert first["done_s"] > SOON_S
    assert 0 < second["done_s"] < SOON_S


@pytest.mark.ranks
def test_with_the_guard_off_nothing_is_recorded() -> None:
    for facts in facts_of("off"):
        assert facts["calls"] == []


@pytest.mark.ranks
def test_who_receives_from_anybody_has_no_number_and_no_sender() -> None:
    _, receiver = (only(facts["calls"]) for facts in facts_of("any_source"))

    assert (receiver["op"], receiver["ranks"], receiver["seq"]) == ("recv", [1], 0)
    assert receiver["is_waited"]


@pytest.mark.ranks
def test_another_thread_sees_a_call_that_is_not_over() -> None:
    first, _ = facts_of("not_over")

    call = only(first["meanwhile"])
    assert (call["op"], call["held_s"], call["is_waited"]) == ("barrier", 0, False)


@pytest.mark.ranks
def test_a_call_that_was_waited_for_in_vain_has_failed() -> None:
    first, second = facts_of("raises")

    assert only(first["calls"])["is_failed"]
    assert second["calls"] == []


@pytest.mark.ranks
def test_no_tensor_lives_on_in_the_ring() -> None:
    for facts in facts_of("dropped"):
        assert facts["alive"] == [False, False, False]


@pytest.mark.ranks
def test_recording_costs_microseconds() -> None:
    # As much as one of torch's smallest calls was measured, 2 µs; the guard may take 250 in all.
    for facts in facts_of("cost"):
        assert facts["us"] < 15 * facts["torch_us"]
