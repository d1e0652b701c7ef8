"""Run a cell on this rank, and always reply.

    shell channel ──CellRequest──▶ CellRunner.handle ──▶ IPython ──▶ CellReply ──▶ shell channel

An exception in a handler of ipykernel would mean no reply at all, so everything from the request on
is turned into a reply. The reply says how many output batches went before it on the other socket.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

import psutil
from IPython.core.interactiveshell import ExecutionResult

from nbdist import packing
from nbdist.packing import ValueFolder
from nbdist.rank.failures import chain_of, describe
from nbdist.rank.interrupts import Interrupts
from nbdist.rank.modules import CellModules
from nbdist.rank.outputs import Recorder
from nbdist.rank.recovery import Conclusion, Recovery
from nbdist.rank.shell import RankShell
from nbdist.wire import CellReply, CellRequest, Status

# What a cell says that looks at how the one before it failed; any other lets go of the frames.
ASKS_FOR_LAST_ERROR = re.compile(r"%debug\b|\bpm\(|\bpost_mortem\(|\bsys\.last_")


class CellRunner:
    """Runs cells one after another in the main thread."""

    def __init__(
        self,
        shell: RankShell,
        recorder: Recorder,
        interrupts: Interrupts,
        recovery: Recovery,
        modules: CellModules,
    ) -> None:
        self.shell = shell
        self.modules = modules
        self.recorder = recorder
        self.interrupts = interrupts
        self.recovery = recovery
        self.running: tuple[str, float] | None = None
        self.cell_id: str | None = None
        self._last_errors: list[BaseException] = []  # more than one while they are looked at

    async def run(
        self, content: Mapping[str, Any], folder: ValueFolder
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Run the cell that *content* describes.

        Returns:
            The reply as a JSON object, and the buffers of the value it carries.
        """
        request = CellRequest(**content)
        started, started_at = time.perf_counter(), time.time()
        if not ASKS_FOR_LAST_ERROR.search(request.code):
            self._forget_last_error()
        self.recorder.begin(request.cell_id, request.label)
        self.interrupts.enter(request.cell_id)
        self.recovery.begin(request.cell_id)
        self.running, self.cell_id = (request.label, time.time()), request.cell_id
        failure: BaseException | None = None
        result: ExecutionResult | None = None
        try:
            if self.interrupts.is_stopped(request.cell_id):
                failure = KeyboardInterrupt("stopped before it began")
            else:
                result, failure = await self._execute_in_its_module(request)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the notebook gets a reply
            failure = exc
        is_stopped = self.interrupts.was_interrupted or self.interrupts.is_stopped(request.cell_id)
        if is_stopped:
            failure = failure or KeyboardInterrupt("the cell went on to its end")
            end_terminals(started_at)
        self.interrupts.leave()
        if failure is not None:
            self._last_errors.append(failure)
        conclusion = self.recovery.conclude(failure, was_told_to_stop=is_stopped)
        self.running = self.cell_id = None
        return self._reply(request, result, conclusion, started, folder)

    async def _execute_in_its_module(
        self, request: CellRequest
    ) -> tuple[ExecutionResult | None, BaseException | None]:
        if request.module is None:
            return await self._execute(request)
        with self.modules.running(request.module, request.code):
            result, failure = await self._execute(request)
            if failure is None and not self.interrupts.was_interrupted:
                self.modules.keep()
        return result, failure

    async def _execute(
        self, request: CellRequest
    ) -> tuple[ExecutionResult | None, BaseException | None]:
        shell = self.shell
        shell.compile.label = request.label  # type: ignore[attr-defined]
        if request.number is not None:
            shell.execution_count = request.number
        preprocessing = None
        try:
            transformed = shell.transform_cell(request.code)  # type: ignore[no-untyped-call]  # IPython's
        except Exception:  # noqa: BLE001 - a syntax error of IPython's own; run_cell reports it
            transformed, preprocessing = request.code, sys.exc_info()
        shell.last_exception = None
        shell.displayhook.keeps_values = not request.want_value  # type: ignore[attr-defined]
        cell = shell.run_cell_async(
            request.code,
            store_history=True,
            transformed_cell=transformed,
            preprocessing_exc_tuple=preprocessing,
        )
        result: ExecutionResult | None = None
        try:
            result = await self.interrupts.guard(cell, _failure_of)
        finally:
            shell.events.trigger("post_execute")
            shell.events.trigger("post_run_cell", result)
        return result, _failure_of(result) or shell.last_exception

    def _reply(
        self,
        request: CellRequest,
        result: ExecutionResult | None,
        conclusion: Conclusion,
        started: float,
        folder: ValueFolder,
    ) -> tuple[dict[str, Any], list[bytes]]:
        failure = conclusion.failure
        status: Status = "ok" if failure is None else "error"
        if conclusion.is_stopped:
            status = "stopped"
        value, value_error, buffers = None, None, []
        if request.want_value and status == "ok":
            try:
                packed = packing.pack(
                    result.result if result else None,
                    folder.asked_by(request.cell_id),
                    max_bytes=request.max_value_bytes,
                )
                value, buffers = packed.header, packed.buffers
            except Exception as exc:  # noqa: BLE001 - a value that cannot travel fails the -o, not the rank
                value_error = f"{type(exc).__name__}: {exc}"
            if result is not None:
                result.result = None  # the shell keeps the last result of all
        outputs, num_batches = self.recorder.end()
        reply = CellReply(
            status=status,
            num_batches=num_batches,
            outputs=tuple(outputs),
            error=None if failure is None else describe(failure, conclusion.waited_for),
            value=value,
            value_error=value_error,
            seconds=time.perf_counter() - started,
            calls=self.recovery.guard.take_counts(),
            refused=dict(self.recorder.refused),
        )
        return reply.to_json(), buffers

    def salvage(self, exc: BaseException) -> dict[str, Any]:
        """Return the reply to a cell whose bookkeeping *exc* has struck, and free who waits.

        A signal handler of the user's code may raise anywhere in the main thread; that of torch's
        DataLoader does when a worker dies.
        """
        self.interrupts.leave()
        self.running = self.cell_id = None
        conclusion = self.recovery.conclude(exc, was_told_to_stop=False)
        outputs, num_batches = self.recorder.end()
        error = describe(conclusion.failure or exc, conclusion.waited_for)
        return CellReply("error", num_batches, tuple(outputs), error).to_json()

    def _forget_last_error(self) -> None:
        """Let go of the last error's frames, which would keep their tensors alive."""
        errors, self._last_errors = self._last_errors, []
        if self.shell.last_exception is not None:
            errors.append(self.shell.last_exception)
        self.shell.last_exception = None
        for link in itertools.chain.from_iterable(map(chain_of, errors)):
            traceback.clear_frames(link.__traceback__)
            # By the base class: a frozen dataclass refuses to be assigned to.
            BaseException.with_traceback(link, None)
        for name in ("last_type", "last_value", "last_traceback", "last_exc"):
            if hasattr(sys, name):
                delattr(sys, name)
        self.recovery.lifeline.end_remains()  # its frames may have held them


def _failure_of(result: ExecutionResult | None) -> BaseException | None:
    if result is None:
        return None
    return result.error_before_exec or result.error_in_exec


def end_terminals(since: float) -> None:
    """End what ``!command`` has left behind when its cell was stopped.

    IPython runs such a command on a terminal of its own, as the leader of a session, where no
    signal to this process group finds it. Other children are the user's to keep.

    Args:
        since: Only those begun after this time (seconds since the epoch).
    """
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if child.create_time() >= since - 0.1 and os.getsid(child.pid) == child.pid:
                os.killpg(child.pid, signal.SIGKILL)
