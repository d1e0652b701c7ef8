"""What DDP's reducer has begun in a step that failed is over before the next step begins."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from nbdist.errors import CollectiveAborted
from nbdist.runtime.waiting import Waiting
from tests.interrupting import interrupted_at


class NativeWork:
    """A call of gloo that ends when the test says so."""

    def __init__(self) -> None:
        self.future: torch.futures.Future[Any] = torch.futures.Future()

    def get_future(self) -> torch.futures.Future[Any]:
        return self.future

    def is_completed(self) -> bool:
        return self.future.done()


def test_a_reset_waits_for_the_calls_that_still_write_into_the_buckets() -> None:
    waiting, work = Waiting(lambda: None), NativeWork()
    promise = waiting._promise(work)
    order = []

    def reset() -> None:
        waiting.let_reducers_end(30)
        order.append("reset")

    thread = threading.Thread(target=reset)
    thread.start()
    thread.join(0.2)
    order.append("written")
    work.future.set_result([torch.ones(1)])
    thread.join(30)

    assert order == ["written", "reset"]
    assert promise.done()


def test_one_that_never_ends_is_waited_for_only_once() -> None:
    waiting, work = Waiting(lambda: None), NativeWork()
    promise = waiting._promise(work)

    waiting.let_reducers_end(0.01)
    waiting.let_reducers_end(1000)

    assert not promise.done()


@pytest.mark.parametrize("step", range(15))
def test_an_interrupt_in_our_own_bookkeeping_leaves_nobody_waiting(step: int) -> None:
    """torch swallows what a callback raises, and it runs in the main thread where a call is over.

    At each of its steps; those beyond its last one see no interrupt.
    """
    reasons: list[str] = []

    def raise_if_aborted() -> None:
        if reasons:
            raise CollectiveAborted(reasons[0])

    waiting, work = Waiting(raise_if_aborted), NativeWork()
    work.future.set_result([torch.ones(1)])
    promise = interrupted_at(step, ["keep", "_settle"], lambda: waiting._promise(work))

    reasons.append("The cell was stopped.")
    waiting.cut_off()
    waiting.let_reducers_end(1000)

    assert promise.done()
