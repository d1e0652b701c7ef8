"""How objects of torch that know their rank are made again on another one.

    a group                      the other rank's group of that name
    "my rank", "my device"       the other rank's own
    DistributedDataParallel      with a reducer that begins anew
    DataLoader                   without its workers

The private names of torch used here: ``_comm_hooks``, ``_has_rebuilt_buckets`` and
``_static_graph_delay_allreduce_enqueued`` of DDP, ``_iterator`` of DataLoader; a state without them
is taken as it is. Read in torch 2.13.0.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from nbdist.definitions import Namespace, Reduced, Uncopyable
from nbdist.runtime import torch_private


class Own(enum.Enum):
    """What a value says of the rank it is on, and what is another on each rank."""

    RANK = "rank"
    INDEX = "index"  # of the device
    DEVICE = "device"


@dataclass(frozen=True)
class Place:
    """The rank on which something is pickled or unpickled."""

    rank: int
    device: torch.device

    def own(self, what: Own) -> Any:
        """Return what *what* is here."""
        return {Own.RANK: self.rank, Own.INDEX: self.device.index, Own.DEVICE: self.device}[what]


def _reduce_group(_place: Place, group: Any) -> Reduced:
    if not torch_private.is_living(group):
        raise Uncopyable("its process group was destroyed")
    return group_named, (group.group_name,)


def group_named(name: str) -> Any:
    """Return this rank's group called *name*; without one, what `new_group` gives to outsiders."""
    for group in torch_private.living_groups():
        if group.group_name == name:
            return group
    return torch.distributed.GroupMember.NON_GROUP_MEMBER


def _reduce_sampler(place: Place, sampler: Any) -> Any:
    state = dict(sampler.__dict__)
    if state.get("rank") == place.rank:
        state["rank"] = Own.RANK
    return _with_state(sampler, state)


def _reduce_loader(_place: Place, loader: Any) -> Any:
    return _with_state(loader, {**loader.__dict__, "_iterator": None})  # its workers are processes


def _with_state(obj: Any, state: Namespace) -> Any:
    own_ways = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    if any(getattr(type(obj), way, None) is not getattr(object, way, None) for way in own_ways):
        return NotImplemented
    return _make_empty, (type(obj),), state


def _make_empty(cls: Any) -> Any:
    return cls.__new__(cls)


def _reduce_ddp(_place: Place, module: DistributedDataParallel) -> Reduced:
    state = ddp_state(module)
    if state["device_ids"] is not None:
        state["device_ids"] = [Own.INDEX]
        state["output_device"] = Own.INDEX
    return _make_empty, (type(module),), state, None, None, set_ddp_state


def ddp_state(module: DistributedDataParallel) -> Namespace:
    """Return all of a DDP module but its native parts; its group too, which torch leaves out.

    In the order of the names: that of the attributes is another in a module that was copied.
    """
    native = ("reducer", "logger")
    return {name: value for name, value in sorted(module.__dict__.items()) if name not in native}


def set_ddp_state(module: DistributedDataParallel, state: Mapping[str, Any]) -> None:
    """Give a DDP module *state*, and a reducer that has not seen a step yet."""
    hooks = state.get("_comm_hooks", ())
    # A static graph reduces its first step from a callback. Where this says that one is queued
    # already, a new reducer would never reduce that step: the replicas part, and nobody is told.
    first_step = {"_has_rebuilt_buckets": False, "_static_graph_delay_allreduce_enqueued": False}
    again = {name: value for name, value in first_step.items() if name in state}
    module.__setstate__({**state, **again, "_comm_hooks": []})
    for hook, hook_state in hooks:
        module.register_comm_hook(hook_state, hook)


REDUCERS: dict[type, Callable[[Place, Any], Any]] = {
    ProcessGroup: _reduce_group,
    DistributedSampler: _reduce_sampler,
    DataLoader: _reduce_loader,
    DistributedDataParallel: _reduce_ddp,
}
