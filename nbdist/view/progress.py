"""One line for a progress bar of all ranks: how far each of them came.

    epoch 100/100                                          all alike
    epoch 41/100 (rank 2), 100/100 (ranks 0, 1, 3)         the one furthest behind first

No times and no rates: the same run gives the same line.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from nbdist.view.ansi import strip_ansi
from nbdist.view.names import name_ranks
from nbdist.view.stream import settle
from nbdist.wire import Display, Dropped, Progress, Text

PREFIXES = ("", "k", "M", "G", "T", "P", "E")

_TRACK = (
    "display:inline-block;width:72px;height:5px;margin:0 7px 0 0;vertical-align:middle;"
    "border-radius:3px;overflow:hidden;background:#80808040"
)
_DONE = "display:block;height:5px;background:#2f8f5b"
_SHORT_OF = "display:block;height:5px;background:#a0790a"
_LINE = "font-family:monospace;font-size:13px;line-height:17px"


Other = Text | Display | Dropped


@dataclass(frozen=True)
class Reached:
    """How far some ranks came with a bar.

    Attributes:
        ranks: Which, in ascending order.
        text: What it counts.
        count: ``41/100``.
        share: Of the whole, from 0 to 1; ``None`` where that is not known.
        postfix: What the user has put behind it.
    """

    ranks: tuple[int, ...]
    text: str
    count: str
    share: float | None
    postfix: str = ""


@dataclass(frozen=True)
class Bar:
    """A progress bar as it is shown in the end.

    Attributes:
        reached: The furthest behind first; ranks that are alike in all are one of it.
        times: For how many bars in a row it stands.
    """

    reached: tuple[Reached, ...]
    times: int = 1

    def of(self, ranks: Iterable[int]) -> Bar:
        """Return what it says of *ranks*."""
        wanted = set(ranks)
        parts = [
            dataclasses.replace(part, ranks=kept)
            for part in self.reached
            if (kept := tuple(rank for rank in part.ranks if rank in wanted))
        ]
        return dataclasses.replace(self, reached=tuple(parts))

    @property
    def counts(self) -> tuple[Reached, ...]:
        """How far the ranks came, whatever stands behind the bar."""
        return tuple(_alike(dataclasses.replace(part, postfix="") for part in self.reached))

    @property
    def text(self) -> str:
        """The line."""
        return " ".join(part for part in (self.name, self.counted, self.remarks) if part)

    @property
    def name(self) -> str:
        """What all ranks call it; empty where they do not agree."""
        names = {part.text for part in self.reached}
        return names.pop() if len(names) == 1 else ""

    @property
    def counted(self) -> str:
        """How far it came, and on which ranks where they differ."""
        return ", ".join(said for _, said in self.told())

    @property
    def remarks(self) -> str:
        """What stands behind it, after a dot."""
        said = [*_postfixes(self.reached), *([f"{self.times} times"] if self.times > 1 else [])]
        return "".join(f"· {remark} " for remark in said).rstrip()

    def told(self) -> Iterator[tuple[Reached, str]]:
        """Yield each of `counts` with what is said of it."""
        counts = self.counts
        for part in counts:
            own = f"{part.text} {part.count}" if part.text and not self.name else part.count
            yield part, f"{own} ({name_ranks(part.ranks)})" if len(counts) > 1 else own


def _postfixes(reached: Sequence[Reached]) -> Iterator[str]:
    by_text: dict[str, list[int]] = {}
    for part in sorted(reached, key=lambda part: part.ranks):
        by_text.setdefault(part.postfix, []).extend(part.ranks)
    if len(by_text) == 1:
        yield from filter(None, by_text)
    else:
        said = [f"{text} ({name_ranks(ranks)})" for text, ranks in by_text.items() if text]
        yield ", ".join(said)


# From the records of the ranks --------------------------------------------------------------------


def unite(outputs: Mapping[int, Sequence[Other | Progress]]) -> dict[int, tuple[Other | Bar, ...]]:
    """Put one `Bar`, the same for all its ranks, in the place of each `Progress`.

    Bars of different ranks are one where they are called the same, the first of that name with the
    first; where names differ, but all ranks have equally many bars, by their order.

    Args:
        outputs: Consolidated outputs by rank.
    """
    keys = _keys(
        {rank: [o for o in shown if isinstance(o, Progress)] for rank, shown in outputs.items()}
    )
    united = {key: _bar(members) for key, members in _by_key(outputs, keys).items()}
    return {
        rank: tuple(_in_a_row(_replaced(shown, keys.get(rank, []), united)))
        for rank, shown in outputs.items()
    }


_Key = tuple[str, int]


def _keys(bars: Mapping[int, Sequence[Progress]]) -> dict[int, list[_Key]]:
    """Give each bar of each rank a key that its like on other ranks has as well."""
    bars = {rank: found for rank, found in bars.items() if found}
    names = [sorted(bar.text for bar in found) for found in bars.values()]
    is_by_order = len(set(map(len, names))) == 1 and any(each != names[0] for each in names)
    keys = {}
    for rank, found in bars.items():
        seen: Counter[str] = Counter()
        keys[rank] = [_next_key("" if is_by_order else bar.text, seen) for bar in found]
    return keys


def _next_key(name: str, seen: Counter[str]) -> _Key:
    seen[name] += 1
    return name, seen[name]


def _by_key(
    outputs: Mapping[int, Sequence[object]], keys: Mapping[int, list[_Key]]
) -> dict[_Key, dict[int, Progress]]:
    members: dict[_Key, dict[int, Progress]] = {}
    for rank in sorted(keys):
        bars = (output for output in outputs[rank] if isinstance(output, Progress))
        for key, bar in zip(keys[rank], bars, strict=True):
            members.setdefault(key, {})[rank] = bar
    return members


def _bar(members: Mapping[int, Progress]) -> Bar:
    parts = _alike(reached(bar, (rank,)) for rank, bar in members.items())
    return Bar(tuple(sorted(parts, key=_order)))


def _order(part: Reached) -> tuple[float, tuple[int, ...]]:
    return (2.0 if part.share is None else part.share, part.ranks)


def _alike(parts: Iterable[Reached]) -> list[Reached]:
    """Make one of parts that say the same of different ranks, in the place of the first."""
    found: dict[Reached, list[int]] = {}
    for part in parts:
        found.setdefault(dataclasses.replace(part, ranks=()), []).extend(part.ranks)
    return [dataclasses.replace(part, ranks=tuple(sorted(ranks))) for part, ranks in found.items()]


def _replaced(
    shown: Sequence[Other | Progress], keys: Sequence[_Key], united: Mapping[_Key, Bar]
) -> Iterator[Other | Bar]:
    of_bars = iter(keys)
    for output in shown:
        yield united[next(of_bars)] if isinstance(output, Progress) else output


def _in_a_row(shown: Iterable[Other | Bar]) -> Iterator[Other | Bar]:
    """Make one of equal bars that follow one another: of a loop in a loop, say."""
    last: Bar | None = None
    for output in shown:
        if isinstance(output, Bar) and last is not None and output.reached == last.reached:
            last = dataclasses.replace(last, times=last.times + 1)
            continue
        if last is not None:
            yield last
        last = output if isinstance(output, Bar) else None
        if last is None:
            yield output
    if last is not None:
        yield last


# How it reads -------------------------------------------------------------------------------------


def reached(bar: Progress, ranks: tuple[int, ...]) -> Reached:
    """Say how far *bar* came on *ranks*."""
    share = min(max(bar.done / bar.total, 0.0), 1.0) if bar.total else None
    return Reached(ranks, _one_line(bar.text), count_text(bar), share, _one_line(bar.postfix))


def count_text(bar: Progress) -> str:
    """Say how far *bar* is: ``41/100``, ``41 files``, ``1.5/2.0 GB``."""
    unit = "" if bar.unit == "it" and bar.total is not None else f" {_one_line(bar.unit)}"
    power = _power(bar)
    scale = bar.divisor**power if power else 1
    of = "" if bar.total is None else f"/{_number(bar.total / scale, power)}"
    prefix = PREFIXES[power]
    if prefix:
        unit = f" {prefix}{unit.strip()}"
    return f"{_number(bar.done / scale if power else bar.done, power)}{of}{unit}"


def live_text(bar: Progress) -> str:
    """Say how *bar* gets on while it runs, times and all."""
    return _with_remarks(f"{_one_line(bar.text)} {count_text(bar)}".strip(), bar)


def remark_text(bar: Progress) -> str:
    """Say while it runs what *bar* counts and how fast, without the numbers."""
    return _with_remarks(_one_line(bar.text), bar)


def _with_remarks(said: str, bar: Progress) -> str:
    return " · ".join(filter(None, (said, _one_line(bar.postfix), bar.rate)))


def bar_html(bar: Bar) -> str:
    """Show *bar* as a line with a thin bar before each count."""
    counted = ", ".join(f"{_track(part)}{escape(said, quote=False)}" for part, said in bar.told())
    parts = (escape(bar.name, quote=False), counted, escape(bar.remarks, quote=False))
    return f'<div style="{_LINE}">{" ".join(part for part in parts if part)}</div>'


def _track(part: Reached) -> str:
    if part.share is None:
        return ""
    style = _DONE if part.share >= 1 else _SHORT_OF
    width = f"{100 * part.share:.4g}"
    return f'<span style="{_TRACK}"><span style="{style};width:{width}%"></span></span>'


def _power(bar: Progress) -> int:
    """Return which prefix the larger of the two numbers needs."""
    if bar.divisor < 2:
        return 0
    largest, power = abs(bar.done if bar.total is None else bar.total), 0
    while largest >= bar.divisor and power < len(PREFIXES) - 1:
        largest, power = largest / bar.divisor, power + 1
    return power


def _number(value: float, power: int) -> str:
    if power:
        return f"{value:.1f}"
    return str(int(value)) if value == int(value) else f"{value:.6g}"


def _one_line(text: str) -> str:
    return " ".join(strip_ansi(settle(text)).split())
