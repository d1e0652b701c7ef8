"""Give a fresh rank what all the others have alike.

    survivors   survey ──▶ what each variable is, with a hash of its content
    all ranks   choose ──▶ Plan: what is equal everywhere, and why the rest is not copied
    one of them write  ──▶ a file in shared memory, see `parcels`
    fresh rank  read   ──▶ the same names, on its own device
    survivors   renew_reducers ──▶ DDP modules begin alike on all ranks

`share` does it all, on every rank of a world that is whole again. How single objects travel, and
which cannot, stands in `by_value`. All of it runs between cells, in the main thread.

Not covered: environment variables, warning filters, running threads, files and connections, what
libraries keep in themselves; gradients, which begin empty as after ``zero_grad``.
"""

from __future__ import annotations

import secrets
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.nn.parallel import DistributedDataParallel

from nbdist.definitions import Namespace, Uncopyable
from nbdist.errors import TransferError
from nbdist.rank.by_value import CellHasher
from nbdist.rank.identity import identities
from nbdist.rank.parcels import RANDOM_STATES, Transfer, random_states, read, why_not, write
from nbdist.rank.placed import Place, ddp_state, set_ddp_state
from nbdist.runtime import all_gather_objects, broadcast_object_list

Kind = Literal["module", "definition", "data", "random", "sharded", "refused"]

# IPython's, and another on every rank; names that begin with `_` are left out as well.
OF_IPYTHON = frozenset({"In", "Out", "get_ipython", "exit", "quit", "open"})


@dataclass(frozen=True)
class Digest:
    """What a variable is on one rank.

    Attributes:
        kind: ``sharded`` and ``refused`` cannot be copied.
        digest: Hash of the content: equal for what is equal. Empty where it cannot be copied.
        buffers: Hash of the buffers of modules in it, which are not in the first.
        reason: Why it cannot be copied.
        is_own: It looks like this rank's own, say a number called ``rank``.
        identities: What in it names this rank: ``.gpu_id = 0``.
    """

    kind: Kind
    digest: str = ""
    buffers: str = ""
    reason: str = ""
    is_own: bool = False
    identities: tuple[str, ...] = ()


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
        identities: What names the source in those of *copied* that were not found alike on several
            ranks: (name, ``.gpu_id = 0``).
    """

    source: int
    copied: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    mixed: tuple[str, ...]
    defined: frozenset[str]
    num_compared: int
    identities: tuple[tuple[str, str], ...] = ()

    def report(self, failed: Mapping[str, str] = {}) -> str:
        """Say in a few lines what is copied and what is not.

        Args:
            failed: (name, reason) of what `write` or `read` had to leave out after all.
        """
        done = [name for name in self.copied if name not in failed]
        names = [name for name in done if name not in self.defined]
        if set(RANDOM_STATES) <= set(names):
            names = [name for name in names if name not in RANDOM_STATES] + ["all random states"]
        data = ", ".join(names)
        num_defined = sum(name in self.defined for name in done)
        things = "import, function or class" if num_defined == 1 else _MANY_DEFINED
        definitions = f"{num_defined} {things}" if num_defined else ""
        parts = [part for part in (data, definitions) if part]
        text = f"copied from rank {self.source}: {' and '.join(parts) or 'nothing'}"
        if self.num_compared == 1 and done:
            text += " (no other rank was left to compare with)"
        if mixed := [name for name in self.mixed if name not in failed]:
            text += f"\nbuffers differ between ranks, as on rank {self.source}: {', '.join(mixed)}"
        if own := [name + said for name, said in self.identities if name not in failed]:
            text += f"\nsays it is on rank {self.source}, look at it: {', '.join(own)}"
        groups: dict[str, list[str]] = {}
        for name, reason in [*self.left, *failed.items()]:
            groups.setdefault(reason, []).append(name)
        left = [f"{', '.join(names)} ({reason})" for reason, names in groups.items()]
        return text + (f"\nnot copied: {', '.join(left)}" if left else "")


_MANY_DEFINED = "imports, functions and classes"


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
        is_own=is_own,
        identities=identities(value, place),
    )


def _kind(value: Any) -> Kind:
    if isinstance(value, types.ModuleType):
        return "module"
    is_definition = isinstance(value, type | types.FunctionType | types.BuiltinFunctionType)
    return "definition" if is_definition else "data"


def renew_reducers(modules: Iterable[DistributedDataParallel]) -> None:
    """Let DDP modules go on with one that was copied to a fresh rank.

    A copy begins with the buckets of a new module; on the survivors they have been put in the order
    of the backward since. Their reducers are made anew, so that all ranks begin alike and order the
    buckets together in the next step. Parameters, hooks and the module itself stay.
    """
    for module in list(modules):
        set_ddp_state(module, ddp_state(module))


# The decision -------------------------------------------------------------------------------------


def choose(
    surveys: Mapping[int, Mapping[str, Digest]],
    dead: Sequence[int] = (),
    *,
    source: int | None = None,
    also: Collection[str] = (),
) -> Plan:
    """Decide what a fresh rank gets: what all survivors have alike.

    Args:
        surveys: By rank, of all survivors.
        dead: The ranks that are gone, for the report.
        source: The rank to copy from; the first of those that live when ``None``.
        also: Names that are copied although they differ between ranks: the user says so.
    """
    source = min(surveys) if source is None else source
    names = dict.fromkeys(name for rank in sorted(surveys) for name in surveys[rank])
    reasons = {name: _reason_against(name, surveys, dead) for name in names}
    for name in also:
        if surveys[source].get(name, _ABSENT).digest:
            reasons[name] = None
    copied = tuple(name for name, reason in reasons.items() if reason is None)
    kinds = {name: surveys[source][name].kind for name in copied}
    return Plan(
        source=source,
        copied=copied,
        left=tuple((name, reason) for name, reason in reasons.items() if reason is not None),
        mixed=tuple(name for name in copied if _has_mixed_buffers(name, surveys)),
        defined=frozenset(n for n, kind in kinds.items() if kind in ("module", "definition")),
        num_compared=len(surveys),
        identities=tuple(
            (name, said)
            for name in copied
            if len(surveys) == 1 or _differs(name, surveys)
            for said in surveys[source][name].identities
        ),
    )


def _differs(name: str, surveys: Mapping[int, Mapping[str, Digest]]) -> bool:
    return len({digests.get(name, _ABSENT).digest for digests in surveys.values()}) > 1


def _has_mixed_buffers(name: str, surveys: Mapping[int, Mapping[str, Digest]]) -> bool:
    return len({digests[name].buffers for digests in surveys.values() if name in digests}) > 1


_ABSENT = Digest("refused")


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


# All of it ----------------------------------------------------------------------------------------


def share(
    namespace: Namespace,
    base_names: Mapping[str, Any],
    place: Place,
    folder: Path,
    *,
    is_fresh: bool,
    modules: Iterable[DistributedDataParallel] = (),
    source: int | None = None,
    also: Collection[str] = (),
) -> str:
    """Copy to the fresh ranks what the others have alike; on all ranks, whose groups work again.

    Args:
        namespace: Of the cells.
        base_names: What every rank starts with.
        place: This rank.
        folder: Where the ranks of this host exchange files; with room for the copy.
        is_fresh: This rank has nothing yet.
        modules: All DDP modules of this rank.
        source: As for `choose`; alike on all ranks.
        also: As for `choose`; alike on all ranks.

    Returns:
        What was copied and what not, alike on all ranks.

    Raises:
        TransferError: There was no room for the copy, on all ranks alike.
    """
    found = all_gather_objects(None if is_fresh else survey(namespace, base_names, place))
    surveys = {rank: digests for rank, digests in enumerate(found) if digests is not None}
    if not surveys:
        return "nothing to copy: all ranks are fresh"
    dead = [rank for rank, digests in enumerate(found) if digests is None]
    plan = choose(surveys, dead, source=source, also=also)
    failed: dict[str, str] = {}
    is_taken = False
    while not is_taken:  # once, as a rule; again without what a fresh rank could not make
        names = [name for name in plan.copied if name not in failed]
        new, is_taken = _carry(namespace, names, plan.source, place, folder, is_fresh)
        failed |= new
    if not is_fresh:
        renew_reducers(modules)
    return plan.report(failed)


def _carry(
    namespace: Namespace,
    names: Sequence[str],
    source: int,
    place: Place,
    folder: Path,
    is_fresh: bool,
) -> tuple[dict[str, str], bool]:
    """Carry *names* from rank *source* to the fresh ones.

    Returns:
        What failed, and whether the fresh ranks have all the rest; alike on all ranks.
    """
    path = folder / f"replicas-{secrets.token_hex(8)}"
    wrote = _tried(write, namespace, names, path, place) if place.rank == source else None
    [wrote, path] = broadcast_object_list([wrote, path], source)
    did_write = isinstance(wrote, Transfer)
    took = _tried(read, path, namespace, place) if is_fresh and did_write else None
    taken = all_gather_objects(took)
    if place.rank == source:
        path.unlink(missing_ok=True)
    failed: dict[str, str] = {}
    for result in (wrote, *taken):
        if isinstance(result, TransferError):
            raise result
        failed |= result.failed if result else {}
    return failed, not any(result.failed for result in taken if isinstance(result, Transfer))


def _tried(action: Callable[..., Transfer], *arguments: Any) -> Transfer | TransferError:
    """Return an error instead of raising it: the other ranks wait, and are to raise it as well."""
    try:
        return action(*arguments)
    except TransferError as exc:
        return exc
    except Exception as exc:  # noqa: BLE001 - whatever it is, it travels
        return TransferError(f"The variables could not be copied: {type(exc).__name__}: {exc}.")
