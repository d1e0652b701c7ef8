"""What may call a collective beside a cell: threads, tasks and timers of the user, no others."""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing import Queue
from typing import Any

import pytest
from torch.distributed.rpc import api
from tornado.ioloop import IOLoop

from nbdist.rank.callers import alarms, callers


def found(action: Callable[[], Any] = bool) -> list[str]:
    """Return what is found new once *action* is done in the main thread's loop, without names."""

    async def look() -> list[str]:
        before = [*callers(asyncio.get_running_loop())]
        kept = action()
        try:
            return [
                who.partition(" ")[0]
                for who in callers(asyncio.get_running_loop())
                if who not in before
            ]
        finally:
            del kept

    return asyncio.run(look())


def in_thread(target: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def test_nothing_is_found_where_nothing_is_left() -> None:
    assert found() == []


@pytest.fixture
def gate() -> queue.Queue[None]:
    """What threads of a test wait for."""
    return queue.Queue()


def test_threads_of_the_user_are_found(gate: queue.Queue[None]) -> None:
    assert found(lambda: in_thread(gate.get)) == ["thread"]
    gate.put(None)


def test_a_timer_is_a_thread() -> None:
    timer = threading.Timer(60, bool)

    assert found(timer.start) == ["thread"]
    timer.cancel()
    timer.join()


def test_a_pool_may_get_something_to_do(gate: queue.Queue[None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert found(lambda: pool.submit(gate.get)) == ["thread"]
        gate.put(None)


def test_a_loop_in_a_thread_may_call_something() -> None:
    with closing(asyncio.new_event_loop()) as loop:
        thread = threading.Thread(target=loop.run_forever)

        assert found(thread.start) == ["thread"]
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_a_queue_that_feeds_other_processes_serves_alone() -> None:
    items: Any = Queue()

    assert found(lambda: items.put(1)) == []
    items.get()
    items.close()
    items.join_thread()


async def later() -> None:
    await asyncio.sleep(60)


TASKS: dict[str, Callable[[], Any]] = {
    "of a function": lambda: asyncio.ensure_future(later()),
    "with a limit": lambda: asyncio.ensure_future(asyncio.wait_for(later(), 60)),
    "of asyncio alone": lambda: asyncio.ensure_future(asyncio.sleep(60)),
}


@pytest.mark.parametrize("begin", TASKS.values(), ids=TASKS.keys())
def test_tasks_are_found(begin: Callable[[], Any]) -> None:
    assert "task" in found(begin)


TIMERS: dict[str, Callable[[], Any]] = {
    "a function": lambda: asyncio.get_running_loop().call_later(60, found),
    "one of Python's": lambda: asyncio.get_running_loop().call_later(60, print),
    "bound to arguments": lambda: asyncio.get_running_loop().call_later(60, partial(found, bool)),
    "by way of tornado": lambda: IOLoop.current().call_later(60, found),
}


@pytest.mark.parametrize("begin", TIMERS.values(), ids=TIMERS.keys())
def test_timers_of_the_loop_are_found(begin: Callable[[], Any]) -> None:
    assert found(begin) == ["a"]


def test_one_that_was_cancelled_is_none() -> None:
    assert found(lambda: asyncio.get_running_loop().call_later(60, found).cancel()) == []


def test_an_alarm_is_found_until_it_is_off() -> None:
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        armed = alarms()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

    assert armed == ("an alarm",)
    assert alarms() == ()


def test_rpc_is_found_while_its_agent_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_is_current_rpc_agent_set", lambda: True)

    with closing(asyncio.new_event_loop()) as loop:
        assert "rpc" in callers(loop)
