"""How each kind of native backend is made, and cut off. NCCL's half has never run on a GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from nbdist.runtime import torch_private
from nbdist.runtime.torch_private import ProcessGroup, Store

logger = logging.getLogger(__name__)

ABORT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class BackendKind:
    """How one kind of native backend is made and cut off.

    Attributes:
        make: From (store, group, timeout of calls, timeout of connecting).
        abort: Cuts off the backends it gets; ``None`` where closing sockets does that.
    """

    make: Callable[[Store, ProcessGroup, timedelta, timedelta], Any]
    abort: Callable[[Sequence[Any]], None] | None = None


def abort_together(backends: Sequence[Any]) -> None:
    """Abort NCCL backends as one: apart, communicators that share ranks can block each other.

    See pytorch#119797 and #132291. `_abort_process_group` does it too, but forgets all groups.
    """
    if not backends:
        return
    backends[0]._group_start()
    try:
        for backend in backends:
            backend.abort()
    finally:
        backends[0]._group_end()


GLOO = BackendKind(make=torch_private.make_gloo)

#: What was read, and never run, of NCCL (torch 2.13 headers, source and issues):
#:
#: - A collective that was aborted returns without an error, and its output holds partial data: look
#:   at `Lifeline.raise_if_aborted` after every synchronize and at the end of a cell.
#: - The main thread is not in the collective but in a synchronize or ``.item()``; abort frees it.
#: - With torch's own defaults a timeout or an abort ends the process: the agent sets what
#:   forbids it (`KEEP_ALIVE`) before torch is imported.
#: - NCCL 2.25.1 hangs in abort (pytorch#149153), later ones may (nccl#1777): `Lifeline.abort` gives
#:   it `ABORT_TIMEOUT_S` and then says so; the way out is to replace the process.
#: - After a sticky CUDA error no abort helps: the process has to go.
#: - The default backend of a group stays NCCL: `barrier` takes its device from there.
NCCL = BackendKind(make=torch_private.make_nccl, abort=abort_together)

KINDS: Mapping[str, BackendKind] = {"gloo": GLOO, "nccl": NCCL}


def abort_watched(
    abort: Callable[[Sequence[Any]], None],
    backends: Sequence[Any],
    name: str,
    timeout_s: float = ABORT_TIMEOUT_S,
) -> bool:
    """Call *abort* in a thread of its own, which is left behind if it hangs; say whether it ended.

    The thread is a daemon: the end of the process stops it.
    """
    thread = threading.Thread(
        target=abort, args=(backends,), name=f"nbdist-abort-{name}", daemon=True
    )
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        logger.error("aborting %s has not ended after %s s", name, timeout_s)
    return not thread.is_alive()
