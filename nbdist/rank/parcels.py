"""Carry variables from one rank to a fresh one of the same host, through a file in shared memory.

    one line of JSON     names, texts of cells, and the sizes of what follows
    bytes                the pickle, the storages of tensors, the buffers of arrays

In the pickle one value follows another with one memo: what two names share stays shared, so that an
optimizer steps the parameters of the model beside it. With the variables go the text of their
cells, the working directory, the import path and torch's default dtype.

Not covered: ranks of several hosts. Only a rank of the same session reads the file, which lies in
a private folder of the session and is checked once more: what it unpickles is what a rank wrote.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import itertools
import json
import linecache
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

from nbdist import private
from nbdist.definitions import Namespace, Uncopyable, register_text, text_of_cell
from nbdist.errors import TransferError
from nbdist.rank.by_value import CellPickler, CellUnpickler
from nbdist.rank.placed import Place
from nbdist.runtime.tensor_bytes import CHUNK_BYTES, chunks_of

#: Random states go by these names, beside the variables; no variable can have such a name.
RANDOM_STATES = ("random state of Python", "random state of NumPy", "random state of torch")


@dataclass(frozen=True)
class Transfer:
    """What came of `write` or `read`.

    Attributes:
        names: That were written, or set.
        failed: Why others were not.
    """

    names: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)


def write(namespace: Namespace, names: Sequence[str], path: Path, place: Place) -> Transfer:
    """Write the variables *names* to a new file, readable by this user only.

    Args:
        namespace: Of the cells.
        names: As `Plan.copied` has them.
        path: Where no file is yet.
        place: This rank.

    Returns:
        What was written, and why the rest was not.

    Raises:
        TransferError: There is no room. Nothing is left; a folder on a disk may have some.
    """
    failed: dict[str, str] = {}
    try:
        parcel = _Parcel.of(namespace, names, place)
    except Exception:  # noqa: BLE001 - something has changed since the survey
        failed = _unwritable(namespace, names, place)
        parcel = _Parcel.of(namespace, [name for name in names if name not in failed], place)
    parcel.write(path)
    return Transfer(tuple(parcel.names), failed)


def _unwritable(namespace: Namespace, names: Sequence[str], place: Place) -> dict[str, str]:
    failed = {}
    for name in names:
        try:
            _Parcel.of(namespace, [name], place)
        except KeyError:
            failed[name] = "it is gone"
        except Exception as exc:  # noqa: BLE001 - whatever an object does when it is pickled
            failed[name] = why_not(exc)
    return failed


@dataclass(frozen=True)
class _Parcel:
    """Values, pickled but for their storages and large buffers."""

    names: Sequence[str]
    stream: io.BytesIO
    pickler: CellPickler
    buffers: Sequence[memoryview]

    @classmethod
    def of(cls, namespace: Namespace, names: Sequence[str], place: Place) -> _Parcel:
        stream, buffers = io.BytesIO(), list[memoryview]()
        pickler = CellPickler(stream, namespace, place, lambda part: buffers.append(part.raw()))
        states = random_states()
        pickler.dump(_surroundings())
        for name in names:
            pickler.dump(states[name] if name in states else namespace[name])
        return cls(names, stream, pickler, buffers)

    def write(self, path: Path) -> None:
        """Write all to *path*."""
        storages, own = self.pickler.storages, self.pickler.place.device
        head = {
            "names": list(self.names),
            "sources": self.pickler.sources,
            "pickle": self.stream.tell(),
            "storages": [
                [s.nbytes(), None if s.device == own else str(s.device)] for s in storages
            ],
            "buffers": [buffer.nbytes for buffer in self.buffers],
        }
        parts: list[list[Any]] = [[json.dumps(head).encode() + b"\n", self.stream.getbuffer()]]
        fd = private.create_file(path)
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                contents = map(chunks_of, map(_flat, storages))
                for part in itertools.chain(*parts, *contents, self.buffers):
                    rest: memoryview = memoryview(part)
                    while rest.nbytes:
                        rest = rest[file.write(rest) or 0 :]
        except OSError as exc:
            path.unlink()
            raise TransferError(
                f"{path.parent} has no room for the copy of the variables: {exc.strerror}.\n"
                "Free space there or delete large variables, then run `%dist recover` again."
            ) from exc


def _flat(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def read(path: Path, namespace: Namespace, place: Place) -> Transfer:
    """Set on a fresh rank the variables that `write` wrote; the file stays, for other readers.

    Either all are set or none: where one cannot be made here, it is named in the result, nothing is
    set, and the source has to write again without it.

    Args:
        path: What `write` wrote.
        namespace: Of the cells here.
        place: This rank.

    Raises:
        NotPrivate: The file is not this user's alone; nothing was read.
    """
    with os.fdopen(private.open_file(path), "rb", buffering=0) as file:
        head = json.loads(file.readline())
        stream = io.BytesIO(_filled(file, bytearray(head["pickle"])))
        storages = [_read_storage(file, size, on or place.device) for size, on in head["storages"]]
        buffers = [_filled(file, bytearray(size)) for size in head["buffers"]]
    for name, text in head["sources"].items():
        register_text(name, text)
    unpickler = CellUnpickler(stream, namespace, place, storages, buffers)
    values: Namespace = {}
    name = ""
    try:
        _adopt(unpickler.load())
        for name in head["names"]:
            values[name] = unpickler.load()
    except Exception as exc:  # noqa: BLE001 - whatever an object does when it is made
        return Transfer((), {name: f"{type(exc).__name__}: {exc}".splitlines()[0]})
    set_random_states({name: values.pop(name) for name in RANDOM_STATES if name in values})
    namespace.update(values)
    return Transfer(tuple(head["names"]))


def _read_storage(file: Any, size: int, device: torch.device | str) -> torch.UntypedStorage:
    storage = torch.UntypedStorage(size, device=device)
    for part in _flat(storage).split(CHUNK_BYTES) if size else ():
        if part.device.type == "cpu":
            _filled(file, part.numpy())
        else:
            part.copy_(torch.from_numpy(_filled(file, np.empty(part.numel(), np.uint8))))
    return storage


def _filled(file: Any, target: Any) -> Any:
    """Fill *target* from *file* and return it."""
    rest = memoryview(target)
    while rest.nbytes:
        count = file.readinto(rest)
        if not count:
            raise TransferError(
                "The copy of the variables ends too early.\nRun `%dist recover` again."
            )
        rest = rest[count:]
    return target


# Around the variables ---------------------------------------------------------------------------


def random_states() -> dict[str, Any]:
    """Return the states of the sources of random numbers, by name."""
    has_cuda = torch.cuda.is_initialized()
    states = (
        random.getstate(),
        np.random.get_state(),
        (torch.get_rng_state(), torch.cuda.get_rng_state() if has_cuda else None),
    )
    return dict(zip(RANDOM_STATES, states, strict=True))


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set what `random_states` returned, or a part of it."""
    python, of_numpy, of_torch = map(states.get, RANDOM_STATES)
    if python is not None:
        random.setstate(python)
    if of_numpy is not None:
        np.random.set_state(of_numpy)
    if of_torch is not None:
        torch.set_rng_state(of_torch[0])
        if of_torch[1] is not None:
            torch.cuda.set_rng_state(of_torch[1])


def _surroundings() -> dict[str, Any]:
    """Return what the variables need around them in their process."""
    return {
        "folder": str(Path.cwd()),
        "path": list(sys.path),
        "dtype": torch.get_default_dtype(),
        "modules": imported_by_cells(),
        "handles": RemovableHandle.next_id,  # or a new hook would take the place of a copied one
    }


def _adopt(surroundings: Mapping[str, Any]) -> None:
    os.chdir(surroundings["folder"])
    sys.path[:] = surroundings["path"]
    torch.set_default_dtype(surroundings["dtype"])
    RemovableHandle.next_id = max(RemovableHandle.next_id, surroundings["handles"])
    for module in surroundings["modules"]:
        with contextlib.suppress(Exception):  # the variable that needs it says so
            importlib.import_module(module)


def imported_by_cells() -> list[str]:
    """Return the modules that cells import as ``import a.b``, which binds ``a`` alone."""
    found: dict[str, None] = {}
    for text in filter(None, map(text_of_cell, list(linecache.cache))):
        with contextlib.suppress(SyntaxError):
            found |= dict.fromkeys(_dotted_imports(text))
    return [name for name in found if name in sys.modules]


def _dotted_imports(source: str) -> list[str]:
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
    return [alias.name for node in imports for alias in node.names if "." in alias.name]


# Words ------------------------------------------------------------------------------------------


def why_not(error: BaseException) -> str:
    """Return in a few words why pickling ended with *error*."""
    if isinstance(error, Uncopyable):
        return str(error)
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = (str(error).splitlines() or [""])[0]
    quoted = text.split("'")
    if text.startswith("cannot pickle '") and len(quoted) > 1:
        return _PLAINLY.get(quoted[1], f"a {quoted[1]} cannot be copied")
    return f"it cannot be pickled: {type(error).__name__}: {text[:120]}"


_PLAINLY = {
    "generator": "a generator cannot be copied",
    "_thread.lock": "a lock cannot be copied",
    "_thread.RLock": "a lock cannot be copied",
    "_io.TextIOWrapper": "an open file cannot be copied",
    "_io.BufferedReader": "an open file cannot be copied",
    "_io.BufferedWriter": "an open file cannot be copied",
    "weakref.ReferenceType": "a weak reference cannot be copied",
}
