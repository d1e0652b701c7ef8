"""What a notebook has defined, on its way to the ranks.

    function    its code, defaults and closure; its globals are the rank's
    class       all its parts; an instance takes the class of that name which the rank has already
    code        under the label of its cell, with its text, for tracebacks and `inspect`

What can be imported goes by its name. An instance brings a class that the rank does not know, under
its own name: it can be pickled there then, and the next instance is of the same class.

Not covered: globals that a function reads must be on the ranks by themselves.
"""

from __future__ import annotations

import marshal
import types
from collections.abc import Callable, Iterable
from typing import Any

from nbdist import definitions
from nbdist.definitions import Namespace, Reduced


class RankNamespace:
    """Stands in a pickle for the variables of the rank that reads it."""


RANK_NAMESPACE = RankNamespace()


class Definitions:
    """Says how functions, classes and instances that a notebook defined are made again on a rank.

    Args:
        pushed: The values themselves: classes among them take the place of what the rank has.
        label_of: Returns the label of the cell whose code has this file name; a real file's name
            stays.
    """

    def __init__(self, pushed: Iterable[Any], label_of: Callable[[str], str]) -> None:
        self._pushed = {id(value): value for value in pushed}
        self._label_of = label_of
        self._texts: dict[str, str | None] = {}  # one text for all functions of a cell

    def reduce(self, obj: Any) -> Any:
        """Return the reduction of *obj* (`nbdist.definitions`), or ``NotImplemented``."""
        if isinstance(obj, type):
            return self._reduce_class(obj)
        if isinstance(obj, types.FunctionType):
            return definitions.reduce_function(obj, RANK_NAMESPACE)
        if isinstance(obj, types.CodeType):
            return self._reduce_code(obj)
        for base in type(obj).__mro__:
            if base in definitions.REDUCERS:
                return definitions.REDUCERS[base](obj)
        return NotImplemented

    def _reduce_class(self, cls: type) -> Any:
        reduced = definitions.reduce_class(cls)
        if reduced is NotImplemented or cls.__module__ != "__main__" or id(cls) in self._pushed:
            return reduced
        return _find_or_make, (RANK_NAMESPACE, cls.__qualname__, *reduced)

    def _reduce_code(self, code: types.CodeType) -> Reduced:
        name = code.co_filename
        if name not in self._texts:
            self._texts[name] = definitions.text_of_cell(name)
        label = self._label_of(name)
        return _load_code, (marshal.dumps(code), label, self._texts[name])


# What a rank calls ------------------------------------------------------------------------------


def _find_or_make(
    namespace: Namespace, name: str, make: Callable[..., type], arguments: Reduced
) -> type:
    first, *rest = name.split(".")
    found = namespace.get(first)
    for part in rest:
        found = getattr(found, part, None)
    if isinstance(found, type) and found.__module__ == "__main__":
        return found
    made = make(*arguments)
    if not rest:
        namespace.setdefault(name, made)
    return made


def _load_code(data: bytes, label: str, text: str | None) -> types.CodeType:
    code: types.CodeType = marshal.loads(data)  # noqa: S302 - as trusted as the pickle it is in
    if text is None:
        return code
    name = definitions.name_for_text(label, text)
    definitions.register_text(name, text)
    return _labelled(code, name)


def _labelled(code: types.CodeType, label: str) -> types.CodeType:
    inner = [_labelled(c, label) if isinstance(c, types.CodeType) else c for c in code.co_consts]
    return code.replace(co_filename=label, co_consts=tuple(inner))
