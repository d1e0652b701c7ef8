"""Pickle what cells make, for another rank of the same session.

    function, class of a cell ──▶ its code, defaults, closure, attributes       not its name
    module, imported thing    ──▶ its name
    tensor                    ──▶ a storage, set aside; views share one, as before
    group, rank, device       ──▶ the other rank's own

pickle names a function and looks the name up again; on a fresh rank there is nothing to find. Their
content stays exact where a replay of the cells would not: a default that came from a variable, a
method that was replaced, an instance of a class that was defined again since.

Not covered, and refused with the reason: parts that are sharded, meshes, generators, locks, files,
weak references. Not copied, silently: gradients, hooks of optimizers, what a metaclass did beyond
making the class (keywords of ``__init_subclass__`` among it).
"""

from __future__ import annotations

import builtins
import io
import marshal
import pickle
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nbdist import definitions
from nbdist.definitions import Namespace, Reduced, Uncopyable
from nbdist.rank import placed
from nbdist.rank.placed import Own, Place
from nbdist.runtime.tensor_bytes import hash_elements, new_hash

PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)

# Where torch keeps what `register_hook` and `register_post_accumulate_grad_hook` got.
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_ATOMS = frozenset({str, bytes, int, bool, float})


@dataclass(frozen=True)
class StorageRef:
    """Stands in a pickle for the storage with this number."""

    index: int


class CellPickler(pickle.Pickler):
    """Writes values of one rank for another.

    Attributes:
        storages: What the tensors lie in, each once; to be sent beside the pickle.
        sources: Text of the cells whose code was written, by file name (``In[3]``).
    """

    def __init__(
        self,
        stream: Any,
        namespace: Namespace,
        place: Place,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    ) -> None:
        super().__init__(stream, protocol=5, buffer_callback=buffer_callback)
        self.namespace, self.place = namespace, place
        self.storages: list[torch.UntypedStorage] = []
        self.sources: dict[str, str] = {}
        self._index_of: dict[tuple[Any, ...], int] = {}

    def persistent_id(self, obj: Any) -> Any:
        """Name what the other rank has itself."""
        if obj is self.namespace:
            return ("namespace",)
        if obj is builtins.__dict__:
            return ("builtins",)
        kind = type(obj)
        if kind is StorageRef:
            return ("storage", obj.index)
        if kind is Own:
            return ("own", obj.value)
        if kind is torch.device and obj == self.place.device:
            return ("own", Own.DEVICE.value)
        return None

    def reducer_override(self, obj: Any) -> Any:
        """Say how an object is made again; pickle does, where nothing is said here."""
        if isinstance(obj, type):
            return definitions.reduce_class(obj)
        for base in type(obj).__mro__:
            refuse(base)
            if base is torch.Tensor:
                return self.reduce_tensor(obj)
            if base is types.CodeType:
                return self.reduce_code(obj)
            if base in definitions.REDUCERS:
                return definitions.REDUCERS[base](obj)
            if base in placed.REDUCERS:
                return placed.REDUCERS[base](self.place, obj)
        return definitions.by_name(obj)

    def reduce_code(self, code: types.CodeType) -> Reduced:
        """Write code, and note the cell it stands in."""
        text = definitions.text_of_cell(code.co_filename)
        if text is not None:
            self.sources[code.co_filename] = text
        return marshal.loads, (marshal.dumps(code),)

    def reduce_tensor(self, tensor: torch.Tensor) -> Any:
        """Write what a tensor is, and set its content aside."""
        is_plain = tensor.layout is torch.strided and not tensor.is_quantized
        if type(tensor) not in PLAIN_TENSORS or not is_plain or tensor.is_meta:
            return NotImplemented  # torch's own way: sparse, quantized, subclasses
        content = self.reduce_content(tensor)
        about = (type(tensor), str(tensor.dtype), tuple(tensor.shape), tensor.requires_grad)
        hooks = [list((getattr(tensor, name) or {}).values()) for name in _TENSOR_HOOKS]
        state = (tensor.__dict__, *hooks) if tensor.__dict__ or any(hooks) else None
        return make_tensor, (about, tensor.device, *content), state, None, None, set_tensor_state

    def reduce_content(self, tensor: torch.Tensor) -> Reduced:
        """Set a tensor's storage aside."""
        plain = tensor.detach().resolve_conj().resolve_neg()
        storage = plain.untyped_storage()
        key = (storage.device, storage.data_ptr() or id(tensor), storage.nbytes())
        if key not in self._index_of:
            self._index_of[key] = len(self.storages)
            self.storages.append(storage)  # which keeps its address taken
        index = self._index_of[key]
        return StorageRef(index), plain.storage_offset(), tuple(plain.stride())


class CellHasher(CellPickler):
    """Hashes what a `CellPickler` would write, alike on all ranks for alike values.

    Strings that are equal count as one, and sets have an order: in pickles of equal values these
    two differ. Line numbers and cell numbers of code do not count. Buffers of modules have a hash
    of their own: the running statistics of replicas differ between one forward and the next.

    Args:
        namespace: Of the cells.
        place: This rank.
        known: Hashes of tensors; shared by the hashers of one survey, so each is read once.
        is_of_set: What is hashed stands in a set. Of sets in it only the size counts: they may
            lead back.
    """

    def __init__(
        self,
        namespace: Namespace,
        place: Place,
        known: dict[int, tuple[Any, str]] | None = None,
        *,
        is_of_set: bool = False,
    ) -> None:
        self._hash, self._buffer_hash = new_hash(), new_hash()
        self._buffers: dict[int, torch.Tensor] = {}
        self._known = {} if known is None else known
        self._is_of_set = is_of_set
        self._strings: dict[Any, Any] = {}
        super().__init__(self, namespace, place, lambda buffer: self.write(buffer.raw()))

    def write(self, data: Any) -> None:
        """Take what the pickler writes."""
        self._hash.update(data)

    def digest(self, value: Any) -> str:
        """Return the hash of *value*; once for each hasher."""
        self.dump(value)
        return str(self._hash.hexdigest())

    def digest_of_buffers(self) -> str:
        """Return the hash of the buffers of all modules in what was hashed; empty without any."""
        return self._buffer_hash.hexdigest() if self._buffers else ""

    def reducer_override(self, obj: Any) -> Any:
        """Note which tensors are buffers; they come after their module."""
        if isinstance(obj, torch.nn.Module):
            self._buffers |= {id(buffer): buffer for buffer in obj.buffers(recurse=False)}
        return super().reducer_override(obj)

    def persistent_id(self, obj: Any) -> Any:
        """Name what must not depend on which objects are one and the same."""
        kind = type(obj)
        if kind is str or kind is bytes:
            return self._strings.setdefault(obj, obj)
        if kind is set or kind is frozenset:
            return (kind.__name__, self._in_order(obj))
        return super().persistent_id(obj)

    def _in_order(self, items: Any) -> list[Any]:
        if all(type(item) in _ATOMS for item in items):
            return sorted(items, key=lambda item: f"{type(item).__name__} {item!r}")
        return [len(items)] if self._is_of_set else sorted(items, key=self._alone)

    def _alone(self, item: Any) -> str:
        return CellHasher(self.namespace, self.place, self._known, is_of_set=True).digest(item)

    def reduce_code(self, code: types.CodeType) -> Reduced:
        """Hash what code does, not where it stands."""
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        return tuple, ([code.co_name, code.co_code, code.co_consts, *names, *counts],)

    def reduce_content(self, tensor: torch.Tensor) -> Reduced:
        """Hash the elements of a tensor."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = (tensor, hash_elements(tensor))
        digest = self._known[id(tensor)][1]
        if id(tensor) not in self._buffers:
            return (digest,)
        self._buffer_hash.update(digest.encode())
        return ("a buffer",)


class CellUnpickler(pickle.Unpickler):
    """Reads on a fresh rank what a `CellPickler` wrote.

    Args:
        stream: The pickle.
        namespace: Of the cells here: the globals of what comes in.
        place: This rank.
        storages: What the tensors lie in, as `CellPickler.storages`.
        buffers: As set aside by the pickler.
    """

    def __init__(
        self,
        stream: io.BytesIO,
        namespace: Namespace,
        place: Place,
        storages: list[torch.UntypedStorage],
        buffers: list[Any],
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._namespace, self._place, self._storages = namespace, place, storages

    def persistent_load(self, pid: Any) -> Any:
        """Return what this rank has itself."""
        kind, *rest = pid
        if kind == "namespace":
            return self._namespace
        if kind == "builtins":
            return builtins.__dict__
        return self._storages[rest[0]] if kind == "storage" else self._place.own(Own(rest[0]))


def make_tensor(
    about: Reduced,
    device: torch.device,
    storage: torch.UntypedStorage,
    offset: int,
    stride: tuple[int, ...],
) -> torch.Tensor:
    """Return a tensor over *storage*, which lies on the device it is to have."""
    kind, dtype, shape, requires_grad = about
    empty = torch.empty(0, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
    tensor = empty.set_(storage, offset, shape, stride)
    if kind is torch.nn.Parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


def set_tensor_state(tensor: torch.Tensor, state: Reduced) -> None:
    """Give a tensor the attributes and the gradient hooks of the one it is a copy of."""
    attributes, hooks, hooks_after = state
    tensor.__dict__.update(attributes)
    for hook in hooks:
        tensor.register_hook(hook)
    for hook in hooks_after:
        tensor.register_post_accumulate_grad_hook(hook)


# Told apart by name: whoever has one has imported it, and nobody else should.
_SHARDED = {"DTensor", "FSDPModule", "FullyShardedDataParallel", "ShardedTensor"}
_REFUSED = {
    "DeviceMesh": "a DeviceMesh has to be made anew",
    "_BaseDataLoaderIter": "the iterator of a DataLoader cannot be copied",
}


def refuse(kind: type) -> None:
    """Raise if objects of *kind* cannot be copied, though pickle might try.

    Raises:
        Uncopyable: They have a part on every rank, or belong to their process.
    """
    if not kind.__module__.startswith("torch."):
        return
    if kind.__name__ in _SHARDED:
        raise Uncopyable(kind.__name__, is_sharded=True)
    if kind.__name__ in _REFUSED:
        raise Uncopyable(_REFUSED[kind.__name__])
