"""Who waited for whom, by the times at which the ranks came to each call.

    RankTrace of each rank ──match──▶ Collective (number 7 on all its ranks) ──▶ Wait, Wait, …
                                                                                   ──▶ Straggler

A rank waits in a call from when it is stuck there until the last of the others has come that came
before the call was over. So a rank that a broadcast did not need is no one's straggler, and the
guard need not have waited: its mode ``trace`` is enough.

Pure. Not covered: messages whose tags came in another order than they were sent; DDP's backward is
taken to wait from its last call on, as nobody sees it begin to.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import TypeVar

from nbdist.wire import CallSite, RankTrace, TracedCall

NOTABLE_S = 0.5e-3  # of waiting: below it is how processes take turns
NOTABLE_SHARE = 0.01  # of the cell
MUCH_SHARE = 0.1  # of the longest wait for a rank: who waited less is not named
HAD_TO_WAIT_S = 50e-6  # a shorter `work.wait()` found the call over

Span = tuple[float, float]
_Key = TypeVar("_Key", int, str)


@dataclass(frozen=True)
class Collective:
    """One collective, or one message, as its ranks called it.

    Attributes:
        site: Of the rank that came first; of the sender for a message.
        seq: Its number in the group.
        calls: By rank, of those whose call is known.
        spans: By rank, when it was stuck in the call.
    """

    site: CallSite
    seq: int
    calls: Mapping[int, TracedCall]
    spans: Mapping[int, tuple[Span, ...]]

    @property
    def began(self) -> float:
        """When the first rank came."""
        return self._arrivals[0][0]

    @property
    def inside_s(self) -> float | None:
        """Time from when all had come until it was over, median of the ranks; ``None``: unknown."""
        times = [self._inside_s(rank, call) for rank, call in self.calls.items()]
        known = [seconds for seconds in times if seconds is not None]
        return median(known) if known else None

    def _inside_s(self, rank: int, call: TracedCall) -> float | None:
        if call.is_failed or not call.returned:
            return None
        was_waited_for = call.wait_ended - call.wait_began >= HAD_TO_WAIT_S
        if call.site.is_async and not call.done and not was_waited_for:
            return None  # it was over before, for an unknown time
        ended = call.done or call.wait_ended or call.returned
        came = self._last_to_come(rank, ended)
        return ended - max(call.began + call.waited_s, came[0] if came else 0.0)

    @cached_property
    def waits(self) -> tuple[Wait, ...]:
        """Who waited for whom in it."""
        return tuple(self._waits())

    def _waits(self) -> Iterator[Wait]:
        absent = [rank for rank in self.site.ranks if rank not in self.calls]
        for rank, spans in self.spans.items():
            source = self.calls[rank].site.source
            for start, end in spans:
                came = self._last_to_come(rank, end)
                if absent and end == spans[-1][1] and self._is_in_vain(rank):
                    yield Wait(rank, absent[0], start, end, source)
                elif came is not None and came[0] > start:
                    yield Wait(rank, came[1], start, came[0], source)

    @cached_property
    def _arrivals(self) -> list[tuple[float, int]]:
        return sorted((call.began, rank) for rank, call in self.calls.items())

    def _last_to_come(self, rank: int, until: float) -> tuple[float, int] | None:
        """Return who was the last of the others to come before *until*, and when."""
        place = bisect_right(self._arrivals, (until, math.inf)) - 1
        if place >= 0 and self._arrivals[place][1] == rank:
            place -= 1
        return self._arrivals[place] if place >= 0 else None

    def _is_in_vain(self, rank: int) -> bool:
        """Whether the rank was let go without having seen the others, or has not been yet."""
        call = self.calls[rank]
        is_open = not call.returned or (call.wait_began > 0 and not call.wait_ended)
        return self.seq > 0 and (call.is_failed or is_open)


@dataclass(frozen=True)
class Wait:
    """One rank waited for another.

    Attributes:
        rank: Who waited.
        for_rank: The last one to come.
        began: On the clock of `TracedCall`.
        ended: Likewise.
        source: Where it waited.
    """

    rank: int
    for_rank: int
    began: float
    ended: float
    source: str

    @property
    def seconds(self) -> float:
        """How long."""
        return self.ended - self.began


@dataclass(frozen=True)
class Straggler:
    """A rank that others waited for.

    Attributes:
        rank: Which.
        seconds: For how long at least one rank waited for it.
        waiting: Who waited, but for those who waited little.
        source: Where most of the waiting was.
    """

    rank: int
    seconds: float
    waiting: tuple[int, ...]
    source: str


def collectives(traces: Iterable[RankTrace]) -> list[Collective]:
    """Find which calls of the ranks met, in the order in which they began."""
    groups: dict[object, int] = {}
    met: dict[object, dict[int, tuple[TracedCall, tuple[Span, ...]]]] = defaultdict(dict)
    for trace in sorted(traces, key=lambda trace: trace.rank):
        of_site: dict[int, int] = {}  # by identity: a large group is long to hash
        for place, (call, spans) in enumerate(_with_spans(trace)):
            group = of_site.get(id(call.site))
            if group is None:
                group = groups.setdefault(_group_of(call.site), len(groups))
                of_site[id(call.site)] = group
            # One without a number meets nobody that is known.
            name = (group, call.seq) if call.seq else (group, trace.rank, place)
            met[name][trace.rank] = call, spans
    return sorted(map(_collective, met.values()), key=lambda collective: collective.began)


def _group_of(site: CallSite) -> object:
    return site.kind, site.group, site.ranks, site.incarnation


def _collective(by_rank: Mapping[int, tuple[TracedCall, tuple[Span, ...]]]) -> Collective:
    first, _ = min(by_rank.values(), key=lambda found: found[0].began)
    site = first.site
    if site.kind == "p2p" and site.ranks[0] in by_rank:
        site = by_rank[site.ranks[0]][0].site
    calls = {rank: call for rank, (call, _) in by_rank.items()}
    return Collective(site, first.seq, calls, {rank: spans for rank, (_, spans) in by_rank.items()})


def _with_spans(trace: RankTrace) -> Iterator[tuple[TracedCall, tuple[Span, ...]]]:
    """Add to each call when the rank was stuck in it."""
    following = [call.began for call in trace.calls[1:]] + [trace.now]
    for call, next_began in zip(trace.calls, following, strict=False):
        spans = [(call.began, call.returned or trace.now)]
        if call.wait_began:
            spans.append((call.wait_began, call.wait_ended or trace.now))
        elif call.done and call.done <= next_began:
            spans.append((call.returned, call.done))
        yield call, tuple(spans)


def stragglers(waits: Iterable[Wait]) -> list[Straggler]:
    """Return all ranks that others waited for, the one they waited for longest first."""
    by_rank: dict[int, list[Wait]] = defaultdict(list)
    for wait in waits:
        by_rank[wait.for_rank].append(wait)
    found = [_straggler(rank, of_rank) for rank, of_rank in sorted(by_rank.items())]
    return sorted(found, key=lambda one: -one.seconds)


def _straggler(rank: int, waits: Sequence[Wait]) -> Straggler:
    spans = joined((wait.began, wait.ended) for wait in waits)
    by_waiter = _sums((wait.rank, wait.seconds) for wait in waits)
    by_source = _sums((wait.source, wait.seconds) for wait in waits)
    longest = max(by_waiter.values())
    return Straggler(
        rank=rank,
        seconds=sum(end - start for start, end in spans),
        waiting=tuple(sorted(r for r, s in by_waiter.items() if s >= MUCH_SHARE * longest)),
        source=max(by_source, key=lambda source: by_source[source]),
    )


def _sums(pairs: Iterable[tuple[_Key, float]]) -> dict[_Key, float]:
    sums: dict[_Key, float] = defaultdict(float)
    for key, seconds in pairs:
        sums[key] += seconds
    return sums


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return the time that *spans* cover, as spans that do not touch, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
