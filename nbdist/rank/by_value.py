"""Pickle what cells make, for another rank of the same session.

    function, class of a cell ──▶ its code, defaults, closure, attributes       not its name
    module, imported thing    ──▶ its name
    tensor                    ──▶ a storage, set aside; views share one, as before
    group                     ──▶ its name: the other rank has one of that name
    "my rank", "my device"    ──▶ the other rank's own

pickle names a function and looks the name up again; on a fresh rank there is nothing to find. Their
content stays exact where a replay of the cells would not: a default that came from a variable, a
method that was replaced, an instance of a class that was defined again since.

Not covered, and refused with the reason: parts that are sharded, meshes, generators, locks, files,
weak references. Not copied, silently: gradients, hooks of optimizers, what a metaclass did beyond
making the class (keywords of ``__init_subclass__`` among it).
"""

from __future__ import annotations

import builtins
import copyreg
import enum
import functools
import hashlib
import importlib
import io
import linecache
import marshal
import pickle
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.distributed import ProcessGroup  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from nbdist.runtime import torch_private

CHUNK_BYTES = 16 * 2**20
PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)

_ATOMS = frozenset({str, bytes, int, bool, float})

Namespace = dict[str, Any]
Reduced = tuple[Any, ...]


class Uncopyable(Exception):  # noqa: N818 - it is a fact about a value
    """A value cannot be copied to another rank; the text says which part of it and why.

    Attributes:
        is_sharded: Each rank has a part of its own.
    """

    def __init__(self, reason: str, *, is_sharded: bool = False) -> None:
        super().__init__(reason)
        self.is_sharded = is_sharded


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
        """Say how an object of no built-in type is made again; the default where nothing is said."""
        if isinstance(obj, type):
            return reduce_class(obj)
        for base in type(obj).__mro__:
            refuse(base)
            if base in _REDUCERS:
                return _REDUCERS[base](self, obj)
        return _by_name(obj)

    def reduce_code(self, code: types.CodeType) -> Reduced:
        """Write code, and note the cell it stands in."""
        if lines := linecache.cache.get(code.co_filename):
            if len(lines) == 4 and lines[1] is None:  # no file: the text of a cell
                self.sources[code.co_filename] = "".join(lines[2])
        return marshal.loads, (marshal.dumps(code),)

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
    two differ. Line numbers and cell numbers of code do not count. Buffers of modules have a hash of
    their own: the running statistics of replicas differ between one forward and the next.

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
        self._hash, self._buffer_hash = _new_hash(), _new_hash()
        self._buffers: dict[int, torch.Tensor] = {}
        self.size_bytes = 0
        self._known = {} if known is None else known
        self._is_of_set = is_of_set
        self._strings: dict[Any, Any] = {}
        super().__init__(self, namespace, place, lambda buffer: self.write(buffer.raw()))

    def write(self, data: Any) -> None:
        """Take what the pickler writes."""
        view = memoryview(data)
        self.size_bytes += view.nbytes
        self._hash.update(view)

    def digest(self, value: Any) -> str:
        """Return the hash of *value*; once for each hasher."""
        self.dump(value)
        return self._hash.hexdigest()

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
        self.size_bytes += tensor.nbytes
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


def _new_hash() -> Any:
    return hashlib.blake2b(digest_size=16)


def hash_elements(tensor: torch.Tensor) -> str:
    """Return a hash of a tensor's elements in row-major order; GPU memory passes in small parts."""
    content = _new_hash()
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if plain.numel():
        for part in plain.reshape(-1).view(torch.uint8).split(CHUNK_BYTES):
            content.update(memoryview(part.cpu().numpy()))
    return content.hexdigest()


# Tensors ----------------------------------------------------------------------------------------


def _reduce_tensor(pickler: CellPickler, tensor: torch.Tensor) -> Any:
    is_plain = tensor.layout is torch.strided and not tensor.is_quantized
    if type(tensor) not in PLAIN_TENSORS or not is_plain or tensor.is_meta:
        return NotImplemented  # torch's own way: sparse, quantized, subclasses
    content = pickler.reduce_content(tensor)
    about = (type(tensor), str(tensor.dtype), tuple(tensor.shape), tensor.requires_grad)
    hooks = [list((getattr(tensor, name) or {}).values()) for name in _TENSOR_HOOKS]
    state = (tensor.__dict__, *hooks) if tensor.__dict__ or any(hooks) else None
    return make_tensor, (about, tensor.device, *content), state, None, None, _set_tensor_state


_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


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


def _set_tensor_state(tensor: torch.Tensor, state: Reduced) -> None:
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


# Functions --------------------------------------------------------------------------------------


def _reduce_function(_pickler: CellPickler, function: types.FunctionType) -> Any:
    if is_importable(function):
        return NotImplemented
    where: Any = function.__globals__
    module = sys.modules.get(where.get("__name__", ""))
    if module is not None and module.__name__ != "__main__" and module.__dict__ is where:
        where = module
    state = {
        name: getattr(function, name)
        for name in (
            "__defaults__",
            "__kwdefaults__",
            "__annotations__",
            "__doc__",
            "__module__",
            "__qualname__",
            "__dict__",
        )
    }
    arguments = (function.__code__, where, function.__name__, function.__closure__)
    return _make_function, arguments, state, None, None, _set_attributes


def _make_function(code: types.CodeType, where: Any, name: str, closure: Any) -> Any:
    namespace = where.__dict__ if isinstance(where, types.ModuleType) else where
    return types.FunctionType(code, namespace, name, None, closure)


def _set_attributes(obj: Any, state: Mapping[str, Any]) -> None:
    for name, value in state.items():
        setattr(obj, name, value)


def _reduce_cell(_pickler: CellPickler, cell: types.CellType) -> Reduced:
    try:
        content = (cell.cell_contents,)
    except ValueError:  # still empty
        return types.CellType, ()
    # As state, since a function may stand in its own closure.
    return types.CellType, (), content, None, None, _fill_cell


def _fill_cell(cell: types.CellType, content: tuple[Any]) -> None:
    cell.cell_contents = content[0]


def _reduce_module(_pickler: CellPickler, module: types.ModuleType) -> Reduced:
    if sys.modules.get(module.__name__) is not module:
        raise Uncopyable(f"module {module.__name__} cannot be imported by its name")
    return importlib.import_module, (module.__name__,)


def is_importable(obj: Any) -> bool:
    """Say whether another process finds *obj* by its name: it does not what a cell defined."""
    if obj.__module__ == "__main__" or "<locals>" in obj.__qualname__:
        return False
    found: Any = sys.modules.get(obj.__module__ or "")
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _reduce_cached(_pickler: CellPickler, cached: Any) -> Any:
    if is_importable(cached):
        return NotImplemented
    return _make_cached, (cached.cache_parameters(), cached.__wrapped__)


def _make_cached(parameters: Mapping[str, Any], function: Any) -> Any:
    return functools.lru_cache(**parameters)(function)


# Classes ----------------------------------------------------------------------------------------

# What the making of a class puts into it by itself.
_MADE = {"__dict__", "__weakref__", "_abc_impl", "__abstractmethods__", "_backward_cls"}


def reduce_class(cls: type) -> Any:
    """Say how a class is made again: by name where it can be imported, else with all its parts."""
    if cls.__module__ == "builtins":
        names = [name for name, known in vars(types).items() if known is cls]
        return (getattr, (types, names[0])) if names else NotImplemented
    if is_importable(cls):
        return NotImplemented
    if issubclass(cls, enum.Enum):
        return _reduce_enum(cls)
    body = {
        name: value
        for name, value in vars(cls).items()
        if name not in _MADE and not isinstance(value, types.MemberDescriptorType)
    }
    body["__qualname__"] = cls.__qualname__
    return _make_class, (type(cls), cls.__name__, cls.__bases__, body)


def _make_class(meta: Any, name: str, bases: tuple[type, ...], body: Namespace) -> Any:
    return meta(name, bases, body)


def _reduce_enum(cls: type[enum.Enum]) -> Reduced:
    members = {name: member.value for name, member in cls.__members__.items()}
    kept = (types.FunctionType, property, classmethod, staticmethod)
    body = {
        name: value
        for name, value in vars(cls).items()
        if isinstance(value, kept)
        and getattr(getattr(value, "fget", value), "__module__", "") == cls.__module__
    }
    body |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return _make_enum, (type(cls), cls.__name__, cls.__bases__, body, members)


def _make_enum(
    meta: Any, name: str, bases: tuple[type, ...], body: Namespace, members: Namespace
) -> Any:
    filled = meta.__prepare__(name, bases)
    for key, value in {**body, **members}.items():
        filled[key] = value
    return meta(name, bases, filled)


def _reduce_property(_pickler: CellPickler, obj: property) -> Reduced:
    return type(obj), (obj.fget, obj.fset, obj.fdel, obj.__doc__)


def _reduce_wrapped(_pickler: CellPickler, obj: Any) -> Reduced:
    return type(obj), (obj.__func__,)


def _reduce_cached_property(_pickler: CellPickler, obj: Any) -> Reduced:
    return type(obj), (obj.func,), {"attrname": obj.attrname}


def _reduce_mapping_proxy(_pickler: CellPickler, obj: Any) -> Reduced:
    return types.MappingProxyType, (dict(obj),)


def _reduce_type_variable(_pickler: CellPickler, obj: TypeVar) -> Any:
    if obj.__module__ != "__main__":
        return NotImplemented
    return _make_type_variable, (
        (obj.__name__, *obj.__constraints__),
        {"bound": obj.__bound__, "covariant": obj.__covariant__},
    )


def _make_type_variable(arguments: tuple[Any, ...], options: Namespace) -> Any:
    made: Any = typing.TypeVar
    variable = made(*arguments, **options)
    variable.__module__ = "__main__"
    return variable


# Things that name their rank ----------------------------------------------------------------------


def _reduce_group(_pickler: CellPickler, group: Any) -> Reduced:
    if not torch_private.is_living(group):
        raise Uncopyable("its process group was destroyed")
    return group_named, (group.group_name,)


def group_named(name: str) -> Any:
    """Return this rank's group called *name*; what `new_group` gives those outside if it has none."""
    groups = {group.group_name: group for group in torch_private.living_groups()}
    return groups.get(name, torch.distributed.GroupMember.NON_GROUP_MEMBER)


def _reduce_sampler(pickler: CellPickler, sampler: Any) -> Any:
    state = dict(sampler.__dict__)
    if state.get("rank") == pickler.place.rank:
        state["rank"] = Own.RANK
    return _with_state(sampler, state)


def _reduce_loader(_pickler: CellPickler, loader: Any) -> Any:
    return _with_state(loader, {**loader.__dict__, "_iterator": None})  # its workers are processes


def _with_state(obj: Any, state: Namespace) -> Any:
    if type(obj).__reduce_ex__ is not object.__reduce_ex__ or hasattr(type(obj), "__setstate__"):
        return NotImplemented
    return copyreg.__newobj__, (type(obj),), state  # type: ignore[attr-defined]


def _reduce_ddp(pickler: CellPickler, module: DistributedDataParallel) -> Reduced:
    state = ddp_state(module)
    if state["device_ids"] is not None:
        state["device_ids"] = [Own.INDEX]
        state["output_device"] = Own.INDEX
    return copyreg.__newobj__, (type(module),), state, None, None, set_ddp_state  # type: ignore[attr-defined]


def ddp_state(module: DistributedDataParallel) -> Namespace:
    """Return all of a DDP module but its native parts; its group too, which torch leaves out."""
    native = ("reducer", "logger")
    return {name: value for name, value in module.__dict__.items() if name not in native}


def set_ddp_state(module: DistributedDataParallel, state: Mapping[str, Any]) -> None:
    """Give a DDP module *state*, and a reducer that has not seen a step yet."""
    hooks = state.get("_comm_hooks", ())
    # A static graph reduces its first step from a callback. Where this says that one is queued
    # already, a new reducer would never reduce that step: the replicas part, and nobody is told.
    first_step = {"_has_rebuilt_buckets": False, "_static_graph_delay_allreduce_enqueued": False}
    again = {name: value for name, value in first_step.items() if name in state}
    module.__setstate__({**state, **again, "_comm_hooks": []})  # type: ignore[no-untyped-call]
    for hook, hook_state in hooks:
        module.register_comm_hook(hook_state, hook)


# Constants ----------------------------------------------------------------------------------------


def _by_name(obj: Any) -> Any:
    """Name what its module compares by identity: dataclasses.MISSING, torch's default generator."""
    module = type(obj).__module__
    if module not in ("dataclasses", "torch._C"):
        return NotImplemented
    name = _constants(module).get(id(obj))
    return NotImplemented if name is None else (getattr, (sys.modules[module], name))


@functools.cache
def _constants(module: str) -> dict[int, str]:
    values = vars(sys.modules[module]).items()
    return {id(value): name for name, value in values if type(value).__module__ == module}


_REDUCERS: dict[type, Callable[[Any, Any], Any]] = {
    torch.Tensor: _reduce_tensor,
    types.FunctionType: _reduce_function,
    types.CodeType: lambda pickler, code: pickler.reduce_code(code),
    types.CellType: _reduce_cell,
    types.ModuleType: _reduce_module,
    property: _reduce_property,
    classmethod: _reduce_wrapped,
    staticmethod: _reduce_wrapped,
    functools.cached_property: _reduce_cached_property,
    types.MappingProxyType: _reduce_mapping_proxy,
    TypeVar: _reduce_type_variable,
    type(functools.lru_cache(len)): _reduce_cached,
    ProcessGroup: _reduce_group,
    DistributedSampler: _reduce_sampler,
    DataLoader: _reduce_loader,
    DistributedDataParallel: _reduce_ddp,
}
