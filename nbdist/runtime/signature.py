"""What of a collective must be alike on every rank, and who must come for it to end.

    operator's name, its arguments ──▶ Signature ── differs from the peer's? ──▶ CollectiveMismatch

Compared is what gloo and NCCL need: operation, reduce operation, root, dtype, number of elements.
Not compared is what may differ: shapes of one size, whether a call is asynchronous, timeouts; and
where ranks may bring different amounts (all_to_all, gather, scatter, messages) only that each gives
what the other takes.

Pure: looks at attributes of tensors, touches no memory of theirs, knows no process group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

#: The user's name of each operator of torch's ``c10d`` library that is guarded.
NAMES = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce_coalesced",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather_into_tensor",
    "allgather_coalesced_": "all_gather_coalesced",
    "allgather_into_tensor_coalesced_": "all_gather_into_tensor_coalesced",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter_tensor",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter_tensor_coalesced",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all_single",
    "barrier": "barrier",
    "monitored_barrier_": "monitored_barrier",
    "send": "send",
    "recv_": "recv",
    "recv_any_source_": "recv",
}

# In the order of torch's ReduceOp.RedOpType.
_REDUCE_OPS = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor", "premul_sum")

TEXT_LIMIT = 256  # in characters; what is longer ends with a fingerprint of all of it

Amounts = tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """One call of one rank, comparable with those of its peers.

    Attributes:
        op: The user's name of the operation.
        text: The call for people: ``all_reduce(float32[10], sum)``. Calls with different keys have
            different texts.
        key: Hash of all that must be equal on every rank.
        size_bytes: Size of what this rank puts in.
        root: Rank in the group, where there is one.
        gives: Elements for each member of the group, where ranks may bring different amounts; -1
            where it does not matter, empty where all of it is in the key.
        takes: Elements expected from each member, likewise.
    """

    op: str
    text: str
    key: int
    size_bytes: int = 0
    root: int | None = None
    gives: Amounts = ()
    takes: Amounts = ()


@dataclass(frozen=True)
class _Parts:
    """What a kind of operation makes of its arguments."""

    shown: Sequence[str]
    compared: Sequence[object]
    moved: Sequence[Any] = ()
    root: int | None = None
    gives: Amounts = ()
    takes: Amounts = ()


def signature_of(op: str, args: Mapping[str, Any], *, rank: int, size: int) -> Signature:
    """Describe a call.

    Args:
        op: The operator's name in torch's ``c10d`` library.
        args: Its arguments by the names in its schema, the reduce operation as torch's number.
        rank: This rank's rank in the group.
        size: Number of ranks in the group.
    """
    parts = _PARTS[op](args, rank, size)
    name = NAMES[op]
    text, key = _text_and_key(name, tuple(parts.shown), tuple(parts.compared))
    return Signature(
        op=name,
        text=text,
        key=key,
        size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in parts.moved),
        root=parts.root,
        gives=parts.gives,
        takes=parts.takes,
    )


@lru_cache(maxsize=2048)
def _text_and_key(name: str, shown: tuple[str, ...], parts: tuple[object, ...]) -> tuple[str, int]:
    """Return text and key; a training loop makes the same few calls over and over."""
    compared = ("message" if name in ("send", "recv") else name, *parts)
    text = _limited(f"{name}({', '.join(shown)})", compared)
    return text, int.from_bytes(_digest(compared))


def fits(gives: Amounts, takes: Amounts, rank: int, peer: int) -> bool:
    """Say whether what *rank* gives to *peer* is what *peer* takes from it.

    Args:
        gives: Of *rank*.
        takes: Of *peer*.
        rank: Rank in the group.
        peer: Rank in the group.
    """
    if not gives or not takes:
        return True
    given, taken = gives[peer], takes[rank]
    return given == taken or given < 0 or taken < 0


def has_to_wait(root: int | None, rank: int, pending: Collection[int], size: int) -> bool:
    """Say whether *rank* can neither end nor help others to while some are missing.

    Only then may it be held back without limit. Where there is no root nobody ends before everybody
    has come. With one, a rank may end, and go on to what a missing rank waits for, as soon as the
    root has begun; so the root is held back only while it is alone. It cannot end before somebody
    has come: gloo's sends end when the receiver is there.

    Args:
        root: The root's rank in the group, where the operation has one.
        rank: This rank's rank in the group.
        pending: The ranks that have not come.
        size: Number of ranks in the group.
    """
    if root is None:
        return bool(pending)
    return len(pending) == size - 1 if rank == root else root in pending


# One function per kind of operation -------------------------------------------------------------


def _reduced(args: Mapping[str, Any], _rank: int, _size: int) -> _Parts:
    tensors, op = args["tensors"], _reduce_name(args["reduce_op"])
    return _Parts([*_shown(tensors), op], [*_facts(tensors), op], tensors)


def _rooted(args: Mapping[str, Any], _rank: int, _size: int) -> _Parts:
    tensors, root = args["tensors"], args["root_rank"]
    op = [_reduce_name(args["reduce_op"])] if "reduce_op" in args else []
    shown = [*_shown(tensors), *op, f"root {root}"]
    return _Parts(shown, [*_facts(tensors), *op, root], tensors, root=root)


def _gathered_lists(args: Mapping[str, Any], _rank: int, size: int) -> _Parts:
    # Each rank names what it takes from every other: those lists are equal, however uneven.
    lists = args.get("output_tensors", args.get("output_lists", ()))
    inputs = args.get("input_tensors", args.get("input_list", ()))
    facts = [_facts(tensors) for tensors in lists]
    return _Parts(_shown_beside(inputs, lists, size), facts, inputs)


def _gathered(args: Mapping[str, Any], _rank: int, _size: int) -> _Parts:
    inputs = args["inputs"] if "inputs" in args else [args["input_tensor"]]
    return _Parts(_shown(inputs), _facts(inputs), inputs)


def _scattered_lists(args: Mapping[str, Any], _rank: int, size: int) -> _Parts:
    lists, op = args["input_tensors"], _reduce_name(args["reduce_op"])
    inputs = [tensor for tensors in lists for tensor in tensors]
    shown = _shown_beside(args["output_tensors"], lists, size)
    return _Parts([*shown, op], [*map(_facts, lists), op], inputs)


def _scattered(args: Mapping[str, Any], _rank: int, size: int) -> _Parts:
    outputs = args["outputs"] if "outputs" in args else [args["output_tensor"]]
    inputs = args["inputs"] if "inputs" in args else [args["input_tensor"]]
    op = _reduce_name(args["reduce_op"])
    parts = tuple((*_kind(tensor), tensor.numel() / size) for tensor in inputs)
    into = [] if _facts(outputs) == parts else ["into", *_shown(outputs)]
    return _Parts([*_shown(inputs), *into, op], [*_facts(outputs), op], inputs)


def _gathered_to_root(args: Mapping[str, Any], rank: int, size: int) -> _Parts:
    root, inputs = args["root_rank"], args["input_tensors"]
    gives = [-1] * size
    gives[root] = sum(tensor.numel() for tensor in inputs)
    takes = _numels(args["output_tensors"]) if rank == root else (-1,) * size
    shown = [*_shown(inputs), f"root {root}"]
    return _Parts(shown, [_kinds(inputs), root], inputs, root, tuple(gives), _padded(takes, size))


def _scattered_from_root(args: Mapping[str, Any], rank: int, size: int) -> _Parts:
    root, outputs = args["root_rank"], args["output_tensors"]
    takes = [-1] * size
    takes[root] = sum(tensor.numel() for tensor in outputs)
    lists = args["input_tensors"]
    gives = _numels(lists) if rank == root else (-1,) * size
    moved = [tensor for tensors in lists for tensor in tensors]
    shown = [*_shown(outputs), f"root {root}"]
    return _Parts(shown, [_kinds(outputs), root], moved, root, _padded(gives, size), tuple(takes))


def _exchanged(args: Mapping[str, Any], _rank: int, size: int) -> _Parts:
    output, given = args["output"], args["input"]
    gives = _split(given, args.get("input_split_sizes") or (), size)
    takes = _split(output, args.get("output_split_sizes") or (), size)
    return _Parts(_shown([given]), _kinds([given]), [given], None, gives, takes)


def _exchanged_lists(args: Mapping[str, Any], _rank: int, size: int) -> _Parts:
    inputs, outputs = args["input_tensors"], args["output_tensors"]
    gives, takes = _numels([inputs]), _numels([outputs])
    kinds = sorted(set(_kinds(inputs)))
    return _Parts(_shown(inputs), kinds, inputs, None, _padded(gives, size), _padded(takes, size))


def _nothing(args: Mapping[str, Any], _rank: int, _size: int) -> _Parts:
    device = args["tensor"].device.type
    return _Parts([] if device == "cpu" else [f"on {device}"], [device])


def _message(args: Mapping[str, Any], _rank: int, _size: int) -> _Parts:
    tensors, tag = args["tensors"], args["tag"]
    shown = [*_shown(tensors), *([f"tag {tag}"] if tag else [])]
    return _Parts(shown, [*_facts(tensors), tag], tensors)


_PARTS: dict[str, Callable[[Mapping[str, Any], int, int], _Parts]] = {
    "allreduce_": _reduced,
    "allreduce_coalesced_": _reduced,
    "allgather_": _gathered_lists,
    "_allgather_base_": _gathered,
    "allgather_coalesced_": _gathered_lists,
    "allgather_into_tensor_coalesced_": _gathered,
    "reduce_scatter_": _scattered_lists,
    "_reduce_scatter_base_": _scattered,
    "reduce_scatter_tensor_coalesced_": _scattered,
    "broadcast_": _rooted,
    "reduce_": _rooted,
    "gather_": _gathered_to_root,
    "scatter_": _scattered_from_root,
    "alltoall_": _exchanged_lists,
    "alltoall_base_": _exchanged,
    "barrier": _nothing,
    "monitored_barrier_": _nothing,
    "send": _message,
    "recv_": _message,
    "recv_any_source_": _message,
}


# Parts of a text and of a key -------------------------------------------------------------------


def _shown(tensors: Sequence[Any]) -> list[str]:
    if len(tensors) > 4:
        facts, total = _facts(tensors), sum(tensor.numel() for tensor in tensors)
        text = f"{len(tensors)} tensors of {total} elements, first {_show(tensors[0])}"
        return [text if len(set(facts)) == 1 else f"{text}, {_fingerprint(facts)}"]
    return [_show(tensor) for tensor in tensors]


def _shown_beside(own: Sequence[Any], lists: Sequence[Sequence[Any]], size: int) -> list[str]:
    """Show one's own tensors, and the lists where they are not simply as many for each rank."""
    facts, in_lists = _facts(own), [_facts(tensors) for tensors in lists]
    is_even = in_lists in ([(fact,) * size for fact in facts], [facts] * size)
    return _shown(own) if is_even else _shown_lists(lists)


def _shown_lists(lists: Sequence[Sequence[Any]]) -> list[str]:
    return [f"[{', '.join(_shown(tensors))}]" for tensors in lists]


def _show(tensor: Any) -> str:
    return _text_of(tensor.dtype, tensor.shape, tensor.device.type, tensor.layout)


@lru_cache(maxsize=2048)
def _text_of(dtype: object, shape: tuple[int, ...], device: str, layout: object) -> str:
    kind = _kind_of(dtype, device, layout)
    where = "" if device == "cpu" else f" on {device}"
    how = "" if kind[2] == "strided" else f"{kind[2]} "
    return f"{how}{kind[0]}{list(shape)}{where}"


def _facts(tensors: Iterable[Any]) -> tuple[tuple[object, ...], ...]:
    return tuple((*_kind(tensor), tensor.numel()) for tensor in tensors)


def _kinds(tensors: Iterable[Any]) -> tuple[tuple[str, ...], ...]:
    return tuple(map(_kind, tensors))


def _kind(tensor: Any) -> tuple[str, ...]:
    return _kind_of(tensor.dtype, tensor.device.type, tensor.layout)


@lru_cache(maxsize=256)
def _kind_of(dtype: object, device: str, layout: object) -> tuple[str, ...]:
    return str(dtype).removeprefix("torch."), device, str(layout).removeprefix("torch.")


def _limited(text: str, compared: object) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}... {_fingerprint(compared)})"


def _fingerprint(compared: object) -> str:
    return f"fingerprint {_digest(compared).hex()[:8]}"


def _digest(compared: object) -> bytes:
    return hashlib.blake2b(repr(compared).encode(), digest_size=8).digest()


def _numels(lists: Sequence[Sequence[Any]]) -> Amounts:
    return tuple(tensor.numel() for tensors in lists for tensor in tensors)


def _padded(amounts: Amounts, size: int) -> Amounts:
    """Return *amounts*, or nothing known where the lists have the wrong length (torch says so)."""
    return amounts if len(amounts) == size else (-1,) * size


def _split(tensor: Any, split_sizes: Sequence[int], size: int) -> Amounts:
    numel = tensor.numel()
    if not split_sizes:
        return (numel // size,) * size if numel % size == 0 else (-1,) * size
    rows = tensor.shape[0] if len(tensor.shape) else 1
    row = numel // rows if rows else 0
    return _padded(tuple(rows_for * row for rows_for in split_sizes), size)


def _reduce_name(number: int) -> str:
    return _REDUCE_OPS[number] if number < len(_REDUCE_OPS) else f"reduce op {number}"
