"""How often this process has met others by rpc, and the private names of torch that count it.

Read in torch 2.13.0. Workers find each other in a store and by messages, under numbers that each
process counts for itself: joins, gatherings of a set of workers, and barriers of a shutdown. A
fresh rank, or one that was stopped half way, stands elsewhere, and all would wait for ever. So the
ranks agree on these numbers when they agree to go on.

The barriers are counted in C++, where nothing reads or sets the number: an agent that is alone in
its world, with a store in this process, shows it by what it writes, and takes it further.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch._C._distributed_c10d import HashStore

_JOINS, _BARRIERS = "joins", "barriers"
_NUMBER = re.compile(r"READY_ID_(\d+)$")
_BY_JOIN, _BY_SHUTDOWN = 2, 3  # barriers that `TensorPipeAgent.join` passes


def counts() -> dict[str, int]:
    """Return how often this process has joined rpc, passed a barrier, and met each set of workers.

    Empty where it has never tried to: then all of it is 0.
    """
    rpc = _rpc()
    if rpc is None or rpc._init_counter == 0:
        return {}
    found = {_JOINS: rpc._init_counter, **_gatherings(rpc)}
    with contextlib.suppress(RuntimeError):  # a machine on which no agent can be made
        found[_BARRIERS] = _pass_barriers(_BY_JOIN)
    return found


def go_on_after(all_counts: Sequence[Mapping[str, int]]) -> None:
    """Count as all other ranks do from now on, after the highest numbers of all."""
    rpc = _rpc()
    if rpc is None or not any(all_counts):
        return
    highest = {key: max(c.get(key, 0) for c in all_counts) for c in all_counts for key in c}
    rpc._init_counter = highest.pop(_JOINS)
    barriers = highest.pop(_BARRIERS, 0)
    rpc.api._all_gather_sequence_id.update(highest)
    if len({c.get(_BARRIERS, 0) for c in all_counts}) > 1:
        with contextlib.suppress(RuntimeError):
            _go_to_barrier(barriers)


def barrier_steps(missing: int) -> list[int]:
    """Divide *missing* barriers, at least two, into what agents can pass at a time."""
    return [_BY_SHUTDOWN] * (missing % 2) + [_BY_JOIN] * (
        (missing - _BY_SHUTDOWN * (missing % 2)) // 2
    )


def _go_to_barrier(highest: int) -> None:
    # Everybody goes on from what `counts` has found, to a number that all can reach in such steps.
    steps = barrier_steps(highest + _BY_JOIN + _BY_SHUTDOWN - _pass_barriers(_BY_JOIN))
    for step in steps:
        _pass_barriers(step)


def _pass_barriers(num: int) -> int:
    """Pass two barriers or three; return the number of the last."""
    from torch._C._distributed_rpc import TensorPipeAgent
    from torch.distributed.rpc import TensorPipeRpcBackendOptions

    store = HashStore()
    options = TensorPipeRpcBackendOptions(init_method="env://", _transports=["uv"])
    agent = TensorPipeAgent(store, "nbdist", 0, 1, options, {}, [])
    agent.join(num == _BY_SHUTDOWN, 0)
    agent.shutdown()
    keys: list[str] = store.list_keys()
    return max(int(found[1]) for key in keys if (found := _NUMBER.search(key)))


def _gatherings(rpc: Any) -> dict[str, int]:
    return dict(rpc.api._all_gather_sequence_id)


def _rpc() -> Any:
    """Return torch's rpc; ``None`` where this torch was built without."""
    rpc: Any = sys.modules.get("torch.distributed.rpc")
    names = ("_init_counter", "api")
    return rpc if all(hasattr(rpc, name) for name in names) else None
