"""How the fault tests speak: what happens to a cell, and what has to be true afterwards.

    with workshop(3) as shop:
        run = shop.run("if rank == 1: raise ValueError('the bug')\ndist.barrier()")
        shop.ends(run)
        shop.blames(run, 1, "raised ValueError: the bug")
        shop.works()

Every session is made once for a test module, and used by all of its cases.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nbdist import wire
from nbdist.sessions.recovery import RecoveryReport
from nbdist.sessions.run import Run
from nbdist.sessions.session import RankSpec, Session
from nbdist.wire import Snapshot
from tests.processes import describe, wait_for_end
from tests.sessions.driving import error, processes_of, ranks, statuses, values
from tests.waiting import wait_until

PROMPT_S = 5.0  # where the budget is 1 s: others use the machine as well
CELL = (Path(__file__).parent / "workshop_cell.py").read_text()


class Workshop:
    """A session whose ranks have one of each kind of object that has to survive.

    Attributes:
        session: The session.
        all: Its ranks.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.all = tuple(range(session.world_size))
        session.run(CELL, want_value=False).result(30)
        self._expected = values(session, "everything()")
        self._objects = values(session, "objects()")

    def run(self, code: str, where: RankSpec = None) -> Run:
        return self.session.run(code, where)

    def ends(self, run: Run, timeout_s: float = PROMPT_S) -> Run:
        """Wait until *run* is over, which has to be soon."""
        assert run.wait(timeout_s), f"not over after {timeout_s} s: {self.describe(run)}"
        return run

    def stops(self, run: Run) -> None:
        """Press the stop button; the cell has to be over soon, on all ranks, and not be ok."""
        began = time.monotonic()
        stuck = self.session.stop_run(run, "The cell was stopped")
        took_s = time.monotonic() - began
        assert stuck == (), self.describe(run)
        assert took_s < PROMPT_S
        assert set(statuses(run)) == {"stopped"}, self.describe(run)

    def blames(self, run: Run, culprit: int, how: str, among: Iterable[int] | None = None) -> None:
        """Assert that every other rank was freed and says who it waited for.

        Args:
            run: What is over.
            culprit: The rank that failed.
            how: What it did: ``raised ValueError: the bug``.
            among: The ranks that waited; all others when ``None``.
        """
        for rank in among if among is not None else set(run.ranks) - {culprit}:
            found = error(run, rank)
            assert found.ename == "PeerFailed", (rank, self.describe(run))
            assert found.evalue.startswith(f"rank {culprit} {how}"), (rank, found.evalue)
            assert found.waited_for == culprit, (rank, found)

    def works(self) -> None:
        """Assert that the same objects work on all ranks, and that nothing was lost."""
        found = list(self.ends(self.session.run("everything()")).result())
        assert found == self._expected
        assert values(self.session, "objects()") == self._objects

    def recovers(self) -> RecoveryReport:
        """Replace the dead ranks, and equip them; the others go on with what they have."""
        dead = self.session.dead_ranks
        report = self.session.recover()
        assert report.replaced == dead
        self.equip(dead)
        return report

    def equip(self, fresh: tuple[int, ...]) -> None:
        """Give fresh ranks what the workshop's have; other pids and objects are expected there."""
        if not fresh:
            return
        self.ends(self.session.run(CELL, fresh, want_value=False)).raise_failure()
        fresh_values = values(self.session, "everything()")
        fresh_objects = values(self.session, "objects()")
        for rank in fresh:
            old, new = self._expected[rank], fresh_values[rank]
            assert old[:-1] == new[:-1]
            assert old[-1] != new[-1]
            self._expected[rank], self._objects[rank] = new, fresh_objects[rank]

    def is_free(self) -> None:
        """Wait until no rank has anything to do that it was told before."""
        wait_until(lambda: not self.session.busy_ranks, "all ranks to be free")

    def wait_until_within(self, run: Run, ranks: Iterable[int]) -> None:
        """Wait until each of *ranks* has left the cell's own lines for a call of a library."""
        for rank in ranks:
            wait_until(partial(self._is_within, rank), f"rank {rank} to be in the call")

    def _is_within(self, rank: int) -> bool:
        stack = self.snapshot(rank).stack
        return bool(stack) and not stack[-1].is_cell

    def wait_until_running(self, run: Run, ranks: Iterable[int] | None = None) -> None:
        """Wait until the cell has begun on each of *ranks*."""
        for rank in run.ranks if ranks is None else ranks:
            wait_until(partial(self._runs, rank, run), f"rank {rank} to run the cell")

    def _runs(self, rank: int, run: Run) -> bool:
        return self.snapshot(rank).cell_id == run.request.cell_id

    def snapshot(self, rank: int) -> Snapshot:
        """Return what *rank* is doing, as its control thread says."""
        asked: Any = self.session._client.control(rank, wire.SNAPSHOT_REQUEST, {})
        assert asked.wait(PROMPT_S), f"rank {rank} does not answer"
        return Snapshot.from_json(asked.result()["content"])

    def describe(self, run: Run) -> str:
        """Say how far *run* is, and where its ranks are."""
        lines = [repr(run), *(repr(output) for output in run.outputs)]
        for rank in run.running_ranks:
            asked: Any = self.session._client.control(rank, wire.SNAPSHOT_REQUEST, {})
            where = "does not answer"
            if asked.wait(1.0):
                stack = Snapshot.from_json(asked.result()["content"]).stack
                where = " > ".join(f"{frame.location} {frame.function}" for frame in stack)
            lines.append(f"rank {rank}: {where}")
        return "\n".join(lines)


class Shared:
    """One workshop for many cases; a case that leaves it broken costs the next one a start."""

    def __init__(self, num: int, **overrides: Any) -> None:
        self._num, self._overrides = num, overrides
        self._opened: ExitStack | None = None
        self._shop: Workshop | None = None

    @contextmanager
    def lent(self) -> Iterator[Workshop]:
        """Lend the workshop to one case; afterwards everything in it has to work."""
        if self._shop is None:
            self._opened = ExitStack()
            self._shop = self._opened.enter_context(workshop(self._num, **self._overrides))
        shop, self._shop = self._shop, None
        try:
            yield shop
            shop.works()
        except BaseException:
            self.close()
            raise
        self._shop = shop

    def close(self) -> None:
        """Stop the ranks; may be called twice."""
        opened, self._opened, self._shop = self._opened, None, None
        if opened is not None:
            opened.close()


@contextmanager
def workshop(num: int, **overrides: Any) -> Iterator[Workshop]:
    """Start *num* ranks and equip them; when they have stopped, none of their processes is left."""
    with ranks(num, **overrides) as session:
        yield Workshop(session)
        left = processes_of(session)
    assert [describe(process) for process in wait_for_end(left, PROMPT_S)] == []
