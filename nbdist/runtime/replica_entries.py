"""Take a value apart into tensors and plain values, each with a name that is alike on all ranks.

DDP, module      head.weight              parameters and buffers
optimizer        state.0.exp_avg, param_groups[0].lr
scheduler, …     what its ``state_dict()`` holds
dict, list       key.key[3]
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nbdist.errors import UsageError


@dataclass
class Entries:
    """The parts of a value.

    Attributes:
        found: Tensors and plain values by name.
        setters: How a plain value is set, where it stands in something that can be changed.
        num_sharded: Tensors that were left out.
        unread: Names of what was left out.
    """

    found: dict[str, Any] = field(default_factory=dict)
    setters: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    num_sharded: int = 0
    unread: list[str] = field(default_factory=list)

    def is_settable(self, name: str) -> bool:
        """Whether this entry can be changed in place."""
        return isinstance(self.found.get(name), torch.Tensor) or name in self.setters

    def add(self, name: str, value: Any, setter: Callable[[Any], None] | None = None) -> None:
        """Add *value*, or its parts."""
        if isinstance(value, np.ndarray):
            value = _tensor_over(value)
        if isinstance(value, torch.Tensor):
            self._add_tensor(name, value)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self.add(_join(name, key), part, _setter(value, key))
        elif isinstance(value, list | tuple) and not is_plain(value):
            for index, part in enumerate(value):
                self.add(f"{name}[{index}]", part, _setter(value, index))
        elif (parts := _parts(value)) is not None:
            self.add(name, parts)
        else:
            self._add_plain(name, value, setter)

    def _add_tensor(self, name: str, tensor: torch.Tensor) -> None:
        local = _replica(tensor)
        if local is None:
            self.num_sharded += 1
        elif local.layout is not torch.strided or local.is_quantized or local.is_meta:
            self.unread.append(name or "tensor")
        else:
            self.found[name or "tensor"] = local

    def _add_plain(self, name: str, value: Any, setter: Callable[[Any], None] | None) -> None:
        try:
            pickle.dumps(value)
        except Exception:  # noqa: BLE001 - whatever an object does when it is pickled
            self.unread.append(name or type(value).__name__)
            return
        self.found[name or type(value).__name__] = value
        if setter is not None:
            self.setters[name] = setter


def entries_of(value: Any, name: str) -> Entries:
    """Take *value* apart.

    Raises:
        UsageError: There is nothing to compare in a value of this type.
    """
    entries = Entries()
    entries.add("", value)
    if not entries.found and not entries.num_sharded and entries.unread:
        raise UsageError(
            f"{name} is a {type(value).__name__}, in which there is nothing to compare.\n"
            "Modules, optimizers, tensors, arrays, plain values and dicts and lists of them can be."
        )
    return entries


def _parts(value: Any) -> Mapping[str, Any] | None:
    """Return what is to be compared of an object with state; ``None`` for a plain value."""
    if isinstance(value, DistributedDataParallel):
        value = value.module
    if isinstance(value, nn.Module):
        return {**dict(value.named_parameters()), **dict(value.named_buffers())}
    if isinstance(value, torch.optim.Optimizer):
        parameters = [p for group in value.param_groups for p in group["params"]]
        number_of = {id(parameter): number for number, parameter in enumerate(parameters)}
        states = {number_of[id(p)]: state for p, state in value.state.items() if id(p) in number_of}
        return {
            "state": dict(sorted(states.items())),
            "param_groups": [_Without(group, "params") for group in value.param_groups],
        }
    if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        state: Mapping[str, Any] = value.state_dict()
        return state
    return None


class _Without(dict[str, Any]):
    """A view of a dict without one key; what is set goes to the dict itself."""

    def __init__(self, behind: dict[str, Any], key: str) -> None:
        super().__init__({name: value for name, value in behind.items() if name != key})
        self._behind = behind

    def __setitem__(self, key: str, value: Any) -> None:
        self._behind[key] = value


def is_plain(value: Any) -> bool:
    """Whether *value* is a number, a text, a truth value, ``None`` or a tuple of such."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _tensor_over(array: Any) -> Any:
    """Return a tensor on the memory of *array*; the array itself where there cannot be one."""
    if not array.flags.writeable:
        return array
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError):  # of objects or texts, or with negative strides
        return array


def _setter(container: Any, key: Any) -> Callable[[Any], None] | None:
    if not isinstance(container, dict | list):
        return None

    def set_value(value: Any) -> None:
        container[key] = value

    return set_value


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _replica(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return what this rank has of *tensor* where all have the same of it, else ``None``."""
    placements = getattr(tensor, "placements", None)
    if placements is None:
        return tensor.detach()
    if not all(placement.is_replicate() for placement in placements):
        return None
    local: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return local
