"""The ipyparallel engine of a rank, and every private name of ipyparallel and ipykernel it needs.

Read in ipyparallel 9.2 and ipykernel 7.4. `RankKernel` takes cells as messages of our own type: a
stock execute request never replies to a cell with ``await``, publishes a message per output, and
makes ipykernel abort what is queued after an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import ipyparallel.engine.app as engine_app
import torch
from ipyparallel.engine.app import IPEngine
from ipyparallel.engine.kernel import IPythonParallelKernel
from traitlets import Type

from nbdist import packing, processes, wire
from nbdist.folder import SessionFolder
from nbdist.rank import callers, cells, debugging, foreign, progress, spawning, tqdm_bars, values
from nbdist.rank.failures import frames_of
from nbdist.rank.inputs import InputRelay
from nbdist.rank.interrupts import Interrupts
from nbdist.rank.journal import Journal
from nbdist.rank.logs import RankLog
from nbdist.rank.modules import CellModules
from nbdist.rank.outputs import Recorder, install_streams
from nbdist.rank.placed import Place
from nbdist.rank.recovery import Recovery
from nbdist.rank.replicas import share
from nbdist.rank.secrets import Secrets
from nbdist.rank.shell import CellCompiler, RankShell
from nbdist.shadows import add_working_folder
from nbdist.wire import AgentSpec, Prospect, Snapshot

PATIENCE_S = 0.3  # until an interrupt that Python does not see means a native call
REST_S = 0.2  # within which a main thread that has nothing to do is seen so
OUTSIDE = {  # what a main thread does without a cell, by the function it is in
    "on_recover": "is to agree with the others to go on",
    "on_values": "moves values",
}


def without_debugger() -> None:
    """Keep ipykernel from importing debugpy into a rank: 0.2 s of every start, never used there."""
    stand_in: Any = ModuleType("ipykernel.debugger")
    stand_in._is_debugpy_available = False
    stand_in.Debugger = object
    sys.modules.setdefault("ipykernel.debugger", stand_in)


class RankKernel(IPythonParallelKernel):  # type: ignore[misc]
    """Runs cells, moves values, and answers on the control channel meanwhile."""

    shell_class = Type(RankShell)
    compiler_class = Type(CellCompiler)
    names: dict[str, Any]
    secrets: Secrets

    def attach(
        self,
        folder: SessionFolder,
        recorder: Recorder,
        interrupts: Interrupts,
        inputs: InputRelay,
        recovery: Recovery,
        journal: Journal,
        modules: CellModules,
    ) -> None:
        """Give the kernel what the engine made for it, and take our messages from now on."""
        self.recorder = recorder
        self.interrupts = interrupts
        self.inputs = inputs
        self.folder = values.value_folder(folder, recovery.guard.rank)
        self.recovery = recovery
        self.journal = journal
        self.is_fresh = False
        self.runner = cells.CellRunner(self.shell, recorder, interrupts, recovery, modules)
        self.parents: dict[str, Any] = {}
        self.log.setLevel(logging.ERROR)  # ipykernel describes every message, at some cost
        self.shell.record_to(recorder)
        self.shell_handlers[wire.CELL_REQUEST] = self.on_cell
        self.shell_handlers[wire.VALUE_REQUEST] = self.on_values
        self.shell_handlers[wire.RECOVER_REQUEST] = self.on_recover
        self.control_handlers[wire.INTERRUPT_REQUEST] = self.on_interrupt
        self.control_handlers[wire.SNAPSHOT_REQUEST] = self.on_snapshot
        self.control_handlers[wire.TRACE_REQUEST] = self.on_trace
        self.control_handlers[wire.NAME_REQUEST] = self.on_name
        self.control_handlers[wire.PROSPECT_REQUEST] = self.on_prospect
        self.control_handlers[wire.INPUT_REPLY] = self.on_input_reply
        self.main_loop = asyncio.get_event_loop()

    # Shell channel: the main thread -----------------------------------------------------------

    async def on_cell(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Run a cell; whatever happens, reply."""
        buffers: list[bytes] = []
        try:
            self.parents[parent["content"]["cell_id"]] = parent
            self.journal.begin(parent["content"])
            self.is_fresh = False  # from now on it has something of its own
            cell = parent["content"]
            self.recovery.guard.trace.begin_cell(cell["cell_id"], cell["label"])
            content, buffers = await self.runner.run(cell, self.folder)
        except BaseException as exc:  # noqa: BLE001 - without a reply the notebook would wait for ever
            content = self.runner.salvage(exc)
        finally:
            task = asyncio.current_task()
            if task is not None and hasattr(task, "uncancel"):
                while task.cancelling():
                    task.uncancel()
        self.parents.pop(parent["content"].get("cell_id", ""), None)
        sent = self._reply(stream, wire.CELL_REPLY, content, parent, ident, buffers)
        self.journal.end(sent)  # last: nobody waits for it

    async def on_values(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Send a variable to the notebook, or take one from it; whatever happens, reply."""
        buffers: list[bytes] = []
        content: dict[str, Any]
        self.interrupts.enter(parent["content"]["cell_id"])
        self.recovery.begin(parent["content"]["cell_id"])
        try:
            move = self._move_values(parent["content"], parent["buffers"])
            content, buffers = await self.interrupts.guard(move)
        except BaseException as exc:  # noqa: BLE001 - the user's expression may raise anything
            failure: BaseException = exc
            if self.recovery.guard.take_counts():  # without a collective it is nobody else's affair
                told = self.interrupts.was_interrupted
                failure = self.recovery.conclude(exc, was_told_to_stop=told).failure or exc
            content = {"status": "error", "error": f"{type(failure).__name__}: {failure}"}
        finally:
            self.interrupts.leave()
        self._reply(stream, wire.VALUE_REPLY, content, parent, ident, buffers)

    async def _move_values(
        self, content: Mapping[str, Any], buffers: list[Any]
    ) -> tuple[dict[str, Any], list[bytes]]:
        self._raise_if_stopped(content["cell_id"])
        namespace = self.shell.user_ns
        views = [memoryview(buffer) for buffer in buffers]
        if content["action"] == "pull":
            value = eval(content["expression"], namespace)  # noqa: S307 - the user's own code
            folder = self.folder.asked_by(content["cell_id"])
            packed = packing.pack(value, folder, max_bytes=content["max_bytes"])
            return {"status": "ok", "value": packed.header}, packed.buffers
        namespace.update(
            packing.unpack(
                content["value"],
                views,
                self.folder,
                values.make_tensor,
                keep_files=True,
                namespace=namespace,
            )
        )
        return {"status": "ok"}, []

    def _raise_if_stopped(self, cell_id: str) -> None:
        if self.interrupts.is_stopped(cell_id):  # told before anything here could hear it
            raise KeyboardInterrupt

    async def on_recover(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Agree with the other ranks to go on after a failure; whatever happens, reply."""
        content: dict[str, Any]
        self.interrupts.enter(parent["content"]["meeting"])
        try:
            found = await self.interrupts.guard(self._settle(parent["content"]))
            content = {"status": "ok", **found}
        except BaseException as exc:  # noqa: BLE001 - without a reply the notebook would wait for ever
            content = {"status": "error", "error": f"{type(exc).__name__}: {exc}"}
        finally:
            self.interrupts.leave()
        self._reply(stream, wire.RECOVER_REPLY, content, parent, ident)

    async def _settle(self, content: Mapping[str, Any]) -> dict[str, Any]:
        self._raise_if_stopped(content["meeting"])
        if content["action"] == "share":
            return {"report": self._share(content)}
        self.recovery.settle(
            content["generation"],
            content["meeting"],
            must_rebuild=content["must_rebuild"],
            store_address=content["store"],
        )
        return {}

    def _share(self, content: Mapping[str, Any]) -> str:
        """Give fresh ranks what the others have alike; a collective of all ranks."""
        place = Place(self.recovery.guard.rank, self.names["device"])
        return share(
            self.shell.user_ns,
            self.names,
            place,
            self.folder.for_size(0),
            is_fresh=self.is_fresh,
            modules=self.recovery.lifeline.ddp_modules,
            source=content["source"],
            also=content["also"],
        )

    def _reply(
        self,
        stream: Any,
        msg_type: str,
        content: dict[str, Any],
        parent: dict[str, Any],
        ident: Any,
        buffers: list[bytes] | None = None,
    ) -> dict[str, Any]:
        """Send a reply; return its content as it went out, without secrets."""
        arguments: dict[str, Any] = {"parent": parent, "ident": ident, "buffers": buffers or []}
        return self._send(stream, msg_type, self._without_secrets(content), **arguments)

    def _without_secrets(self, content: dict[str, Any]) -> dict[str, Any]:
        return self.secrets.hide(content) if self.secrets else content

    def _send(
        self, stream: Any, msg_type: str, content: dict[str, Any], **arguments: Any
    ) -> dict[str, Any]:
        try:
            self.session.send(stream, msg_type, content, **arguments)
        except UnicodeEncodeError:  # rare, so that not every message pays for the search
            self.session.send(stream, msg_type, wire.encodable(content), **arguments)
        return content

    # Control channel: a thread of its own -----------------------------------------------------

    def on_interrupt(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Stop the named cells; a cell that goes on has its children interrupted as well.

        Where Python has not come to see the interrupt after `PATIENCE_S`, the main thread is in a
        native call; if that is a collective, the end of its connections frees it.

        C's ``system()`` ignores SIGINT in the caller, so the command it waits for must get it. Not
        at once: workers of a DataLoader would each print a traceback.
        """
        num_seen = self.interrupts.num_seen
        was_told_before = self.interrupts.request(parent["content"]["cell_ids"])
        if self.interrupts.is_running_stopped:
            threading.Timer(PATIENCE_S, self._cut_off, [num_seen]).start()
        if was_told_before:
            mark = os.environ[processes.MARK]
            for pid in processes.group_members(os.getpgrp(), mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
        self._reply(stream, f"{wire.INTERRUPT_REQUEST}_reply", {"status": "ok"}, parent, ident)

    def _cut_off(self, num_seen: int) -> None:
        if self.interrupts.num_seen == num_seen and self.interrupts.is_running_stopped:
            self.recovery.cut_off("The cell was stopped.")

    def on_input_reply(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Hand the user's answer to the ``input()`` that waits for it."""
        self.journal.ask(None)
        self.inputs.answer(parent["content"])
        self._reply(stream, f"{wire.INPUT_REPLY}_reply", {"status": "ok"}, parent, ident)

    def on_snapshot(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Say what this rank is doing."""
        running = self.runner.running
        label, since = running if running is not None else (None, 0.0)
        snapshot = Snapshot(
            rank=self.recovery.guard.rank,
            pid=os.getpid(),
            label=label,
            cell_id=self.runner.cell_id,
            seconds=time.time() - since if label else 0.0,
            outside="" if label else self._busy_outside(),
            stack=frames_of(_main_frame()) if label else (),
            calls=self.recovery.unguarded_calls,
            gpu_bytes=torch.cuda.memory_allocated() if torch.cuda.is_initialized() else None,
        )
        self._reply(stream, f"{wire.SNAPSHOT_REQUEST}_reply", asdict(snapshot), parent, ident)

    def _busy_outside(self) -> str:
        """Say what the main thread does where it runs no cell; empty once it waits for messages."""
        deadline = time.monotonic() + REST_S
        while not _waits_for_messages(frame := _main_frame()):
            if time.monotonic() > deadline:
                names = {below.f_code.co_name for below, _ in traceback.walk_stack(frame)}
                where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "C"
                return next((does for name, does in OUTSIDE.items() if name in names), where)
            time.sleep(REST_S / 20)
        return ""

    def on_prospect(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Say whether this rank may still come to a call."""
        cell_id, recovery = self.runner.cell_id, self.recovery
        open_calls = recovery.lifeline.native_calls(recovery.guard.open_calls.current)
        under_way = recovery.guard.calls_under_way(open_calls)
        prospect = Prospect(
            rank=recovery.guard.rank,
            cell_id=cell_id,
            is_idle=cell_id is None and _waits_for_messages(_main_frame()),
            blocked=None if cell_id is None else recovery.blocked_call(_main_frame()),
            callers=(*callers.callers(self.main_loop), *under_way),
            has_alarm=bool(callers.alarms()),
        )
        self._reply(stream, f"{wire.PROSPECT_REQUEST}_reply", asdict(prospect), parent, ident)

    def on_name(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Say whether there is a variable of this name."""
        content = {"is_known": parent["content"]["name"] in self.shell.user_ns}
        self._reply(stream, f"{wire.NAME_REQUEST}_reply", content, parent, ident)

    def on_trace(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Say what this rank has called, and when."""
        guard = self.recovery.guard
        told = guard.trace.told(guard.rank, guard.mode, parent["content"]["cells"])
        self._reply(stream, f"{wire.TRACE_REQUEST}_reply", told.to_json(), parent, ident)

    # ipykernel's own habits, changed ----------------------------------------------------------

    def publish_batch(self, cell_id: str, outputs: list[wire.Output]) -> None:
        """Send one batch of the cell's output on iopub."""
        content = {"outputs": [wire.output_to_json(output) for output in outputs]}
        self.journal.add(self.publish(wire.OUTPUT_BATCH, cell_id, content)["outputs"])

    def publish_question(self, msg_type: str, cell_id: str, question: dict[str, Any]) -> None:
        """Send what the user is to be asked, and keep it for a notebook that comes later."""
        self.journal.ask(self.publish(msg_type, cell_id, question))

    def publish(self, msg_type: str, cell_id: str, content: dict[str, Any]) -> dict[str, Any]:
        """Send a message about a running cell on iopub; any thread may.

        Returns:
            *content* as it went out, without secrets; also where no such cell runs.
        """
        content = self._without_secrets(content)
        if (parent := self.parents.get(cell_id)) is not None:
            self._send(self.iopub_socket, msg_type, content, parent=parent)
        return content

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        """Say busy and idle only for others' messages: ours end with a reply that says all."""
        header = (parent or self.get_parent(channel) or {}).get("header", {})
        if not str(header.get("msg_type", "")).startswith("nbdist_"):
            super()._publish_status(status, channel, parent)

    def pre_handler_hook(self) -> None:
        """Leave SIGINT to `Interrupts`."""

    def post_handler_hook(self) -> None:
        """Leave SIGINT to `Interrupts`."""


def _waits_for_messages(frame: FrameType | None) -> bool:
    """Whether a main thread that is at *frame* is in asyncio's loop, with nothing to do."""
    if frame is None or frame.f_back is None:
        return False
    return (frame.f_code.co_name, frame.f_back.f_code.co_name) == ("select", "_run_once")


def _main_frame() -> FrameType | None:
    return sys._current_frames().get(threading.main_thread().ident or 0)


class RankEngine(IPEngine):  # type: ignore[misc]
    """The engine application of a rank."""

    folder: SessionFolder
    rank_log: RankLog
    recovery: Recovery
    pipe: int
    log_bytes: int
    names: dict[str, Any]
    secrets: Secrets
    is_fresh: bool
    umask: int

    @classmethod
    def for_rank(
        cls,
        *,
        folder: SessionFolder,
        spec: AgentSpec,
        rank: int,
        pipe: int,
        log: RankLog,
        recovery: Recovery,
    ) -> RankEngine:
        """Return the engine of *rank*, not started yet."""
        without_debugger()
        engine_app.Kernel = RankKernel  # the engine makes its kernel by this name
        engine: RankEngine = cls.instance(
            id=rank,
            url_file=spec.engine_file,
            enable_nanny=False,
            max_heartbeat_misses=0,  # a silent controller is no reason to lose a model
            timeout=60.0,
            log_level=logging.ERROR,
        )
        engine.config.ProfileDir.location = str(folder.path)
        # The user's own may be on a disk that is full or cannot be written to.
        engine.config.InteractiveShell.ipython_dir = str(folder.path)
        engine.folder, engine.rank_log, engine.pipe = folder, log, pipe
        engine.recovery = recovery
        engine.log_bytes = spec.config["log_bytes"]
        return engine

    def redirect_output(self, _iopub_socket: Any) -> None:
        """Called once the kernel is made, before it takes messages: attach ours."""
        kernel = self.kernel
        recorder = Recorder(
            self.rank_log, self.pipe, kernel.publish_batch, self.log_bytes, self.secrets
        )
        interrupts = Interrupts()
        inputs = InputRelay(
            kernel.publish_question, lambda: kernel.runner.cell_id, recorder.publish_all
        )
        journal = Journal(self.folder.journals(self.id), max_cell_bytes=2 * self.log_bytes)
        modules = CellModules(kernel.shell, self.folder.modules)
        kernel.attach(self.folder, recorder, interrupts, inputs, self.recovery, journal, modules)
        kernel.secrets = self.secrets
        kernel.names, kernel.is_fresh = self.names, self.is_fresh
        kernel.shell.user_ns.update(self.names)  # now: IPython has put its own ``exit`` there
        interrupts.install()
        inputs.install()
        debugging.install()
        spawning.install()
        install_streams(recorder)
        progress.install(recorder.touch_bar)
        tqdm_bars.install(recorder)
        foreign.install(recorder, kernel)
        recorder.start_threads()
        os.umask(self.umask)  # from here on what is made is the user's
        add_working_folder()

    def to_work_dir(self) -> None:
        """Stay in the notebook's folder; it comes on the import path when all is imported."""

    def init_signal(self) -> None:
        """Leave the signals as the rank has set them."""
