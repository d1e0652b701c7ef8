"""Measure nbdist beside its peers: ``python -m tests.bench``, or ``make bench``.

The table goes to stdout, what is going on to stderr, all readings as JSON to a file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Collection, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.bench.machine import Load, sample_load
from tests.bench.measures import MEASURES, rows
from tests.bench.peers import PEERS, PEERS_PYTHON
from tests.bench.results import per_extra_rank, summarise
from tests.bench.runner import Findings, Plan, run
from tests.bench.table import as_json, markdown

# A quiet machine of two cores shows 0.01 to 0.05.
QUIET_CORES = 0.15
ALL_PEERS = ("torchrun", *PEERS)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    load = sample_load()
    if load.cores_busy > QUIET_CORES and not options.force:
        print(refusal(load), file=sys.stderr)
        return 2
    plan = plan_of(options)
    if {"px", "jd"} & set(plan.peers) and not PEERS_PYTHON.exists():
        print(f"{PEERS_PYTHON} is missing: run `make venv-peers`.", file=sys.stderr)
        return 2
    findings = run(plan, say=lambda text: print(text, file=sys.stderr, flush=True))
    report(findings, [load, sample_load()], options.json)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--peers", type=some_of(ALL_PEERS), default=ALL_PEERS, help=",".join(ALL_PEERS)
    )
    parser.add_argument(
        "--measures", type=some_of(MEASURES), default=tuple(MEASURES), help=",".join(MEASURES)
    )
    parser.add_argument("--ranks", type=numbers, default=(2, 4, 8), help="default: 2,4,8")
    parser.add_argument("--quick", action="store_true", help="one round, fewer cells: a first look")
    parser.add_argument("--force", action="store_true", help="also while others use the cores")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="PATH")
    return parser.parse_args(argv)


def some_of(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a reader of comma-separated names, each one of *known*."""

    def read(text: str) -> tuple[str, ...]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return tuple(name for name in known if name in names)

    return read


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def plan_of(options: argparse.Namespace) -> Plan:
    return Plan(
        peers=options.peers,
        ranks=options.ranks,
        measures=options.measures,
        num_rounds=1 if options.quick else 3,
        num_cells=10 if options.quick else 40,
    )


def refusal(load: Load) -> str:
    return "\n".join(
        [
            f"Others keep {load.cores_busy:.2f} cores busy; what is measured now would be wrong:",
            *(f"  {busy}" for busy in load.busiest),
            "Wait for them or end them, or measure all the same with --force.",
        ]
    )


def report(findings: Findings, loads: Sequence[Load], path: Path) -> None:
    """Print the table with what one must know to read it, and keep everything in *path*."""
    readings = findings.readings
    readings += per_extra_rank(readings, total="memory", key="memory_extra")
    results = summarise(rows(), readings)
    machine = about_machine()
    print(markdown(results))
    print()
    print("Medians (smallest–largest). " + ", ".join(f"{k} {v}" for k, v in machine.items()) + ".")
    for load in loads:
        if load.cores_busy > QUIET_CORES:
            print(f"**Not quiet**: others kept {load.cores_busy:.2f} cores busy before or after.")
    for trouble in dict.fromkeys(findings.troubles):
        print(f"- {trouble}")
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = as_json(results, readings)
    everything |= {"machine": machine, "troubles": findings.troubles}
    path.write_text(json.dumps(everything, indent=1) + "\n")


def about_machine() -> dict[str, str]:
    packages = ("torch", "ipyparallel", "ipykernel")
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "Python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


if __name__ == "__main__":
    sys.exit(main())
