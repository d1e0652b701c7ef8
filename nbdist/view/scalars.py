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

MANY_DIGITS, MANY_DECIMALS = 3, 2  # with so many, a mean needs no more than its values have
MAX_DIGITS = 6

_NUMBER = re.compile(r"(?:[\w.]+\()?(-?(?:[\d.][\d.e+-]*|inf|nan))(?:[,)]|$)")
_WHOLE_PART = re.compile(r"-?(?:\d+|inf|nan|)")


@dataclass(frozen=True)
class Total:
    """What the values come to.

    Attributes:
        name: ``min``, ``mean``, ``max`` or ``NaN``.
        value: As text; empty where that says nothing.
        ranks: Where it is so, in brackets; empty where that says nothing.
    """

    name: str
    value: str
    ranks: str = ""


@dataclass(frozen=True)
class ScalarTable:
    """Rank and value as text, a row a rank, and what they come to: min, mean, max, NaNs."""

    rows: tuple[tuple[int, str], ...]
    totals: tuple[Total, ...]

    def aligned(self) -> list[str]:
        """Return the values, and below them those of the totals, padded to be read as a column.

        Their decimal points stand below one another, and all are of one length.
        """
        values = [value for _, value in self.rows] + [total.value for total in self.totals]
        places = [_point(value) for value in values]
        moved = [
            " " * (max(places) - place) + value for place, value in zip(places, values, strict=True)
        ]
        width = max(map(len, moved))
        return [value.ljust(width) for value in moved]


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


def _totals(values: Mapping[int, Number], texts: Mapping[int, str]) -> Iterable[Total]:
    known = {rank: value for rank, value in values.items() if value == value}
    if known:
        for name, extreme in (("min", min(known.values())), ("max", max(known.values()))):
            ranks = [rank for rank, value in known.items() if value == extreme]
            if name == "max":
                yield Total("mean", _mean(list(known.values()), [texts[rank] for rank in known]))
            yield Total(name, texts[ranks[0]], f"({name_ranks(ranks)})")
    if len(known) < len(values):
        yield Total("NaN", "", f"({name_ranks(values.keys() - known.keys())})")


def _mean(values: Sequence[Number], texts: Sequence[str]) -> str:
    """Return the mean as text; whole numbers stay whole where their mean is whole.

    It has as many digits as the values are told with, or one more where these are few.
    """
    if all(isinstance(value, int) for value in values):
        total = int(sum(values))
        if total % len(values) == 0:
            return str(total // len(values))
    if any(math.isinf(value) for value in values):
        return f"{sum(values):.6g}"
    # Divided first, so that a sum of large floats does not overflow.
    mean = math.fsum(value / len(values) for value in values)
    decimals = [len(text.partition(".")[2]) for text in texts]
    if max(decimals) > MAX_DIGITS or any("e" in text for text in texts):
        digits = max(sum(map(str.isdecimal, text.partition("e")[0])) for text in texts)
        text = f"{mean:.{min(_one_more(digits, MANY_DIGITS), MAX_DIGITS)}g}"
        return text + ".0" * text.lstrip("-").isdecimal()
    text = f"{round(mean, most := _one_more(max(decimals), MANY_DECIMALS)) + 0.0:.{most}f}"
    while text.endswith("0") and len(text.partition(".")[2]) > min(decimals):
        text = text[:-1]
    return text.removesuffix(".")


def _one_more(digits: int, many: int) -> int:
    return max(digits, min(digits + 1, many))
