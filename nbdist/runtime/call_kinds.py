"""What is alike in all calls of a kind, found out at the first of them.

    arguments ──▶ key: all of them that may matter ──▶ met before? ──▶ CallKind

A program makes the same few calls over and over; while a rank looks at one, its peers wait.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nbdist.runtime import torch_private
from nbdist.runtime.refusals import is_doubtful
from nbdist.runtime.signature import Signature, signature_of

MAX_KINDS = 2000  # then the memory begins anew


@dataclass(frozen=True)
class CallKind:
    """What a call is, whenever it is made.

    Attributes:
        signature: What is compared with the peers.
        is_doubtful: Torch is likely to refuse it.
        is_async: It returns before it is over.
    """

    signature: Signature
    is_doubtful: bool
    is_async: bool


class CallKinds:
    """The kinds of calls that one rank has made in one group.

    Args:
        rank: Its rank in the group.
        size: Number of ranks in the group.
        devices: The device types that the group carries.
    """

    def __init__(self, rank: int, size: int, devices: Collection[str]) -> None:
        self._rank, self._size, self._devices = rank, size, devices
        self._kinds: dict[object, CallKind | None] = {}

    def __repr__(self) -> str:
        return f"<CallKinds of rank {self._rank}, {len(self._kinds)} so far>"

    def of(self, op: str, args: Mapping[str, Any]) -> CallKind | None:
        """Return what kind of call this is; ``None`` where it moves no data: a compiler traces it.

        Args:
            op: The operator's name in torch's ``c10d`` library.
            args: Its arguments by the names in its schema.
        """
        key = op, *args, *map(_key, args.values())
        try:
            return self._kinds[key]
        except KeyError:
            kind = self._find_out(op, args)
        if len(self._kinds) >= MAX_KINDS:
            self._kinds.clear()
        self._kinds[key] = kind
        return kind

    def _find_out(self, op: str, args: Mapping[str, Any]) -> CallKind | None:
        if not all(map(torch_private.is_real, first_tensors(args))):
            return None
        rank, size = self._rank, self._size
        return CallKind(
            signature=signature_of(op, args, rank=rank, size=size),
            is_doubtful=is_doubtful(op, args, rank=rank, size=size, devices=self._devices),
            is_async=bool(args.get("async_op", True)) and op != "monitored_barrier_",
        )


def first_tensors(args: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the first tensor of each argument that has any."""
    found = []
    for value in args.values():
        while isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, torch.Tensor):
            found.append(value)
    return found


def _key(value: Any) -> object:
    """Return all that `signature` and `refusals` look at in an argument, to be hashed."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    if isinstance(value, torch.Tensor):
        if not torch_private.is_real(value):
            return "no data"  # sizes may have no value either
        is_dense = value.layout is torch.strided and value.is_contiguous()
        return value.dtype, value.shape, value.device, value.layout, is_dense
    return value
