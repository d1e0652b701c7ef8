"""How ranks are named in what a user reads, and what stands before their lines."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

_SHORTEST_RANGE = 3
_SHORTEST_SERIES = 5


def name_ranks(ranks: Iterable[int]) -> str:
    """Name *ranks* in ascending order: ``rank 3``, ``ranks 0, 2``, ``ranks 0–3, 6``.

    Three neighbours or more become a range; five or more that are all equally far apart are told
    by the first two and the last: ``ranks 0, 8, …, 56``.
    """
    return _name(tuple(ranks))


def label_ranks(ranks: Iterable[int]) -> str:
    """Name *ranks* as the prefix of a line: ``[rank0]``, as torchrun does, or ``[ranks 0–3]``."""
    name = name_ranks(ranks)
    return f"[{name.replace('rank ', 'rank')}]"


def label_stream(ranks: Iterable[int], name: str) -> str:
    """Return what stands before each line of a stream: ``[rank0] `` or ``[rank0] stderr: ``."""
    return f"{label_ranks(ranks)} " + "stderr: " * (name == "stderr")


@lru_cache(maxsize=1024)
def _name(ranks: tuple[int, ...]) -> str:
    numbers = sorted(set(ranks))
    if _is_series(numbers):
        return f"ranks {numbers[0]}, {numbers[1]}, …, {numbers[-1]}"
    parts = [_name_run(run) for run in _runs(numbers)]
    is_single = len(parts) == 1 and parts[0].isdecimal()
    return ("rank " if is_single else "ranks ") + ", ".join(parts)


def _is_series(numbers: list[int]) -> bool:
    if len(numbers) < _SHORTEST_SERIES:
        return False
    step = numbers[1] - numbers[0]
    return step > 1 and numbers == list(range(numbers[0], numbers[-1] + 1, step))


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
