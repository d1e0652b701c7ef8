"""Compare one collective with those of the peers, and wait for them as long as it has to.

posted ──▶ compare with who is there ──▶ wait for the others ──▶ go on to the native call
                 │ differs: mismatch          │ somebody gave up, or will not come: raise
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NoReturn

from nbdist.errors import CollectiveMismatch, CollectiveTimeout, PeerFailed
from nbdist.runtime.open_calls import OpenCall
from nbdist.runtime.outlook import Outlook
from nbdist.runtime.signature import Signature, fits, has_to_wait
from nbdist.runtime.slots import ABANDONED, ASYNC, VOID, WENT_ON
from nbdist.runtime.table import Table
from nbdist.runtime.wording import mismatch_text, missing_text, where_text

SPIN_S = 50e-6  # a peer that is about to come needs no system call
PATIENCE_S = 0.05  # for a peer that a call with a root does not need
REASON_PATIENCE_S = 0.05  # until a peer that gave up has said why
TIMEOUT_SLICE_S = 0.05


class Turn:
    """One collective of one group, from its post to the native call."""

    def __init__(
        self,
        table: Table,
        outlook: Outlook,
        call: OpenCall,
        signature: Signature,
        timeout: Callable[[], float],
    ) -> None:
        self.group, self.record, self.seq = call.group, call.record, call.seq
        self.signature = signature
        self.pending = [member for member in range(self.group.size) if member != self.group.me]
        self._table, self._outlook, self._call, self._timeout = table, outlook, call, timeout

    def compare(self) -> None:
        """Compare with those who are there, and take them off the pending."""
        slot, has_given_up = self.group.slot, False
        for member in list(self.pending):
            if slot.seq(member) < self.seq:
                continue
            if self._differs(member):
                self._wait_for_others()
                if self._differs(member):  # torch may have refused it meanwhile
                    self._mismatch(member)
            entry = slot.peek(member, self.seq)
            # The ring has forgotten a call that passed long ago.
            if entry is None or not self._is_another(*entry):
                self.pending.remove(member)
                has_given_up |= entry is not None and bool(entry[1] & ABANDONED)
        if has_given_up:
            self._patience().wait_for_reason()

    def wait(self) -> None:
        """Wait for the pending ranks as long as this call has to."""
        if not self.pending:
            return
        slot, me = self.group.slot, self.group.me
        behind = {member for member in self.pending if slot.seq(member) < self.seq - 1}
        with self._patience(self._timeout) as patience:
            while not self.group.hurried and (
                has_to_wait(self.signature.root, me, self.pending, self.group.size)
                or (set(self.pending) - behind and patience.seconds < PATIENCE_S)
            ):
                word = slot.word
                self.compare()
                if not self.pending:
                    break
                patience.check()
                patience.sleep(word)
        if self.pending:
            slot.flag(me, self.seq, WENT_ON)
        self._look_again()

    def _look_again(self) -> None:
        """Some peer may have given up while others were still missing."""
        slot = self.group.slot
        for member in range(self.group.size):
            entry = slot.peek(member, self.seq) if member not in self.pending else None
            if entry is not None and entry[1] & ABANDONED and member != self.group.me:
                self._patience().wait_for_reason()

    def _patience(self, timeout: Callable[[], float] | None = None) -> Patience:
        return Patience(self._outlook, self._call, timeout)

    def _differs(self, member: int) -> bool:
        """Say whether *member* has made another call where it had to make this one."""
        entry = self.group.slot.peek(member, self.seq)
        if entry is None or self._is_another(*entry):
            return False
        if self.group.slot.void_key(member, self.seq) == self.record.key:
            return False  # it made the same one, which torch has refused
        return entry[0] != self.record.key or not self._amounts_fit(member)

    def _is_another(self, key: int, flags: int) -> bool:
        """Say whether a peer is at a call that counts for none, since torch has refused it.

        It was refused there, or it is the one that was refused here before this one.
        """
        if key == self.record.key:
            return False
        return bool(flags & VOID) or key == self.group.slot.void_key(self.group.me, self.seq)

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

    def _mismatch(self, member: int) -> NoReturn:
        text = mismatch_text(self.group.slot, self.seq, self.group.name)
        entry = self.group.slot.peek(member, self.seq)
        if entry is not None and entry[1] & (ASYNC | WENT_ON):
            # It is in the native call already and looks here only when something wakes it.
            rank = self.group.key.ranks[self.group.me]
            self._table.cancel(text, rank, of=rank, kind="mismatch")
        raise CollectiveMismatch(text)

    def _wait_for_others(self) -> None:
        """Give all ranks the time to say what they call, so that each is told of all of them."""
        slot, deadline = self.group.slot, time.perf_counter() + REASON_PATIENCE_S
        while min(map(slot.seq, range(self.group.size))) < self.seq:
            word, rest = slot.word, deadline - time.perf_counter()
            if rest <= 0:
                return
            slot.wait(self.group.me, word, rest)


class Patience:
    """One wait in Python: how long it has lasted, and what ends it."""

    def __init__(
        self, outlook: Outlook, call: OpenCall, timeout: Callable[[], float] | None = None
    ) -> None:
        self._outlook, self._call, self._timeout = outlook, call, timeout
        self._since = time.perf_counter()

    def __enter__(self) -> Patience:
        self._call.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._call.end()

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.perf_counter() - self._since

    def sleep(self, word: int) -> None:
        """Let a moment pass, or less if somebody posts after *word* was read."""
        if self.seconds < SPIN_S:
            os.sched_yield()
            return
        self._call.slot.wait(self._call.me, word, TIMEOUT_SLICE_S)

    def check(self) -> None:
        """Raise if there is nothing to wait for any more."""
        where = self._call
        failed = self._outlook.failure(where.group, where.record, where.seq)
        where.raise_if_hopeless()  # last: told to all before one can fail of it
        if failed is not None:
            raise failed
        if self._timeout is None or self.seconds < TIMEOUT_SLICE_S:
            return
        timeout_s = self._timeout()
        if self.seconds > timeout_s:
            raise CollectiveTimeout(
                f"{where_text(where.record, where.group.name, where.seq)} has waited for "
                f"{timeout_s:g} s, the timeout of the group.\n"
                f"{missing_text(where.slot, where.seq)}\n"
                "`timeout_s` in the config is how long the ranks wait for each other."
            )

    def wait_for_reason(self) -> NoReturn:
        """A peer has given this call up: say why, as soon as it has said so."""
        slot, me, seq = self._call.slot, self._call.me, self._call.seq
        while self.seconds < REASON_PATIENCE_S:
            word = slot.word
            self.check()
            slot.wait(me, word, REASON_PATIENCE_S)
        gone = [
            str(rank)
            for member, rank in enumerate(slot.key.ranks)
            if member != me
            and (entry := slot.peek(member, seq)) is not None
            and entry[1] & ABANDONED
        ]
        who = f"rank {gone[0]}" if len(gone) == 1 else f"ranks {', '.join(gone)}"
        raise PeerFailed(
            f"{who if gone else 'another rank'} gave up before this rank came.\n"
            f"This rank was in {where_text(self._call.record, self._call.group.name, seq)}.\n"
            "All variables of this rank are kept; the next cell works with the same groups.",
            culprit=int(gone[0]) if gone else -1,
        )
