"""Thousands of mixed cells, one session after the other: ``python -m tests.soak``.

The table goes to stdout, what is going on to stderr. Exit code 1 where a cell or its state was not
as it has to be, something hung, was left over or has grown by more than its bound.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import quiet_environment
from tests.soak.bench import Kind
from tests.soak.growth import growths, markdown
from tests.soak.soak import KINDS, Findings, Plan, soak

MIN_SAMPLES = 3


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    ends_at = time.monotonic() + options.minutes * 60
    failed = False
    with tempfile.TemporaryDirectory(prefix="nbd-", dir="/tmp") as folder:
        os.environ |= quiet_environment(Path(folder))
        for num_ranks in options.ranks:
            plan = Plan(num_ranks, options.cells, options.seed, options.kinds, ends_at)
            findings = soak(plan, say=lambda text: print(text, file=sys.stderr, flush=True))
            failed |= report(plan, findings)
    return int(failed)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--cells", type=int, default=2000, help="for each number of ranks")
    parser.add_argument("--ranks", type=numbers, default=(2, 4), help="default: 2,4")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other cells")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all; it ends early then")
    names = ",".join(kind.name for kind in KINDS)
    parser.add_argument("--only", dest="kinds", type=with_names, default=KINDS, help=names)
    parser.add_argument("--without", dest="kinds", type=without_names, help="the others")
    return parser.parse_args(argv)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def with_names(text: str) -> list[Kind]:
    return chosen(text, lambda name, names: name in names)


def without_names(text: str) -> list[Kind]:
    return chosen(text, lambda name, names: name not in names)


def chosen(text: str, is_chosen: Callable[[str, list[str]], bool]) -> list[Kind]:
    names = text.split(",")
    known = [kind.name for kind in KINDS]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return [kind for kind in KINDS if is_chosen(kind.name, names)]


def report(plan: Plan, findings: Findings) -> bool:
    """Print what was found; return whether anything is wrong."""
    kinds = ", ".join(f"{name} {num}" for name, num in findings.counts.most_common())
    print(f"\n## {plan.num_ranks} ranks, {findings.num_cells} cells, seed {plan.seed}\n")
    print(f"{kinds}.\n")
    found = growths(findings.samples) if len(findings.samples) >= MIN_SAMPLES else []
    print(markdown(found) if found else "Too few cells in one session to say what has grown.")
    print(f"\n{len(findings.failures)} failures")
    for failure in findings.failures:
        print(f"- {failure}")
    sys.stdout.flush()
    return bool(findings.failures) or not all(growth.is_within for growth in found)


if __name__ == "__main__":
    sys.exit(main())
