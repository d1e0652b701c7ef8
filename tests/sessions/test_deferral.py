"""An interrupt waits until what must not be cut in two is done."""

from __future__ import annotations

import os
import signal

import pytest

from nbdist.sessions.deferral import deferred_interrupts


def test_an_interrupt_is_raised_at_the_end_and_not_before() -> None:
    done: list[str] = []

    def press_and_go_on() -> None:
        with deferred_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the rest of the block")

    with pytest.raises(KeyboardInterrupt):
        press_and_go_on()

    assert done == ["the rest of the block"]


def test_the_handler_is_put_back_also_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)

    with pytest.raises(ValueError, match="mine"), deferred_interrupts():
        raise ValueError("mine")

    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_is_raised() -> None:
    with deferred_interrupts():
        pass
