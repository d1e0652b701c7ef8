"""How ranks are named in what a user reads, and what stands before their lines."""

from __future__ import annotations

from collections.abc import Iterable

_SHORTEST_RANGE = 3


def name_ranks(ranks: Iterable[int]) -> str:
    """Name *ranks* in ascending order: ``rank 3``, ``ranks 0, 2``, ``ranks 0–3, 6``.

    Three neighbours or more become a range.
    """
    parts = [_name_run(run) for run in _runs(sorted(set(ranks)))]
    is_single = len(parts) == 1 and parts[0].isdecimal()
    return ("rank " if is_single else "ranks ") + ", ".join(parts)


def label_ranks(ranks: Iterable[int]) -> str:
    """Name *ranks* as the prefix of a line: ``[rank0]``, as torchrun does, or ``[ranks 0–3]``."""
    name = name_ranks(ranks)
    return f"[{name.replace('rank ', 'rank')}]"


def label_stream(ranks: Iterable[int], name: str) -> str:
    """Return what stands before each line of a stream: ``[rank0] `` or ``[rank0] stderr: ``."""
    return f"{label_ranks(ranks)} " + "stderr: " * (name == "stderr")


def _runs(ranks: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return runs


def _name_run(run: list[int]) -> str:
    if len(run) < _SHORTEST_RANGE:
        return ", ".join(map(str, run))
    return f"{run[0]}–{run[-1]}"
