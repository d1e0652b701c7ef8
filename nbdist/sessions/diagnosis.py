"""Find out why a cell does not get on: who waits where, and who is the cause.

    snapshots (control channel), calls (shared table) ──▶ diagnose ──▶ Diagnosis ──▶ card

Pure: facts in, frozen data out; nothing is asked of a rank here. A rank *waits* where the guard
says so; or where it has issued a call that a member of the group has not come to, and its main
thread is inside such a wait (`is_native_wait`). Whom it waits for is followed from rank to rank,
until one is found that does something else, or that is waited for in a circle.

Long work with nobody waiting is no hang, be it Python or C, as long as the rank answers.

Not covered: a native call that does not end although all ranks have come to it alike (a slow
network, sizes that differ on gloo); whom an unguarded ``recv`` waits for, and an unguarded
``irecv(...).wait()`` at all; ranks that wait for something outside of torch.distributed (a file, a
queue): that is work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nbdist.sessions.positions import Key, gave_up, group_name, key_of, op_of, positions, root_of
from nbdist.sessions.stacks import (
    MESSAGES,
    is_native_wait,
    line_of,
    occupation,
    silence,
    unrecorded_op,
    waits_for_device,
)
from nbdist.view.hang import Culprit, CulpritKind, Diagnosis, Wait
from nbdist.wire import BlockedCall, Frame, GroupCall, Snapshot

_IN_ORDER: tuple[CulpritKind, ...] = get_args(CulpritKind)


@dataclass(frozen=True)
class RankSight:
    """What the session knows of one rank right now.

    Attributes:
        rank: Which, in the world.
        part: The watched cell runs there, is over there, or was not sent there.
        process: ``stopped`` is SIGSTOP (state T in /proc).
        how: How it died (``was killed by SIGKILL``); of a rank that is over with the cell, how that
            ended where it did not end well (``raised ValueError: bad``).
        snapshot: What its control thread says; ``None`` when that does not answer.
        silent_s: For how long it has not answered.
        still_s: For how long its main thread has been at the same `still_place`; ``None`` where
            nobody looked. Without it a rendezvous or an unguarded ``recv`` is never called a hang.
        pid: Its process, where it is known without the snapshot.
        stack: Where it is although it does not answer, as far as its process says so itself.
        overload: What keeps it from running, if it is not its own work.
    """

    rank: int
    part: Literal["running", "ended", "absent"] = "running"
    process: Literal["alive", "stopped", "dead"] = "alive"
    how: str = ""
    snapshot: Snapshot | None = None
    silent_s: float = 0.0
    still_s: float | None = None
    pid: int | None = None
    stack: tuple[Frame, ...] = ()
    overload: str = ""


@dataclass(frozen=True)
class _RankWait:
    """One rank that waits.

    Attributes:
        rank: Which.
        kind: As in `nbdist.view.hang.Wait`.
        op: Name of the operation.
        seconds: For how long.
        missing: Whom it waits for.
        where: Line of the call.
        call: As the rank has posted it; ``None`` where nobody did.
        is_guess: That these are the ones it waits for is only likely.
        is_mismatch: They have come, but with another operation.
    """

    rank: int
    kind: Literal["group", "p2p", "native"]
    op: str
    seconds: float
    missing: frozenset[int]
    where: str
    call: GroupCall | None = None
    is_guess: bool = False
    is_mismatch: bool = False


def diagnose(
    label: str,
    sights: Sequence[RankSight],
    calls: Sequence[GroupCall],
    now: float,
    after_s: float,
) -> Diagnosis | None:
    """Say why the cell *label* does not get on; ``None`` while there is no reason to worry.

    A reason is a rank of the cell that has waited longer than *after_s*, that has not answered for
    so long, or whose process is stopped.

    Args:
        label: The cell: ``In[12]``.
        sights: All ranks of the session.
        calls: Where the ranks stand in all groups; those of one group from one source.
        now: In seconds since the epoch, on the clock of the calls.
        after_s: ``hang.after_s``.
    """
    scene = _Scene(sights, calls, now)
    waits = [wait for sight in sights for wait in scene.waits_of(sight)]
    running = {sight.rank for sight in sights if sight.part == "running"}
    troubled = {sight.rank for sight in sights if _is_in_trouble(sight, after_s)} & running
    stuck = {wait.rank for wait in waits if wait.seconds > after_s} & running
    if not stuck | troubled:
        return None
    reached = _reach(stuck, waits)
    waits = [wait for wait in waits if wait.rank in reached]
    waiting = {wait.rank for wait in waits}
    culprits = [scene.culprit(rank, waits) for rank in (reached - waiting) | troubled]
    return Diagnosis(
        label=label,
        ranks=tuple(sorted(sight.rank for sight in sights if sight.part != "absent")),
        waits=_merge_waits(waits),
        culprits=_merge_culprits([*culprits, *_circles(waits)]),
    )


def explain(
    label: str, ranks: Iterable[int], calls: Mapping[int, BlockedCall], how: Mapping[int, str]
) -> Diagnosis:
    """Say why nobody can come to *calls* any more.

    Args:
        label: The cell: ``In[12]``.
        ranks: Those it was sent to.
        calls: What each rank waits in.
        how: How the cell has failed on ranks, where it has.
    """
    ranks = tuple(sorted(ranks))
    waits = [
        _RankWait(
            rank=rank,
            kind=blocked.call.kind,
            op=op_of(blocked.call),
            seconds=0.0,
            missing=frozenset(blocked.missing),
            where=blocked.call.source,
            call=blocked.call,
        )
        for rank, blocked in calls.items()
    ]
    missed = {rank for wait in waits for rank in wait.missing}
    culprits = [_at_its_end(rank, ranks, how) for rank in sorted(missed - calls.keys())]
    if missed & calls.keys():
        culprits.append(Culprit(tuple(sorted(calls)), "deadlock", "waits for each other"))
    return Diagnosis(label, ranks, _merge_waits(waits), _merge_culprits(culprits))


def _at_its_end(rank: int, ranks: Sequence[int], how: Mapping[int, str]) -> Culprit:
    if rank not in ranks:
        return Culprit((rank,), "absent", "was not given this cell")
    return Culprit((rank,), "ended", how.get(rank) or "has ended this cell")


# Who waits -------------------------------------------------------------------------------------


class _Scene:
    """All facts of one moment, by rank and by group."""

    def __init__(self, sights: Sequence[RankSight], calls: Sequence[GroupCall], now: float) -> None:
        self.sights = {sight.rank: sight for sight in sights}
        self.world = frozenset(self.sights)
        self._now = now
        self._positions = positions(calls)
        self._calls: dict[int, list[tuple[Key, GroupCall]]] = {}
        for key, members in self._positions.items():
            for call in members.values():
                self._calls.setdefault(call.rank, []).append((key, call))

    def waits_of(self, sight: RankSight) -> list[_RankWait]:
        """Return where a rank waits: more than one place only if it has several threads."""
        snapshot = sight.snapshot
        is_busy = sight.part == "running" or (snapshot is not None and snapshot.label is not None)
        if sight.process != "alive" or not is_busy:
            return []
        calls = self._calls.get(sight.rank, [])
        guarded = [(key, call) for key, call in calls if call.phase == "waiting"]
        if guarded:
            waits = [self._guarded(sight, key, call) for key, call in guarded]
            return [wait for wait in waits if wait.missing]
        if snapshot is None:
            return []
        issued = [(key, call) for key, call in calls if call.phase == "issued"]
        waits = [self._native(sight, snapshot, key, call) for key, call in issued]
        attributed = [wait for wait in waits if wait.missing]
        # It stands at one place, most likely in the call that it has issued last.
        latest = sorted(attributed, key=lambda wait: wait.call.since if wait.call else 0.0)[-1:]
        return latest or self._unrecorded(sight, snapshot)

    def _guarded(self, sight: RankSight, key: Key, call: GroupCall) -> _RankWait:
        missing = self._behind(key, call)
        root = root_of(call)
        if call.kind == "p2p":  # what it has sent so far may have had other tags
            missing = frozenset(call.ranks) - {call.rank}
        elif root is not None and root != call.rank:  # the others may come later
            missing &= {root}
        return self._wait(sight, call, missing)

    def _native(self, sight: RankSight, snapshot: Snapshot, key: Key, call: GroupCall) -> _RankWait:
        missing: frozenset[int] = frozenset()
        differing: frozenset[int] = frozenset()
        if is_native_wait(snapshot.stack) or waits_for_device(snapshot.stack, call):
            missing = self._behind(key, call) | self._gone(key, call)
            differing = self._differing(key, call)
        return self._wait(sight, call, missing or differing, is_mismatch=not missing)

    def _wait(
        self,
        sight: RankSight,
        call: GroupCall,
        missing: frozenset[int],
        *,
        is_mismatch: bool = False,
    ) -> _RankWait:
        seconds = max(0.0, self._now - call.since)
        if call.phase == "issued" and sight.still_s is not None:
            seconds = min(seconds, sight.still_s)  # it was issued before the wait began
        stack = sight.snapshot.stack if sight.snapshot else ()
        return _RankWait(
            rank=sight.rank,
            kind=call.kind,
            op=op_of(call),
            seconds=seconds,
            missing=missing,
            where=call.source or line_of(stack),
            call=call,
            is_mismatch=is_mismatch and bool(missing),
        )

    def _unrecorded(self, sight: RankSight, snapshot: Snapshot) -> list[_RankWait]:
        """Return the wait in a call that only the stack tells of, for whoever is not in it."""
        op = unrecorded_op(snapshot.stack)
        if op in MESSAGES and any(key[2] == "p2p" for key, _ in self._calls.get(sight.rank, [])):
            return []  # the guard sees its messages, so this one is on its way
        others = (rank for rank in self.world - {sight.rank} if not self._is_in(rank, op))
        missing = frozenset(others) if op else frozenset()
        if not missing:
            return []
        seconds, where = sight.still_s or 0.0, line_of(snapshot.stack)
        return [_RankWait(sight.rank, "native", op, seconds, missing, where, is_guess=True)]

    def _is_in(self, rank: int, op: str) -> bool:
        snapshot = self.sights[rank].snapshot
        return snapshot is not None and unrecorded_op(snapshot.stack) == op

    def _behind(self, key: Key, call: GroupCall) -> frozenset[int]:
        """Return the members that have not come to *call*, or have given it up."""
        members = self._positions[key]
        return frozenset(
            rank
            for rank in call.ranks
            if rank not in members
            or members[rank].seq < call.seq
            or (call.phase == "issued" and gave_up(members[rank], call))
        ) - {call.rank}

    def _gone(self, key: Key, call: GroupCall) -> frozenset[int]:
        """Return the members whose process cannot do its part of *call* even if it has come."""
        sights = (self.sights.get(rank) for rank in key[1] if rank != call.rank)
        return frozenset(s.rank for s in sights if s is not None and s.process != "alive")

    def _differing(self, key: Key, call: GroupCall) -> frozenset[int]:
        """Return the members that have issued another operation under the number of *call*."""
        if call.kind == "p2p":
            return frozenset()
        return frozenset(
            member.rank
            for member in self._positions[key].values()
            if member.seq == call.seq and op_of(member) != op_of(call)
        )

    # Who is the cause -------------------------------------------------------------------------

    def culprit(self, rank: int, waits: Sequence[_RankWait]) -> Culprit:
        """Say what *rank* does in place of what it is waited for."""
        sight = self.sights.get(rank, RankSight(rank))
        culprit = _doing(sight)
        if culprit.kind in ("dead", "stopped", "silent", "starved", "absent", "ended"):
            return culprit
        for wait in waits:
            call = wait.call if rank in wait.missing else None
            member = self._positions[key_of(call)].get(rank) if call else None
            if call is None or member is None or member.seq != call.seq:
                continue
            if gave_up(member, call):
                text = f"gave up {op_of(member)} #{member.seq} and {culprit.text}"
                return Culprit((rank,), "gave_up", text, culprit.source)
            if wait.is_mismatch:
                text = f"called {op_of(member)} as #{member.seq} and {culprit.text}"
                return Culprit((rank,), "mismatch", text, culprit.source)
        return culprit


def _is_in_trouble(sight: RankSight, after_s: float) -> bool:
    is_silent = sight.snapshot is None and sight.silent_s >= after_s
    return sight.process == "stopped" or (sight.process == "alive" and is_silent)


def _reach(start: Iterable[int], waits: Sequence[_RankWait]) -> set[int]:
    """Return *start*, those they wait for, those whom these wait for, and so on."""
    edges = _edges(waits)
    reached, fresh = set[int](), set(start)
    while fresh:
        reached |= fresh
        fresh = {rank for known in fresh for rank in edges.get(known, ())} - reached
    return reached


def _edges(waits: Iterable[_RankWait]) -> dict[int, frozenset[int]]:
    edges: dict[int, frozenset[int]] = {}
    for wait in waits:
        edges[wait.rank] = edges.get(wait.rank, frozenset()) | wait.missing
    return edges


def _circles(waits: Sequence[_RankWait]) -> list[Culprit]:
    """Find the ranks that wait for each other: who is left when all that could end is taken away.

    A rank needs all it waits for, so whatever else may end, these do not.
    """
    waits = [wait for wait in waits if not wait.is_guess]
    edges = _edges(waits)
    while True:
        wanted = frozenset[int]().union(*edges.values())
        left = {
            rank: edges[rank] & edges.keys()
            for rank in edges
            if rank in wanted and edges[rank] & edges.keys()
        }
        if left == edges:
            break
        edges = left
    if not edges:
        return []
    differing = [wait for wait in waits if wait.rank in edges and wait.is_mismatch]
    ranks = tuple(sorted(edges))
    if differing and differing[0].call is not None:
        call = differing[0].call
        text = f"calls different things as #{call.seq} of group {group_name(call)}"
        return [Culprit(ranks, "mismatch", text)]
    return [Culprit(ranks, "deadlock", "waits for each other")]


# What a rank does ------------------------------------------------------------------------------


def _doing(sight: RankSight) -> Culprit:
    ranks, snapshot = (sight.rank,), sight.snapshot
    how = sight.how.partition("\n")[0]
    if sight.process == "dead":
        return Culprit(ranks, "dead", f"is dead ({how})" if how else "is dead")
    if sight.process == "stopped":
        pid = sight.pid or (snapshot.pid if snapshot else None)
        return Culprit(ranks, "stopped", "is stopped (SIGSTOP)", pids=(pid,) if pid else ())
    if sight.part == "absent":
        return Culprit(ranks, "absent", "was not given the cell")
    if sight.part == "ended":
        return Culprit(ranks, "ended", how or "has ended the cell")
    if snapshot is None:
        text = f"does not answer: {silence(sight.stack, sight.overload)}"
        kind: CulpritKind = "starved" if sight.overload else "silent"
        return Culprit(ranks, kind, text, since_s=sight.silent_s)
    return occupation(ranks, snapshot)


# Ranks alike are told together -----------------------------------------------------------------


def _merge_waits(waits: Sequence[_RankWait]) -> tuple[Wait, ...]:
    places: dict[tuple[object, ...], list[_RankWait]] = {}
    for wait in sorted(waits, key=lambda wait: wait.rank):
        seq = wait.call.seq if wait.call and wait.kind == "group" else 0
        places.setdefault((wait.kind, wait.op, seq, wait.where), []).append(wait)
    return tuple(map(_merge_place, places.values()))


def _merge_place(waits: Sequence[_RankWait]) -> Wait:
    first = waits[0]
    calls = [wait.call for wait in waits if wait.call is not None]
    missing = frozenset[int]().union(*(wait.missing for wait in waits if not wait.is_guess))
    is_group = first.kind == "group" and first.call is not None
    return Wait(
        ranks=tuple(dict.fromkeys(wait.rank for wait in waits)),
        kind=first.kind,
        op=first.op,
        seq=first.call.seq if is_group and first.call else 0,
        groups=tuple(dict.fromkeys(map(group_name, calls))),
        text=first.call.text if first.call else "",
        where=first.where,
        since_s=max(wait.seconds for wait in waits),
        missing=tuple(sorted(missing)),
    )


def _merge_culprits(culprits: Iterable[Culprit]) -> tuple[Culprit, ...]:
    alike: dict[tuple[str, str, str], list[Culprit]] = {}
    for culprit in sorted(culprits, key=lambda c: (_IN_ORDER.index(c.kind), c.ranks)):
        alike.setdefault((culprit.kind, culprit.text, culprit.source), []).append(culprit)
    return tuple(
        Culprit(
            ranks=tuple(rank for culprit in same for rank in culprit.ranks),
            kind=same[0].kind,
            text=same[0].text,
            source=same[0].source,
            since_s=max((c.since_s for c in same if c.since_s is not None), default=None),
            pids=tuple(pid for culprit in same for pid in culprit.pids),
        )
        for same in alike.values()
    )
