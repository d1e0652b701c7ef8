"""Say at once that a spawned process cannot have what a cell defines, and what to do.

Processes that are forked, as is the default on CPU ranks, have all of it. One that is spawned, or
forked from a server, imports what it needs by name, and a cell is no module. Left to itself it
fails after seconds, in a process of its own: `Can't get attribute 'Data' on <module '__main__'>`.

    Process.start, DataLoader, mp.spawn   what is sent to the child is looked at
    Pool                                  what is sent to its workers, too
    ProcessPoolExecutor                   the function alone; Python sends the rest in a thread

Read in CPython 3.11 to 3.13: `reduction.dump` writes what a child is started with, `_setup_queues`
makes the function by which a pool sends. Where they are called otherwise nothing is done.
"""

from __future__ import annotations

import concurrent.futures
import functools
import io
import multiprocessing.pool
import multiprocessing.reduction
import types
from typing import Any

from nbdist.errors import UsageError


def install() -> None:
    """Look at what this process sends to processes that it spawns; a second time does nothing."""
    reduction: Any = multiprocessing.reduction
    if reduction.dump is _dump:
        return
    reduction.dump = _dump
    pool: Any = multiprocessing.pool.Pool
    if hasattr(pool, "_setup_queues"):
        pool._setup_queues = _with_checked_queue(pool._setup_queues)
    executor: Any = concurrent.futures.ProcessPoolExecutor
    executor.submit = _with_checked_function(executor.submit)


class _SpawnPickler(multiprocessing.reduction.ForkingPickler):
    def reducer_override(self, obj: Any) -> Any:
        _refuse_of_cell(obj)
        return NotImplemented


def _refuse_of_cell(obj: Any) -> None:
    """Raise if *obj* is a function or a class of a cell.

    Raises:
        UsageError: It is.
    """
    if isinstance(obj, (type, types.FunctionType)) and obj.__module__ == "__main__":
        name = obj.__qualname__.partition(".")[0]
        raise UsageError(
            f"A spawned process cannot import {name!r}: a cell defines it, which is no module.\n"
            f"Put it into a cell that begins with `%%dist --module NAME`, then `from NAME import "
            f"{name}`.\nOr let the process be forked, as is the default on CPU ranks."
        )


def _dump(obj: Any, file: Any, protocol: int | None = None) -> None:
    """Write what a child is started with, as `multiprocessing.reduction.dump` does."""
    _SpawnPickler(file, protocol).dump(obj)


def _with_checked_queue(original: Any) -> Any:
    @functools.wraps(original)
    def setup_queues(self: Any) -> None:
        original(self)
        if _spawns(self._ctx):
            self._quick_put = functools.partial(_send, self._inqueue._writer)

    return setup_queues


def _send(connection: Any, obj: Any) -> None:
    buffer = io.BytesIO()
    _dump(obj, buffer)
    connection.send_bytes(buffer.getbuffer())


def _with_checked_function(original: Any) -> Any:
    @functools.wraps(original)
    def submit(self: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if _spawns(getattr(self, "_mp_context", None)):
            _refuse_of_cell(getattr(function, "func", function))
        return original(self, function, *args, **kwargs)

    return submit


def _spawns(context: Any) -> bool:
    method = None if context is None else context.get_start_method()
    return method in ("spawn", "forkserver")
