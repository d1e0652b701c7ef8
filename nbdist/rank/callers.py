"""What in this rank may call a collective although its main thread runs no cell.

    threads, asyncio tasks, timers, rpc ──▶ `callers` ──▶ in a few words each, or nothing

Asked by the control thread. What only serves libraries is left out; all else counts, whether it
will ever call anything or not.

Not covered: handlers of signals that another process sends; what a C++ thread may do later.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

_OURS = str(Path(__file__).parents[1])
# What the engine consists of; a loop of the user's own begins in asyncio or tornado as well.
_ENGINE = ("ipykernel", "ipyparallel", "jupyter_client", "zmq")
# Threads and timers of libraries that call no code of the user, or wake a task that is counted.
_SERVANTS = (
    "IPython/core/history.py",
    "asyncio/futures.py",
    "multiprocessing/queues.py",
    "tensorboard/summary/writer/event_file_writer.py",
    "torch/_inductor/compile_worker/subproc_pool.py",
    "torch/_inductor/compile_worker/timer.py",
    "torch/utils/data/_utils/pin_memory.py",
    "tornado/ioloop.py",
    "tqdm/_monitor.py",
)
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def callers(loop: asyncio.AbstractEventLoop) -> tuple[str, ...]:
    """Say what beside the main thread's cell may call something.

    Args:
        loop: That of the main thread.
    """
    return (*_threads(), *_tasks(loop), *_timers(loop), *alarms(), *_rpc())


def alarms() -> tuple[str, ...]:
    """Say whether a signal of a timer is to come: it may call something, or end a wait."""
    return ("an alarm",) if any(signal.getitimer(which)[0] for which in _TIMERS) else ()


def _threads() -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = {threading.get_ident(), threading.main_thread().ident}
    for ident, frame in sys._current_frames().items():
        if ident not in own and not _serves(_entry_file(frame)):
            yield f"thread {names.get(ident, ident)}"


def _entry_file(frame: FrameType | None) -> str:
    """Return the file of the function that a thread was started with."""
    found = ""
    while frame is not None:
        if frame.f_code.co_filename != threading.__file__:
            found = frame.f_code.co_filename
        frame = frame.f_back
    return found


def _tasks(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    for task in asyncio.all_tasks(loop):
        if not _serves(_file_of(task.get_coro())):
            yield f"task {task.get_name()}"


def _timers(loop: Any) -> Iterator[str]:
    """Name what `call_later` is to call; what only wakes a task is that task's."""
    for handle in _copied(getattr(loop, "_scheduled", ())):
        if handle.cancelled():
            continue
        called = [handle._callback, *filter(callable, handle._args or ())]
        if not all(_serves(_file_of(function)) for function in called):
            yield "a timer of the event loop"


def _rpc() -> tuple[str, ...]:
    api: Any = sys.modules.get("torch.distributed.rpc.api")
    is_set = getattr(api, "_is_current_rpc_agent_set", None)
    return ("rpc",) if is_set is not None and is_set() else ()


def _file_of(called: Any) -> str:
    """Return the file of a coroutine's or a function's code; empty where it has none."""
    while isinstance(called, functools.partial):
        called = called.func
    for name in ("cr_code", "gi_code", "ag_code", "__code__"):
        if (code := getattr(called, name, None)) is not None:
            return str(code.co_filename)
    return ""


def _serves(file: str) -> bool:
    """Say whether what begins in *file* is the engine's, or calls no code of the user."""
    parts = Path(file).parts
    is_engine = file.startswith(_OURS) or any(name in parts for name in _ENGINE)
    return is_engine or file.endswith(_SERVANTS)


def _copied(items: Iterable[Any]) -> list[Any]:
    while True:
        with contextlib.suppress(RuntimeError):  # the main thread has added one meanwhile
            return list(items)
