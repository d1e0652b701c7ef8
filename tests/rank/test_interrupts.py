"""Where a SIGINT may strike: in the user's code, and nowhere else. Real signals, no rank."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from nbdist.rank.interrupts import Interrupts, has_interrupt


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts()
    interrupts.install()
    yield interrupts
    signal.signal(signal.SIGINT, before)


def press() -> None:
    """Press the stop button: the signal is handled before the next line of Python."""
    os.kill(os.getpid(), signal.SIGINT)


def run(
    interrupts: Interrupts, cell: Callable[[], Coroutine[Any, Any, Any]], name: str = "c1"
) -> Any:
    async def handler() -> Any:
        interrupts.enter(name)
        try:
            return await interrupts.guard(cell())
        finally:
            interrupts.leave()

    return asyncio.run(handler())


def test_code_that_has_the_floor_is_interrupted(interrupts: Interrupts) -> None:
    reached = []

    async def cell() -> None:
        press()
        reached.append("after")

    with pytest.raises(KeyboardInterrupt):
        run(interrupts, cell)

    assert reached == []
    assert interrupts.was_interrupted


def test_code_that_awaits_is_cancelled(interrupts: Interrupts) -> None:
    async def cell() -> None:
        asyncio.get_running_loop().call_soon(press)
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        run(interrupts, cell)


def test_a_cell_may_catch_the_interrupt_and_go_on(interrupts: Interrupts) -> None:
    async def cell() -> str:
        try:
            press()
            await asyncio.sleep(0)
        except KeyboardInterrupt:
            await asyncio.sleep(0)
            return "caught"
        return "missed"

    assert run(interrupts, cell) == "caught"


def test_a_handler_that_a_cell_has_set_is_gone_in_the_next(interrupts: Interrupts) -> None:
    async def deaf() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def cell() -> None:
        press()

    run(interrupts, deaf)
    with pytest.raises(KeyboardInterrupt):
        run(interrupts, cell, "c2")


def test_outside_of_a_cell_nothing_happens(interrupts: Interrupts) -> None:
    press()

    assert interrupts.was_interrupted is False


def test_between_two_steps_of_a_cell_nothing_is_raised(interrupts: Interrupts) -> None:
    async def handler() -> str:
        interrupts.enter("c1")
        press()  # our own code has the floor
        interrupts.leave()
        return "went on"

    async def main() -> str:
        task = asyncio.ensure_future(handler())
        await asyncio.wait([task])
        return "cancelled" if task.cancelled() else task.result()

    assert asyncio.run(main()) in ("went on", "cancelled")


def test_a_request_strikes_the_running_cell(interrupts: Interrupts) -> None:
    async def cell() -> None:
        interrupts.request(["c1"])
        await asyncio.sleep(60)

    with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
        run(interrupts, cell)


def test_a_request_for_another_cell_waits_for_it(interrupts: Interrupts) -> None:
    async def cell() -> str:
        assert interrupts.request(["c2"]) is False
        await asyncio.sleep(0)
        return "undisturbed"

    assert run(interrupts, cell) == "undisturbed"
    assert interrupts.is_stopped("c2")
    assert not interrupts.is_stopped("c1")


def test_a_second_request_knows_that_it_is_the_second(interrupts: Interrupts) -> None:
    async def cell() -> list[bool]:
        answers: list[bool] = []
        while len(answers) < 2:
            thread = threading.Thread(target=lambda: answers.append(interrupts.request(["c1"])))
            try:
                thread.start()
                await asyncio.sleep(60)
            except (KeyboardInterrupt, asyncio.CancelledError):
                thread.join()
        return answers

    assert run(interrupts, cell) == [False, True]


def test_a_stop_is_forgotten_with_its_cell(interrupts: Interrupts) -> None:
    async def cell() -> None:
        return None

    interrupts.request(["c1"])
    run(interrupts, cell)

    assert not interrupts.is_stopped("c1")


def test_a_guarded_cell_returns_its_value_and_takes_exceptions(interrupts: Interrupts) -> None:
    async def cell() -> list[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        loop.call_soon(future.set_exception, ValueError("from the future"))
        try:
            await future
        except ValueError as exc:
            return [await asyncio.sleep(0, "value"), str(exc)]
        return []

    assert run(interrupts, cell) == ["value", "from the future"]


@pytest.mark.parametrize(
    ("link", "found"),
    [(KeyboardInterrupt, True), (asyncio.CancelledError, True), (KeyError, False)],
)
def test_an_interrupt_is_found_behind_whatever_came_up_while_it_was_handled(
    link: type[BaseException], found: bool
) -> None:
    failure, cause, handled = ValueError(), TypeError(), link()
    failure.__cause__, failure.__context__ = cause, handled
    cause.__context__ = failure  # a cycle: who walks it must come to an end

    assert has_interrupt(failure) is found
