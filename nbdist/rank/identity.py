"""Find what a value says of the rank that has it: ``gpu_id = 0`` inside a trainer. Pure.

A copy says it too, on another rank, where it is wrong; nobody can know that but the user. Found are
numbers that are called like a rank or a device and are this one's, truths called like ``is_main``,
and the name of this rank's GPU.

Not covered: what lies deeper than three levels, in slots, or under a name of another kind.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from nbdist.rank.placed import Place

DEPTH = 3
MAX_FOUND = 8  # of one variable
_NUMBER = re.compile(r"(rank|gpu|gpu_id|device_id|device_index|process_index)$", re.IGNORECASE)
_TRUTH = re.compile(r"is_(\w+_)?(main|master|rank_?zero|chief|leader)", re.IGNORECASE)
# Those that have no rank in them, and one whose rank a copy puts right.
_CLOSED = (
    torch.Tensor,
    torch.device,
    types.ModuleType,
    type,
    types.FunctionType,
    DistributedSampler,
)


def identities(value: Any, place: Place) -> tuple[str, ...]:
    """Return what in *value* names this rank, as it would be typed after the variable's name."""
    found = []
    for path, part in _parts(value, "", DEPTH, set()):
        if _names(path, part, place):
            found.append(f"{path} = {part!r}")
            if len(found) == MAX_FOUND:
                break
    return tuple(found)


def _names(path: str, part: Any, place: Place) -> bool:
    if isinstance(part, bool):
        return _TRUTH.search(path) is not None
    if isinstance(part, int):
        is_own = part in (place.rank, place.device.index)
        return is_own and _NUMBER.search(path.rstrip("']")) is not None
    return isinstance(part, str) and place.device.type != "cpu" and part == str(place.device)


def _parts(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if depth == 0 or id(value) in seen or isinstance(value, _CLOSED):
        return
    seen.add(id(value))
    for step, part in _members(value):
        yield path + step, part
        yield from _parts(part, path + step, depth - 1, seen)


def _members(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):  # no other mapping: it might read files
        return [(f"[{key!r}]", part) for key, part in list(value.items()) if isinstance(key, str)]
    members = list(getattr(value, "__dict__", {}).items())
    if isinstance(value, (torch.nn.Module, DataLoader)):  # their own parts begin with `_`
        members = [(name, part) for name, part in members if not name.startswith("_")]
    return [(f".{name}", part) for name, part in members]
