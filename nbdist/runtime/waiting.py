"""Wait for native calls in Python, so that an abort and a signal reach the one who waits.

    native call ──▶ Work ──▶ wait 50 ms ──▶ over: its result, or its error
                               ▲     └────▶ not over: were we cut off? SIGINT? ──▶ raise
                               └─────────── no

The end of a connection should be enough to free a call of gloo, and often is. But gloo tells it
only to what waits in a queue (`Pair::signalException`, read in April 2026): a buffer that is half
sent or half received is forgotten, and so is one whose sending begins before the end is noticed.
Such a call stays in its native thread until the timeout of the group, half an hour by default. The
thread may: it belongs to a group that nobody uses any more. The main thread must not.

Not covered: `send` and `recv`, where a wait with an end closes all connections of the group; waits
for asynchronous calls, which are not ours (`work.wait()`, DDP's reducer, functional collectives).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

from nbdist.runtime import torch_private
from nbdist.runtime.hooks import Call
from nbdist.runtime.torch_private import ProcessGroup

SLICE = timedelta(milliseconds=50)
GRACE_S = 0.02  # after an abort: the error of the call itself says more


class Waiting:
    """Waits for calls that their caller waits for anyway."""

    def __init__(self, raise_if_aborted: Callable[[], None]) -> None:
        self._raise_if_aborted = raise_if_aborted
        self._is_sliced: WeakKeyDictionary[ProcessGroup, bool] = WeakKeyDictionary()

    def around(self, call: Call, result: Any) -> Any:
        """Return *result*, after its call is over if it is a synchronous one of gloo's."""
        if not call.args.get("async_op", True) and self._is_gloo(call.group):
            work = torch_private.unbox_work(result[-1] if isinstance(result, tuple) else result)
            if work is not None:
                self.wait(work)
        return result

    def wait(self, work: Any) -> None:
        """Wait until *work* is over.

        Raises:
            CollectiveAborted: It was cut off, and has not noticed.
        """
        while True:
            with contextlib.suppress(RuntimeError):  # not over yet, or over with an error
                work.wait(SLICE)
                return
            if work.is_completed():
                work.wait()
                return
            self._check(work)

    def _check(self, work: Any) -> None:
        try:
            self._raise_if_aborted()
        except Exception:
            deadline = time.monotonic() + GRACE_S
            while not work.is_completed():
                if time.monotonic() > deadline:
                    raise
                time.sleep(GRACE_S / 20)

    def _is_gloo(self, group: ProcessGroup) -> bool:
        """Say whether *group* is gloo's alone: on NCCL a wait with an end is another thing."""
        known = self._is_sliced.get(group)
        if known is None:
            known = set(torch_private.group_backends(group).values()) == {"gloo"}
            self._is_sliced[group] = known
        return known
