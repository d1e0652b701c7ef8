"""Say whether somebody can still come to what ranks wait in, and to whom nobody can.

    table ──▶ may_wait_in_vain ──▶ every rank says what it may still come to, twice ──▶ hopeless

Pure, and on the safe side: a rank that has not answered, or of which anything else is unknown, may
come. Ranks are hopeless where all they miss are at their end, or where they wait for each other.
One that waits for a hopeless rank is not told: it may yet be served, by what that one catches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from nbdist.sessions.positions import gave_up, positions
from nbdist.wire import BlockedCall, GroupCall, Prospect

OWN_TIMEOUT_S = 60.0  # whoever asked for less wants to wait that long
MOMENT_S = 0.1  # peers come within it, as a rule
CALM_NS = 10_000_000  # between two looks, which are a tenth of a second apart at least


@dataclass(frozen=True)
class RankOutlook:
    """What is known of one rank, as to whether it may come to a call.

    Attributes:
        rank: Which.
        has_more: It has not answered all that it was asked, or is not in order.
        prospect: What it says itself; ``None`` where it does not answer.
    """

    rank: int
    has_more: bool = False
    prospect: Prospect | None = None


def may_wait_in_vain(
    calls: Iterable[GroupCall], ranks: Collection[int], now: float
) -> frozenset[int]:
    """Return who has to be asked to know whether some of *ranks* wait in vain; often nobody.

    Cheap: the table alone says whether a rank is at a call that another has not come to.

    Args:
        calls: Where all ranks stand.
        ranks: Those that run the cell.
        now: On the clock of the calls. Ranks that call one thing after the other are not disturbed.
    """
    found = set[int]()
    for members in positions(calls).values():
        for call in members.values():
            is_old = call.rank in ranks and now - call.since > MOMENT_S
            if is_old and call.phase != "idle" and _is_ahead(call, members):
                found.update(call.ranks)
    return frozenset(found)


def _is_ahead(call: GroupCall, members: Mapping[int, GroupCall]) -> bool:
    if call.phase == "waiting":
        return True
    others = (members.get(rank) for rank in call.ranks if rank != call.rank)
    return any(m is None or m.seq < call.seq or gave_up(m, call) for m in others)


def hopeless(
    cell_id: str, first: Iterable[RankOutlook], again: Iterable[RankOutlook]
) -> dict[int, BlockedCall]:
    """Return the ranks to whose calls nobody can come any more, and the calls.

    Args:
        cell_id: The cell that is watched, and that the notebook's prompt waits for.
        first: What was known of the ranks at one moment.
        again: What is known of them a moment later. A rank at its end stays there; so a call that
            misses it after that was seen, and is the same as before, misses it for ever.
    """
    before, now = (_hopeless(cell_id, {o.rank: o for o in look}) for look in (first, again))
    return {rank: call for rank, call in now.items() if _is_same(before.get(rank), call)}


def _is_same(before: BlockedCall | None, now: BlockedCall) -> bool:
    """Say whether a rank is where it was, and nothing has moved there where that says something."""
    if before is None or replace(before, used_ns=now.used_ns) != now:
        return False
    if before.used_ns is None or now.used_ns is None:
        return before.used_ns is now.used_ns
    return now.used_ns - before.used_ns <= CALM_NS


def _hopeless(cell_id: str, outlooks: Mapping[int, RankOutlook]) -> dict[int, BlockedCall]:
    gone = {rank for rank, outlook in outlooks.items() if _is_at_its_end(outlook)}
    answered = {rank for rank, outlook in outlooks.items() if outlook.prospect is not None}
    held = {
        rank: call
        for rank, outlook in outlooks.items()
        if (call := _held_in(cell_id, outlook)) is not None
        # Natively it may be on its way to one that has come and is held up.
        and (call.used_ns is None or answered.issuperset(call.call.ranks))
    }
    direct = {rank: call for rank, call in held.items() if gone.issuperset(call.missing)}
    return direct or _circle(held, gone, outlooks)


def _is_at_its_end(outlook: RankOutlook) -> bool:
    """Say whether a rank will not call anything before it is asked to."""
    prospect = outlook.prospect
    if outlook.has_more or prospect is None:
        return False
    return prospect.is_idle and prospect.cell_id is None and not prospect.callers


def _held_in(cell_id: str, outlook: RankOutlook) -> BlockedCall | None:
    """Return the call of the cell that holds a rank until others come."""
    prospect = outlook.prospect
    if prospect is None or prospect.cell_id != cell_id or prospect.has_alarm:
        return None
    call = prospect.blocked
    if call is None or not call.missing:
        return None
    ends_soon = call.timeout_s is not None and call.timeout_s < OWN_TIMEOUT_S
    return None if ends_soon else call


def _circle(
    held: Mapping[int, BlockedCall], gone: Collection[int], outlooks: Mapping[int, RankOutlook]
) -> dict[int, BlockedCall]:
    """Return the ranks of *held* that wait for each other, none with anything else that may call.

    A rank needs all it waits for: who is left when all that may be served is taken away, is not.
    """
    left = {rank for rank in held if not _has_callers(outlooks[rank])}
    while True:
        wanted = {missing for rank in left for missing in held[rank].missing}
        stay = {rank for rank in left & wanted if {*held[rank].missing} <= {*left, *gone}}
        if stay == left:
            return {rank: held[rank] for rank in sorted(left)}
        left = stay


def _has_callers(outlook: RankOutlook) -> bool:
    return outlook.prospect is None or bool(outlook.prospect.callers)
