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

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        return min(call.began for call in self.calls.values())

    @property
    def inside_s(self) -> float | None:
        """Time from when all had come until it was over, median of the ranks; ``None``: unknown."""
        times = [self._inside_s(rank) for rank in self.calls]
        known = [seconds for seconds in times if seconds is not None]
        return median(known) if known else None

    def _inside_s(self, rank: int) -> float | None:
        call = self.calls[rank]
        if call.is_failed or not call.returned:
            return None
        ended = call.done or call.wait_ended or call.returned
        was_waited_for = call.wait_ended - call.wait_began >= HAD_TO_WAIT_S
        if call.site.is_async and not call.done and not was_waited_for:
            return None  # it was over before, for an unknown time
        others = (other.began for r, other in self.calls.items() if r != rank)
        last = max((t for t in others if t <= ended), default=0.0)
        return ended - max(call.began + call.waited_s, last)

    def waits(self) -> Iterator[Wait]:
        """Say who waited for whom in it."""
        absent = [rank for rank in self.site.ranks if rank not in self.calls]
        for rank, spans in self.spans.items():
            others = [(call.began, r) for r, call in self.calls.items() if r != rank]
            source = self.calls[rank].site.source
            for start, end in spans:
                came = max(((t, r) for t, r in others if start < t <= end), default=None)
                if absent and end == spans[-1][1] and self._is_in_vain(rank):
                    yield Wait(rank, absent[0], start, end, source)
                elif came is not None:
                    yield Wait(rank, came[1], start, came[0], source)

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
    met: dict[object, dict[int, tuple[TracedCall, tuple[Span, ...]]]] = defaultdict(dict)
    for trace in traces:
        for place, (call, spans) in enumerate(_with_spans(trace)):
            met[_name_of(call, trace.rank, place)][trace.rank] = call, spans
    found = [_collective(by_rank) for by_rank in met.values()]
    return sorted(found, key=lambda collective: collective.began)


def _name_of(call: TracedCall, rank: int, place: int) -> object:
    """Return what is equal for calls that meet; of its own for one without a number."""
    site = call.site
    if not call.seq:
        return rank, place
    return site.kind, site.group, site.ranks, site.incarnation, call.seq


def _collective(by_rank: Mapping[int, tuple[TracedCall, tuple[Span, ...]]]) -> Collective:
    first = min(by_rank, key=lambda rank: by_rank[rank][0].began)
    site = by_rank[first][0].site
    if site.kind == "p2p" and site.ranks[0] in by_rank:
        site = by_rank[site.ranks[0]][0].site
    return Collective(
        site=site,
        seq=by_rank[first][0].seq,
        calls={rank: by_rank[rank][0] for rank in sorted(by_rank)},
        spans={rank: by_rank[rank][1] for rank in sorted(by_rank)},
    )


def _with_spans(trace: RankTrace) -> Iterator[tuple[TracedCall, tuple[Span, ...]]]:
    """Add to each call when the rank was stuck in it."""
    following = [call.began for call in trace.calls[1:]] + [trace.now]
    for call, next_began in zip(trace.calls, following, strict=True):
        held_until = call.began + call.waited_s
        # A call that was given up in the guard, or is still held there, has no native part.
        spans = [(call.began, held_until), (held_until, call.returned or trace.now)]
        if call.wait_began:
            spans.append((call.wait_began, call.wait_ended or trace.now))
        elif call.done and call.done <= next_began:
            spans.append((call.returned, call.done))
        yield call, tuple(joined(span for span in spans if span[1] > span[0]))


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
