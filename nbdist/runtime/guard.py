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

Not covered: `recv` without a source; the wait for an asynchronous call (`work.wait()`, DDP's own,
functional collectives), which is native, so that the lifeline has to free it; calls that torch
itself refuses on one rank only; groups that torch does not list; ranks on other hosts. An interrupt
between the last look and the native call is not seen: that, too, is left to the lifeline.
"""

from __future__ import annotations

import json
import os
import site
import sys
import sysconfig
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, Protocol

import torch

from nbdist.errors import (
    CollectiveAborted,
    CollectiveError,
    CollectiveMismatch,
    CollectiveTimeout,
    Kind,
    PeerFailed,
)
from nbdist.runtime import torch_private
from nbdist.runtime.hooks import Call, Hooks, Issue
from nbdist.runtime.hooks import hooks as the_hooks
from nbdist.runtime.signature import Signature, fits, has_to_wait, signature_of
from nbdist.runtime.table import (
    ABANDONED,
    ASYNC,
    IDLE,
    ISSUED,
    SPIN_S,
    WAITING,
    WENT_ON,
    Cancellation,
    GroupKey,
    Record,
    Slot,
    Table,
)
from nbdist.runtime.torch_private import ProcessGroup
from nbdist.wire import CallCount

Mode = Literal["on", "trace", "off"]
MODES: tuple[Mode, ...] = ("on", "trace", "off")

PATIENCE_S = 0.05  # for a peer that a call with a root does not need
REASON_PATIENCE_S = 0.05  # until a peer that gave up has said why
TIMEOUT_SLICE_S = 0.05

_MESSAGES = frozenset({"send", "recv_", "recv_any_source_"})
# Returns by itself when somebody does not come: waiting for everybody would make it useless.
_NEVER_WAITED = frozenset({"monitored_barrier_"})
_FAKES = frozenset({"fake", "threaded", "undefined"})
_LIBRARIES = tuple(
    {*site.getsitepackages(), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))}
    | {str(Path(__file__).parent), "<"}
)
_CELL_PREFIXES = ("In[", "run[")


class StoreLike(Protocol):
    """What the ranks agree through: torch's stores are one."""

    def set(self, key: str, value: str) -> None:
        """Write *value*."""

    def get(self, key: str) -> bytes:
        """Return what was written."""

    def check(self, keys: list[str]) -> bool:
        """Say whether all *keys* were written."""


@dataclass(frozen=True)
class Resync:
    """What the ranks found when they agreed to go on.

    Attributes:
        damaged: Names of the groups whose native calls do not match any more: one rank has started
            a call that another never will.
        is_broken: The groups of some rank were cut off.
    """

    damaged: tuple[str, ...] = ()
    is_broken: bool = False

    @property
    def needs_rebuild(self) -> bool:
        """Whether the groups have to be made anew before they are used again."""
        return self.is_broken or bool(self.damaged)


@dataclass
class _Group:
    """A group as this process sees it."""

    key: GroupKey
    slot: Slot
    me: int
    reference: weakref.ref[ProcessGroup]
    backends: Mapping[str, str]
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def size(self) -> int:
        return len(self.key.ranks)

    @property
    def name(self) -> str:
        return self.key.name


@dataclass
class _Channel:
    """Messages from one rank to another, as one of the two sees them.

    The k-th message sent with a tag meets the k-th received with it.
    """

    slot: Slot
    me: int
    num_absorbed: int
    mine: dict[int, deque[tuple[int, Record]]] = field(default_factory=dict)
    theirs: dict[int, deque[tuple[int, Record]]] = field(default_factory=dict)
    is_lost: bool = False

    @property
    def peer(self) -> int:
        return 1 - self.me


class Guard:
    """Stands before the collectives of one rank. `install` makes it see them."""

    def __init__(
        self,
        table: Table,
        rank: int,
        world_size: int,
        *,
        mode: Mode = "on",
        hooks: Hooks = the_hooks,
    ) -> None:
        self.table = table
        self.rank = rank
        self.world_size = world_size
        self._mode: Mode = mode
        self._hooks = hooks
        self._cut = max(table.cut, table.epoch)
        self._groups: dict[int, _Group | None] = {}
        self._references: dict[int, weakref.ref[ProcessGroup]] = {}
        self._incarnations: dict[tuple[str, tuple[int, ...]], int] = {}
        self._channels: dict[tuple[GroupKey, int, int], _Channel] = {}
        self._counts: dict[tuple[str, GroupKey], list[int]] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Guard of rank {self.rank}, {self._mode}, {len(self._groups)} groups>"

    def install(self) -> None:
        """Stand before every collective from now on."""
        self._hooks.install()
        self._hooks.listener = self.around

    def close(self) -> None:
        """Look at nothing any more; may be called twice."""
        if self._hooks.listener == self.around:
            self._hooks.listener = None

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
        group = None if self._mode == "off" else self._group(call)
        if group is None:
            return issue()
        if call.op in _MESSAGES:
            return self._message(group, call, issue)
        with group.lock:  # two threads in one group: one after the other, as their numbers are
            self.enter(group, call)
            result = issue()
            group.slot.set_issued(group.me, group.slot.issued(group.me) + 1)
            group.slot.set_phase(group.me, ISSUED)
        return result

    def enter(self, group: _Group, call: Call) -> None:
        """Post a collective, compare it and wait as long as it has to.

        Raises:
            CollectiveMismatch: A peer calls something else.
            PeerFailed: A peer will not come.
            CollectiveTimeout: The group's timeout is over.
        """
        signature = signature_of(call.op, call.args, rank=group.me, size=group.size)
        self._count(signature, group)
        is_async = call.args.get("async_op", True) and call.op != "monitored_barrier_"
        waits = self._mode == "on" and not is_async and call.op not in _NEVER_WAITED
        record = _record(signature, _source(sys._getframe(1)), 0 if waits else ASYNC)
        self.raise_if_cancelled(group, record, group.slot.seq(group.me) + 1)
        seq = group.slot.post(group.me, record, phase=WAITING if waits else ISSUED)
        turn = _Turn(self, group, call, signature, record, seq)
        try:
            turn.compare()
            if waits:
                turn.wait()
        except BaseException:
            group.slot.flag(group.me, seq, ABANDONED)
            group.slot.set_phase(group.me, IDLE)
            raise

    def in_use(self, group: ProcessGroup) -> ProcessGroup:
        """Return the native group that the calls of *group* go to."""
        return self._hooks.in_use(group)

    def raise_if_cancelled(self, group: _Group, record: Record, seq: int) -> None:
        """Raise if some rank of *group* will not come any more."""
        if self.table.epoch <= self._cut:
            return
        cancellation = self.table.cancellation(group.key.ranks, self._cut)
        if cancellation is not None:
            where = f"{where_text(record, group.name, seq)}; nothing was sent"
            raise_cancelled(cancellation, where)

    # Messages between two ranks ---------------------------------------------------------------

    def _message(self, group: _Group, call: Call, issue: Issue) -> Any:
        channel = self._enter_message(group, call)
        result = issue()
        if channel is not None:
            channel.slot.set_issued(channel.me, channel.slot.issued(channel.me) + 1)
            channel.slot.set_phase(channel.me, ISSUED)
        return result

    def _enter_message(self, group: _Group, call: Call) -> _Channel | None:
        signature = signature_of(call.op, call.args, rank=group.me, size=group.size)
        self._count(signature, group)
        if call.op == "recv_any_source_":
            group.slot.set_takes_from_any(group.me, True)
            return None
        is_sender = call.op == "send"
        peer = int(call.args["dst" if is_sender else "src"])
        receiver = peer if is_sender else group.me
        if not 0 <= peer < group.size or peer == group.me:
            return None  # torch says so
        frame = sys._getframe(2)
        waits = (
            self._mode == "on"
            and group.backends.get("cpu") == "gloo"  # its sends end when the receiver has come
            and call.args["tensors"][0].device.type == "cpu"
            and torch_private.is_blocking_message(frame)
        )
        record = _record(
            signature, _source(frame), 0 if waits else ASYNC, tag=int(call.args["tag"])
        )
        with self._lock:
            channel = self._channel(group, peer, is_sender=is_sender)
        if channel.is_lost or group.slot.takes_from_any(receiver):
            return None
        self.raise_if_cancelled(group, record, channel.slot.seq(channel.me) + 1)
        self._meet(group, channel, record, receiver, waits=waits)
        return channel

    def _meet(
        self, group: _Group, channel: _Channel, record: Record, receiver: int, *, waits: bool
    ) -> None:
        slot, tag = channel.slot, record.tag
        seq = slot.post(channel.me, record, phase=WAITING if waits else ISSUED)
        channel.mine.setdefault(tag, deque()).append((seq, record))
        patience = _Patience(self, group, record, seq)
        try:
            while True:
                word = slot.word
                met = _absorb(channel, tag, seq)
                if met is not None and met.key != record.key:
                    self._message_mismatch(channel, record, met, group.name)
                if met is not None and met.flags & ABANDONED:
                    patience.wait_for_reason()
                is_over = met is not None or channel.is_lost or group.slot.takes_from_any(receiver)
                if is_over or not waits:
                    return
                patience.check()
                patience.sleep(slot, channel.me, word)
        except BaseException:
            slot.flag(channel.me, seq, ABANDONED)
            slot.set_phase(channel.me, IDLE)
            raise

    def _message_mismatch(
        self, channel: _Channel, mine: Record, theirs: Record, group: str
    ) -> NoReturn:
        text = message_mismatch_text(channel, mine, theirs, group)
        if theirs.flags & ASYNC:  # it is in the native call already
            self.table.cancel(text, self.rank, of=self.rank, kind="mismatch")
        raise CollectiveMismatch(text)

    def _channel(self, group: _Group, peer: int, *, is_sender: bool) -> _Channel:
        ends = (group.me, peer) if is_sender else (peer, group.me)
        channel = self._channels.get((group.key, *ends))
        if channel is None:
            ranks = tuple(group.key.ranks[end] for end in ends)
            key = GroupKey(group.name, ranks, group.key.incarnation, "p2p")
            me = 0 if is_sender else 1
            slot = self.table.slot(key, me)
            # The peer may have posted already: those are to be met. What lies before the latest
            # agreement was marked as met by `resync`, which knows every channel there is.
            channel = _Channel(slot, me, num_absorbed=slot.seq(me))
            self._channels[(group.key, *ends)] = channel
        return channel

    # Groups -----------------------------------------------------------------------------------

    def _group(self, call: Call) -> _Group | None:
        """Return what is known of the call's group; ``None`` where there is nothing to guard."""
        reference = self._references.get(id(call.group))
        if reference is None or reference() is not call.group:
            with self._lock:
                self._groups[id(call.group)] = self._meet_group(call.group)
                self._references[id(call.group)] = weakref.ref(call.group)
        group = self._groups[id(call.group)]
        return group if group is not None and _is_real(call.args) else None

    def _meet_group(self, group: ProcessGroup) -> _Group | None:
        ranks = torch_private.group_ranks(group)
        backends = torch_private.group_backends(group)
        if ranks is None or len(ranks) < 2 or self.rank not in ranks:
            return None
        if _FAKES & set(backends.values()) or max(ranks) >= self.world_size:
            return None
        self._release_destroyed()
        name = (group.group_name, ranks)
        known = [g for g in self._groups.values() if g and (g.key.name, g.key.ranks) == name]
        incarnation = self._incarnations.get(name, 0) + bool(known)
        self._incarnations[name] = incarnation
        key = GroupKey(group.group_name, ranks, incarnation)
        me = ranks.index(self.rank)
        return _Group(key, self.table.slot(key, me), me, weakref.ref(group), backends)

    def _release_destroyed(self) -> None:
        """Give back the slots of groups that were destroyed."""
        for number, group in list(self._groups.items()):
            alive = None if group is None else group.reference()
            if group is None or (alive is not None and torch_private.is_living(alive)):
                continue
            group.slot.hold(group.me, is_held=False)
            name = (group.key.name, group.key.ranks)
            self._incarnations[name] = group.key.incarnation + 1
            for ends in [ends for ends in self._channels if ends[0] == group.key]:
                channel = self._channels.pop(ends)
                channel.slot.hold(channel.me, is_held=False)
            del self._groups[number], self._references[number]

    # After a failure --------------------------------------------------------------------------

    def cancel(self, reason: str, culprit: int | None = None, kind: Kind = "failed") -> None:
        """Say that this rank will not come any more: its cell has failed or was stopped.

        Args:
            reason: ``rank 1 raised ValueError: …``.
            culprit: The rank at which it began; this one when ``None``.
            kind: What it was.
        """
        began_at = self.rank if culprit is None else culprit
        self.table.cancel(reason, began_at, of=self.rank, kind=kind)

    def cancellation(self) -> Cancellation | None:
        """Return why some rank will not come, if that is so since the last `resync`."""
        return self.table.cancellation(range(self.world_size), self._cut)

    def cancellations(self) -> tuple[Cancellation, ...]:
        """Return why ranks will not come, one for each that has said so since the last `resync`."""
        found = (self.table.cancellation([rank], self._cut) for rank in range(self.world_size))
        return tuple(dict.fromkeys(cancel for cancel in found if cancel is not None))

    @property
    def cut(self) -> int:
        """What was cancelled up to this stamp is over."""
        return self._cut

    def explain(self, exc: BaseException) -> BaseException:
        """Return what *exc* is a consequence of: a native error, of the abort that freed this rank.

        To be called where an exception leaves a cell, before `cancel`.
        """
        cancellation = self.cancellation()
        is_native = isinstance(exc, RuntimeError) and not isinstance(exc, CollectiveError)
        if not is_native and not isinstance(exc, CollectiveAborted):
            return exc
        if cancellation is None or cancellation.of == self.rank:
            return exc
        try:
            raise_cancelled(
                cancellation, "a native call, which was cut off; its tensors may be half written"
            )
        except CollectiveError as cause:
            cause.__cause__ = exc
            return cause.with_traceback(exc.__traceback__)

    def has_unmatched(self, rank: int) -> bool:
        """Say whether a native call of this rank waits for one that *rank* will not make any more.

        Any thread may ask. Such a call never ends by itself.
        """
        with self._lock:
            groups = [group for group in self._groups.values() if group is not None]
            channels = list(self._channels.values())
        for group in groups:
            if rank in group.key.ranks and rank != self.rank:
                other = group.slot.issued(group.key.ranks.index(rank))
                if other < group.slot.issued(group.me):
                    return True
        return any(
            channel.slot.key.ranks[channel.peer] == rank
            and channel.slot.issued(channel.peer) < channel.slot.issued(channel.me)
            for channel in channels
        )

    def resync(
        self,
        store: StoreLike,
        tag: str,
        *,
        is_broken: bool = False,
        ranks: Sequence[int] | None = None,
        timeout_s: float = 30.0,
    ) -> Resync:
        """Agree with the other ranks to go on: on the next numbers, and that what failed is over.

        Uses no process group, and comes before a rebuild: from here on what was cancelled is over.
        To be called on all *ranks* outside of any collective, in the main thread, by a fresh rank
        before it has a group as well; SIGINT ends it.

        Args:
            store: Where the ranks meet.
            tag: Names this meeting, alike on all ranks and never used before.
            is_broken: The groups of this rank were cut off.
            ranks: Those that take part; all when ``None``.
            timeout_s: How long to wait for them.

        Raises:
            PeerFailed: One of them has died meanwhile.
            CollectiveTimeout: One of them has not come.
        """
        others = range(self.world_size) if ranks is None else ranks
        mine = {**self._state(), "broken": is_broken}
        store.set(f"{tag}/{self.rank}", json.dumps(mine))
        states = [
            self._read(store, f"{tag}/{rank}", rank, mine["cut"], timeout_s) for rank in others
        ]
        damaged = self._adopt(states)
        self._cut = max(state["cut"] for state in states)
        self.table.agree(self._cut)
        return Resync(damaged, any(state["broken"] for state in states))

    def rebuilt(self) -> None:
        """Forget what went to the native groups: they are new ones.

        To be called on all ranks, after the `resync` that said so and before the next call.
        """
        for slot in self.table.slots():
            slot.refresh()
            if self.rank in slot.key.ranks:
                slot.set_issued(slot.key.ranks.index(self.rank), 0)

    def _state(self) -> dict[str, Any]:
        with self._lock:
            self._release_destroyed()
            slots = [(g.key, g.slot, g.me) for g in self._groups.values() if g is not None]
            slots += [(c.slot.key, c.slot, c.me) for c in self._channels.values()]
        entries = {key.to_text(): [slot.seq(me), slot.issued(me)] for key, slot, me in slots}
        return {"cut": self.table.epoch, "slots": entries}

    def _read(
        self, store: StoreLike, key: str, rank: int, cut: int, timeout_s: float
    ) -> dict[str, Any]:
        deadline, pause = time.monotonic() + timeout_s, 0.0005
        while not store.check([key]):  # `get` would block where no signal reaches
            died = self.table.cancellation([rank], cut)
            if died is not None and died.kind == "died":
                raise_cancelled(died, "the ranks were agreeing to go on")
            if time.monotonic() > deadline:
                raise CollectiveTimeout(
                    f"rank {rank} did not come within {timeout_s:g} s to agree to go on.\n"
                    "`%dist status` says what it does; `%dist restart` starts all ranks anew."
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        state: dict[str, Any] = json.loads(store.get(key))
        return state

    def _adopt(self, states: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Go on after the highest numbers of all; return the groups whose native calls differ."""
        found: dict[str, list[list[int]]] = {}
        for state in states:
            for text, entry in state["slots"].items():
                found.setdefault(text, []).append(entry)
        damaged = set()
        for text, entries in found.items():
            key = GroupKey.from_text(text)
            issued = {entry[1] for entry in entries}
            if len(entries) < len(key.ranks):
                issued.add(0)  # a rank that has never used it
            if len(issued) > 1:
                damaged.add(key.name)
            if self.rank in key.ranks:
                self._go_on_after(key, max(entry[0] for entry in entries))
        return tuple(sorted(damaged))

    def _go_on_after(self, key: GroupKey, seq: int) -> None:
        me = key.ranks.index(self.rank)
        with self._lock:
            slot = self.table.slot(key, me)
            slot.set_seq(me, seq)
            if key.kind == "group":
                name = (key.name, key.ranks)
                self._incarnations[name] = max(key.incarnation, self._incarnations.get(name, 0))
                slot.set_takes_from_any(me, False)
                return
            for channel in self._channels.values():
                if channel.slot is slot:
                    channel.num_absorbed = seq
                    channel.mine, channel.theirs, channel.is_lost = {}, {}, False

    # Counting ---------------------------------------------------------------------------------

    def take_counts(self) -> tuple[CallCount, ...]:
        """Return what was called since the last time, in the order of first calls."""
        counts, self._counts = self._counts, {}
        return tuple(
            CallCount(op, key.name, key.ranks, count, size)
            for (op, key), (count, size) in counts.items()
        )

    def _count(self, signature: Signature, group: _Group) -> None:
        count = self._counts.setdefault((signature.op, group.key), [0, 0])
        count[0] += 1
        count[1] += signature.size_bytes


class _Turn:
    """One collective of one group, from its post to the native call."""

    def __init__(
        self,
        guard: Guard,
        group: _Group,
        call: Call,
        signature: Signature,
        record: Record,
        seq: int,
    ) -> None:
        self.group, self.signature, self.record, self.seq = group, signature, record, seq
        self.pending = [member for member in range(group.size) if member != group.me]
        self._guard, self._call = guard, call

    def compare(self) -> None:
        """Compare with those who are there, and take them off the pending."""
        slot, has_given_up = self.group.slot, False
        for member in list(self.pending):
            if slot.seq(member) < self.seq:
                continue
            self.pending.remove(member)
            entry = slot.peek(member, self.seq)
            if entry is None:  # the ring has forgotten it: it passed long ago
                continue
            key, flags = entry
            if key != self.record.key or not self._amounts_fit(member):
                self._mismatch(flags)
            has_given_up |= bool(flags & ABANDONED)
        if has_given_up:
            _Patience(self._guard, self.group, self.record, self.seq).wait_for_reason()

    def wait(self) -> None:
        """Wait for the pending ranks as long as this call has to."""
        if not self.pending:
            return
        slot, me = self.group.slot, self.group.me
        behind = {member for member in self.pending if slot.seq(member) < self.seq - 1}
        patience = _Patience(self._guard, self.group, self.record, self.seq, self._timeout)
        while has_to_wait(self.signature.root, me, self.pending, self.group.size) or (
            set(self.pending) - behind and patience.seconds < PATIENCE_S
        ):
            word = slot.word
            self.compare()
            if not self.pending:
                break
            patience.check()
            patience.sleep(slot, me, word)
        if self.pending:
            slot.flag(me, self.seq, WENT_ON)
        self._look_again()

    def _look_again(self) -> None:
        """Some peer may have given up while others were still missing."""
        slot = self.group.slot
        for member in range(self.group.size):
            entry = slot.peek(member, self.seq) if member not in self.pending else None
            if entry is not None and entry[1] & ABANDONED and member != self.group.me:
                _Patience(self._guard, self.group, self.record, self.seq).wait_for_reason()

    def _timeout(self) -> float:
        own = int(self._call.args.get("timeout", -1))
        if own >= 0:
            return own / 1000
        group = self.group.reference()
        if group is None:
            return float("inf")
        in_use = self._guard.in_use(group)
        return torch_private.group_timeout(in_use, _device(self._call.args)).total_seconds()

    def _amounts_fit(self, member: int) -> bool:
        record = self.record
        if not record.gives and not record.takes:
            return True
        theirs = self.group.slot.record(member, self.seq)
        if theirs is None:
            return True
        me = self.group.me
        return fits(record.gives, theirs.takes, me, member) and fits(
            theirs.gives, record.takes, member, me
        )

    def _mismatch(self, flags: int) -> NoReturn:
        text = mismatch_text(self.group.slot, self.seq, self.group.name)
        if flags & (ASYNC | WENT_ON):
            # It is in the native call already and looks here only when something wakes it.
            self._guard.table.cancel(text, self._guard.rank, of=self._guard.rank, kind="mismatch")
        raise CollectiveMismatch(text)


class _Patience:
    """One wait: how long it has lasted, and what ends it."""

    def __init__(
        self,
        guard: Guard,
        group: _Group,
        record: Record,
        seq: int,
        timeout: Any = None,
    ) -> None:
        self._guard, self._group, self._record, self._seq = guard, group, record, seq
        self._timeout = timeout
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.perf_counter() - self._since

    def sleep(self, slot: Slot, member: int, word: int) -> None:
        """Let a moment pass, or less if somebody posts after *word* was read."""
        if self.seconds < SPIN_S:
            os.sched_yield()
            return
        slot.wait(member, word, TIMEOUT_SLICE_S)

    def check(self) -> None:
        """Raise if there is nothing to wait for any more."""
        self._guard.raise_if_cancelled(self._group, self._record, self._seq)
        if self._timeout is None or self.seconds < TIMEOUT_SLICE_S:
            return
        timeout_s = self._timeout()
        if self.seconds > timeout_s:
            raise CollectiveTimeout(
                f"{where_text(self._record, self._group.name, self._seq)} has waited for "
                f"{timeout_s:g} s, the timeout of the group.\n"
                f"{_missing_text(self._group, self._seq)}\n"
                "`timeout_s` in the config is how long the ranks wait for each other."
            )

    def wait_for_reason(self) -> NoReturn:
        """A peer has given this call up: say why, as soon as it has said so."""
        slot, me = self._group.slot, self._group.me
        while self.seconds < REASON_PATIENCE_S:
            word = slot.word
            self.check()
            slot.wait(me, word, REASON_PATIENCE_S)
        gone = [
            str(rank)
            for member, rank in enumerate(self._group.key.ranks)
            if member != me
            and (entry := slot.peek(member, self._seq)) is not None
            and entry[1] & ABANDONED
        ]
        who = f"rank {gone[0]}" if len(gone) == 1 else f"ranks {', '.join(gone)}"
        raise PeerFailed(
            f"{who if gone else 'another rank'} gave up before this rank came.\n"
            f"This rank was in {where_text(self._record, self._group.name, self._seq)}.\n"
            "All variables of this rank are kept; the next cell works with the same groups.",
            culprit=int(gone[0]) if gone else -1,
        )


# Texts ------------------------------------------------------------------------------------------


def where_text(record: Record, group: str, seq: int) -> str:
    """Say which call of which group this is, and where it stands."""
    place = f" at {record.source}" if record.source else ""
    return f"{record.text} (#{seq} of group {group}){place}"


def raise_cancelled(cancellation: Cancellation, where: str) -> NoReturn:
    """Raise what *cancellation* means to a rank that is at *where*.

    Raises:
        CollectiveMismatch: A peer has found that the ranks call different things.
        PeerFailed: Anything else.
    """
    if cancellation.kind == "mismatch":
        raise CollectiveMismatch(cancellation.reason)
    raise PeerFailed(
        f"{cancellation.reason}\n"
        f"This rank waited for it in {where}.\n"
        "All variables of this rank are kept; the next cell works with the same groups.",
        culprit=cancellation.culprit,
        kind=cancellation.kind,
    )


def mismatch_text(slot: Slot, seq: int, group: str) -> str:
    """Say what each rank calls as number *seq* of a group; ranks that agree share a line."""
    ranks_of: dict[str, list[str]] = {}
    for member, rank in enumerate(slot.key.ranks):
        record = slot.record(member, seq) if slot.seq(member) >= seq else None
        if record is not None:
            place = f" at {record.source}" if record.source else ""
            ranks_of.setdefault(f"{_full_text(record)}{place}", []).append(str(rank))
    lines = [
        f"  rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}: {text}"
        for text, ranks in ranks_of.items()
    ]
    return "\n".join(
        [
            f"the ranks of group {group} call different things as collective #{seq}:",
            *lines,
            "Every rank of a group has to call the same collectives in the same order, with equal "
            "dtype and number of elements. All variables are kept.",
        ]
    )


def _full_text(record: Record) -> str:
    """The call with the amounts it gives and takes, where ranks may differ in them."""
    amounts = [
        f"{name} {['*' if n < 0 else n for n in values]}".replace("'", "")
        for name, values in (("gives", record.gives), ("takes", record.takes))
        if any(n >= 0 for n in values)
    ]
    return " ".join([record.text, *amounts])


def message_mismatch_text(channel: _Channel, mine: Record, theirs: Record, group: str) -> str:
    """Say what is sent and what is received."""
    ranks = channel.slot.key.ranks
    sent, received = (mine, theirs) if channel.me == 0 else (theirs, mine)
    return (
        f"rank {ranks[1]} receives something else than rank {ranks[0]} sends, in group {group}:\n"
        f"  rank {ranks[0]}: {sent.text}{_at(sent)}\n"
        f"  rank {ranks[1]}: {received.text}{_at(received)}\n"
        "Both need equal dtype and number of elements. All variables are kept."
    )


def _at(record: Record) -> str:
    return f" at {record.source}" if record.source else ""


def _missing_text(group: _Group, seq: int) -> str:
    ranks = [
        str(rank) for member, rank in enumerate(group.key.ranks) if group.slot.seq(member) < seq
    ]
    who = f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(ranks)} have"
    return f"{who} not come."


# Small parts ------------------------------------------------------------------------------------


def _record(signature: Signature, source: str, flags: int, tag: int = 0) -> Record:
    return Record(
        key=signature.key,
        text=signature.text,
        source=source,
        size_bytes=signature.size_bytes,
        flags=flags,
        tag=tag,
        gives=signature.gives,
        takes=signature.takes,
    )


def _source(frame: FrameType | None) -> str:
    """Return the line of the innermost cell below *frame*; without one, that of the user's file."""
    fallback = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_CELL_PREFIXES):
            return f"{name}:{frame.f_lineno}"
        if not fallback and not name.startswith(_LIBRARIES):
            fallback = f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return fallback


def _is_real(args: Mapping[str, Any]) -> bool:
    """Say whether the call moves data: not while a compiler traces it."""
    return all(torch_private.is_real(tensor) for tensor in _first_tensors(args))


def _first_tensors(args: Mapping[str, Any]) -> list[torch.Tensor]:
    found = []
    for value in args.values():
        while isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, torch.Tensor):
            found.append(value)
    return found


def _device(args: Mapping[str, Any]) -> torch.device:
    return next((tensor.device for tensor in _first_tensors(args)), torch.device("cpu"))


def _absorb(channel: _Channel, tag: int, seq: int) -> Record | None:
    """Take in what the peer has posted; return what message *seq* with *tag* meets, once there."""
    slot, last = channel.slot, channel.slot.seq(channel.peer)
    for number in range(channel.num_absorbed + 1, last + 1):
        record = slot.record(channel.peer, number)
        if record is None:
            channel.is_lost = True  # too far behind to know which meets which
            return None
        channel.theirs.setdefault(record.tag, deque()).append((number, record))
    channel.num_absorbed = last
    mine, theirs = channel.mine.get(tag), channel.theirs.get(tag)
    while mine and theirs:
        own, _ = mine.popleft()
        number, record = theirs.popleft()
        if own == seq:
            _forget_empty(channel, tag)
            entry = slot.peek(channel.peer, number)
            flags = record.flags if entry is None else entry[1]
            return Record(**{**record.__dict__, "flags": flags})
    return None


def _forget_empty(channel: _Channel, tag: int) -> None:
    for queues in (channel.mine, channel.theirs):
        if tag in queues and not queues[tag]:
            del queues[tag]
