"""Compare what should be equal on all ranks, and make it equal again.

    value ──▶ entries: tensors and plain values by name ──▶ a hash each ──▶ all ranks
    what differs, and only that: the tensor of one rank ──▶ all ranks: how far, how many elements

Where all is equal, one short hash travels. Equal means the same bytes: a NaN equals itself, and a
step that was done on one rank and not on another is found wherever it changed a bit.

Not covered: parts of sharded tensors (they are counted), gradients, and plain values that cannot be
pickled (they are named).
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nbdist.errors import UsageError
from nbdist.runtime.collectives import all_gather_objects, broadcast, broadcast_object_list
from nbdist.runtime.group import get_rank, initialized
from nbdist.runtime.replica_entries import Entries, entries_of, is_plain
from nbdist.runtime.replica_report import Difference, Distance, Report, name_ranks
from nbdist.runtime.tensor_bytes import hash_elements, new_hash


@dataclass(frozen=True)
class Fact:
    """What an entry is on one rank.

    Attributes:
        form: ``tensor`` with dtype and shape, or the type of a plain value.
        digest: Hash of its bytes.
        text: A plain value as a reader sees it.
        size_bytes: Of a tensor.
        is_settable: It can be changed in place there.
    """

    form: str
    digest: str
    text: str = ""
    size_bytes: int = 0
    is_settable: bool = field(default=True, compare=False)

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor or an array."""
        return self.form.startswith("tensor")


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
    report, _ = _compare(entries_of(value, name), name, group)
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
    entries = entries_of(value, name)
    report, facts = _compare(entries, name, group, reference=source)
    report = replace(report, source=source)
    if _needs_whole_state(value, report.differences):
        _load_state(value, source, group)
        return report
    unrepaired = {}
    for difference in report.differences:
        why = _why_unrepairable([facts[rank].get(difference.name) for rank in facts])
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


# Comparing ----------------------------------------------------------------------------------------

Facts = dict[int, dict[str, Fact]]


def _compare(
    entries: Entries, name: str, group: dist.ProcessGroup | None, reference: int | None = None
) -> tuple[Report, Facts]:
    mine = {
        part: replace(fact_of(value), is_settable=entries.is_settable(part))
        for part, value in entries.found.items()
    }
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
    whole = _digest(repr([(part, fact.form, fact.digest) for part, fact in mine.items()]).encode())
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
        # Not every value has a repr that says all; not every pickle is alike for equal values.
        content = repr(value).encode() if is_plain(value) else pickle.dumps(value)
        return Fact(type(value).__name__, _digest(content), text[:40])
    form = f"tensor {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return Fact(form, hash_elements(value), size_bytes=value.nbytes)


def _digest(data: bytes) -> str:
    content = new_hash()
    content.update(data)
    return str(content.hexdigest())


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


def _why_unrepairable(forms: Sequence[Fact | None]) -> str:
    """Return why an entry that is *forms* on the ranks cannot be set in place; empty if it can."""
    found = [fact for fact in forms if fact is not None]
    if len(found) < len(forms):
        return "since not all ranks have it"
    if len({fact.is_tensor for fact in found}) > 1:
        return "since it is a tensor on some ranks only"
    if found[0].is_tensor and len({fact.form for fact in found}) > 1:
        return "since it has another dtype or shape"
    is_settable = all(fact.is_settable for fact in found)
    return "" if is_settable else "since it cannot be changed in place"


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
    return any(difference.is_of_form for difference in differences)  # one has not stepped


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
