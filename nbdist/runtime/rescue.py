"""Free this rank from a native call that a failed peer has left it in.

    table: somebody will not come ──▶ does a native call here wait for it? ──▶ lifeline: abort

Asynchronous calls pass the guard without waiting, so a rank can be in the native half of one when a
peer fails; nothing but the end of its connections frees it. Whether it is can be told exactly: it
has issued a call that the peer has not issued, and will not. The same goes for who makes a group
with it. Ranks that wait in the guard are freed by the guard, and their groups stay as they are.

A peer that has destroyed its groups and ended its cell will not come either. Nobody is told then:
for most it is a good end. Who waits for it finds out here. And where the session is certain that
nobody can come to the call that this rank waits in, that one is cut off.

Not covered: a call that both have issued and one of them left; the monitor sees that as a hang.
"""

from __future__ import annotations

import logging
import threading

from nbdist.runtime.guard import Guard
from nbdist.runtime.lifeline import Lifeline
from nbdist.runtime.table import Cancellation

logger = logging.getLogger(__name__)

SETTLE_S = 0.002  # the failed rank's last call may be on its way from the guard to the group
LOOK_AGAIN_S = 0.05
CONNECT_PATIENCE_S = 0.05  # the failed rank may have done its part in a group that is being made
IDLE_S = 1.0


class Rescue:
    """A daemon thread that sleeps until somebody fails; `close` stops it."""

    def __init__(self, guard: Guard, lifeline: Lifeline) -> None:
        self._guard = guard
        self._lifeline = lifeline
        self._handled = 0  # stamp of the latest that was acted on
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nbdist-rescue", daemon=True)

    def __repr__(self) -> str:
        return f"<Rescue of rank {self._guard.rank}, {'closed' if self.is_closed else 'watching'}>"

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        """Whether nobody watches any more."""
        return self._is_closed.is_set()

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._is_closed.set()

    def _run(self) -> None:
        while not self.is_closed:
            try:
                if self._guard.table.wait_for_cancel(self._guard.cut, IDLE_S):
                    self._look()
                else:
                    self._guard.cancel_for_leavers()
            except Exception:  # the edge of a thread; without it nobody is freed any more
                logger.exception("looking for a rank to free has failed")
                self._is_closed.wait(LOOK_AGAIN_S)

    def _look(self) -> None:
        generation = self._lifeline.generation
        self._is_closed.wait(SETTLE_S)
        if (reason := self._hopeless()) is not None:
            self._lifeline.abort(reason, generation=generation)
        for cancellation in self._guard.cancellations():
            # Once for each: the groups may be new ones before the ranks have agreed to go on.
            if cancellation.stamp > self._handled and self._needs_abort(cancellation):
                if self._lifeline.generation != generation:
                    return  # they are being made anew: look again at the new ones
                self._handled = cancellation.stamp
                self._lifeline.abort(cancellation.reason, generation=generation)
                break
        self._is_closed.wait(LOOK_AGAIN_S)

    def _hopeless(self) -> str | None:
        """Return why nobody comes to the native call that is waited for, if that was told."""
        told, current = self._guard.open_calls.hopeless(), self._guard.open_calls.current
        if told is None or self._lifeline.aborted is not None:
            return None
        number, reason = told
        native = self._lifeline.native_calls(current)
        return reason if number in [call.number for call in native] else None

    def _needs_abort(self, cancellation: Cancellation) -> bool:
        if self._lifeline.aborted is not None or cancellation.of is None:
            return False
        if cancellation.of == self._guard.rank:
            return False
        if cancellation.kind == "died" or self._guard.has_unmatched(cancellation.of):
            return True
        return self._lifeline.connecting_s > CONNECT_PATIENCE_S
