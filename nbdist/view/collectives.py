"""Which collectives a cell called, in one line.

    CallCount, CallCount, …  →  4 × all_reduce (12 MiB) · group world

What all ranks of a group did alike is said once. Where they did not, each is named, since for a
rank that called less than its peers they will wait in the next cell.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nbdist.sizes import describe_sizes
from nbdist.view.names import name_ranks
from nbdist.wire import CallCount

MAX_NAMED_GROUPS = 4

_FIRST_GROUP = "0"
_MESSAGES = frozenset({"send", "recv", "isend", "irecv"})

Calls = Mapping[int, Sequence[CallCount]]


def collectives_line(calls: Calls, world_size: int | None = None) -> str:
    """Say what was called how often and with how much data; empty where nothing was.

    A size is what one rank put in, all calls together; ``1–3 MiB`` where ranks put in different
    amounts.

    Args:
        calls: By rank, of all ranks the cell ran on.
        world_size: Number of ranks in the session; without it, the highest rank known here is
            taken for its last.
    """
    groups = _groups(calls)
    size = world_size or 1 + max((rank for group in groups for rank in group.ranks), default=0)
    world = _find_world(groups, size)
    alike: dict[Hashable, list[_Group]] = {}
    for group in groups:
        alike.setdefault((group.said(), group is world), []).append(group)
    return "; ".join(
        f"{same[0].said()} · {'group world' if same[0] is world else _name(same, size)}"
        for same in alike.values()
    )


def held_up(calls: Calls, ranks: Iterable[int]) -> frozenset[int]:
    """Return which of *ranks* held the others up: they called less and waited for nobody.

    The ranks of a group call the same collectives in the same order, so who called most in a group
    waits there for who called less. Messages tell nothing of the kind.

    Args:
        calls: By rank; one that is missing has called nothing.
        ranks: Those the cell ran on.
    """
    late: set[int] = set()
    waiting: set[int] = set()
    for group in _groups({rank: calls.get(rank, ()) for rank in ranks}):
        counts = {rank: group.num_collectives(rank) for rank in group.calls}
        ahead = {rank for rank, count in counts.items() if count == max(counts.values())}
        if len(ahead) < len(counts):
            waiting |= ahead
            late |= counts.keys() - ahead
    return frozenset(late - waiting)


@dataclass(frozen=True)
class _Group:
    """A group, and what each of its ranks called in it, of those ranks the cell ran on."""

    name: str
    ranks: tuple[int, ...]
    calls: Mapping[int, Mapping[str, CallCount]]

    def said(self) -> str:
        ops = dict.fromkeys(op for calls in self.calls.values() for op in calls)
        common = [op for op in ops if len({self._count(rank, op) for rank in self.calls}) == 1]
        parts = [", ".join(self._say(op, tuple(self.calls)) for op in common)]
        parts += self._by_rank([op for op in ops if op not in common])
        return " · ".join(part for part in parts if part)

    def num_collectives(self, rank: int) -> int:
        return sum(call.count for op, call in self.calls[rank].items() if op not in _MESSAGES)

    def _by_rank(self, ops: Sequence[str]) -> Iterator[str]:
        """Say how often which ranks called each of *ops*."""
        ranks_of: dict[tuple[int, ...], list[int]] = {}
        for rank in self.calls:
            ranks_of.setdefault(tuple(self._count(rank, op) for op in ops), []).append(rank)
        for ranks in ranks_of.values():
            said = [self._say(op, ranks) for op in ops if self._is_told(ranks[0], op)]
            if said:
                yield f"{name_ranks(ranks)}: {', '.join(said)}"

    def _count(self, rank: int, op: str) -> int:
        call = self.calls[rank].get(op)
        return call.count if call else 0

    def _is_told(self, rank: int, op: str) -> bool:
        # Who sends does not receive; only in a collective is it news that a rank took no part.
        return op not in _MESSAGES or self._count(rank, op) > 0

    def _say(self, op: str, ranks: Sequence[int]) -> str:
        count = self._count(ranks[0], op)
        if not count:
            return f"no {op}"
        sizes = [self.calls[rank][op].size_bytes for rank in ranks]
        return f"{count:,} × {op}" + f" ({describe_sizes(sizes)})" * any(sizes)


def _groups(calls: Calls) -> list[_Group]:
    """Sort *calls* by group, in the order in which the ranks first called there."""
    found: dict[tuple[str, tuple[int, ...]], dict[int, dict[str, CallCount]]] = {}
    for rank in sorted(calls):
        for call in calls[rank]:
            of_group = found.setdefault((call.group, call.ranks), {})
            of_group.setdefault(rank, {})[call.op] = call
    return [
        _Group(name, ranks, {rank: by_rank.get(rank, {}) for rank in sorted({*ranks} & {*calls})})
        for (name, ranks), by_rank in found.items()
    ]


def _find_world(groups: Sequence[_Group], world_size: int) -> _Group | None:
    """Return torch's default group: the first of those that have all ranks."""
    of_all = [group for group in groups if len(group.ranks) == world_size]
    named = [group for group in of_all if group.name == _FIRST_GROUP]
    return next(iter(named + of_all), None)


def _name(groups: Sequence[_Group], world_size: int) -> str:
    """Name groups of which the same is said."""
    sizes = {len(group.ranks) for group in groups}
    if len(groups) > MAX_NAMED_GROUPS:
        of_size = f" of {sizes.pop()} ranks" if len(sizes) == 1 else ""
        return f"{len(groups)} groups{of_size}"
    ranks = [name_ranks(group.ranks).partition(" ")[2] for group in groups]
    if sizes == {world_size}:
        return "another group of all ranks" if len(groups) == 1 else f"{len(groups)} groups of all"
    return f"group{'s' * (len(groups) > 1)} of ranks {' | '.join(ranks)}"
