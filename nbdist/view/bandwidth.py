"""How fast a collective was, in the field's usual two numbers.

    size / time  =  algbw   how fast the operation is for who calls it
    algbw · f    =  busbw   how much of that each link has to carry: comparable with the hardware,
                            whatever the number of ranks

Definitions: `PERFORMANCE.md` of nccl-tests (https://github.com/NVIDIA/nccl-tests), and its
``*.cu`` for what the size is; gather and scatter are in the latter only.
"""

from __future__ import annotations

from collections.abc import Sequence

_TWICE_SHARE = frozenset({"all_reduce", "all_reduce_coalesced"})
_SHARE = frozenset(
    {
        "all_gather",
        "all_gather_into_tensor",
        "all_gather_coalesced",
        "all_gather_into_tensor_coalesced",
        "reduce_scatter",
        "reduce_scatter_tensor",
        "reduce_scatter_tensor_coalesced",
        "all_to_all",
        "all_to_all_single",
        "gather",
        "scatter",
    }
)
_WHOLE = frozenset({"broadcast", "reduce", "send", "recv"})
_SUMMED = frozenset(
    {
        "all_gather",
        "all_gather_into_tensor",
        "all_gather_coalesced",
        "all_gather_into_tensor_coalesced",
        "gather",
    }
)


def data_size(op: str, sizes_bytes: Sequence[int], num_ranks: int) -> int:
    """Return the size that bandwidths of *op* are about, in bytes.

    For all_gather and gather all that is gathered, for all else what one rank puts in; the most
    where ranks put in different amounts.

    Args:
        op: The user's name of the operation.
        sizes_bytes: What ranks put in, of as many as are known.
        num_ranks: Number of ranks in the group.
    """
    if not sizes_bytes:
        return 0
    if op in _SUMMED:
        return round(sum(sizes_bytes) / len(sizes_bytes) * num_ranks)
    return max(sizes_bytes)


def algorithm_bandwidth(size_bytes: int, seconds: float) -> float:
    """Return algbw in bytes per second: size / time."""
    return size_bytes / seconds


def bus_factor(op: str, num_ranks: int) -> float | None:
    """Return by what algbw is multiplied to give busbw.

    2 (n - 1) / n for all_reduce; (n - 1) / n for all_gather, reduce_scatter, all_to_all, gather and
    scatter; 1 for broadcast, reduce, send and recv.

    Args:
        op: The user's name of the operation.
        num_ranks: Number n of ranks in the group.

    Returns:
        ``None`` for an operation that moves no data.
    """
    if op in _TWICE_SHARE:
        return 2 * (num_ranks - 1) / num_ranks
    if op in _SHARE:
        return (num_ranks - 1) / num_ranks
    return 1.0 if op in _WHOLE else None
