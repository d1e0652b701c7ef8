"""One small table for the numbers that the ranks' last expressions gave."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nbdist.view.consolidate import Shown
from nbdist.view.names import name_ranks
from nbdist.wire import Display

Number = int | float

_NUMBER = re.compile(r"(?:[\w.]+\()?(-?(?:[\d.][\d.e+-]*|inf|nan))(?:[,)]|$)")
_WHOLE_PART = re.compile(r"-?(?:\d+|inf|nan|)")


@dataclass(frozen=True)
class ScalarTable:
    """Rank and value as text, a row a rank, and what they come to: min, mean, max, NaNs."""

    rows: tuple[tuple[int, str], ...]
    totals: tuple[str, ...]

    def aligned(self) -> list[str]:
        """Return the values padded so that their decimal points stand below one another."""
        places = [_point(value) for _, value in self.rows]
        return [
            " " * (max(places) - place) + value
            for place, (_, value) in zip(places, self.rows, strict=True)
        ]


def split_scalars(
    outputs: Mapping[int, Sequence[Shown]],
) -> tuple[ScalarTable | None, dict[int, tuple[Shown, ...]]]:
    """Take the last result of every rank out of *outputs* where a table shows them better.

    That is where two ranks or more all end with a number, and the numbers are not all the same.

    Returns:
        The table, or ``None``, and the outputs that are left.
    """
    results = {rank: _scalar_result(shown) for rank, shown in outputs.items()}
    numbers = {rank: shown for rank, shown in results.items() if shown is not None}
    if len(numbers) < len(outputs) or len({repr(n.scalar) for n in numbers.values()}) < 2:
        return None, {rank: tuple(shown) for rank, shown in outputs.items()}
    return tabulate(numbers), {rank: tuple(shown[:-1]) for rank, shown in outputs.items()}


def tabulate(results: Mapping[int, Display]) -> ScalarTable:
    """Make the table of *results* by rank, each of which has a ``scalar``."""
    values = {
        rank: value for rank in sorted(results) if (value := results[rank].scalar) is not None
    }
    texts = {rank: _as_shown(results[rank]) for rank in values}
    if len(set(texts.values())) < len({repr(value) for value in values.values()}):
        # Rounded by their own repr until they look alike, so say them in full.
        texts = {rank: repr(value) for rank, value in values.items()}
    return ScalarTable(tuple(texts.items()), tuple(_totals(values, texts)))


def _point(value: str) -> int:
    """Return how many characters of *value* stand before its decimal point."""
    found = _WHOLE_PART.match(value)
    return found.end() if found else 0


def _scalar_result(outputs: Sequence[Shown]) -> Display | None:
    last = outputs[-1] if outputs else None
    if isinstance(last, Display) and last.kind == "result" and _is_number(last.scalar):
        return last
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_shown(result: Display) -> str:
    """Return the number as the rank itself wrote it: ``0.6931`` for ``tensor(0.6931)``."""
    value = result.scalar
    found = _NUMBER.match(str(result.data.get("text/plain", "")).strip())
    if found is None or value is None:
        return repr(value)
    try:
        shown = float(found[1])
    except ValueError:
        return repr(value)
    is_same = math.isclose(shown, value, rel_tol=0.01) or (shown != shown and value != value)
    return found[1] + "0" * found[1].endswith(".") if is_same else repr(value)


def _totals(values: Mapping[int, Number], texts: Mapping[int, str]) -> Iterable[str]:
    known = {rank: value for rank, value in values.items() if value == value}
    if known:
        for name, extreme in (("min", min(known.values())), ("max", max(known.values()))):
            ranks = [rank for rank, value in known.items() if value == extreme]
            if name == "max":
                yield f"mean {_mean(list(known.values()))}"
            yield f"{name} {texts[ranks[0]]} ({name_ranks(ranks)})"
    if len(known) < len(values):
        yield f"NaN on {name_ranks(values.keys() - known.keys())}"


def _mean(values: Sequence[Number]) -> str:
    """Return the mean as text; whole numbers stay whole where their mean is whole."""
    if all(isinstance(value, int) for value in values):
        total = int(sum(values))
        if total % len(values) == 0:
            return str(total // len(values))
    if any(math.isinf(value) for value in values):
        return f"{sum(values):.6g}"
    # Divided first, so that a sum of large floats does not overflow.
    text = f"{math.fsum(value / len(values) for value in values):.6g}"
    is_whole = text.lstrip("-").isdecimal() and any(isinstance(value, float) for value in values)
    return text + ".0" * is_whole
