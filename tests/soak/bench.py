"""The session under test, what its ranks must have, and how long things may take.

Whatever does not end in time raises `Hang` in the main thread, by SIGALRM: also what waits for ever
inside nbdist.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psutil

import nbdist
from nbdist.launchers.start import end_session
from nbdist.sessions.run import Run
from nbdist.sessions.session import RankSpec, Session
from tests.processes import describe, end, wait_for_end
from tests.sessions.driving import error, printed, processes_of
from tests.soak.footprint import folder_of, pids_of_ranks, shared_folders
from tests.waiting import wait_until

CELL = (Path(__file__).parent / "belongings_cell.py").read_text()
QUICK_S = 6.0  # a cell that should be quick, on a machine that is
PLAIN_S = 0.05  # a cell that does nothing, on a machine that is busy enough
START_S = 120.0
END_S = 10.0
TIMEOUT_S = 60.0  # of the groups: threads that gloo has forgotten in a cut-off call end with it
MAX_CHILDREN = 12


class Hang(BaseException):
    """Something did not end in time. No `Exception`: nothing may catch it for one of its own."""


@dataclass
class Belongings:
    """What the ranks must have.

    Attributes:
        counter: Alike everywhere.
        alike: Value of the tensor that is alike everywhere.
        mine: Value of the tensor that each rank has of its own, by rank.
    """

    counter: int
    alike: float
    mine: list[float]

    def advance(self, ranks: Sequence[int]) -> None:
        """Do here what `advance()` does on all *ranks*."""
        self.counter += 1
        self.alike += 1
        for rank in ranks:
            self.mine[rank] += rank + 1

    def of(self, rank: int) -> list[Any]:
        """Return what `belongings()` says on *rank*, all models being as they should be."""
        return [self.counter, self.mine[rank], self.alike, float(len(self.mine)), True, True]


class Bench:
    """A session, equipped; cells are run and judged through it.

    Args:
        session: Fresh; the caller stops it by `end`.
        random: Draws what a cell leaves open.

    Attributes:
        mortal: Ranks whose process may be ended.
    """

    def __init__(self, session: Session, random: Random) -> None:
        self.session = session
        self.random = random
        self._plain_s = PLAIN_S
        self.mortal = list(range(session.world_size))
        self._children: list[tuple[int, psutil.Process]] = []
        self.must_have = Belongings(0, 0.0, [0.0] * session.world_size)
        self._shared = shared_folders(folder_of(session))
        self._shared_files = self.shared_files()
        with self.within(START_S, "equip the ranks"):
            session.run(CELL, want_value=False).result()

    @property
    def all(self) -> list[int]:
        return list(range(self.session.world_size))

    def someone(self) -> int:
        return self.random.choice(self.all)

    def some(self) -> list[int]:
        """Draw ranks: at least one, never all."""
        return sorted(self.random.sample(self.all, self.random.randint(1, len(self.all) - 1)))

    # Time -------------------------------------------------------------------------------------

    @property
    def patience(self) -> float:
        """How much slower than a good one this machine is now, at least 1."""
        runnable = os.getloadavg()[0] / len(os.sched_getaffinity(0))
        return max(1.0, runnable, self._plain_s / PLAIN_S)

    @contextmanager
    def within(self, limit_s: float, what: str) -> Iterator[None]:
        """Raise `Hang` if what is done here takes more than *limit_s*, on a machine as it is."""
        began = time.monotonic()

        def ring(*_: object) -> None:
            rest_s = began + limit_s * self.patience - time.monotonic()
            if rest_s > 0:  # the machine has become slower meanwhile
                signal.setitimer(signal.ITIMER_REAL, rest_s)
                return
            raise Hang(f"{what} took more than {time.monotonic() - began:.0f} s; {self.where()}")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, limit_s * self.patience)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def where(self) -> str:
        """Say what the ranks do."""
        return "; ".join(f"rank {state.rank}: {state.state}" for state in self.session.states())

    def measure(self) -> None:
        """See how slow the machine is at the moment, by cells that do nothing."""
        began = time.monotonic()
        with self.within(QUICK_S * 10, "five plain cells"):
            for _ in range(5):
                self.session.run("pass").result()
        self._plain_s = (time.monotonic() - began) / 5

    # Cells ------------------------------------------------------------------------------------

    def begin(self, code: str, ranks: RankSpec = None) -> Run:
        with self.within(QUICK_S, "to send a cell"):
            return self.session.run(code, ranks)

    def end_of(self, run: Run) -> Run:
        with self.within(QUICK_S, f"the end of {run!r}"):
            run.wait()
        return run

    def run(self, code: str, ranks: RankSpec = None) -> Run:
        return self.end_of(self.begin(code, ranks))

    def values(self, code: str, ranks: RankSpec = None) -> list[Any]:
        return list(self.run(code, ranks).result())

    def expect(self, run: Run, found: object, expected: object) -> None:
        """Raise where *found* is not what was *expected* of *run*."""
        if found != expected:
            raise AssertionError(f"{found!r} in place of {expected!r}; {outcomes(run)}")

    def fails(self, run: Run, errors: Mapping[int, str]) -> None:
        """Wait until *run* is over; expect these errors by rank, and no others."""
        self.end_of(run)
        found = {o.rank: error(run, o.rank).ename for o in run.outputs if o.status != "ok"}
        self.expect(run, found, dict(errors))

    def stops(self, run: Run) -> None:
        """Press the stop button; expect the end of *run* on all its ranks, and that none was ok."""
        with self.within(QUICK_S, f"to stop {run!r}"):
            stuck = self.session.stop_run(run, "The cell was stopped")
        self.expect(run, stuck, ())
        self.expect(run, {output.status for output in run.outputs}, {"stopped"})

    def waits_for(self, run: Run, text: str, ranks: Sequence[int] | None = None) -> None:
        """Wait until each of *ranks* has printed *text*."""
        with self.within(QUICK_S, f"{run!r} to print {text!r}"):
            wait_until(
                lambda: all(text in printed(run, rank) for rank in ranks or run.ranks),
                what=text,
                timeout_s=START_S,
            )

    # Deaths -----------------------------------------------------------------------------------

    def kill(self, ranks: Sequence[int]) -> None:
        """End the processes of *ranks*, and return when the session knows."""
        doomed = [psutil.Process(pids_of_ranks(self.session)[rank]) for rank in ranks]
        for process in doomed:
            process.kill()
        self.knows_dead(ranks)

    def knows_dead(self, ranks: Sequence[int]) -> None:
        with self.within(QUICK_S, f"ranks {ranks} to be seen dead"):
            wait_until(lambda: set(ranks) == set(self.session.dead_ranks), "", timeout_s=START_S)

    def recover(self) -> None:
        """Replace the dead ranks."""
        dead = self.session.dead_ranks
        with self.within(QUICK_S, f"to recover ranks {dead}"):
            report = self.session.recover()
        if report.replaced != dead:
            raise AssertionError(f"ranks {report.replaced} were replaced, {dead} were dead")
        self.equip(dead)

    def equip(self, fresh: Sequence[int]) -> None:
        """Expect *fresh* ranks to have what all others have; give them what is their own."""
        found = self.values("(counter, one_value(alike))", list(fresh))
        must_have = (self.must_have.counter, self.must_have.alike)
        if found != [must_have] * len(fresh):
            raise AssertionError(f"fresh ranks {fresh} have {found}, not {must_have}")
        self.gone(self.children_of(fresh))
        for rank in fresh:
            own = self.must_have.mine[rank]
            self.values(f"mine = torch.full((SIZE,), {own!r})", rank)
        self.values("shard_anew()")

    def adopt(self, rank: int, child: psutil.Process) -> None:
        """Remember a child of *rank* that lost the session's mark; it must end with its rank."""
        self._children.append((rank, child))
        while len(self._children) > MAX_CHILDREN:
            _, oldest = self._children.pop(0)
            end(oldest)

    def children_of(self, ranks: Sequence[int]) -> list[psutil.Process]:
        """Return what was adopted for *ranks*, and forget it."""
        found = [child for rank, child in self._children if rank in ranks]
        self._children = [pair for pair in self._children if pair[0] not in ranks]
        return found

    def is_free(self) -> None:
        """Wait until no rank has anything to do that it was told before."""
        with self.within(QUICK_S, "all ranks to be free"):
            wait_until(lambda: not self.session.busy_ranks, "", timeout_s=START_S)

    # The end of each cell ---------------------------------------------------------------------

    def check(self) -> None:
        """Expect every rank to have what it must have, and all groups to work; no file stays."""
        run = self.run("belongings()")
        self.expect(run, list(run.result()), [self.must_have.of(rank) for rank in self.all])
        if left := self.shared_files() - self._shared_files:
            raise AssertionError(f"left in shared memory: {sorted(map(str, left))}")

    def shared_files(self) -> set[Path]:
        return {path for folder in self._shared for path in folder.iterdir()}

    def gone(self, processes: Sequence[psutil.Process]) -> None:
        """Expect *processes* to have ended; those that have not are ended now."""
        left = wait_for_end(processes, QUICK_S * self.patience)
        lines = [describe(process) for process in left]
        for process in left:
            end(process)
        if lines:
            raise AssertionError(f"left over: {'; '.join(lines)}")

    def end(self) -> None:
        """Stop the session; expect none of its processes and files to be left."""
        folder = folder_of(self.session)
        folders = {folder.path, *shared_folders(folder)}
        recorded = [
            psutil.Process(process.pid) for _, process in folder.processes() if process.is_alive
        ]
        processes = [*recorded, *processes_of(self.session), *self.children_of(self.all)]
        with self.within(END_S, "to stop the session"):
            self.session.stop()
        self.gone(processes)
        if left := [path for path in folders if path.exists()]:
            raise AssertionError(f"left over: {left}")

    def drop(self) -> None:
        """End a session that is broken, by whatever means; nothing is expected of it."""
        processes = [*processes_of(self.session), *self.children_of(self.all)]
        try:
            with self.within(END_S, "to stop a broken session"):
                self.session.stop()
        except Hang:
            end_session(folder_of(self.session))
        for process in processes:
            end(process)


def outcomes(run: Run) -> str:
    """Say how *run* ended on each rank."""
    return "; ".join(
        f"rank {o.rank} {o.status}"
        + (f": {o.error.ename}: {o.error.evalue:.200}" if o.error else "")
        for o in run.outputs
    )


def started(num_ranks: int, random: Random) -> Bench:
    """Start a session of *num_ranks*, and equip it."""
    session = nbdist.start(nproc=num_ranks, device="cpu", timeout_s=TIMEOUT_S)
    try:
        return Bench(session, random)
    except BaseException:
        session.stop()
        raise


Act = Callable[[Bench], None]


@dataclass(frozen=True)
class Kind:
    """A kind of cell.

    Attributes:
        act: Runs one, and judges it; the state is looked at afterwards by the caller.
        weight: How often it is drawn, beside the others.
    """

    act: Act
    weight: float

    @property
    def name(self) -> str:
        return self.act.__name__
