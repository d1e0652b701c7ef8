"""How functions, classes and other things that cells define are made again in another process.

Each function here takes what is to be pickled and returns what `pickle` calls a reduction: a
callable, its arguments, and a state. Metaclasses run again; what they add is left out.

Not covered: keywords of ``__init_subclass__`` and of metaclasses.
"""

from __future__ import annotations

import enum
import functools
import importlib
import linecache
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

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


_STATE = ("__defaults__", "__kwdefaults__", "__doc__", "__module__", "__qualname__", "__dict__")


def reduce_function(function: types.FunctionType, where: Any = None) -> Any:
    """Say how a function is made again: by name where it can be imported, else by its code.

    Args:
        function: Of a cell, or inside another function.
        where: What is to be its globals; its own, or its module's, when ``None``.
    """
    if is_importable(function):
        return NotImplemented
    arguments = (
        function.__code__,
        _globals_of(function) if where is None else where,
        function.__name__,
        function.__closure__,
    )
    # Python 3.14 evaluates annotations when they are asked for, and they may name what is not there
    lazy = getattr(function, "__annotate__", None)
    state = {name: getattr(function, name) for name in _STATE}
    if hasattr(function, "__type_params__"):  # since Python 3.12
        state["__type_params__"] = function.__type_params__
    state |= (
        {"__annotations__": function.__annotations__} if lazy is None else {"__annotate__": lazy}
    )
    return _make_function, arguments, state, None, None, _set_attributes


def _globals_of(function: types.FunctionType) -> Any:
    where = function.__globals__
    module = sys.modules.get(where.get("__name__", ""))
    if module is not None and module.__name__ != "__main__" and module.__dict__ is where:
        return module
    return where


def text_of_cell(filename: str) -> str | None:
    """Return the text of the cell whose code has this file name; ``None`` for a real file."""
    entry = linecache.cache.get(filename, ())
    return "".join(entry[2]) if len(entry) == 4 and entry[1] is None else None


def name_for_text(label: str, text: str) -> str:
    """Return *label*, made unique where another text had it before: ``In[5]#2``."""
    name, count = label, 1
    while name in linecache.cache and text_of_cell(name) != text:
        count += 1
        name = f"{label}#{count}"
    return name


def register_text(filename: str, text: str) -> None:
    """Let tracebacks and `inspect` find the text of a cell that this process never ran."""
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)


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
_MADE = {
    "__dict__",
    "__weakref__",
    "__annotations_cache__",
    "_abc_impl",
    "__abstractmethods__",
    "_backward_cls",
}


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


# Type variables and aliases -----------------------------------------------------------------------

_VARIANCE = ("bound", "covariant", "contravariant", "infer_variance")


def _reduce_type_variable(obj: Any) -> Any:
    # Those of `def f[T]` say that they are typing's.
    if obj.__module__ != "__main__" and _is_found(obj):
        return NotImplemented
    arguments = (obj.__name__, *getattr(obj, "__constraints__", ()))
    about = {name: getattr(obj, f"__{name}__", None) for name in (*_VARIANCE, "default")}
    options = {n: value for n, value in about.items() if value is not None and value is not False}
    if about["default"] is getattr(typing, "NoDefault", None):  # since Python 3.13
        options.pop("default", None)
    return _make_type_variable, (type(obj), arguments, options, obj.__module__)


def _make_type_variable(
    kind: Any, arguments: tuple[Any, ...], options: Namespace, module: str
) -> Any:
    variable = kind(*arguments, **options)
    variable.__module__ = module
    return variable


def _reduce_type_alias(alias: Any) -> Any:
    if alias.__module__ != "__main__" and _is_found(alias):
        return NotImplemented
    about = {"name": alias.__name__, "value": alias.__value__, "of": alias.__type_params__}
    return _make_type_alias, (alias.__module__, about)


def _make_type_alias(module: str, about: Namespace) -> Any:
    # It takes its module from who makes it.
    where = {**vars(typing), "__name__": module, **about}
    return eval("TypeAliasType(name, value, type_params=of)", where)  # noqa: S307


def _is_found(obj: Any) -> bool:
    return getattr(sys.modules.get(obj.__module__), obj.__name__, None) is obj


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
    types.FunctionType: reduce_function,
    types.CellType: _reduce_cell,
    types.ModuleType: _reduce_module,
    property: _reduce_property,
    classmethod: _reduce_wrapped,
    staticmethod: _reduce_wrapped,
    functools.cached_property: _reduce_cached_property,
    types.MappingProxyType: _reduce_mapping_proxy,
    typing.TypeVar: _reduce_type_variable,
    typing.ParamSpec: _reduce_type_variable,
    typing.TypeVarTuple: _reduce_type_variable,
    type(functools.lru_cache(len)): _reduce_cached,
}
if sys.version_info >= (3, 12):
    REDUCERS[typing.TypeAliasType] = _reduce_type_alias
