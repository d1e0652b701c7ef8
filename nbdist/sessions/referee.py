"""End the calls to which nobody can come any more, in the cells that the prompt waits for.

    agent ──table──▶ somebody is ahead of others? ──▶ ask ranks, twice ──▶ hopeless
                                     agent ◀── end these calls, for this reason ──┘

One daemon thread a session, beside the monitor's: what that waits for must not make this late. No
rank is asked as long as none waits. What goes wrong here costs nobody a cell: the hang is shown by
the monitor, as it is where anything is in doubt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from nbdist.launchers.start import Processes
from nbdist.sessions.certainty import RankOutlook, hopeless, may_wait_in_vain
from nbdist.sessions.diagnosis import explain
from nbdist.sessions.run import Run
from nbdist.sessions.states import prospects
from nbdist.sessions.transport import RankClient
from nbdist.sessions.unanswered import Unanswered
from nbdist.view.hang import certain_text
from nbdist.wire import BlockedCall, GroupCall

logger = logging.getLogger(__name__)

LOOK_S = 0.2
ANSWER_S = 0.3
PAUSE_S = 0.1  # between the two looks that have to agree


class Referee:
    """Watches the cells that are awaited; `start` and `close` its thread.

    Args:
        processes: Of the session.
        client: The connection to its ranks.
        unanswered: What the ranks have still to do.
        on_ending: Called when calls were ended: the ranks have to agree to go on after that, even
            where the program catches the errors.
    """

    def __init__(
        self,
        processes: Processes,
        client: RankClient,
        unanswered: Unanswered,
        on_ending: Callable[[], None],
    ) -> None:
        self._processes, self._client, self._unanswered = processes, client, unanswered
        self._on_ending = on_ending
        self._awaited: dict[Run, dict[int, int]] = {}  # the calls that were ended, by rank
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="nbdist-referee", daemon=True)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed.is_set() else f"of {len(self._awaited)} cells"
        return f"<Referee {state}>"

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._is_closed.set()

    @contextmanager
    def watching(self, run: Run) -> Iterator[None]:
        """Watch *run* meanwhile: somebody waits for it and starts nothing else."""
        self._awaited[run] = {}
        try:
            yield
        finally:
            del self._awaited[run]

    def _watch(self) -> None:
        while not self._is_closed.wait(LOOK_S):
            for run, ended in list(self._awaited.items()):
                if run.done or run.age_s < LOOK_S or run.is_stopping:
                    continue
                try:
                    self._look(run, ended)
                except Exception:  # the edge of a thread
                    logger.exception("looking for who waits in vain has failed")

    def _look(self, run: Run, ended: dict[int, int]) -> None:
        found = self._hopeless(run)
        calls = {rank: call for rank, call in found.items() if ended.get(rank) != call.number}
        if not calls:
            return
        how = {rank: run.ending_of(rank) for rank in run.ranks}
        diagnosis = explain(run.request.label, run.ranks, calls, how)
        numbers = {rank: call.number for rank, call in calls.items()}
        ended |= numbers
        self._on_ending()
        self._processes.link.send("end calls", numbers=numbers, reason=certain_text(diagnosis))

    def _hopeless(self, run: Run) -> Mapping[int, BlockedCall]:
        state = self._processes.ask_state(ANSWER_S)
        calls = [GroupCall.from_json(call) for call in state.get("calls", ())]
        ranks = may_wait_in_vain(calls, run.running_ranks, time.time())
        if not ranks:
            return {}
        cell_id = run.request.cell_id
        first = self._outlooks(ranks)
        if not hopeless(cell_id, first, first) or self._is_closed.wait(PAUSE_S):
            return {}
        return hopeless(cell_id, first, self._outlooks(ranks))

    def _outlooks(self, ranks: frozenset[int]) -> list[RankOutlook]:
        """Ask *ranks* what they may still come to; what they have to do is looked up before."""
        living = set(range(self._processes.plan.nproc)) - set(self._processes.exits)
        busy = self._unanswered.busy(living)
        found = prospects(self._client, ranks & living, ANSWER_S)
        busy = (*busy, *self._unanswered.busy(living))
        return [
            RankOutlook(rank, rank in busy or rank not in living, found.get(rank)) for rank in ranks
        ]
