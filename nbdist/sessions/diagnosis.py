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

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nbdist.view import name_ranks
from nbdist.view.failures import shorten_path
from nbdist.view.hang import Culprit, CulpritKind, Diagnosis, Wait
from nbdist.wire import CallCount, Frame, GroupCall, Snapshot

_WORLD_NAMES = ("0", "", "default_pg", "world")

# torch's frames and ours in which a main thread stays while a collective is under way.
_WAITING_FILES = re.compile(
    r"(^|/)(torch/distributed/|torch/nn/parallel/distributed\.py:|torch/autograd/graph\.py:"
    r"|nbdist/runtime/[a-z_]+\.py:)"
)
_DISTRIBUTED = re.compile(r"(^|/)torch/distributed/")
_TORCH = re.compile(r"(^|/)torch/")
_DISPATCHER = re.compile(r"(^|/)torch/_ops\.py:")  # between a functional collective and C++
_OURS = re.compile(r"(^|/)nbdist/(runtime|rank)/[a-z_]+\.py:\d+$")
_INPUT = re.compile(r"(^|/)(nbdist/rank/inputs|ipykernel/kernelbase)\.py:")
_INPUT_SOURCE = re.compile(r"(?<!\.)\b(input|getpass)\(|\bgetpass\.getpass\(")
_WAIT_SOURCE = re.compile(r"\.wait\(")
_DEVICE_SOURCE = re.compile(r"\.(synchronize|item|cpu|tolist)\(")
_SLEEP_SOURCE = re.compile(r"(?<!asyncio\.)\bsleep\(")
_ROOT = re.compile(r"\broot (\d+)\)$")

# Calls in which ranks meet without the guard or the flight recorder seeing it.
_RENDEZVOUS = {"new_group", "split_group", "new_subgroups", "new_subgroups_by_enumeration"}
_RENDEZVOUS |= {"init_process_group", "init_device_mesh", "monitored_barrier"}
_MESSAGES = {"send", "recv", "send_object_list", "recv_object_list"}

_IN_ORDER: tuple[CulpritKind, ...] = (
    "dead",
    "stopped",
    "silent",
    "mismatch",
    "deadlock",
    "absent",
    "gave_up",
    "ended",
    "input",
    "elsewhere",
    "working",
)

Key = tuple[str, tuple[int, ...], str]


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
    """

    rank: int
    part: Literal["running", "ended", "absent"] = "running"
    process: Literal["alive", "stopped", "dead"] = "alive"
    how: str = ""
    snapshot: Snapshot | None = None
    silent_s: float = 0.0
    still_s: float | None = None
    pid: int | None = None


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


def is_native_wait(stack: Sequence[Frame]) -> bool:
    """Say whether a main thread is at a place where it can wait for other ranks outside of Python.

    So it is when its innermost frame, but for that of torch's dispatcher, is one of
    ``torch.distributed``, of DDP, of autograd's engine (a backward pass may wait in C++ for DDP's
    reducer) or of our own runtime; or a line outside of other libraries that says ``.wait()``.

    Only together with a call that others have not come to does this mean that it waits: a backward
    pass computes as well.
    """
    frames = [frame for frame in stack if not _DISPATCHER.search(frame.location)]
    if not frames:
        return False
    last = frames[-1]
    if _WAITING_FILES.search(last.location):
        return True
    is_readable = not last.is_library or _TORCH.search(last.location) is not None
    return is_readable and _WAIT_SOURCE.search(last.source) is not None


def still_place(stack: Sequence[Frame]) -> tuple[str, ...]:
    """Return what of a stack stays the same while its thread does not get on.

    Our own waits look up now and then, whether there was an abort or a signal: that is no progress.
    """
    return tuple(frame.location for frame in stack if not _OURS.search(frame.location))


def uneven_ends(calls: Sequence[GroupCall], ranks: Iterable[int]) -> str | None:
    """Warn if a cell that ended well has left some rank of a group behind the others.

    Args:
        calls: Where all *ranks* stand, after the end. Without messages to a rank that receives from
            whoever comes first: their receipt is not posted.
        ranks: Those the cell ran on; groups with other members are not looked at.

    Returns:
        What to do about it, one line per group; ``None`` when all have made equally many calls.
    """
    taking_part = set(ranks)
    found = []
    for key, members in sorted(_positions(calls).items()):
        if set(key[1]) <= taking_part:
            counts = {rank: members[rank].seq if rank in members else 0 for rank in key[1]}
            if len(set(counts.values())) > 1:
                tell = _uneven_messages if key[2] == "p2p" else _uneven_group
                found.append(tell(key, members, counts))
    return "\n".join(found) or None


def has_uneven_calls(calls: Mapping[int, Sequence[CallCount]]) -> bool:
    """Say whether the counts of a cell leave it open that some rank has made fewer calls.

    Cheap, and asked after every cell; `uneven_ends` knows it exactly.
    """
    totals: dict[tuple[str, tuple[int, ...]], dict[int, list[int]]] = {}
    for rank, counts in calls.items():
        for count in counts:
            by_rank = totals.setdefault((count.group, count.ranks), {})
            total = by_rank.setdefault(rank, [0, 0, 0])
            total[_MESSAGES_SENT.get(count.op, 0)] += count.count
    return any(_is_uneven(key[1], by_rank) for key, by_rank in totals.items())


_MESSAGES_SENT = {"send": 1, "recv": 2}


def _is_uneven(ranks: tuple[int, ...], by_rank: Mapping[int, Sequence[int]]) -> bool:
    collectives = {by_rank.get(rank, (0,))[0] for rank in ranks}
    sent, received = (sum(total[i] for total in by_rank.values()) for i in (1, 2))
    return len(collectives) > 1 or sent != received


# Who waits -------------------------------------------------------------------------------------


class _Scene:
    """All facts of one moment, by rank and by group."""

    def __init__(self, sights: Sequence[RankSight], calls: Sequence[GroupCall], now: float) -> None:
        self.sights = {sight.rank: sight for sight in sights}
        self.world = frozenset(self.sights)
        self._now = now
        self._positions = _positions(calls)
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
        root = _root(call)
        if call.kind == "p2p":  # what it has sent so far may have had other tags
            missing = frozenset(call.ranks) - {call.rank}
        elif root is not None and root != call.rank:  # the others may come later
            missing &= {root}
        return self._wait(sight, call, missing)

    def _native(self, sight: RankSight, snapshot: Snapshot, key: Key, call: GroupCall) -> _RankWait:
        missing: frozenset[int] = frozenset()
        differing: frozenset[int] = frozenset()
        if is_native_wait(snapshot.stack) or _waits_for_device(snapshot.stack, call):
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
            op=_op(call),
            seconds=seconds,
            missing=missing,
            where=call.source or _place(stack),
            call=call,
            is_mismatch=is_mismatch and bool(missing),
        )

    def _unrecorded(self, sight: RankSight, snapshot: Snapshot) -> list[_RankWait]:
        """Return the wait in a call that only the stack tells of, for whoever is not in it."""
        op = _unrecorded_op(snapshot.stack)
        if op in _MESSAGES and any(key[2] == "p2p" for key, _ in self._calls.get(sight.rank, [])):
            return []  # the guard sees its messages, so this one is on its way
        others = (rank for rank in self.world - {sight.rank} if not self._is_in(rank, op))
        missing = frozenset(others) if op else frozenset()
        if not missing:
            return []
        seconds, where = sight.still_s or 0.0, _place(snapshot.stack)
        return [_RankWait(sight.rank, "native", op, seconds, missing, where, is_guess=True)]

    def _is_in(self, rank: int, op: str) -> bool:
        snapshot = self.sights[rank].snapshot
        return snapshot is not None and _unrecorded_op(snapshot.stack) == op

    def _behind(self, key: Key, call: GroupCall) -> frozenset[int]:
        """Return the members that have not come to *call*, or have given it up."""
        members = self._positions[key]
        return frozenset(
            rank
            for rank in call.ranks
            if rank not in members
            or members[rank].seq < call.seq
            or (call.phase == "issued" and _gave_up(members[rank], call))
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
            if member.seq == call.seq and _op(member) != _op(call)
        )

    # Who is the cause -------------------------------------------------------------------------

    def culprit(self, rank: int, waits: Sequence[_RankWait]) -> Culprit:
        """Say what *rank* does in place of what it is waited for."""
        sight = self.sights.get(rank, RankSight(rank))
        culprit = _doing(sight)
        if culprit.kind in ("dead", "stopped", "silent", "absent", "ended"):
            return culprit
        for wait in waits:
            call = wait.call if rank in wait.missing else None
            member = self._positions[_key(call)].get(rank) if call else None
            if call is None or member is None or member.seq != call.seq:
                continue
            if _gave_up(member, call):
                text = f"gave up {_op(member)} #{member.seq} and {culprit.text}"
                return Culprit((rank,), "gave_up", text, culprit.source)
            if wait.is_mismatch:
                text = f"called {_op(member)} as #{member.seq} and {culprit.text}"
                return Culprit((rank,), "mismatch", text, culprit.source)
        return culprit


def _positions(calls: Iterable[GroupCall]) -> dict[Key, dict[int, GroupCall]]:
    """Return where each member of each group stands; the later one where it is named twice.

    A group that was destroyed and made again under the same name is such a case.
    """
    positions: dict[Key, dict[int, GroupCall]] = {}
    for call in calls:
        members = positions.setdefault(_key(call), {})
        if call.rank not in members or members[call.rank].since <= call.since:
            members[call.rank] = call
    return positions


def _key(call: GroupCall) -> Key:
    return call.group, call.ranks, call.kind


def _gave_up(member: GroupCall, call: GroupCall) -> bool:
    """Say whether *member* has left *call* before it reached the native group."""
    return member.seq == call.seq and member.phase == "idle" and member.issued < member.seq


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
        text = f"calls different things as #{call.seq} of group {_group_name(call)}"
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
        text = "does not answer: busy in a C call"
        return Culprit(ranks, "silent", text, since_s=sight.silent_s)
    return _running(ranks, snapshot)


def _running(ranks: tuple[int, ...], snapshot: Snapshot) -> Culprit:
    if snapshot.label is None:
        return Culprit(ranks, "elsewhere", "has not begun the cell, or is just ending it")
    users = [frame for frame in snapshot.stack if _is_users(frame)]
    if not users:
        return Culprit(ranks, "working", f"awaits something in {snapshot.label}")
    if _asks(users[-1], snapshot.stack):
        return Culprit(ranks, "input", f"waits in input() at {_place(users)}")
    op = _unrecorded_op(snapshot.stack)
    if op:
        return Culprit(ranks, "working", f"waits in {op} at {_place(users)}")
    last, source = users[-1], users[-1].source
    if last is snapshot.stack[-1] and _SLEEP_SOURCE.search(source):
        return Culprit(ranks, "working", f"sleeps in time.sleep at {_place(users)}", source)
    return Culprit(ranks, "working", f"is {_spot(users)}", source)


def _asks(last: Frame, stack: Sequence[Frame]) -> bool:
    """Say whether the user is asked, *last* being the innermost line of the user's code."""
    is_inside = last is not stack[-1] and _INPUT_SOURCE.search(last.source) is not None
    return is_inside or any(_INPUT.search(frame.location) for frame in stack)


def _spot(users: Sequence[Frame]) -> str:
    """Return ``in load_batch() at In[12]:4``, with the line of the cell behind that of a file."""
    last, cell = users[-1], _place(users)
    function = "" if last.function.startswith("<") else f"in {last.function}() "
    here = f"{function}at {_short(last)}"
    return here if last.is_cell or cell == _short(last) else f"{here} ({cell})"


def _place(stack: Sequence[Frame]) -> str:
    """Return the innermost line of a cell; without one, of the user's own files."""
    users = [frame for frame in stack if _is_users(frame)]
    cells = [frame for frame in users if frame.is_cell]
    return _short((cells or users)[-1]) if users else ""


def _short(frame: Frame) -> str:
    if frame.is_cell:
        return frame.location
    return shorten_path(frame.location).rpartition("/")[2]


def _is_users(frame: Frame) -> bool:
    return frame.is_cell or not (frame.is_library or _OURS.search(frame.location))


def _waits_for_device(stack: Sequence[Frame], call: GroupCall) -> bool:
    """Say whether a main thread waits for the stream that a call on a GPU holds up."""
    return (
        " on cuda" in call.text
        and bool(stack)
        and _DEVICE_SOURCE.search(stack[-1].source) is not None
    )


def _unrecorded_op(stack: Sequence[Frame]) -> str:
    """Return the rendezvous or message that the stack is inside of, if any."""
    if not is_native_wait(stack):
        return ""
    inside = (frame.function for frame in stack if _DISTRIBUTED.search(frame.location))
    return next((name for name in inside if name in _RENDEZVOUS | _MESSAGES), "")


def _op(call: GroupCall) -> str:
    return call.text.partition("(")[0] or "a collective"


def _root(call: GroupCall) -> int | None:
    """Return the root of *call* as its rank in the world; ``None`` where there is none."""
    found = _ROOT.search(call.text)
    index = int(found[1]) if found else len(call.ranks)
    return call.ranks[index] if index < len(call.ranks) else None


def _group_name(call: GroupCall) -> str:
    return "world" if call.group in _WORLD_NAMES else call.group


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
        groups=tuple(dict.fromkeys(map(_group_name, calls))),
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


# Counts at the end of a cell -------------------------------------------------------------------


def _uneven_group(key: Key, members: Mapping[int, GroupCall], counts: Mapping[int, int]) -> str:
    high = max(counts.values())
    ahead = [rank for rank in key[1] if counts[rank] == high]
    call = members[ahead[0]]
    parts = [
        _fewer(ranks, high - count, ahead, call)
        for count, ranks in _by_count(counts)
        if count < high
    ]
    late = name_ranks(rank for rank in key[1] if counts[rank] < high)
    return (
        f"{' '.join(parts)} The next collective of that group would meet the wrong one: call it "
        f"on {late}, or `%dist recover` makes the ranks agree again."
    )


def _by_count(counts: Mapping[int, int]) -> list[tuple[int, list[int]]]:
    ranks_of: dict[int, list[int]] = {}
    for rank, count in counts.items():
        ranks_of.setdefault(count, []).append(rank)
    return sorted(ranks_of.items(), reverse=True)


def _fewer(ranks: Sequence[int], number: int, ahead: Sequence[int], call: GroupCall) -> str:
    is_one = number == 1
    which = "it has" if len(ranks) == 1 else "they have"
    if not is_one:
        which = f"the last one that {which}"
    return (
        f"{name_ranks(ranks)} ran {'one collective' if is_one else f'{number} collectives'} fewer "
        f"than {name_ranks(ahead)} in group {_group_name(call)}: "
        f"{which} not called{'' if is_one else ' is'} {_full(call)}."
    )


def _uneven_messages(key: Key, members: Mapping[int, GroupCall], counts: Mapping[int, int]) -> str:
    sender, receiver = key[1]
    number = abs(counts[sender] - counts[receiver])
    messages = "one message" if number == 1 else f"{number} messages"
    if counts[sender] > counts[receiver]:
        call, what = members[sender], f"rank {sender} sent {messages} that rank {receiver} "
        what += "has not received"
        remedy = f"receive on rank {receiver}"
    else:
        call, what = members[receiver], f"rank {receiver} began to receive {messages} that "
        what += f"rank {sender} has not sent"
        remedy = f"send on rank {sender}"
    return (
        f"{what}, in group {_group_name(call)}: {_full(call)}. The next message between them would "
        f"meet the wrong one: {remedy}, or `%dist recover` makes the ranks agree again."
    )


def _full(call: GroupCall) -> str:
    return f"{call.text}{f' ({call.source})' if call.source else ''}"
