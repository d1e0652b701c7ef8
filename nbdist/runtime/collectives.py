"""Collectives that take numbers, arrays and tensors, and give the same types at any world size.

    data ──▶ a tensor of its own ── wire ──▶ result ──▶ the type that came in

Without a group (plain Python, one rank) all but the wire is the same. Data travels on its own
device where the group carries that, else by way of one that it carries.

Not covered: sparse tensors and DTensors; autograd (results are detached); shapes or dtypes that
differ between ranks, which end a process with gloo unless nbdist's guard stands before it.
Gathering objects has no such limit.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from nbdist.errors import UsageError
from nbdist.runtime.device import get_device
from nbdist.runtime.group import carried_devices, get_rank, get_world_size, has_group

T = TypeVar("T")
Array = npt.NDArray[Any]
Number = float | np.floating[Any] | np.integer[Any] | np.bool_

# What the backends cannot add, or would add in a way that nobody wants (True + True = True).
_SUMMED_AS = {
    torch.bool: torch.int64,
    torch.int16: torch.int64,
    torch.uint16: torch.int64,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e5m2: torch.float32,
}


@overload
def all_reduce(
    data: torch.Tensor,
    group: dist.ProcessGroup | None = ...,
    average: bool = ...,
    device: torch.device | str | None = ...,
) -> torch.Tensor: ...
@overload
def all_reduce(
    data: Array | Sequence[Any],
    group: dist.ProcessGroup | None = ...,
    average: bool = ...,
    device: torch.device | str | None = ...,
) -> Array: ...
@overload
def all_reduce(
    data: Number,
    group: dist.ProcessGroup | None = ...,
    average: bool = ...,
    device: torch.device | str | None = ...,
) -> float: ...
def all_reduce(
    data: Any,
    group: dist.ProcessGroup | None = None,
    average: bool = False,
    device: torch.device | str | None = None,
) -> Any:
    """Sum ``data`` over the ranks of ``group``; every rank gets the same result.

    Args:
        data: Number, array or tensor of shape ``(*)``, of one shape and dtype on every rank; of
            numbers some may be ints and others floats. A list of numbers is an array. Not changed.
        group: All ranks when ``None``.
        average: Divide by the size of *group* (not of the world).
        device: Where to add up; the tensor's own device when ``None``.

    Returns:
        The type that came in, shape ``(*)``, on the device of ``data``, detached:

        - a number for a number: an int for ints and bools (a count of what is true), however
          large up to 2**63 a rank; a float for floats and for every average;
        - an array or tensor of the same dtype for an array or tensor; sums of small integers wrap
          as in torch. Bools are counted as int64. The average of integers or bools is float64 for
          arrays and torch's default dtype for tensors.

    Raises:
        UsageError: ``data`` is none of these, or this rank is not in ``group``.
        SetupError: There are other ranks, but `setup` has not been called.
    """
    data = _array_of_list(data)
    if isinstance(data, torch.Tensor):
        return _reduce_tensor(data, average, group, device)
    if isinstance(data, np.ndarray):
        return _reduce_array(data, average, group, device)
    return _reduce_number(_python_number(data), average, group, device)


@overload
def all_gather(
    data: torch.Tensor,
    group: dist.ProcessGroup | None = ...,
    device: torch.device | str | None = ...,
) -> list[torch.Tensor]: ...
@overload
def all_gather(
    data: Array | Sequence[Any],
    group: dist.ProcessGroup | None = ...,
    device: torch.device | str | None = ...,
) -> list[Array]: ...
@overload
def all_gather(
    data: T, group: dist.ProcessGroup | None = ..., device: torch.device | str | None = ...
) -> list[T]: ...
def all_gather(
    data: Any,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
) -> list[Any]:
    """Collect the ``data`` of every rank; all ranks get the whole list.

    Args:
        data: Number, array or tensor of shape ``(*)``, of one shape and dtype on every rank. A list
            of numbers is an array. Not changed. For shapes that differ see `all_gather_objects`.
        group: All ranks when ``None``.
        device: Where tensors and arrays travel; the tensor's own device when ``None``.

    Returns:
        One entry per rank of *group*, in rank order, of the type that came in; tensors of shape
        ``(*)``, on the device of ``data``, detached.

    Raises:
        UsageError: ``data`` is none of these, or this rank is not in ``group``.
        SetupError: There are other ranks, but `setup` has not been called.
    """
    data = _array_of_list(data)
    if isinstance(data, torch.Tensor):
        return _gather_tensor(data, group, device)
    if isinstance(data, np.ndarray):
        return [part.numpy() for part in _gather_tensor(_tensor_of(data), group, device)]
    _python_number(data)
    return all_gather_objects(data, group)


@overload
def broadcast(
    tensor: torch.Tensor,
    src: int = ...,
    group: dist.ProcessGroup | None = ...,
    async_op: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def broadcast(
    tensor: torch.Tensor,
    src: int = ...,
    group: dist.ProcessGroup | None = ...,
    *,
    async_op: Literal[True],
) -> Delivery: ...
@overload
def broadcast(
    tensor: torch.Tensor, src: int, group: dist.ProcessGroup | None, async_op: bool
) -> torch.Tensor | Delivery: ...
def broadcast(
    tensor: torch.Tensor,
    src: int = 0,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> torch.Tensor | Delivery:
    """Overwrite ``tensor`` on every rank with that of rank ``src``, and return it.

    Args:
        tensor: Shape ``(*)``, of one shape and dtype on every rank. Changed in place, past
            autograd, also where it is a view.
        src: Rank in the world.
        group: All ranks when ``None``.
        async_op: Return at once, with a handle: the tensor is complete after its ``wait()``.

    Raises:
        UsageError: This is no tensor, or there is no rank ``src`` in ``group``.
        SetupError: There are other ranks, but `setup` has not been called.
    """
    if not isinstance(tensor, torch.Tensor):
        raise UsageError(
            f"broadcast takes a tensor, not {type(tensor).__name__}.\n"
            "For other things: `nbdist.broadcast_object_list([thing], src)`."
        )
    _check_source(src, group)
    delivery = Delivery(None, tensor, tensor)
    if has_group():
        carrier = _carrier(tensor.device, group)
        # fairchem's helper gave no handle to wait for: what can be filled by itself, is.
        is_direct = async_op and _can_travel(tensor, carrier)
        sent = tensor.detach() if is_direct else _own_copy(tensor, carrier)
        work = dist.broadcast(_as_bytes(sent), src, group=group, async_op=async_op)
        delivery = Delivery(work, sent, tensor)
    if async_op:
        return delivery
    delivery.wait()
    return tensor


class Delivery:
    """A tensor under way, as a handle of torch: what has come is there after `wait`."""

    def __init__(self, work: dist.Work | None, sent: torch.Tensor, tensor: torch.Tensor) -> None:
        self._work, self._sent, self._tensor = work, sent, tensor

    def __repr__(self) -> str:
        return f"<Delivery {'complete' if self.is_completed() else 'under way'}>"

    def is_completed(self) -> bool:
        """Say whether `wait` would return at once."""
        return self._work is None or self._work.is_completed()

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Wait for the tensor, no longer than *timeout*; ``True`` once it is complete."""
        if self._work is not None:
            self._work.wait() if timeout is None else self._work.wait(timeout)
            self._work = None
        if self._sent.data_ptr() != self._tensor.data_ptr():
            self._tensor.detach().copy_(self._sent)
            self._sent = self._tensor
        return True


def broadcast_object_list(
    object_list: list[Any],
    src: int = 0,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str | None = None,
) -> list[Any]:
    """Make the list of every rank that of rank ``src``, and return it.

    Args:
        object_list: Changed in place on all ranks but ``src``; lengths may differ before.
        src: Rank in the world.
        group: All ranks when ``None``.
        device: Where the pickled list travels; the backend's choice when ``None``.

    Raises:
        UsageError: There is no rank ``src`` in ``group``.
        SetupError: There are other ranks, but `setup` has not been called.
    """
    _check_source(src, group)
    if has_group():
        # As one object: torch wants lists of one length, and at least one entry.
        parcel = [object_list]
        carrier = None if device is None else _carrier(torch.device(device), group)
        dist.broadcast_object_list(parcel, src, group=group, device=carrier)
        object_list[:] = parcel[0]
    return object_list


def gather_objects(data: T, group: dist.ProcessGroup | None = None) -> list[T] | None:
    """Collect the ``data`` of every rank on the first rank.

    Args:
        data: Anything that can be pickled, of any size, different on every rank if need be.
        group: All ranks when ``None``.

    Returns:
        On rank 0 (of a *group*: on its first rank) copies in rank order; ``None`` on the others.

    Raises:
        UsageError: This rank is not in ``group``.
        SetupError: There are other ranks, but `setup` has not been called.
    """
    if not has_group():
        return [_pickled_copy(data)]
    parts = _empty_list(group) if _group_rank(group) == 0 else None
    dist.gather_object(data, parts, group=group, group_dst=0)
    return parts


def all_gather_objects(data: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Collect the ``data`` of every rank; all ranks get the whole list.

    Args:
        data: Anything that can be pickled, of any size, different on every rank if need be.
        group: All ranks when ``None``.

    Returns:
        Copies, one per rank of *group*, in rank order.

    Raises:
        UsageError: This rank is not in ``group``.
        SetupError: There are other ranks, but `setup` has not been called.
    """
    if not has_group():
        return [_pickled_copy(data)]
    parts = _empty_list(group)
    dist.all_gather_object(parts, data, group=group)
    return parts


# Numbers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NumberSum:
    """A sum of numbers as four float64, so that ints stay exact and may meet floats.

    An int travels as ``high * 2**32 + low``; its two halves add up exactly on a million ranks. One
    shape and dtype for all numbers: a rank that brings 0 where others bring 0.5 ends no process.
    """

    num_floats: float
    float_part: float
    high: float
    low: float

    @classmethod
    def of(cls, number: float) -> _NumberSum:
        if isinstance(number, int):
            high, low = divmod(number, 2**32)
            return cls(0, 0, high, low)
        return cls(1, number, 0, 0)

    @property
    def total(self) -> float:
        whole = int(self.high) * 2**32 + int(self.low)
        return self.float_part + whole if self.num_floats else whole


def _reduce_number(
    number: float,
    average: bool,
    group: dist.ProcessGroup | None,
    device: torch.device | str | None,
) -> float:
    packed = _NumberSum.of(number)
    slots = torch.tensor(
        [packed.num_floats, packed.float_part, packed.high, packed.low], dtype=torch.float64
    )
    total = _NumberSum(*_sum(slots, group, device).tolist()).total
    return total / _group_size(group) if average else total


def _python_number(data: Any) -> float:
    number = data.item() if isinstance(data, np.generic) else data
    if isinstance(number, (bool, int)) and -(2**63) <= number < 2**63:
        return int(number)
    if isinstance(number, float):
        return number
    what = "an int beyond 64 bits" if isinstance(number, int) else type(data).__name__
    raise UsageError(
        f"this collective takes real numbers, arrays and tensors, not {what}.\n"
        "For other things: `nbdist.all_gather_objects(thing)`."
    )


# Tensors and arrays ----------------------------------------------------------------------------


def _array_of_list(data: Any) -> Any:
    """Return lists and tuples of numbers as an array, and all else as it is."""
    if not isinstance(data, (list, tuple)):
        return data
    try:
        array = np.array(data)
    except ValueError:  # rows of different lengths
        return data
    return array if array.dtype.kind in "biufc" and array.size else data


def _reduce_tensor(
    tensor: torch.Tensor,
    average: bool,
    group: dist.ProcessGroup | None,
    device: torch.device | str | None,
) -> torch.Tensor:
    is_float = tensor.is_floating_point() or tensor.is_complex()
    dtype = _SUMMED_AS.get(tensor.dtype, tensor.dtype)
    if average and not is_float:
        dtype = torch.int64  # what an int8 overflows
    total = _sum(tensor.detach().to(dtype), group, device).to(tensor.device)
    if average:
        total = total / _group_size(group)
    keeps_dtype = is_float if average else tensor.dtype is not torch.bool
    return total.to(tensor.dtype) if keeps_dtype else total


def _reduce_array(
    array: Array,
    average: bool,
    group: dist.ProcessGroup | None,
    device: torch.device | str | None,
) -> Array:
    tensor = _tensor_of(array)
    if average and not (tensor.is_floating_point() or tensor.is_complex()):
        total: Array = _reduce_tensor(tensor.to(torch.int64), False, group, device).numpy()
        # np.asarray: NumPy makes a scalar of an array without dimensions
        return np.asarray(total / _group_size(group))
    result: Array = _reduce_tensor(tensor, average, group, device).numpy()
    return result


def _sum(
    tensor: torch.Tensor, group: dist.ProcessGroup | None, device: torch.device | str | None
) -> torch.Tensor:
    """Return the sum over the ranks in a new tensor, on the device that carried it."""
    wanted = tensor.device if device is None else torch.device(device)
    if not has_group():
        return _own_copy(tensor, tensor.device)
    _group_rank(group)
    total = _own_copy(tensor, _carrier(wanted, group))
    dist.all_reduce(total, group=group)
    return total


def _gather_tensor(
    tensor: torch.Tensor, group: dist.ProcessGroup | None, device: torch.device | str | None
) -> list[torch.Tensor]:
    if not has_group():
        return [_own_copy(tensor, tensor.device)]
    _group_rank(group)
    wanted = tensor.device if device is None else torch.device(device)
    sent = _own_copy(tensor, _carrier(wanted, group))
    parts = [torch.empty_like(sent) for _ in range(_group_size(group))]
    dist.all_gather([_as_bytes(part) for part in parts], _as_bytes(sent), group=group)
    return [part.to(tensor.device) for part in parts]


def _own_copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a detached, contiguous copy that shares no memory with *tensor*."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.to(device, copy=True, memory_format=torch.contiguous_format)


def _can_travel(tensor: torch.Tensor, device: torch.device) -> bool:
    """Whether *tensor* itself can be sent and filled, without a copy of its own."""
    is_plain = not (tensor.is_conj() or tensor.is_neg())
    return tensor.device == device and tensor.is_contiguous() and is_plain


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return *tensor*, or its bytes where the backends do not know how to move its dtype."""
    if tensor.dtype in _SUMMED_AS:
        return tensor.reshape(-1).view(torch.uint8)
    return tensor


def _tensor_of(array: Array) -> torch.Tensor:
    try:
        # A copy in native byte order: torch takes neither negative strides nor read-only memory.
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
        return torch.from_numpy(native)
    except TypeError as exc:
        raise UsageError(
            f"an array of dtype {array.dtype} cannot be made a tensor, which is what travels.\n"
            "For other things: `nbdist.all_gather_objects(thing)`."
        ) from exc


def choose_carrier(
    wanted: torch.device, of_rank: torch.device, carried: frozenset[str]
) -> torch.device:
    """Choose the device on which a tensor travels.

    Args:
        wanted: Where it is, or where the caller wants it.
        of_rank: The device of this rank, which stands in where *wanted* cannot be had.
        carried: Device types that the group carries.
    """
    if wanted == torch.device(of_rank.type):  # "cuda" without a number
        wanted = of_rank
    if wanted.type in carried:
        return wanted
    return of_rank if of_rank.type in carried else torch.device("cpu")


def _carrier(wanted: torch.device, group: dist.ProcessGroup | None) -> torch.device:
    return choose_carrier(wanted, get_device(), carried_devices(group))


# Groups ----------------------------------------------------------------------------------------


def _group_rank(group: dist.ProcessGroup | None) -> int:
    rank = dist.get_rank(group)
    if rank < 0:
        raise UsageError(
            f"rank {get_rank()} is not in this group, so it cannot take part.\n"
            "Call the collective on the ranks of the group only, or without `group=`."
        )
    return rank


def _group_size(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if has_group() else 1


def _check_source(src: int, group: dist.ProcessGroup | None) -> None:
    if has_group():
        _group_rank(group)
        ranks = dist.get_process_group_ranks(group)
    else:
        ranks = list(range(get_world_size()))
    if src not in ranks:
        raise UsageError(f"there is no rank {src} in this group; its ranks are {ranks}.")


def _empty_list(group: dist.ProcessGroup | None) -> list[Any]:
    _group_rank(group)
    return [None] * _group_size(group)


def _pickled_copy(obj: T) -> T:
    # As it would arrive from another rank: a copy, and an error where it cannot be pickled.
    copy: T = pickle.loads(pickle.dumps(obj))
    return copy
