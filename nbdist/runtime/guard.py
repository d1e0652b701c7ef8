"""Look at every collective before it runs, and wait for the peers in Python.

    call ──▶ post (number, signature, source line) ──▶ compare, wait ──▶ native call
                    │                                     │ a peer calls something else: mismatch
                    ▼                                     │ a peer will not come: peer failed
              table (shared)  ◀── cancel ── agent, cell   │ SIGINT: KeyboardInterrupt

A rank that waits here has sent nothing: it can be interrupted, freed and told why, and the group
stays as it was. Calls that block anyway wait; asynchronous ones (DDP's reducer too) are posted,
compared with the peers that are there already, and go on, so that no overlap is lost. Whoever comes
last compares with everybody, before anything mismatched meets on the wire.

A call with a root may end on some ranks while others have not come. Such a rank is held back
without limit only where it could not end anyway (`has_to_wait`); else for a moment, and not at all
for a peer that is behind already: a program in which that one comes later is legal.

A call that torch is likely to refuse (`refusals`) is made first, and posted only when torch has
taken it; one that it refuses all the same is taken back. So a program may catch that and go on.

Not covered: `recv` without a source; the wait for an asynchronous call (`work.wait()`, DDP's own,
functional collectives), which is native, so that the lifeline has to free it; groups that torch
does not list; ranks on other hosts. An interrupt between the last look and the native call is not
seen: that, too, is left to the lifeline.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, Literal

import torch

from nbdist.errors import CollectiveAborted, CollectiveError, Kind
from nbdist.runtime import torch_private
from nbdist.runtime.agreement import Agreement, Resync
from nbdist.runtime.call_kinds import CallKind
from nbdist.runtime.calls import record_of, source_of
from nbdist.runtime.hooks import Call, Hooks, Issue
from nbdist.runtime.hooks import hooks as the_hooks
from nbdist.runtime.known_groups import KnownGroup, KnownGroups, device_of
from nbdist.runtime.meeting import StoreLike
from nbdist.runtime.messages import OPS as MESSAGES
from nbdist.runtime.messages import Messages
from nbdist.runtime.open_calls import OpenCall, OpenCalls, OpenCollective
from nbdist.runtime.outlook import Outlook, error_of
from nbdist.runtime.signature import Signature
from nbdist.runtime.slots import ABANDONED, ASYNC, IDLE, ISSUED, WAITING
from nbdist.runtime.table import Cancellation, Table
from nbdist.runtime.trace import CallTrace, Entry
from nbdist.runtime.turn import Turn
from nbdist.runtime.wording import where_text
from nbdist.wire import CallCount

Mode = Literal["on", "trace", "off"]
MODES: tuple[Mode, ...] = ("on", "trace", "off")

DEATH_PATIENCE_S = 1.0  # the end of a peer may be felt here before its reason is told

# Returns by itself when somebody does not come: waiting for everybody would make it useless.
_NEVER_WAITED = frozenset({"monitored_barrier_"})


class Guard:
    """Stands before the collectives of one rank. `install` makes it see them."""

    def __init__(
        self, table: Table, rank: int, *, mode: Mode = "on", hooks: Hooks = the_hooks
    ) -> None:
        self.table = table
        self.rank = rank
        self._mode: Mode = mode
        self._hooks = hooks
        self._outlook = Outlook(table)
        self.open_calls = OpenCalls(table, rank, self._outlook, self._group_timeout_s)
        self._messages = Messages(table, self._outlook, self.open_calls)
        self._groups = KnownGroups(table, rank, self._messages.release)
        self._agreement = Agreement(table, rank, self._groups, self._messages, self._outlook)
        self._counts: dict[tuple[str, KnownGroup], list[int]] = {}
        self._cell: int | None = None
        self.trace = CallTrace()

    def __repr__(self) -> str:
        return f"<Guard of rank {self.rank}, {self._mode}, {len(self._groups.guarded())} groups>"

    def install(self) -> None:
        """Stand before every collective from now on."""
        self._hooks.install()
        self._hooks.listener = self.around
        self._hooks.witness, self._hooks.counter = self._groups.note_made, self._groups.num_made

    def close(self) -> None:
        """Look at nothing any more; may be called twice."""
        if self._hooks.listener == self.around:
            self._hooks.listener = self._hooks.witness = self._hooks.counter = None

    @property
    def mode(self) -> Mode:
        """``on``, ``trace`` (post and compare, never wait) or ``off``."""
        return self._mode

    def set_mode(self, mode: Mode) -> None:
        """Change the mode. To be called on all ranks at the same point between collectives."""
        if mode not in MODES:
            raise ValueError(f"the guard's mode is {mode!r}; it can be {', '.join(MODES)}.")
        self._mode = mode

    # The call ---------------------------------------------------------------------------------

    def around(self, call: Call, issue: Issue) -> Any:
        """Let *call* pass when the peers call the same; called by the hooks."""
        group = None if self._mode == "off" else self._groups.find(call)
        kind = None if group is None else group.kinds.of(call.op, call.args)
        if group is None or kind is None:
            return issue()
        if call.op in MESSAGES:
            return self._message(group, call, kind, issue)
        may_wait = self._mode == "on" and call.op not in _NEVER_WAITED
        waits = may_wait and not kind.is_async and not kind.is_doubtful
        with group.turn(may_wait=waits):
            if kind.is_doubtful:
                issue = _already(issue())
            entry = self._enter(group, call, kind, waits=waits)
            return self.trace.issue(entry, functools.partial(group.issue, entry.seq), issue)

    def _message(self, group: KnownGroup, call: Call, kind: CallKind, issue: Issue) -> Any:
        if kind.is_doubtful:
            issue = _already(issue())
        signature = kind.signature
        self._count(group, signature)
        frame = sys._getframe(1)
        source, is_async = source_of(frame), not torch_private.is_blocking_message(frame)
        entry = self.trace.post(
            group.key,
            signature,
            source,
            began=time.monotonic(),
            is_async=is_async,
            ends=_ends_of(group, call),
        )
        may_wait = self._mode == "on" and not is_async and not kind.is_doubtful
        timeout = functools.partial(self._timeout_s, group, call)
        try:
            message = self._messages.enter(
                group, call, signature, source, timeout, may_wait=may_wait
            )
        except BaseException:
            entry.fail()
            raise
        if message is None:
            return self.trace.issue(entry, _call, issue)
        entry.seq, entry.call = message.seq, message.call
        entry.may_go()
        return self.trace.issue(entry, message.issue, issue)

    def _enter(self, group: KnownGroup, call: Call, kind: CallKind, *, waits: bool) -> Entry:
        """Post a collective, compare it and wait as long as it has to."""
        signature = kind.signature
        self._count(group, signature)
        record = record_of(signature, source_of(sys._getframe(1)), 0 if waits else ASYNC)
        self._outlook.raise_if_cancelled(group, record, group.slot.seq(group.me) + 1)
        began = time.monotonic()
        seq = group.slot.post(group.me, record, phase=WAITING if waits else ISSUED)
        entry = self.trace.post(
            group.key, signature, record.source, began=began, seq=seq, is_async=kind.is_async
        )
        own_timeout_ms = int(call.args.get("timeout", -1))
        entry.call = open_call = OpenCollective(
            self.open_calls, group, signature, record, seq, own_timeout_ms
        )
        timeout = functools.partial(self._timeout_s, group, call)
        turn = Turn(self.table, self._outlook, open_call, signature, timeout)
        try:
            turn.compare()
            if waits:
                turn.wait()
        except BaseException:
            group.slot.flag(group.me, seq, ABANDONED)
            group.slot.set_phase(group.me, IDLE)
            entry.fail()
            raise
        entry.may_go()
        return entry

    def _timeout_s(self, known: KnownGroup, call: Call) -> float:
        own = int(call.args.get("timeout", -1))
        return own / 1000 if own >= 0 else self._group_timeout_s(known, device_of(call.args))

    def _group_timeout_s(self, known: KnownGroup, device: torch.device | None = None) -> float:
        """Return after how long the calls of a group fail; on any device when ``None``."""
        group = known.reference()
        if group is None:
            return math.inf
        in_use = self._hooks.in_use(group)
        devices = map(torch.device, known.backends) if device is None else [device]
        return min(torch_private.group_timeout(in_use, d).total_seconds() for d in devices)

    # After a failure --------------------------------------------------------------------------

    def cancel(
        self,
        reason: str,
        culprit: int | None = None,
        kind: Kind = "failed",
        *,
        of: int | None = None,
    ) -> None:
        """Say that this rank will not come any more: its cell has failed or was stopped.

        Args:
            reason: ``rank 1 raised ValueError: …``.
            culprit: The rank at which it began; this one when ``None``.
            kind: What it was.
            of: The rank that will not come, where it is another one.
        """
        began_at = self.rank if culprit is None else culprit
        self.table.cancel(reason, began_at, of=self.rank if of is None else of, kind=kind)

    def cancellation(self) -> Cancellation | None:
        """Return why some rank will not come, if that is so since the last `resync`."""
        return self._outlook.first()

    def cancellations(self) -> tuple[Cancellation, ...]:
        """Return why ranks will not come, one for each that has said so since the last `resync`."""
        return self._outlook.all()

    @property
    def cut(self) -> int:
        """What was cancelled up to this stamp is over."""
        return self._outlook.cut

    def explain(self, exc: BaseException) -> BaseException:
        """Return what *exc* is a consequence of: a native error, of the abort that freed this rank.

        To be called where an exception leaves a cell, before `cancel`; not with an error that the
        user's own code raised.
        """
        is_native = isinstance(exc, RuntimeError) and not isinstance(exc, CollectiveError)
        if not is_native and not isinstance(exc, CollectiveAborted):
            return exc
        told = self.open_calls.hopeless()
        if told is None and torch_private.is_lost_connection(exc):
            self._outlook.wait(DEATH_PATIENCE_S)
        cancellation = self.cancellation()
        if told is not None and (cancellation is None or cancellation.kind != "died"):
            return _caused(CollectiveError(told[1]), exc)
        if cancellation is None or cancellation.of == self.rank:
            return exc
        call = self._unmatched_call(cancellation.of)
        where = f"{call}, which was cut off; its tensors may be half written"
        return _caused(error_of(cancellation, where), exc)

    def calls_under_way(self, known: Iterable[OpenCall]) -> list[str]:
        """Name what may call something once it ends: the end of a call may run code of the user's.

        Any thread may ask. Unguarded, nobody knows.

        Args:
            known: Calls whose end is waited for.
        """
        if self._mode == "off":
            return ["calls that are not guarded"]
        waited_for = [call.slot for call in known]
        return [
            f"a call in group {group.name}"
            for group in self._groups.guarded()
            if _num_ahead(group) > sum(slot is group.slot for slot in waited_for)
        ]

    def _unmatched_call(self, rank: int | None) -> str:
        """Name the native call that waits for *rank*."""
        for group in self._groups.guarded():
            slot, me = group.slot, group.me
            if rank in group.key.ranks:
                num_ahead = slot.issued(me) - slot.issued(group.key.ranks.index(rank))
                seq = slot.seq(me) + 1 - num_ahead
                if num_ahead > 0 and (record := slot.record(me, seq)) is not None:
                    return where_text(record, group.name, seq)
        return "a native call"

    def has_unmatched(self, rank: int) -> bool:
        """Say whether a native call of this rank waits for one that *rank* will not make any more.

        Any thread may ask. Such a call never ends by itself.
        """
        for group in self._groups.guarded():
            if rank in group.key.ranks and rank != self.rank:
                other = group.slot.issued(group.key.ranks.index(rank))
                if other < group.slot.issued(group.me):
                    return True
        return any(
            channel.slot.key.ranks[channel.peer] == rank
            and channel.slot.issued(channel.peer) < channel.slot.issued(channel.me)
            for channel in self._messages.channels()
        )

    # Ranks without a group --------------------------------------------------------------------

    def begin_cell(self, cell_id: str) -> None:
        """Take note of the cell that runs; its name is the same on all ranks."""
        self._cell = int.from_bytes(blake2b(cell_id.encode(), digest_size=8).digest(), "big")

    def end_cell(self, *, has_group: bool) -> None:
        """Say that the cell is over, and whether this rank has left it without a group."""
        cell, self._cell = self._cell, None
        if cell is not None and not has_group:
            self.table.leave(self.rank, cell)

    def cancel_for_leavers(self) -> None:
        """Free this rank where it waits for one that has left this cell without a group.

        Any thread may call. Nobody is freed who does not wait: a cell that has destroyed its
        groups is a good end for all others.
        """
        cell = self._cell
        for rank in [] if cell is None else self.table.leavers(cell):
            if rank != self.rank and (self.has_unmatched(rank) or self._waits_for(rank)):
                self.cancel(
                    f"rank {rank} has destroyed its process groups (dist.destroy_process_group()) "
                    "and ended its cell",
                    rank,
                    of=rank,
                )

    def _waits_for(self, rank: int) -> bool:
        ends = [(g.slot, g.me) for g in self._groups.guarded()]
        ends += [(channel.slot, channel.me) for channel in self._messages.channels()]
        return any(
            rank in slot.key.ranks
            and slot.phase(me) == WAITING
            and slot.seq(slot.key.ranks.index(rank)) < slot.seq(me)
            for slot, me in ends
        )

    def resync(
        self, store: StoreLike, tag: str, *, is_broken: bool = False, is_fresh: bool = False
    ) -> Resync:
        """Agree with all other ranks to go on; see `Agreement.reach`."""
        return self._agreement.reach(store, tag, is_broken=is_broken, is_fresh=is_fresh)

    def rebuilt(self) -> None:
        """Forget what went to the native groups: they are new ones.

        To be called on all ranks, after the `resync` that said so and before the next call.
        """
        for slot in self.table.slots():
            slot.refresh()
            if self.rank in slot.key.ranks:
                slot.set_issued(slot.key.ranks.index(self.rank), 0)

    # Counting ---------------------------------------------------------------------------------

    def take_counts(self) -> tuple[CallCount, ...]:
        """Return what was called since the last time, in the order of first calls."""
        counts, self._counts = self._counts, {}
        return tuple(
            CallCount(op, group.name, group.key.ranks, count, size)
            for (op, group), (count, size) in counts.items()
        )

    def _count(self, group: KnownGroup, signature: Signature) -> None:
        count = self._counts.setdefault((signature.op, group), [0, 0])
        count[0] += 1
        count[1] += signature.size_bytes


def _num_ahead(group: KnownGroup) -> int:
    """Return how many calls of this rank are under way, as another has not begun them."""
    slot = group.slot
    return slot.issued(group.me) - min(map(slot.issued, range(group.size)))


def _caused(error: BaseException, exc: BaseException) -> BaseException:
    """Return *error* in place of *exc*, which is what it led to."""
    error.__cause__ = exc
    return error.with_traceback(exc.__traceback__)


def _ends_of(group: KnownGroup, call: Call) -> tuple[int, ...]:
    """Return sender and receiver of a message, in the world; the receiver alone takes from anybody.

    A rank that the group does not have is left out: torch says so.
    """
    peer = int(call.args.get("dst", call.args.get("src", -1)))
    ends = (group.me, peer) if call.op == "send" else (peer, group.me)
    return tuple(group.key.ranks[end] for end in ends if 0 <= end < group.size)


def _call(issue: Issue) -> Any:
    return issue()


def _already(result: Any) -> Issue:
    """Return what stands for a native call that was made before it was posted."""
    return lambda: result
