"""Compare what should be equal on all ranks, and make it equal again.

    value ──▶ entries: tensors and plain values by name ──▶ a hash each ──▶ all ranks
    what differs, and only that: the tensor of one rank ──▶ all ranks: how far, how many elements

Where all is equal, one short hash travels. Equal means the same bytes: a NaN equals itself, and a
step that was done on one rank and not on another is found wherever it changed a bit.

Not covered: parts of sharded tensors (they are counted), gradients, and plain values that cannot be
pickled (they are named).
"""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nbdist.errors import UsageError
from nbdist.packing import readable_size
from nbdist.runtime.collectives import all_gather_objects, broadcast, broadcast_object_list
from nbdist.runtime.group import get_rank, initialized

CHUNK_BYTES = 16 * 2**20
MAX_LINES = 8
_ABSENT = "absent"


@dataclass(frozen=True)
class Fact:
    """What an entry is on one rank.

    Attributes:
        form: ``tensor`` with dtype and shape, or the type of a plain value.
        digest: Hash of its bytes.
        text: A plain value as a reader sees it.
        size_bytes: Of a tensor.
    """

    form: str
    digest: str
    text: str = ""
    size_bytes: int = 0

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor or an array."""
        return self.form.startswith("tensor")


@dataclass(frozen=True)
class Distance:
    """How far a tensor is from that of the reference rank.

    Attributes:
        largest: Largest absolute difference of two numbers.
        num_differing: Elements that differ; a NaN equals a NaN.
        num_elements: Of the tensor.
        num_nan: Elements that are NaN on one of the two only; not in *largest*.
    """

    largest: float
    num_differing: int
    num_elements: int
    num_nan: int = 0

    def __str__(self) -> str:
        if not self.num_differing:
            return f"same numbers, other bits; {self.num_elements} elements"
        nan = f", {self.num_nan} NaN on one side" if self.num_nan else ""
        return f"max {self.largest:.1e}, {self.num_differing} of {self.num_elements} elements{nan}"


@dataclass(frozen=True)
class Difference:
    """An entry that is not equal on all ranks.

    Attributes:
        name: Of the entry: ``head.weight``.
        reference: The rank that the others are compared with.
        ranks: Those that differ from it.
        reason: What differs, where that is not the content of tensors.
        is_of_form: It is missing somewhere, or has another type, dtype or shape.
        distances: By rank, for tensors of one dtype and shape.
    """

    name: str
    reference: int
    ranks: tuple[int, ...]
    reason: str = ""
    is_of_form: bool = False
    distances: Mapping[int, Distance] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name} on {name_ranks(self.ranks)} ({self.reason})"
        parts = [f"{name_ranks([rank])} ({far})" for rank, far in sorted(self.distances.items())]
        return f"{self.name} on {', '.join(parts)}"


@dataclass(frozen=True)
class Report:
    """Whether a value is equal on all ranks.

    Attributes:
        name: Of the value.
        ranks: That were compared.
        num_tensors: Entries that are tensors.
        num_values: Entries that are plain values.
        size_bytes: Of the tensors of one rank.
        differences: What is not equal; after a repair, what was not.
        num_sharded: Tensors that were left out, since each rank has a part of its own.
        unread: Entries that could not be compared.
        has_synced_buffers: It is a DDP module whose buffers differ between two forwards anyway.
        source: The rank whose values were set on the others; ``None`` for a check.
        unrepaired: Why some entries are as they were, by name.
    """

    name: str
    ranks: tuple[int, ...]
    num_tensors: int
    num_values: int
    size_bytes: int
    differences: tuple[Difference, ...] = ()
    num_sharded: int = 0
    unread: tuple[str, ...] = ()
    has_synced_buffers: bool = False
    source: int | None = None
    unrepaired: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_equal(self) -> bool:
        """Whether all that was compared is equal (or was, before a repair)."""
        return not self.differences

    def __str__(self) -> str:
        return "\n".join([self._headline(), *self._lines()])

    __repr__ = __str__  # as the last line of a cell

    def _headline(self) -> str:
        if self.source is not None and self.differences:
            done = len(self.differences) - len(self.unrepaired)
            return f"{self.name}: {done} of {self._things()} set to those of rank {self.source}:"
        if self.differences:
            verb = "differs" if len(self.differences) == 1 else "differ"
            return f"{self.name}: {len(self.differences)} of {self._things()} {verb}:"
        if not self.num_tensors + self.num_values:
            return f"{self.name}: nothing to compare"
        size = f" ({readable_size(self.size_bytes)})" if self.num_tensors else ""
        if len(self.ranks) == 1:
            return f"{self.name}: {self._things()}{size}; there is one rank only"
        verb = "is" if self.num_tensors + self.num_values == 1 else "are"
        return f"{self.name}: {self._things()}{size} {verb} equal on {name_ranks(self.ranks)}"

    def _things(self) -> str:
        tensors = _count(self.num_tensors, "tensor") if self.num_tensors else ""
        values = _count(self.num_values, "value") if self.num_values else ""
        return " and ".join(part for part in (tensors, values) if part)

    def _lines(self) -> Iterator[str]:
        for difference in self.differences[:MAX_LINES]:
            why = self.unrepaired.get(difference.name)
            yield f"  {difference}" + (f": left as it is, {why}" if why else "")
        if (more := len(self.differences) - MAX_LINES) > 0:
            yield f"  and {more} more"
        if self.num_sharded:
            yield f"  not compared: {_count(self.num_sharded, 'sharded tensor')}"
        if self.unread:
            yield f"  not compared, being neither dense nor picklable: {', '.join(self.unread)}"
        if self.has_synced_buffers and self.differences:
            yield "  DDP sets buffers to those of rank 0 in its next forward"


def check(value: Any, *, name: str = "value", group: dist.ProcessGroup | None = None) -> Report:
    """Say whether *value* is equal on all ranks; every rank of the group has to call.

    Args:
        value: A module (DDP or not), an optimizer, a scheduler or another object with a
            ``state_dict()``, a tensor, an array, a number, or dicts and lists of such.
        name: What the report calls it.
        group: All ranks when ``None``.

    Returns:
        The same report on every rank.

    Raises:
        UsageError: There is nothing to compare in a value of this type.
    """
    report, _ = _compare(_entries_of(value, name), name, group)
    return replace(report, has_synced_buffers=_has_synced_buffers(value, report.differences))


def repair(
    value: Any, source: int = 0, *, name: str = "value", group: dist.ProcessGroup | None = None
) -> Report:
    """Set on all ranks what differs to what it is on rank *source*, in place.

    Tensors are overwritten past autograd; the objects stay the same. In an optimizer its plain
    values (``step``, ``lr``) are set as well, and its whole state is loaded where it has other
    entries than that of the source.

    Args:
        value: As for `check`.
        source: Rank in the world whose values are right.
        name: What the report calls it.
        group: All ranks when ``None``.

    Returns:
        What was not equal and is now, and what could not be changed; the same on every rank.

    Raises:
        UsageError: There is no rank *source*, or nothing to compare in a value of this type.
    """
    ranks = _ranks_of(group)
    if source not in ranks:
        raise UsageError(f"there is no rank {source} to take from; there are {name_ranks(ranks)}.")
    entries = _entries_of(value, name)
    report, facts = _compare(entries, name, group, reference=source)
    report = replace(report, source=source)
    if _needs_whole_state(value, report.differences):
        _load_state(value, source, group)
        return report
    unrepaired = {}
    for difference in report.differences:
        why = _why_unrepairable(difference, facts, entries.is_settable)
        if why:
            unrepaired[difference.name] = why
        else:
            _take(entries, difference.name, facts[source][difference.name], source, group)
    return replace(report, unrepaired=unrepaired)


def _has_synced_buffers(value: Any, differences: Sequence[Difference]) -> bool:
    if not isinstance(value, DistributedDataParallel) or not value.forward_sync_buffers:
        return False
    buffers = {name for name, _ in value.module.named_buffers()}
    return any(difference.name in buffers for difference in differences)


# Taking values apart ------------------------------------------------------------------------------


@dataclass
class Entries:
    """The parts of a value.

    Attributes:
        found: Tensors and plain values by name.
        setters: How a plain value is set, where it stands in something that can be changed.
        num_sharded: Tensors that were left out.
        unread: Names of what was left out.
    """

    found: dict[str, Any] = field(default_factory=dict)
    setters: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    num_sharded: int = 0
    unread: list[str] = field(default_factory=list)

    def is_settable(self, name: str) -> bool:
        """Whether this entry can be changed in place."""
        return isinstance(self.found.get(name), torch.Tensor) or name in self.setters

    def add(self, name: str, value: Any, setter: Callable[[Any], None] | None = None) -> None:
        """Add *value*, or its parts."""
        if isinstance(value, np.ndarray):
            value = _tensor_over(value)
        if isinstance(value, torch.Tensor):
            self._add_tensor(name, value)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                self.add(_join(name, key), part, _setter(value, key))
        elif isinstance(value, list) or (isinstance(value, tuple) and not _is_plain(value)):
            for index, part in enumerate(value):
                self.add(f"{name}[{index}]", part, _setter(value, index))
        elif (parts := _parts(value)) is not None:
            self.add(name, parts)
        else:
            self._add_plain(name, value, setter)

    def _add_tensor(self, name: str, tensor: torch.Tensor) -> None:
        local = _replica(tensor)
        if local is None:
            self.num_sharded += 1
        elif local.layout is not torch.strided or local.is_quantized or local.is_meta:
            self.unread.append(name or "tensor")
        else:
            self.found[name or "tensor"] = local

    def _add_plain(self, name: str, value: Any, setter: Callable[[Any], None] | None) -> None:
        try:
            pickle.dumps(value)
        except Exception:  # noqa: BLE001 - whatever an object does when it is pickled
            self.unread.append(name or type(value).__name__)
            return
        self.found[name or type(value).__name__] = value
        if setter is not None:
            self.setters[name] = setter


def _entries_of(value: Any, name: str) -> Entries:
    entries = Entries()
    entries.add("", value)
    if not entries.found and not entries.num_sharded and entries.unread:
        raise UsageError(
            f"{name} is a {type(value).__name__}, in which there is nothing to compare.\n"
            "Modules, optimizers, tensors, arrays, plain values and dicts and lists of them can be."
        )
    return entries


def _parts(value: Any) -> Mapping[str, Any] | None:
    """Return what is to be compared of an object with state; ``None`` for a plain value."""
    if isinstance(value, DistributedDataParallel):
        value = value.module
    if isinstance(value, nn.Module):
        return {**dict(value.named_parameters()), **dict(value.named_buffers())}
    if isinstance(value, torch.optim.Optimizer):
        parameters = [p for group in value.param_groups for p in group["params"]]
        number_of = {id(parameter): number for number, parameter in enumerate(parameters)}
        states = {number_of[id(p)]: state for p, state in value.state.items() if id(p) in number_of}
        return {
            "state": dict(sorted(states.items())),
            "param_groups": [_Without(group, "params") for group in value.param_groups],
        }
    if callable(getattr(value, "state_dict", None)) and not isinstance(value, type):
        state: Mapping[str, Any] = value.state_dict()
        return state
    return None


class _Without(dict[str, Any]):
    """A view of a dict without one key; what is set goes to the dict itself."""

    def __init__(self, behind: dict[str, Any], key: str) -> None:
        super().__init__({name: value for name, value in behind.items() if name != key})
        self._behind = behind

    def __setitem__(self, key: str, value: Any) -> None:
        self._behind[key] = value


def _is_plain(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, bool | int | float | str | None) for value in values)


def _tensor_over(array: Any) -> Any:
    """Return a tensor on the memory of *array*; the array itself where there cannot be one."""
    if not array.flags.writeable:
        return array
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError):  # of objects or texts, or with negative strides
        return array


def _setter(container: Any, key: Any) -> Callable[[Any], None] | None:
    if not isinstance(container, dict | list):
        return None

    def set_value(value: Any) -> None:
        container[key] = value

    return set_value


def _join(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _replica(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return what this rank has of *tensor* where all have the same of it, else ``None``."""
    placements = getattr(tensor, "placements", None)
    if placements is None:
        return tensor.detach()
    if not all(placement.is_replicate() for placement in placements):
        return None
    local: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return local


# Comparing ----------------------------------------------------------------------------------------

Facts = dict[int, dict[str, Fact]]


def _compare(
    entries: Entries, name: str, group: dist.ProcessGroup | None, reference: int | None = None
) -> tuple[Report, Facts]:
    mine = {part: fact_of(value) for part, value in entries.found.items()}
    ranks = _ranks_of(group)
    tensors = [fact for fact in mine.values() if fact.is_tensor]
    report = Report(
        name=name,
        ranks=ranks,
        num_tensors=len(tensors),
        num_values=len(mine) - len(tensors),
        size_bytes=sum(fact.size_bytes for fact in tensors),
        num_sharded=entries.num_sharded,
        unread=tuple(entries.unread),
    )
    whole = _digest(pickle.dumps([(part, fact.form, fact.digest) for part, fact in mine.items()]))
    if len(set(all_gather_objects(whole, group))) == 1:
        return report, dict.fromkeys(ranks, mine)
    facts = dict(zip(ranks, all_gather_objects(mine, group), strict=True))
    found = [_measured(part, entries, facts, group) for part in compare(facts, reference)]
    first = facts[ranks[0]]  # the report is alike on all ranks, also where their entries are not
    names = dict.fromkeys(part for rank in ranks for part in facts[rank])
    forms = [next(facts[r][part] for r in ranks if part in facts[r]) for part in names]
    num_tensors = sum(fact.is_tensor for fact in forms)
    size_bytes = sum(fact.size_bytes for fact in first.values())
    return (
        replace(
            report,
            num_tensors=num_tensors,
            num_values=len(forms) - num_tensors,
            size_bytes=size_bytes,
            differences=tuple(found),
        ),
        facts,
    )


def compare(facts: Facts, reference: int | None = None) -> list[Difference]:
    """Find the entries that are not equal on all ranks; without distances.

    Args:
        facts: By rank and name.
        reference: The rank to compare with. ``None``: for each entry the first of those ranks that
            most agree with, which is the first of all where two groups are of one size.
    """
    names = dict.fromkeys(name for rank in sorted(facts) for name in facts[rank])
    found = []
    for name in names:
        forms = {rank: facts[rank].get(name) for rank in sorted(facts)}
        if len(set(forms.values())) > 1:
            found.append(_difference(name, forms, reference))
    return found


def _difference(name: str, forms: Mapping[int, Fact | None], reference: int | None) -> Difference:
    if reference is None:
        [(common, _)] = Counter(forms.values()).most_common(1)  # the first of equally many
        reference = next(rank for rank, fact in forms.items() if fact == common)
    wanted = forms[reference]
    ranks = tuple(rank for rank, fact in forms.items() if fact != wanted)
    is_of_form = len({fact and fact.form for fact in forms.values()}) > 1
    reason = _plain_reason(wanted, [forms[rank] for rank in ranks])
    return Difference(name, reference, ranks, reason, is_of_form)


def _plain_reason(wanted: Fact | None, others: Sequence[Fact | None]) -> str:
    if wanted is None:
        return "only there"
    reasons = []
    for fact in others:
        if fact is None:
            reasons.append("missing there")
        elif fact.form != wanted.form:
            reasons.append(f"{fact.form}, not {wanted.form}")
        elif not fact.is_tensor:
            reasons.append(f"{fact.text}, not {wanted.text}")
    return "; ".join(dict.fromkeys(reasons))


def fact_of(value: Any) -> Fact:
    """Describe an entry."""
    if not isinstance(value, torch.Tensor):
        text = repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__
        return Fact(type(value).__name__, _digest(pickle.dumps(value)), text[:40])
    form = f"tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return Fact(form, _digest(*_bytes_of(value)), size_bytes=value.nbytes)


def _bytes_of(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield the elements in row-major order; from a GPU a little at a time."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if plain.numel():
        for part in plain.reshape(-1).view(torch.uint8).split(CHUNK_BYTES):
            yield memoryview(part.cpu().numpy())


def _digest(*parts: Any) -> str:
    content = hashlib.blake2b(digest_size=16)
    for part in parts:
        content.update(part)
    return content.hexdigest()


def _measured(
    difference: Difference, entries: Entries, facts: Facts, group: dist.ProcessGroup | None
) -> Difference:
    """Add how far each rank is; all ranks of the group do it together, for the same entries."""
    if difference.reason:
        return difference
    name, reference = difference.name, difference.reference
    mine = entries.found[name]
    theirs = broadcast(mine.clone(memory_format=torch.contiguous_format), reference, group)
    distances = dict(zip(facts, all_gather_objects(distance(mine, theirs), group), strict=True))
    return replace(difference, distances={rank: distances[rank] for rank in difference.ranks})


def distance(mine: torch.Tensor, theirs: torch.Tensor) -> Distance:
    """Measure how far two tensors of one dtype and shape are apart."""
    num_elements = mine.numel()
    if mine.is_complex():
        return _complex_distance(mine.to(torch.complex128), theirs.to(torch.complex128))
    wide = torch.float64 if mine.is_floating_point() else torch.int64
    one, other = mine.detach().to(wide), theirs.to(wide)
    is_nan, is_other_nan = one.isnan(), other.isnan()
    differs = (one != other) & ~(is_nan & is_other_nan)
    has_one_nan = is_nan ^ is_other_nan
    gaps = torch.where(differs & ~has_one_nan, one.double() - other.double(), 0.0).abs()
    return Distance(
        largest=gaps.max().item() if gaps.numel() else 0.0,
        num_differing=int(differs.sum()),
        num_elements=num_elements,
        num_nan=int(has_one_nan.sum()),
    )


def _complex_distance(mine: torch.Tensor, theirs: torch.Tensor) -> Distance:
    parts = distance(torch.view_as_real(mine), torch.view_as_real(theirs))
    is_both_nan = mine.isnan() & theirs.isnan()
    num_differing = int(((mine != theirs) & ~is_both_nan).sum())
    return replace(parts, num_differing=num_differing, num_elements=mine.numel())


# Repairing ----------------------------------------------------------------------------------------


def _why_unrepairable(
    difference: Difference, facts: Facts, is_settable: Callable[[str], bool]
) -> str:
    """Return why an entry cannot be set in place; the same on all ranks, empty if it can."""
    forms = {rank: facts[rank].get(difference.name) for rank in facts}
    if None in forms.values():
        return "since not all ranks have it"
    if len({fact.form for fact in forms.values() if fact and fact.is_tensor}) > 1:
        return "since it has another dtype or shape"
    if len({fact.is_tensor for fact in forms.values() if fact}) > 1:
        return "since it is a tensor on some ranks only"
    return "" if is_settable(difference.name) else "since it cannot be changed in place"


def _take(
    entries: Entries, name: str, fact: Fact, source: int, group: dist.ProcessGroup | None
) -> None:
    value = entries.found[name]
    if fact.is_tensor:
        broadcast(value, source, group)
        return
    [new] = broadcast_object_list([value], source, group)
    if new != value or type(new) is not type(value):
        entries.setters[name](new)


def _needs_whole_state(value: Any, differences: Sequence[Difference]) -> bool:
    """Decide whether a state is loaded, since its entries cannot be set one by one."""
    if isinstance(value, nn.Module) or not callable(getattr(value, "load_state_dict", None)):
        return False
    if not isinstance(value, torch.optim.Optimizer):  # what its `state_dict` gives is a copy
        return bool(differences)
    return any(difference.is_of_form for difference in differences)  # one has not stepped yet


def _load_state(value: Any, source: int, group: dist.ProcessGroup | None) -> None:
    state = _on_cpu(value.state_dict()) if get_rank() == source else None
    [state] = broadcast_object_list([state], source, group)
    if get_rank() != source:
        value.load_state_dict(state)


def _on_cpu(value: Any) -> Any:
    """Return a state with its tensors on the CPU, from where they go to another rank's device."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_on_cpu, value))
    return value


# Words --------------------------------------------------------------------------------------------


def _ranks_of(group: dist.ProcessGroup | None) -> tuple[int, ...]:
    return tuple(dist.get_process_group_ranks(group)) if initialized() else (0,)


def name_ranks(ranks: Iterable[int]) -> str:
    """Name *ranks*: ``rank 3``, ``ranks 0, 2``, and ``ranks 0–3`` where three or more follow."""
    numbers = sorted(ranks)
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"ranks {numbers[0]}–{numbers[-1]}"
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
