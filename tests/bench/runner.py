"""Who is visited when.

In each round, for each number of ranks, every peer has its turn: what changes on the machine in the
meantime hits all alike. The order of the peers is turned by one from round to round. A visit that
fails is noted and the next one begins; what it left running is ended first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench.kernel import CellTimeout, Kernel
from tests.bench.measures import MARK, MEASURES, Visit, is_taken
from tests.bench.peers import KERNEL, PEERS, PYTHON, SCRIPT, Peer, torchrun
from tests.bench.results import Reading
from tests.processes import describe, end, processes_marked, wait_for_end

GRACE_S = 10.0
TRIES = 3


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        peers: Keys of `PEERS`, and ``torchrun``.
        ranks: Numbers of ranks.
        measures: Keys of `MEASURES`.
        num_rounds: How often everything is done.
        num_cells: How often a short cell is repeated in each visit.
    """

    peers: tuple[str, ...]
    ranks: tuple[int, ...]
    measures: tuple[str, ...]
    num_rounds: int
    num_cells: int


@dataclass
class Findings:
    """All that a run brought: readings, and what went wrong in words."""

    readings: list[Reading] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


def run(plan: Plan, *, say: Callable[[str], None]) -> Findings:
    """Measure all of *plan*; *say* is told what is going on."""
    findings = Findings()
    for turn in range(plan.num_rounds):
        shift = turn % len(plan.peers)
        for num_ranks in plan.ranks:
            for peer in plan.peers[shift:] + plan.peers[:shift]:
                begin = time.perf_counter()
                take_turn(peer, num_ranks, plan, findings)
                took = f"{time.perf_counter() - begin:.0f} s"
                say(f"round {turn + 1} of {plan.num_rounds}: {peer}, {num_ranks} ranks, {took}")
    return findings


def take_turn(key: str, num_ranks: int, plan: Plan, findings: Findings) -> None:
    """Take all readings of one peer at one number of ranks."""
    if key == "torchrun":
        if "start" in plan.measures:
            with marked(findings, f"torchrun, {num_ranks} ranks") as surroundings:
                findings.readings.append(torchrun_start(num_ranks, surroundings))
        return
    for peer in PEERS[key](num_ranks):
        measures = [m for m in MEASURES if m in plan.measures and is_taken(m, peer, num_ranks)]
        if measures:
            with (
                marked(findings, f"{peer.name}, {num_ranks} ranks") as surroundings,
                visiting(peer, num_ranks, surroundings, plan.num_cells) as visit,
            ):
                for measure in measures:
                    take(measure, visit, findings)


def take(measure: str, visit: Visit, findings: Findings) -> None:
    """Take one measure; a cell that fails costs only this one, one that hangs also the rest."""
    try:
        findings.readings += MEASURES[measure].run(visit)
    except (LookupError, RuntimeError) as error:
        who = f"{visit.peer.name}, {visit.num_ranks} ranks, {measure}"
        findings.troubles.append(f"{who}: {error}")


@dataclass(frozen=True)
class Surroundings:
    """What a visit's processes are started with: a mark to find them by, a folder."""

    mark: str
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {**quiet(self.folder), MARK: self.mark}


def quiet(folder: Path) -> dict[str, str]:
    """Keep a kernel away from the user's settings, and its files in *folder*."""
    return {
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter"),
        "NBDIST_RUNTIME_DIR": str(folder / "run"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


@contextmanager
def marked(findings: Findings, who: str) -> Iterator[Surroundings]:
    """Give a visit its surroundings; note how it failed and what it left behind, and end that."""
    surroundings = Surroundings(uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="nbd-", dir="/tmp")))
    try:
        yield surroundings
    # At the edge of a visit: a peer may fail in any way, and the others still have their turns.
    except (CellTimeout, LookupError, OSError, RuntimeError, ValueError, psutil.Error) as error:
        findings.troubles.append(f"{who}: {type(error).__name__}: {error}")
    finally:
        for process in wait_for_end(processes_marked(MARK, surroundings.mark), GRACE_S):
            findings.troubles.append(f"{who}: left behind: {describe(process)}")
            end(process)
        shutil.rmtree(surroundings.folder, ignore_errors=True)


@contextmanager
def visiting(
    peer: Peer, num_ranks: int, surroundings: Surroundings, num_cells: int
) -> Iterator[Visit]:
    """Start a plain kernel, then *peer* up to its first all_reduce; close both at the end."""
    folder = surroundings.folder
    env = {**surroundings.env, **peer.env}
    with Kernel((PYTHON, *KERNEL), env=quiet(folder), cwd=folder) as plain:
        begin = time.perf_counter()
        with Kernel(peer.argv, env=env, cwd=folder) as kernel:
            if not peer.starts_with_kernel:
                begin = time.perf_counter()
            for cell in peer.start:
                kernel.check(cell)
            reduce_first(kernel, peer, num_ranks)
            start_s = time.perf_counter() - begin
            yield Visit(peer, num_ranks, kernel, plain, surroundings.mark, start_s, num_cells)


def reduce_first(kernel: Kernel, peer: Peer, num_ranks: int) -> None:
    """Run the first all_reduce, again where a peer said "started" too early and lost the cell."""
    answer = ""
    for _ in range(TRIES):
        answer = kernel.run(peer.cell(SCRIPT.read_text()), timeout_s=90.0).everything
        if f"first {num_ranks}.0" in answer:
            return
    raise RuntimeError(f"no first all_reduce in {TRIES} tries; it said: {answer[-800:]}")


def torchrun_start(num_ranks: int, surroundings: Surroundings) -> Reading:
    """Time torchrun from its exec to the line that the first rank prints after its all_reduce."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        torchrun(num_ranks),
        env={**os.environ, **surroundings.env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        start_s = time_of_line(process, f"first {num_ranks}.0") - begin
    return Reading("start", "torchrun", num_ranks, (start_s,))


def time_of_line(process: subprocess.Popen[str], line: str) -> float:
    assert process.stdout is not None
    for text in process.stdout:
        if line in text:
            return time.perf_counter()
    raise RuntimeError(f"{process.args!r} ended with code {process.wait()} and without {line!r}")
