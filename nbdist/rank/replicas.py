"""Give a fresh rank what all the others have alike.

    survivors   survey ──▶ what each variable is, with a hash of its content
    all ranks   choose ──▶ Plan: what is equal everywhere, and why the rest is not copied
    one of them write  ──▶ a file in shared memory: one pickle, so that what was one object stays one
    fresh rank  read   ──▶ the same names, on its own device
    survivors   renew_reducers ──▶ DDP modules begin alike on all ranks

`share` does it all, on every rank of a world that is whole again. How single objects travel, and
which cannot, stands in `by_value`. All of it runs between cells, in the main thread.

Not covered: environment variables, warning filters, running threads, files and connections, what
libraries keep in themselves; gradients, which begin empty as after ``zero_grad``.
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
import secrets
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from nbdist.errors import TransferError
from nbdist.rank.by_value import (
    CHUNK_BYTES,
    CellHasher,
    CellPickler,
    CellUnpickler,
    Namespace,
    Place,
    Uncopyable,
    ddp_state,
    set_ddp_state,
)
from nbdist.runtime import all_gather_objects, broadcast_object_list

Kind = Literal["module", "definition", "data", "random", "sharded", "refused"]

# IPython's, and another on every rank; names that begin with `_` are left out as well.
OF_IPYTHON = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open"})
#: Random states, beside the variables; no variable can have such a name.
RANDOM_STATES = ("random state of Python", "random state of NumPy", "random state of torch")


@dataclass(frozen=True)
class Digest:
    """What a variable is on one rank.

    Attributes:
        kind: ``sharded`` and ``refused`` cannot be copied.
        digest: Hash of the content: equal for what is equal. Empty where it cannot be copied.
        buffers: Hash of the buffers of modules in it, which are not in the first.
        reason: Why it cannot be copied.
        size_bytes: Of what a copy would read.
        is_own: It looks like this rank's own, say a number called ``rank``.
    """

    kind: Kind
    digest: str = ""
    buffers: str = ""
    reason: str = ""
    size_bytes: int = 0
    is_own: bool = False


@dataclass(frozen=True)
class Plan:
    """What a fresh rank gets.

    Attributes:
        source: The rank that writes it.
        copied: Names, random states among them, in the source's order.
        left: (name, why it is not copied), in the same order.
        mixed: Those of *copied* whose buffers (running statistics, say) differ between ranks.
        defined: Those of *copied* that are imports, functions or classes.
        num_compared: How many ranks were compared.
    """

    source: int
    copied: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    mixed: tuple[str, ...]
    defined: frozenset[str]
    num_compared: int

    def report(self, failed: Mapping[str, str] = {}) -> str:  # noqa: B006 - never changed
        """Say in two lines what is copied and what is not.

        Args:
            failed: (name, reason) of what `write` or `read` had to leave out after all.
        """
        done = [name for name in self.copied if name not in failed]
        data = ", ".join(name for name in done if name not in self.defined)
        num_defined = sum(name in self.defined for name in done)
        things = "import, function or class" if num_defined == 1 else _MANY_DEFINED
        definitions = f"{num_defined} {things}" if num_defined else ""
        parts = [part for part in (data, definitions) if part]
        text = f"copied from rank {self.source}: {' and '.join(parts) or 'nothing'}"
        if self.num_compared == 1 and done:
            text += " (no other rank was left to compare with)"
        if mixed := [name for name in self.mixed if name not in failed]:
            text += f"\nbuffers differ between ranks, as on rank {self.source}: {', '.join(mixed)}"
        groups: dict[str, list[str]] = {}
        for name, reason in [*self.left, *failed.items()]:
            groups.setdefault(reason, []).append(name)
        left = [f"{', '.join(names)} ({reason})" for reason, names in groups.items()]
        return text + (f"\nnot copied: {', '.join(left)}" if left else "")


_MANY_DEFINED = "imports, functions and classes"


@dataclass(frozen=True)
class Transfer:
    """What came of `write` or `read`.

    Attributes:
        names: That were written, or set.
        failed: Why others were not.
        size_bytes: Of the file.
    """

    names: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 0


# On the survivors ---------------------------------------------------------------------------------


def survey(namespace: Namespace, base_names: Mapping[str, Any], place: Place) -> dict[str, Digest]:
    """Say of each variable of the user what it is.

    Reads every tensor once, however many variables lead to it. Runs no code of the user but what
    pickle runs (``__reduce__``, ``__getstate__``); what raises there cannot be copied.

    Args:
        namespace: Of the cells.
        base_names: What every rank starts with; a name that has another value now is the user's.
        place: This rank.
    """
    known: dict[int, tuple[Any, str]] = {}
    found = {
        name: _describe(name, value, namespace, place, known)
        for name, value in list(namespace.items())
        if not _is_hidden(name, value, base_names)
    }
    for name, state in random_states().items():
        hashed = CellHasher(namespace, place).digest(state)
        found[name] = Digest("random", hashed, is_own=True)
    return found


def _is_hidden(name: str, value: Any, base_names: Mapping[str, Any]) -> bool:
    is_base = name in base_names and base_names[name] is value
    return is_base or name.startswith("_") or name in OF_IPYTHON


def _describe(
    name: str,
    value: Any,
    namespace: Namespace,
    place: Place,
    known: dict[int, tuple[Any, str]],
) -> Digest:
    hasher = CellHasher(namespace, place, known)
    try:
        digest = hasher.digest(value)
    except Exception as exc:  # noqa: BLE001 - whatever an object does when it is pickled
        kind: Kind = "sharded" if isinstance(exc, Uncopyable) and exc.is_sharded else "refused"
        return Digest(kind, reason=why_not(exc))
    is_own = name.lower().endswith("rank") and isinstance(value, int)
    return Digest(
        _kind(value),
        digest,
        hasher.digest_of_buffers(),
        size_bytes=hasher.size_bytes,
        is_own=is_own,
    )


def _kind(value: Any) -> Kind:
    if isinstance(value, types.ModuleType):
        return "module"
    is_definition = isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
    return "definition" if is_definition else "data"


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


def renew_reducers(modules: Iterable[DistributedDataParallel]) -> int:
    """Let DDP modules go on with one that was copied to a fresh rank; return how many there are.

    A copy begins with the buckets of a new module; on the survivors they have been put in the order
    of the backward since. Their reducers are made anew, so that all ranks begin alike and order the
    buckets together in the next step. Parameters, hooks and the module itself stay.
    """
    count = 0
    for module in list(modules):
        set_ddp_state(module, ddp_state(module))
        count += 1
    return count


# The decision -------------------------------------------------------------------------------------


def choose(surveys: Mapping[int, Mapping[str, Digest]], dead: Sequence[int] = ()) -> Plan:
    """Decide what a fresh rank gets: what all survivors have alike.

    Args:
        surveys: By rank, of all survivors.
        dead: The ranks that are gone, for the report.
    """
    source = min(surveys)
    names = dict.fromkeys(name for rank in sorted(surveys) for name in surveys[rank])
    reasons = {name: _reason_against(name, surveys, dead) for name in names}
    copied = tuple(name for name, reason in reasons.items() if reason is None)
    kinds = {name: surveys[source][name].kind for name in copied}
    return Plan(
        source=source,
        copied=copied,
        left=tuple((name, reason) for name, reason in reasons.items() if reason is not None),
        mixed=tuple(n for n in copied if len({found[n].buffers for found in surveys.values()}) > 1),
        defined=frozenset(n for n, kind in kinds.items() if kind in ("module", "definition")),
        num_compared=len(surveys),
    )


def _reason_against(
    name: str, surveys: Mapping[int, Mapping[str, Digest]], dead: Sequence[int]
) -> str | None:
    found = {rank: digests[name] for rank, digests in surveys.items() if name in digests}
    first = found[min(found)]
    for digest in found.values():
        if digest.kind == "sharded":
            return f"{digest.reason}: its part on {_ranks(dead) or 'the dead rank'} is lost"
        if digest.kind == "refused":
            return digest.reason
    is_random = first.kind == "random"
    fresh = "the fresh rank starts from its seed"
    if len(found) < len(surveys):
        return f"only on {_ranks(found)}"
    if any(digest.digest != first.digest for digest in found.values()):
        return f"differs between ranks; {fresh}" if is_random else "differs between ranks"
    if len(surveys) == 1 and first.is_own:
        return f"each rank has its own; {fresh}" if is_random else "looks like the rank's own"
    return None


def _ranks(ranks: Iterable[int]) -> str:
    numbers = sorted(ranks)
    return ("rank " if len(numbers) == 1 else "ranks ") * bool(numbers) + ", ".join(
        map(str, numbers)
    )


# On its way ---------------------------------------------------------------------------------------
#
#     {"pickle": n, "storages": [[n, device], ...], "buffers": [n, ...], ...} \n
#     pickle  storages  buffers
#
# Within the pickle one value follows another, with one memo: what two names share stays shared.


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
    return Transfer(tuple(parcel.names), failed, parcel.write(path))


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

    def write(self, path: Path) -> int:
        """Write all to *path*; return the size in bytes."""
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
        parts = [[json.dumps(head).encode() + b"\n", self.stream.getbuffer()]]
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                for part in itertools.chain(*parts, *map(_chunks, storages), self.buffers):
                    rest = memoryview(part)
                    while rest.nbytes:
                        rest = rest[file.write(rest) or 0 :]
                return file.tell()
        except OSError as exc:
            path.unlink()
            raise TransferError(
                f"{path.parent} has no room for the copy of the variables: {exc.strerror}.\n"
                "Free space there or delete large variables, then run `%dist recover` again."
            ) from exc


def _chunks(storage: torch.UntypedStorage) -> Iterator[memoryview]:
    """Yield the bytes of *storage*; from a GPU a little at a time."""
    for part in _flat(storage).split(CHUNK_BYTES):
        yield memoryview(part.cpu().numpy())


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
    """
    with path.open("rb", buffering=0) as file:
        head = json.loads(file.readline())
        stream = io.BytesIO(_filled(file, bytearray(head["pickle"])))
        storages = [_read_storage(file, size, on or place.device) for size, on in head["storages"]]
        buffers = [_filled(file, bytearray(size)) for size in head["buffers"]]
        size_bytes = file.tell()
    _register(head["sources"])
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
    return Transfer(tuple(head["names"]), {}, size_bytes)


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


# Around the variables -------------------------------------------------------------------------------


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
    """Return the modules that cells import as ``import a.b``: that binds ``a``, and loads ``a.b``."""
    found: dict[str, None] = {}
    for entry in list(linecache.cache.values()):
        if len(entry) == 4 and entry[1] is None:  # no file: the text of a cell
            with contextlib.suppress(SyntaxError):
                found |= dict.fromkeys(_dotted_imports("".join(entry[2])))
    return [name for name in found if name in sys.modules]


def _dotted_imports(source: str) -> list[str]:
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
    return [alias.name for node in imports for alias in node.names if "." in alias.name]


def _register(sources: Mapping[str, str]) -> None:
    """Let tracebacks and `inspect` find the text of cells that this rank never ran."""
    for name, text in sources.items():
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)


# All of it ----------------------------------------------------------------------------------------


def share(
    namespace: Namespace,
    base_names: Mapping[str, Any],
    place: Place,
    folder: Path,
    *,
    is_fresh: bool,
    modules: Iterable[DistributedDataParallel] = (),
) -> str:
    """Copy to the fresh ranks what the others have alike; on all ranks, whose groups work again.

    Args:
        namespace: Of the cells.
        base_names: What every rank starts with.
        place: This rank.
        folder: Where the ranks of this host exchange files; with room for the copy.
        is_fresh: This rank has nothing yet.
        modules: All DDP modules of this rank.

    Returns:
        What was copied and what not, alike on all ranks.

    Raises:
        TransferError: There was no room for the copy, on all ranks alike.
    """
    found = all_gather_objects(None if is_fresh else survey(namespace, base_names, place))
    surveys = {rank: digests for rank, digests in enumerate(found) if digests is not None}
    if not surveys:
        return "nothing to copy: all ranks are fresh"
    plan = choose(surveys, [rank for rank, digests in enumerate(found) if digests is None])
    failed: dict[str, str] = {}
    path = folder / f"replicas-{secrets.token_hex(8)}"
    while True:
        names = [name for name in plan.copied if name not in failed]
        wrote = _tried(write, namespace, names, path, place) if place.rank == plan.source else None
        [wrote, path] = broadcast_object_list([wrote, path], plan.source)
        if isinstance(wrote, TransferError):
            raise wrote
        result = _tried(read, path, namespace, place) if is_fresh else None
        results = all_gather_objects(result)
        if place.rank == plan.source:
            path.unlink(missing_ok=True)
        new = dict(wrote.failed)
        for part in results:
            if isinstance(part, TransferError):
                raise part
            new |= part.failed if part else {}
        failed |= new
        if not any(part and part.failed for part in results):
            break
    if not is_fresh:
        renew_reducers(modules)
    return plan.report(failed)


def _tried(action: Callable[..., Transfer], *arguments: Any) -> Transfer | TransferError:
    """Return the error, which all ranks are to raise together."""
    try:
        return action(*arguments)
    except TransferError as exc:
        return exc
