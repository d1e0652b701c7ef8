"""Wait for native calls so that an abort and a signal reach the one who waits.

    work.wait() ───────────▶ slices of 50 ms ──▶ over: its result, or its error
                               ▲       └───────▶ not over: were we cut off? SIGINT? ──▶ raise
                               └──────────────── no
    C++ that waits ◀── a `Work` of ours ◀── native one        (DDP's reducer, functional, coalesced)
    messages, connecting, the store of the meetings ──▶ in a thread; who waits looks up likewise

The end of a connection should be enough to free a call of gloo, and often is. But gloo tells it
only to what waits in a queue (`Pair::signalException`, read in April 2026): a buffer that is half
sent or half received is forgotten, and so is one whose sending begins before the end is noticed.
Such a call stays in its native thread until the timeout of the group, half an hour by default. The
thread may: it belongs to a group that nobody uses any more. Whoever waits for it must not.

Not covered: processes with groups that are not gloo's alone; a wait with a timeout of its own;
`monitored_barrier`, which has one. A signal does not reach a wait inside C++.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from nbdist.runtime import torch_private
from nbdist.runtime.trace import entry_of

SLICE_S = 0.05
LOOK_S = 0.001
GRACE_S = 0.02  # after an abort: the error of the call itself says more
_SLICE = timedelta(seconds=SLICE_S)


class Waiting:
    """Stands in for the native waits of this process; passive until `install`.

    Attributes:
        is_gloo_only: No group of this process has another backend.
    """

    def __init__(self, raise_if_aborted: Callable[[], None]) -> None:
        self._raise_if_aborted = raise_if_aborted
        self._native_wait: Callable[..., bool] = torch_private.Work.wait
        self._undo: Callable[[], None] | None = None
        self.is_gloo_only = False
        self._idle: list[_Helper] = []
        self._reducing: dict[torch.futures.Future[Any], Any] = {}  # promises, with native calls

    def __repr__(self) -> str:
        return f"<Waiting {'in slices' if self._undo and self.is_gloo_only else 'natively'}>"

    def install(self) -> None:
        """Wait in place of `Work.wait` from now on."""
        if self._undo is None:
            self._native_wait = torch_private.Work.wait
            self._undo = torch_private.replace_wait(self._replacement())
            self.look_at_groups()

    def close(self) -> None:
        """Leave waiting to torch again; may be called twice."""
        if self._undo is not None:
            self._undo()
            self._undo = None
        while self._idle:
            self._idle.pop().close()

    def forget_helpers(self) -> None:
        """Count on no thread of before: in a forked child there are none."""
        self._idle.clear()

    def look_at_groups(self) -> None:
        """Take note of the groups there are: on NCCL a wait with an end is another thing."""
        self.is_gloo_only = all(
            set(torch_private.group_backends(group).values()) <= {"gloo"}
            for group in torch_private.living_groups()
        )

    # Waits of Python --------------------------------------------------------------------------

    def _replacement(self) -> Callable[..., bool]:
        native_wait, none = self._native_wait, timedelta(0)

        def wait(self_: Any, timeout: timedelta = none) -> bool:
            with entry_of(self_):
                return wait_for(self_, timeout)

        def wait_for(self_: Any, timeout: timedelta) -> bool:
            if timeout != none or not self.is_gloo_only or type(self_) is not torch_private.Work:
                return native_wait(self_, timeout)
            if torch_private.is_message(self_):
                self._wait_apart(self_)
            else:
                self._wait_in_slices(self_)
            return True

        return wait

    def _wait_in_slices(self, work: Any) -> None:
        """Wait until the collective *work* is over.

        Raises:
            CollectiveAborted: It was cut off, and has not noticed.
        """
        while True:
            try:
                self._native_wait(work, _SLICE)
            except RuntimeError as exc:  # not over yet, or over with an error
                if exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
                    raise  # by a signal handler of the user, DataLoader's for one
            else:
                return
            if work.is_completed():
                self._native_wait(work)
                return
            self._check(work.is_completed)

    def _wait_apart(self, work: Any) -> None:
        """Wait until a message has come or gone: in a thread, as its wait has to be without end.

        When a native wait for a message ends by its timeout, gloo closes all connections.
        """
        self.apart(lambda: self._native_wait(work))

    def apart(self, action: Callable[[], object], left: Callable[[], object] = bool) -> None:
        """Do *action* in a thread, and wait for it here, where an abort and a signal are felt.

        Args:
            action: What is native and may never end.
            left: Called when it was left behind, still under way.

        Raises:
            CollectiveAborted: The groups were cut off, and it has not noticed.
        """
        self._do_apart(action, left, lambda answer: self._check(lambda: answer.wait(LOOK_S)))

    def apart_from_groups(self, action: Callable[[], object]) -> None:
        """Do *action* likewise where it has nothing to do with groups: only a signal ends it."""
        self._do_apart(action, bool, bool)

    def _do_apart(
        self,
        action: Callable[[], object],
        left: Callable[[], object],
        look: Callable[[_Answer], object],
    ) -> None:
        helper = self._idle.pop() if self._idle else _Helper()
        answer = helper.ask(action)
        try:
            while not answer.wait(SLICE_S):
                look(answer)
        except BaseException:
            helper.close()  # one that is left in a wait ends with it
            left()
            raise
        self._idle.append(helper)
        if answer.error is not None:
            raise answer.error

    def _check(self, is_over: Callable[[], bool]) -> None:
        try:
            self._raise_if_aborted()
        except Exception:
            deadline = time.monotonic() + GRACE_S
            while not is_over():
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_S)

    # Waits of C++ -----------------------------------------------------------------------------

    def around(self, result: Any) -> Any:
        """Return *result* with a `Work` of ours in it if C++ is going to wait for it."""
        if not self.is_gloo_only:
            return result
        consumer = torch_private.consumer_of_work(sys._getframe(2))
        if consumer == "python":
            return result
        boxed = result[-1] if isinstance(result, tuple) else result
        work = torch_private.unbox_work(boxed)
        if work is None or torch_private.is_message(work):
            return result
        if consumer == "reducer":
            ours = torch_private.work_of_future(self._promise(work))
        else:
            ours = torch_private.work_that_calls(lambda: self._wait_and_note(work))
        return (*result[:-1], ours.boxed()) if isinstance(result, tuple) else ours.boxed()

    def _wait_and_note(self, work: Any) -> None:
        with entry_of(work):
            self._wait_in_slices(work)

    def _promise(self, work: Any) -> Any:
        """Return a future that ends as *work* does, or by `cut_off`."""
        promise: torch.futures.Future[Any] = torch.futures.Future()
        entry = entry_of(work)

        def keep(done: Any) -> None:
            try:
                entry.finish()
                _settle(promise, done.value())
            except BaseException as exc:  # noqa: BLE001 - an interrupt, too: torch would swallow it
                _settle(promise, exc)
            self._reducing.pop(promise, None)

        self._reducing[promise] = work
        work.get_future().add_done_callback(keep)
        try:
            self._raise_if_aborted()  # `cut_off` may have been before us
        except Exception as exc:  # noqa: BLE001 - passed on to who waits
            _settle(promise, exc)
        return promise.then(_value)

    def let_reducers_end(self, patience_s: float) -> None:
        """Wait until the calls of DDP's reducer that are under way are over, or *patience_s*.

        After a step that failed they go on, and write into the buckets that the next one uses. One
        that was cut off may never end; it does not write any more, and is waited for only once.
        """
        deadline = time.monotonic() + patience_s
        while not all(work.is_completed() for work in list(self._reducing.values())):
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_S)
        self._reducing.clear()

    def cut_off(self) -> None:
        """Let the waits of C++ end that have not, after a moment; any thread may call."""
        deadline = time.monotonic() + GRACE_S
        while not all(promise.done() for promise in list(self._reducing)):
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_S)
        try:
            self._raise_if_aborted()
        except Exception as exc:  # noqa: BLE001 - what it is, is what they get
            for promise in list(self._reducing):
                _settle(promise, exc)


def _settle(promise: Any, value: Any) -> None:
    with contextlib.suppress(RuntimeError):  # somebody else was first
        if not promise.done():
            promise.set_result(value)


def _value(promise: Any) -> Any:
    # `Future.set_exception` would hand C++ the exception as if it were the result.
    value = promise.value()
    if isinstance(value, BaseException):
        raise value
    return value


class _Answer:
    """What a helper has found."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._is_here = threading.Lock()
        self._is_here.acquire()

    def give(self) -> None:
        self._is_here.release()

    def wait(self, timeout_s: float) -> bool:
        if not self._is_here.acquire(timeout=timeout_s):
            return False
        self._is_here.release()
        return True


class _Helper:
    """A daemon thread that waits in place of another; `close` stops it once it is free."""

    def __init__(self) -> None:
        self._task: tuple[Callable[[], object], _Answer] | None = None
        self._has_task = threading.Semaphore(0)
        threading.Thread(target=self._run, name="nbdist-wait", daemon=True).start()

    def ask(self, action: Callable[[], object]) -> _Answer:
        answer = _Answer()
        self._task = action, answer
        self._has_task.release()
        return answer

    def close(self) -> None:
        self._task = None
        self._has_task.release()

    def _run(self) -> None:
        while True:
            self._has_task.acquire()
            if self._task is None:
                return
            (action, answer), self._task = self._task, None
            try:
                action()
            except BaseException as exc:  # noqa: BLE001 - raised by who waits
                answer.error = exc
            del action
            answer.give()
            del answer
