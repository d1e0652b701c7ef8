"""Where this rank stands in its groups when the guard is off: what torch's flight recorder knows.

    gloo, NCCL ──▶ flight recorder (in C++, on by default) ──▶ GroupCall per group ──▶ Snapshot

Works while the main thread is stuck in a collective. Read in torch 2.13.0.

Not covered: messages and ``monitored_barrier`` on gloo, which are not recorded; source lines (the
recorder's stacks cost a second at first); root and reduce operation. On gloo a ``reduce_scatter``
is recorded as the ``all_reduce`` that it is made of. NCCL's recorder has not been run here.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbdist.runtime import torch_private
from nbdist.wire import GroupCall

# (status alone, everything), for the recorder of gloo and for that of NCCL.
_RECORDERS = (
    ("_dump_fr_trace_json", "_dump_fr_trace"),
    ("_dump_nccl_trace_json", "_dump_nccl_trace"),
)
_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
_MAX_SHOWN = 4


@dataclass(frozen=True)
class _Seen:
    """What a recorder said last: a full dump of 2,000 entries takes 25 ms, its status 0.05 ms."""

    status: bytes
    entries: tuple[Mapping[str, Any], ...]

    def holds_for(self, status: bytes) -> bool:
        """Say whether nothing can have changed: a call under way may end unseen in the status."""
        return status == self.status and all(entry["retired"] for entry in self.entries)


_seen: dict[str, _Seen] = {}
_forgotten_ns = 0
_lock = threading.Lock()


def flight_calls(rank: int) -> tuple[GroupCall, ...]:
    """Return the latest collective of this rank in each of its groups. Any thread may call.

    A call that is not finished has the phase ``issued``; one that is over, ``idle``. Nothing is
    returned where this torch has no such recorder, and nothing is ever raised.

    Args:
        rank: Of this process, in the world.
    """
    try:
        with _lock:
            entries = [entry for names in _RECORDERS for entry in _entries(*names)]
        return tuple(_calls(rank, entries, _ranks_by_group()))
    except Exception:  # noqa: BLE001 - a private format; a snapshot without it is still of use
        return ()


def forget_flight() -> None:
    """Look only at what is recorded from now on: the groups were made anew and count from 1."""
    global _forgotten_ns
    with _lock:
        _seen.clear()
        _forgotten_ns = time.time_ns()


def _entries(status_name: str, dump_name: str) -> tuple[Mapping[str, Any], ...]:
    """Return the latest entry of each group; cheap while nothing was called since the last time."""
    read_status, dump = _recorder(status_name), _recorder(dump_name)
    if read_status is None or dump is None:
        return ()
    status = bytes(read_status(includeCollectives=False))
    known = _seen.get(dump_name)
    if known is None or not known.holds_for(status):
        # Written by this very process: nothing foreign is unpickled.
        content = pickle.loads(dump(includeCollectives=True, includeStackTraces=False))
        known = _seen[dump_name] = _Seen(status, _latest(content.get("entries", ())))
    return known.entries


def _recorder(name: str) -> Callable[..., Any] | None:
    import torch

    module = getattr(torch._C, "_distributed_c10d", None)
    found: Callable[..., Any] | None = getattr(module, name, None)
    return found


def _latest(entries: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return the entry of each group that was recorded last; messages are not counted."""
    latest: dict[str, Mapping[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: int(entry["record_id"])):
        if not entry["is_p2p"] and entry["time_created_ns"] >= _forgotten_ns:
            latest[entry["process_group"][0]] = entry
    return tuple(latest.values())


def _ranks_by_group() -> dict[str, tuple[int, ...]]:
    groups = ((group, torch_private.group_ranks(group)) for group in torch_private.living_groups())
    return {str(group.group_name): ranks for group, ranks in groups if ranks is not None}


def _calls(
    rank: int, entries: Sequence[Mapping[str, Any]], ranks_of: Mapping[str, tuple[int, ...]]
) -> list[GroupCall]:
    return [
        GroupCall(
            rank=rank,
            group=name,
            ranks=ranks_of[name],
            kind="group",
            seq=int(entry["collective_seq_id"]),
            issued=int(entry["collective_seq_id"]),
            phase="idle" if entry["retired"] else "issued",
            since=entry["time_created_ns"] / 1e9,
            text=_text(entry),
            source="",
        )
        for entry in entries
        if (name := entry["process_group"][0]) in ranks_of
    ]


def _text(entry: Mapping[str, Any]) -> str:
    """Return the call for people, as the guard writes it: ``all_reduce(float32[10])``."""
    op = str(entry["profiling_name"]).partition(":")[2] or str(entry["profiling_name"])
    sizes, dtypes = entry["input_sizes"], entry["input_dtypes"]
    shown = [
        f"{_DTYPES.get(dtype, dtype)}{list(size)}"
        for size, dtype in zip(sizes, dtypes, strict=False)
    ]
    if len(shown) > _MAX_SHOWN:
        shown = [f"{len(shown)} tensors, first {shown[0]}"]
    return f"{op.removeprefix('_')}({', '.join(shown)})"
