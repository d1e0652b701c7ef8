"""A run as its messages come in; the messages are written by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from nbdist.errors import CellFailed, CellStopped, TransferError
from nbdist.sessions import run as run_module
from nbdist.sessions.run import Run
from nbdist.sessions.transport import Message
from nbdist.wire import (
    CELL_REPLY,
    INPUT_REQUEST,
    OUTPUT_BATCH,
    CellError,
    CellReply,
    CellRequest,
    Output,
    Progress,
    Text,
    log_heading,
    output_to_json,
)

BOOM = CellError("ValueError", "boom")


class Clock:
    """Stands in for the module ``time``; the test moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run_module, "time", clock)
    return clock


def sent_to(*ranks: int) -> Run:
    request = CellRequest("c1", "code", "In[3]", 3, ranks, want_value=True)
    return Run(request, unpack, cancelled.append)


cancelled: list[Run] = []


def unpack(header: Mapping[str, Any], buffers: list[memoryview]) -> Any:
    return header["number"]


def message(rank: int, kind: str, content: Mapping[str, Any]) -> Message:
    return Message("c1", rank, kind, content, [])


def batch(rank: int, *texts: str) -> Message:
    outputs = [output_to_json(Text("stdout", text)) for text in texts]
    return message(rank, OUTPUT_BATCH, {"outputs": outputs})


def reply(rank: int, status: Any = "ok", num_batches: int = 0, **fields: Any) -> Message:
    return message(rank, CELL_REPLY, CellReply(status, num_batches, **fields).to_json())


def texts(outputs: tuple[Output, ...]) -> str:
    return "".join(output.text for output in outputs if isinstance(output, Text))


# When it is over ---------------------------------------------------------------------------------


def test_it_is_over_when_every_rank_has_replied() -> None:
    run = sent_to(0, 1)

    run.hear(reply(1))
    assert run.running_ranks == (0,)
    run.hear(reply(0))

    assert run.done
    assert repr(run) == "<Run In[3] on ranks 0, 1, ok>"


def test_output_that_comes_after_the_reply_is_waited_for() -> None:
    run = sent_to(0)

    run.hear(batch(0, "one "))
    run.hear(reply(0, num_batches=2, outputs=(Text("stdout", "three"),)))
    assert run.running_ranks == (0,)
    run.hear(batch(0, "two "))

    assert run.done
    assert texts(run.outputs[0].outputs) == "one two three"


def test_output_that_never_comes_is_given_up_after_a_while(clock: Clock) -> None:
    run = sent_to(0)
    run.hear(reply(0, num_batches=1))

    clock.now += run_module.STRAGGLER_S - 0.1
    assert run.running_ranks == (0,)
    clock.now += 0.2

    assert run.done
    assert run.wait(0)


def test_output_that_never_comes_is_named(clock: Clock) -> None:
    run = sent_to(0, 1, 2)
    for rank in run.ranks:
        run.hear(batch(rank, "one\n"))
        run.hear(reply(rank, num_batches=1 if rank == 1 else 3))

    clock.now += run_module.STRAGGLER_S + 0.1

    assert run.done
    assert run.render()["text/plain"] == (
        "[ranks 0–2] one\n"
        "ranks 0, 2: 2 batches of output did not arrive.\n"
        "`%dist log In[3]` has all that was put out."
    )
    run.hear(batch(0, "two\n"))
    assert run.gaps[:2] == [
        "rank 0: 1 batch of output did not arrive.",
        "rank 2: 2 batches of output did not arrive.",
    ]


def test_a_batch_that_cannot_be_read_is_missing() -> None:
    run = sent_to(0)

    run.hear(message(0, OUTPUT_BATCH, {"outputs": [{"type": "invented"}]}))
    run.hear(reply(0, num_batches=1))

    assert run.done
    assert run.gaps[0] == "rank 0: 1 batch of output did not arrive."


def test_a_reply_that_cannot_be_read_ends_it() -> None:
    run = sent_to(0)

    run.hear(message(0, CELL_REPLY, {"status": "ok"}))

    assert run.done
    with pytest.raises(CellFailed, match="the reply of this rank cannot be read"):
        run.raise_failure()


def test_what_is_no_output_neither_ends_it_nor_goes_unsaid() -> None:
    run = sent_to(0, 1)

    for rank in run.ranks:
        run.hear(message(rank, "comm_open", {}))
        run.hear(message(rank, "comm_msg", {}))
        run.hear(message(rank, "comm_msg", {}))
    assert run.running_ranks == (0, 1)
    run.hear(reply(0))
    run.hear(reply(1))

    assert run.gaps == ["ranks 0, 1: messages that cannot be shown: 2 comm_msg, 1 comm_open."]


def test_a_death_ends_it_there() -> None:
    run = sent_to(0, 1)
    run.hear(batch(1, "before\n"))

    run.note_death(1, "was killed by SIGKILL")
    run.hear(reply(0))

    assert run.done
    assert [output.status for output in run.outputs] == ["ok", "dead"]
    assert texts(run.outputs[1].outputs) == "before\n"
    with pytest.raises(CellFailed, match="rank 1"):
        run.raise_failure()


def test_what_comes_after_the_death_is_not_told_twice() -> None:
    run = sent_to(0)

    run.note_death(0, "exited with code 3", f"{log_heading(run.request.label)}early\nlate\n")
    assert texts(run.outputs[0].outputs) == "early\nlate\n"
    run.hear(batch(0, "early\n"))

    assert texts(run.outputs[0].outputs) == "early\nlate\n"


EARLIER = f"{log_heading('In[2]')}of another cell\n"


def test_a_rank_that_dies_before_it_begins_shows_nothing_of_earlier_cells() -> None:
    run = sent_to(0)

    run.note_death(0, "was killed by SIGKILL", EARLIER)

    assert run.outputs[0].outputs == ()


def test_the_end_of_a_long_output_is_told_although_its_heading_is_far_away() -> None:
    run = sent_to(0)
    run.hear(batch(0, "2\n"))

    run.note_death(0, "was killed by SIGKILL", "1\n2\n3\n")

    assert texts(run.outputs[0].outputs) == "2\n3\n"


def test_only_what_stands_below_the_heading_of_the_cell_is_told_of_it() -> None:
    run = sent_to(0)

    run.note_death(0, "was killed by SIGKILL", f"{EARLIER}{log_heading('In[3]')}mine\n")

    assert texts(run.outputs[0].outputs) == "mine\n"


def test_a_death_after_the_end_changes_nothing() -> None:
    run = sent_to(0)
    run.hear(reply(0))

    run.note_death(0, "was killed by SIGKILL")
    run.note_death(5, "was killed by SIGKILL")

    assert run.outputs[0].status == "ok"


def test_a_death_between_reply_and_output_ends_the_wait() -> None:
    run = sent_to(0)
    run.hear(reply(0, num_batches=1))

    run.note_death(0, "was killed by SIGKILL")

    assert run.done
    assert run.outputs[0].status == "ok"


def test_ranks_that_do_not_answer_can_be_abandoned() -> None:
    run = sent_to(0, 1, 2)
    run.hear(reply(1))

    assert run.abandon(CellError("NoAnswer", "busy")) == (0, 2)

    assert run.done
    assert [output.status for output in run.outputs] == ["stopped", "ok", "stopped"]
    with pytest.raises(CellStopped):
        run.raise_failure()


def test_a_late_reply_of_an_abandoned_rank_does_no_harm() -> None:
    run = sent_to(0)
    run.abandon(CellError("NoAnswer", "busy"))

    run.hear(batch(0, "late"))
    run.hear(reply(0, num_batches=1))

    assert run.done


def test_who_waits_is_woken_by_the_last_reply() -> None:
    run = sent_to(0, 1)
    run.hear(reply(1))
    timer = threading.Timer(0.05, run.hear, [reply(0)])
    timer.start()

    assert run.wait(10)

    timer.join()


def test_waiting_may_be_limited() -> None:
    run = sent_to(0)

    assert run.wait(0.01) is False
    with pytest.raises(TimeoutError, match="0 of 1 done"):
        run.result(0.01)


# What it came to ---------------------------------------------------------------------------------


def test_outputs_are_in_rank_order_whoever_was_first() -> None:
    run = sent_to(0, 1, 2)
    for rank in (2, 0, 1):
        run.hear(reply(rank, outputs=(Text("stdout", f"{rank}"),)))

    assert [(o.rank, texts(o.outputs)) for o in run.outputs] == [(0, "0"), (1, "1"), (2, "2")]


def test_values_are_by_rank() -> None:
    run = sent_to(0, 2)
    for rank in (2, 0):
        run.hear(reply(rank, value={"number": rank * 10, "places": []}))

    assert dict(run.result(1).items()) == {0: 0, 2: 20}
    assert run.values() is run.values()


def test_a_value_that_could_not_be_sent_is_an_error_of_that_rank() -> None:
    run = sent_to(0, 1)
    run.hear(reply(0, value={"number": 1, "places": []}))
    run.hear(reply(1, value_error="too large"))

    with pytest.raises(TransferError, match="rank 1: too large"):
        run.result(1)


def test_an_error_of_one_rank_is_the_run_s() -> None:
    run = sent_to(0, 1)
    run.hear(reply(0))
    run.hear(reply(1, "error", error=BOOM))

    assert run.has_failed
    assert repr(run) == "<Run In[3] on ranks 0, 1, failed>"
    with pytest.raises(CellFailed, match="ValueError on rank 1") as caught:
        run.result(1)
    assert not isinstance(caught.value, CellStopped)


def test_a_stop_is_an_error_of_its_own_unless_something_else_failed() -> None:
    stopped, both = sent_to(0, 1), sent_to(0, 1)
    for rank in (0, 1):
        stopped.hear(reply(rank, "stopped", error=CellError("KeyboardInterrupt", "")))
    both.hear(reply(0, "stopped", error=CellError("KeyboardInterrupt", "")))
    both.hear(reply(1, "error", error=BOOM))

    with pytest.raises(CellStopped):
        stopped.raise_failure()
    with pytest.raises(CellFailed, match="ValueError") as caught:
        both.raise_failure()
    assert not isinstance(caught.value, CellStopped)


def test_a_timeout_is_named() -> None:
    run = sent_to(0)
    run.timed_out_s = 2.5
    run.hear(reply(0, "stopped", error=CellError("KeyboardInterrupt", "")))

    with pytest.raises(CellStopped, match=r"--timeout 2\.5 s"):
        run.raise_failure()


def test_cancelling_asks_the_session() -> None:
    run = sent_to(0)

    run.cancel()

    assert cancelled.pop() is run


# While it runs -----------------------------------------------------------------------------------


def test_events_come_in_order_and_end_with_done() -> None:
    run = sent_to(0)
    run.hear(batch(0, "a"))
    run.hear(message(0, INPUT_REQUEST, {"prompt": "? ", "is_password": False}))
    run.hear(reply(0, num_batches=1, outputs=(Text("stdout", "b"),)))

    events = [run.next_event(0) for _ in range(6)]

    kinds = [event.kind for event in events if event]
    assert kinds == ["output", "input", "output", "ended", "done"]
    assert events[-1] is None


def test_what_came_with_the_reply_is_told_after_the_batches_that_went_before_it() -> None:
    run = sent_to(0)
    run.hear(reply(0, num_batches=1, outputs=(Text("stdout", "b"),)))
    assert run.next_event(0) is None

    run.hear(batch(0, "a"))
    events = [run.next_event(0) for _ in range(4)]

    outputs = [output for event in events if event for output in event.outputs]
    assert outputs == [Text("stdout", "a"), Text("stdout", "b")]
    assert [event.kind for event in events if event] == ["output", "output", "ended", "done"]


def test_of_a_bar_only_the_last_record_is_kept() -> None:
    run = sent_to(0)
    for done in range(1000):
        content = {"outputs": [output_to_json(Progress(1, "epoch", done, 1000))]}
        run.hear(message(0, OUTPUT_BATCH, content))

    [output] = run.outputs

    assert output.outputs == (Progress(1, "epoch", 999, 1000),)


def test_a_run_can_be_awaited() -> None:
    run = sent_to(0)

    async def main() -> list[Any]:
        asyncio.get_running_loop().call_later(
            0.02, run.hear, reply(0, value={"number": 7, "places": []})
        )
        return list(await run)

    assert asyncio.run(main()) == [7]


def test_on_the_page_it_shows_its_output_once_it_is_over() -> None:
    run = sent_to(0)
    assert run._repr_mimebundle_() == {"text/plain": "<Run In[3] on rank 0, 0 of 1 done>"}

    run.hear(reply(0, outputs=(Text("stdout", "hello\n"),)))

    assert run._repr_mimebundle_()["text/plain"] == "[rank0] hello"
    assert "hello" in run._repr_mimebundle_()["text/html"]


def test_messages_from_many_threads_are_all_kept() -> None:
    run = sent_to(*range(8))

    def rank(number: int) -> None:
        for i in range(50):
            run.hear(batch(number, f"{i} "))
        run.hear(reply(number, num_batches=50))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert run.done
    expected = "".join(f"{i} " for i in range(50))
    assert {texts(output.outputs) for output in run.outputs} == {expected}
