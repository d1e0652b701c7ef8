"""How functions, classes and other things that cells define are made again in another process.

Each function here takes what is to be pickled and returns what `pickle` calls a reduction: a
callable, its arguments, and a state. Metaclasses run again; what they add is left out.

Not covered: keywords of ``__init_subclass__`` and of metaclasses.
"""

from __future__ import annotations

import enum
import functools
import importlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Namespace = dict[str, Any]
Reduced = tuple[Any, ...]


class Uncopyable(Exception):
    """A value cannot be copied to another rank; the text says which part of it and why.

    Attributes:
        is_sharded: Each rank has a part of its own.
    """

    def __init__(self, reason: str, *, is_sharded: bool = False) -> None:
        super().__init__(reason)
        self.is_sharded = is_sharded


# Functions --------------------------------------------------------------------------------------


def _reduce_function(function: types.FunctionType) -> Any:
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


def _reduce_cell(cell: types.CellType) -> Reduced:
    try:
        content = (cell.cell_contents,)
    except ValueError:  # still empty
        return types.CellType, ()
    # As state, since a function may stand in its own closure.
    return types.CellType, (), content, None, None, _fill_cell


def _fill_cell(cell: types.CellType, content: tuple[Any]) -> None:
    cell.cell_contents = content[0]


def _reduce_module(module: types.ModuleType) -> Reduced:
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


def _reduce_cached(cached: Any) -> Any:
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
    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return _make_enum, (type(cls), cls.__name__, cls.__bases__, {**names, **body}, members)


def _make_enum(
    meta: Any, name: str, bases: tuple[type, ...], body: Namespace, members: Namespace
) -> Any:
    filled = meta.__prepare__(name, bases)
    for key, value in {**body, **members}.items():
        filled[key] = value
    return meta(name, bases, filled)


def _reduce_property(obj: property) -> Reduced:
    return type(obj), (obj.fget, obj.fset, obj.fdel, obj.__doc__)


def _reduce_wrapped(obj: Any) -> Reduced:
    return type(obj), (obj.__func__,)


def _reduce_cached_property(obj: Any) -> Reduced:
    return type(obj), (obj.func,), {"attrname": obj.attrname}


def _reduce_mapping_proxy(obj: Any) -> Reduced:
    return types.MappingProxyType, (dict(obj),)


def _reduce_type_variable(obj: TypeVar) -> Any:
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


# Constants ----------------------------------------------------------------------------------------


def by_name(obj: Any) -> Any:
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


REDUCERS: dict[type, Callable[[Any], Any]] = {
    types.FunctionType: _reduce_function,
    types.CellType: _reduce_cell,
    types.ModuleType: _reduce_module,
    property: _reduce_property,
    classmethod: _reduce_wrapped,
    staticmethod: _reduce_wrapped,
    functools.cached_property: _reduce_cached_property,
    types.MappingProxyType: _reduce_mapping_proxy,
    TypeVar: _reduce_type_variable,
    type(functools.lru_cache(len)): _reduce_cached,
}
