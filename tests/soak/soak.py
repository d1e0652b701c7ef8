"""Run one session through many cells: draw a kind, run it, look at the state, count now and then.

What is drawn depends on the seed, the number of ranks and the number of the cell alone, so that a
failure comes again with the same options.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.soak import dying, failing, good, stopped, values
from tests.soak.bench import START_S, Bench, Hang, Kind, started
from tests.soak.footprint import footprint
from tests.soak.growth import Sample

KINDS = [*good.KINDS, *failing.KINDS, *stopped.KINDS, *dying.KINDS, *values.KINDS]
WARM_UP = 1 / 3  # of all cells; any rank may die in it, later rank 0 lives on and is measured
NUM_SAMPLES = 13
LAST_LINES = 12
MAX_FAILURES = 10  # a session is begun anew after each
CELLS_BETWEEN_MEASURES = 50


@dataclass(frozen=True)
class Plan:
    """What to do with one session.

    Attributes:
        num_ranks: Of the session.
        num_cells: How many to run.
        seed: Of all that is drawn.
        kinds: What is drawn from.
        ends_at: When to end early, on the monotonic clock.
    """

    num_ranks: int
    num_cells: int
    seed: int
    kinds: Sequence[Kind]
    ends_at: float


@dataclass
class Findings:
    """What one session came to.

    Attributes:
        num_cells: How many were run.
        seconds: How long they took, by kind.
        failures: What was not as it has to be, one line each.
        samples: Of the part that is measured; begun anew with each session.
    """

    num_cells: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """How many cells of each kind were run."""
        return Counter({name: len(times) for name, times in self.seconds.items()})


def soak(plan: Plan, say: Callable[[str], None]) -> Findings:
    """Run *plan*; never raises for what a session does wrong."""
    findings = Findings()
    bench = started(plan.num_ranks, Random(plan.seed))
    for number in range(plan.num_cells):
        if time.monotonic() > plan.ends_at or len(findings.failures) >= MAX_FAILURES:
            break
        bench.random = Random(f"{plan.seed} {plan.num_ranks} {number}")
        [kind] = bench.random.choices(plan.kinds, [kind.weight for kind in plan.kinds])
        if problem := problem_of(bench, plan, findings, number, kind):
            findings.failures.append(problem)
            say(problem)
            bench.drop()
            bench = started(plan.num_ranks, Random(plan.seed))
            findings.samples.clear()
        if number % 100 == 99:
            say(f"{plan.num_ranks} ranks: {number + 1} cells")
    try:
        bench.end()
    except (AssertionError, Hang) as exc:
        findings.failures.append(f"the end of {plan.num_ranks} ranks: {exc}")
        bench.drop()
    return findings


def problem_of(bench: Bench, plan: Plan, findings: Findings, number: int, kind: Kind) -> str | None:
    """Run cell *number* and look at what it left; return what is wrong, if anything is."""
    began = time.monotonic()
    try:
        if number % CELLS_BETWEEN_MEASURES == 0:
            bench.measure()
        kind.act(bench)
        bench.check()
        findings.num_cells += 1
        findings.seconds.setdefault(kind.name, []).append(time.monotonic() - began)
        count(bench, plan, findings, number)
    except Hang as exc:
        return f"cell {number} of {plan.num_ranks} ranks, {kind.name}: HANG: {exc}"
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is what the soak looks for
        said = f"{type(exc).__name__}: {exc}{last_words(bench)}"
        return f"cell {number} of {plan.num_ranks} ranks, {kind.name}: {said}"
    return None


def last_words(bench: Bench) -> str:
    """Return what the ranks that are dead wrote last."""
    session = bench.session
    tails = (session.log_tail(rank, LAST_LINES) for rank in session.dead_ranks)
    return "".join(f"\n{tail}" for tail in tails)


def count(bench: Bench, plan: Plan, findings: Findings, number: int) -> None:
    """Take a sample where it is time for one."""
    first = int(plan.num_cells * WARM_UP)
    every = max(1, (plan.num_cells - first - 1) // (NUM_SAMPLES - 1))
    if number < first:
        return
    bench.mortal = bench.all[1:]
    if (number - first) % every == 0:
        with bench.within(START_S, "to count descriptors, threads, memory and files"):
            findings.samples.append(Sample(findings.num_cells, footprint(bench.session)))
