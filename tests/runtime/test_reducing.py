"""What DDP's reducer has begun in a step that failed is over before the next step begins."""

from __future__ import annotations

import threading
from typing import Any

import torch

from nbdist.runtime.waiting import Waiting


class NativeWork:
    """A call of gloo that ends when the test says so."""

    def __init__(self) -> None:
        self.future: torch.futures.Future[Any] = torch.futures.Future()

    def get_future(self) -> torch.futures.Future[Any]:
        return self.future


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
