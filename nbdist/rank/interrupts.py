"""Let SIGINT reach user code, and only user code.

A ``KeyboardInterrupt`` in the middle of our own bookkeeping would swallow a reply and leave the
notebook waiting for ever. So the signal raises only while a cell's code has the floor; a cell that
is suspended in an ``await`` is cancelled instead; outside of cells nothing happens.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Generator
from types import FrameType
from typing import Any

from nbdist.rank.failures import chain_of
from nbdist.rank.forks import end_child


class Interrupts:
    """Holds who is to be interrupted by the next SIGINT. Lives in the main thread of a rank.

    Attributes:
        was_interrupted: A SIGINT has reached the running cell, or the last one where none runs.
        num_seen: How many SIGINTs Python has got to see; one that comes in a C call waits.
    """

    def __init__(self) -> None:
        self._is_armed = False
        self._task: asyncio.Task[Any] | None = None
        self._cell_id: str | None = None
        self._stopped: set[str] = set()
        self.was_interrupted = False
        self.num_seen = 0
        self._lock = threading.Lock()

    def install(self) -> None:
        """Handle SIGINT from now on."""
        if signal.getsignal(signal.SIGINT) != self._on_sigint:
            signal.signal(signal.SIGINT, self._on_sigint)

    def request(self, cell_ids: list[str]) -> bool:
        """Stop these cells, the running one and those that have not begun. Any thread may call.

        Returns:
            Whether the running cell had been told before, and goes on.
        """
        with self._lock:
            was_told = self._cell_id in self._stopped
            self._stopped.update(cell_ids)
            is_running = self._cell_id in self._stopped
        if is_running:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return is_running and was_told

    @property
    def is_running_stopped(self) -> bool:
        """Whether the running cell was told to stop; ``False`` where none runs."""
        with self._lock:
            return self._cell_id is not None and self._cell_id in self._stopped

    def is_stopped(self, cell_id: str) -> bool:
        """Whether *cell_id* was told to stop."""
        with self._lock:
            return cell_id in self._stopped

    def enter(self, cell_id: str) -> None:
        """Say that *cell_id* runs now; a handler that an earlier cell has set is gone."""
        self.install()
        with self._lock:
            self._cell_id = cell_id
            self.was_interrupted = False
            self._task = asyncio.current_task()

    def leave(self) -> None:
        """Say that no cell runs now."""
        with self._lock:
            self._stopped.discard(self._cell_id or "")
            self._cell_id = self._task = None

    def _on_sigint(self, _signum: int, _frame: FrameType | None) -> None:
        self.num_seen += 1
        self.was_interrupted = self._task is not None
        if self._is_armed:
            # No `_stopped.add` under the lock: this runs in the main thread, which may hold it.
            raise KeyboardInterrupt
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    def guard(
        self,
        coroutine: Coroutine[Any, Any, Any],
        failure_of: Callable[[Any], BaseException | None] = lambda _: None,
    ) -> Guarded:
        """Return an awaitable that runs *coroutine* and lets SIGINT raise inside it.

        Args:
            coroutine: Runs the user's code. A process that this forks ends with it.
            failure_of: Finds in what *coroutine* returns how that code failed.
        """
        return Guarded(self, coroutine, failure_of)


class Guarded:
    """Drives a coroutine step by step; SIGINT raises within a step, never between two.

    An exception that left a step of an asyncio task as ``KeyboardInterrupt`` would end the event
    loop of the engine with it.
    """

    def __init__(
        self,
        interrupts: Interrupts,
        coroutine: Coroutine[Any, Any, Any],
        failure_of: Callable[[Any], BaseException | None],
    ) -> None:
        self._interrupts = interrupts
        self._coroutine = coroutine
        self._failure_of = failure_of
        self._pid = os.getpid()

    def __await__(self) -> Generator[Any, Any, Any]:
        argument: Any = None
        step = self._coroutine.send
        while True:
            try:
                awaited = self._armed(step, argument)
            except StopIteration as over:
                if self._is_forked:
                    end_child(self._failure_of(over.value))
                return over.value
            except BaseException as exc:
                if self._is_forked:
                    end_child(exc)
                raise
            if self._is_forked:  # the loop would go on with what is the rank's to answer
                refusal = RuntimeError("A process that a cell has forked cannot await.")
                step, argument = self._coroutine.throw, refusal
                continue
            try:
                step, argument = self._coroutine.send, (yield awaited)
            except BaseException as exc:  # noqa: BLE001 - handed into the coroutine, whose it is
                step, argument = self._coroutine.throw, exc

    @property
    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    def _armed(self, step: Any, argument: Any) -> Any:
        self._interrupts._is_armed = True
        try:
            return step(argument)
        finally:
            self._interrupts._is_armed = False


def is_hidden(failure: BaseException) -> bool:
    """Whether *failure* is an interrupt that came through C++, which makes a text of it."""
    return isinstance(failure, RuntimeError) and "KeyboardInterrupt: " in str(failure)


def has_interrupt(failure: BaseException) -> bool:
    """Whether *failure* is an interrupt, or came up while one was handled."""
    interrupts = (KeyboardInterrupt, asyncio.CancelledError)
    return any(isinstance(link, interrupts) or is_hidden(link) for link in chain_of(failure))
