"""Tell the calls that torch is likely to refuse before it sends anything.

Such a call counts for none: a program may catch the error, and all ranks go on with the next call.
So it must not be shown to the peers, let alone wait for them, before torch has taken it.

Pure. Errs on the side of doubt: what is doubted needlessly is compared all the same, but only once
it is on its way. Not covered: what torch refuses for other reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any


def is_doubtful(
    op: str, args: Mapping[str, Any], *, rank: int, size: int, devices: Collection[str]
) -> bool:
    """Say whether torch may refuse a call.

    Args:
        op: The operator's name in torch's ``c10d`` library.
        args: Its arguments by the names in its schema.
        rank: This rank's rank in the group.
        size: Number of ranks in the group.
        devices: The device types that the group carries.
    """
    check = _CHECKS.get(op)
    if check is None:
        return False
    return not (check(args, rank, size) and _are_carried(args, devices))


def _are_carried(args: Mapping[str, Any], devices: Collection[str]) -> bool:
    own = args.get("tensors") or args.get("inputs") or [args.get("input_tensor")]
    return all(tensor is None or tensor.device.type in devices for tensor in own)


# One function per kind of operation: does it look right? ----------------------------------------


def _reduced(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    tensors = args["tensors"]
    return bool(tensors) and _is_one_kind(tensors) and 0 <= args.get("root_rank", 0) < size


def _gathered_lists(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    return _are_like(args["output_tensors"], args["input_tensors"], size)


def _scattered_lists(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    return _are_like(args["input_tensors"], args["output_tensors"], size)


def _gathered(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    return _is_times(size, args["input_tensor"], args["output_tensor"])


def _scattered(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    return _is_times(size, args["output_tensor"], args["input_tensor"])


def _gathered_coalesced(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    return _are_times(size, args["inputs"], args["outputs"])


def _scattered_coalesced(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    return _are_times(size, args["outputs"], args["inputs"])


def _gathered_to_root(args: Mapping[str, Any], rank: int, size: int) -> bool:
    lists, own = args["output_tensors"], args["input_tensors"]
    return _is_rooted(args["root_rank"], lists, own, rank, size)


def _scattered_from_root(args: Mapping[str, Any], rank: int, size: int) -> bool:
    lists, own = args["input_tensors"], args["output_tensors"]
    return _is_rooted(args["root_rank"], lists, own, rank, size)


def _exchanged(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    given, taken = args["input"], args["output"]
    return (
        given.dtype == taken.dtype
        and _is_split(given, args.get("input_split_sizes") or (), size)
        and _is_split(taken, args.get("output_split_sizes") or (), size)
    )


def _exchanged_lists(args: Mapping[str, Any], _rank: int, size: int) -> bool:
    given, taken = args["input_tensors"], args["output_tensors"]
    return len(given) == len(taken) == size and _is_one_dtype([*given, *taken])


def _message(args: Mapping[str, Any], _rank: int, _size: int) -> bool:
    tensors = args["tensors"]
    return len(tensors) == 1 and args["tag"] >= 0 and _is_dense(tensors[0])


_CHECKS: dict[str, Callable[[Mapping[str, Any], int, int], bool]] = {
    "allreduce_": _reduced,
    "allreduce_coalesced_": _reduced,
    "broadcast_": _reduced,
    "reduce_": _reduced,
    "allgather_": _gathered_lists,
    "reduce_scatter_": _scattered_lists,
    "_allgather_base_": _gathered,
    "_reduce_scatter_base_": _scattered,
    "allgather_into_tensor_coalesced_": _gathered_coalesced,
    "reduce_scatter_tensor_coalesced_": _scattered_coalesced,
    "gather_": _gathered_to_root,
    "scatter_": _scattered_from_root,
    "alltoall_base_": _exchanged,
    "alltoall_": _exchanged_lists,
    "send": _message,
    "recv_": _message,
}


# Parts of the checks ----------------------------------------------------------------------------


def _is_one_kind(tensors: Sequence[Any]) -> bool:
    first = tensors[0]
    return all(t.dtype == first.dtype and t.layout == first.layout for t in tensors[1:])


def _is_one_dtype(tensors: Sequence[Any]) -> bool:
    return len({tensor.dtype for tensor in tensors}) == 1


def _is_dense(tensor: Any) -> bool:
    return str(tensor.layout) == "torch.strided" and bool(tensor.is_contiguous())


def _are_like(lists: Sequence[Sequence[Any]], own: Sequence[Any], size: int) -> bool:
    """Say whether there is one tensor of one's own, and *size* of its kind in the only list."""
    return (
        len(own) == len(lists) == 1
        and len(lists[0]) == size
        and all(t.dtype == own[0].dtype and t.numel() == own[0].numel() for t in lists[0])
    )


def _is_rooted(
    root: int, lists: Sequence[Sequence[Any]], own: Sequence[Any], rank: int, size: int
) -> bool:
    if not 0 <= root < size or len(own) != 1:
        return False
    return _are_like(lists, own, size) if rank == root else not any(map(len, lists))


def _is_times(size: int, part: Any, whole: Any) -> bool:
    return bool(part.dtype == whole.dtype and part.numel() * size == whole.numel())


def _are_times(size: int, parts: Sequence[Any], wholes: Sequence[Any]) -> bool:
    pairs = zip(parts, wholes, strict=False)
    return len(parts) == len(wholes) > 0 and all(_is_times(size, *pair) for pair in pairs)


def _is_split(tensor: Any, split_sizes: Sequence[int], size: int) -> bool:
    rows = tensor.shape[0] if len(tensor.shape) else 0
    if split_sizes:
        return len(split_sizes) == size and sum(split_sizes) == rows
    return bool(rows % size == 0 and _is_dense(tensor))
