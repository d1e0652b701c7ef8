"""What the ranks called in one cell: a table, and in a sentence who was waited for.

    Trace ──▶ CellTrace ── collectives, waits ──▶ rows by call site ──▶ text/html, text/plain

The picture is in `timeline`; it comes in here as an image that stands above the table. Pure.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from statistics import median
from typing import Literal

from nbdist.errors import UsageError
from nbdist.sizes import describe_rate, describe_sizes
from nbdist.view.bandwidth import algorithm_bandwidth, bus_factor, data_size
from nbdist.view.columns import align
from nbdist.view.elements import FAINT, MARK, small
from nbdist.view.names import name_ranks
from nbdist.view.waits import (
    NOTABLE_S,
    NOTABLE_SHARE,
    Collective,
    Straggler,
    Wait,
    collectives,
    stragglers,
)
from nbdist.wire import RankTrace, TracedCell

MAX_ROWS = 40
MAX_ROWS_OF_ALL = 1000
MAX_NAMED_STRAGGLERS = 2
NEARLY_SHARE = 0.5  # of the longest wait for a rank: one waited for so long is a straggler, too
DASH = "–"

HEADINGS = ("#", "operation", "group", "data", "size", "inside", "waited", "algbw", "busbw", "line")
_ARE_NUMBERS = (True, False, False, False, True, True, False, True, True, False)
_MAY_WRAP = {"operation", "group", "data", "waited", "line"}
_EXPLAINED = (
    "inside: from when the last rank had come until the call was over; the median",
    "algbw = size / inside; busbw = algbw × what the operation asks of each link (nccl-tests)",
)


@dataclass(frozen=True)
class Trace:
    """What the ranks have called, as far as they still know.

    Attributes:
        ranks: By rank, of those that have answered.
        world_size: Number of ranks in the session.
    """

    ranks: Mapping[int, RankTrace]
    world_size: int

    def __repr__(self) -> str:
        num_calls = sum(len(trace.calls) for trace in self.ranks.values())
        return f"<Trace of {len(self.ranks)} ranks, {num_calls:,} calls>"

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        cell = self.last()
        return {"text/plain": repr(self)} if cell is None else cell.render()

    @property
    def labels(self) -> tuple[str, ...]:
        """The latest cells that called any, on some rank."""
        known = dict.fromkeys(label for trace in self.ranks.values() for label in trace.known)
        return tuple(known)

    def last(self) -> CellTrace | None:
        """Return the last cell that called any; ``None`` where none did."""
        called = [cell for cell in self._cells() if cell.num_calls]
        return self._of(max(called, key=lambda cell: cell.began)) if called else None

    def labelled(self, label: str) -> CellTrace:
        """Return the last cell named *label*.

        Raises:
            UsageError: No rank knows calls of such a cell.
        """
        named = [cell for cell in self._cells() if cell.label == label]
        if not any(cell.num_calls for cell in named):
            raise UsageError(self._not_found(label))
        return self._of(max(named, key=lambda cell: cell.began))

    def nothing(self) -> str:
        """Say why there is nothing to show."""
        if any(trace.mode == "off" for trace in self.ranks.values()):
            return (
                "Nothing was recorded: the guard is off.\n"
                "`%dist guard on` checks and records, `%dist guard trace` only records."
            )
        if self.world_size == 1:
            return "Nothing was recorded: with one rank there is nobody to wait for."
        return "No cell has called a collective yet."

    def _not_found(self, label: str) -> str:
        if not self.labels:
            return self.nothing()
        return (
            f"No calls of {label} are known: it called none, or they are too long ago.\n"
            f"Cells with calls: {', '.join(self.labels)}. `%dist trace` alone shows the last."
        )

    def _cells(self) -> list[TracedCell]:
        return [cell for trace in self.ranks.values() for cell in trace.cells]

    def _of(self, wanted: TracedCell) -> CellTrace:
        cells, traces = {}, {}
        for rank, trace in sorted(self.ranks.items()):
            for cell in trace.cells:
                if cell.cell_id == wanted.cell_id:
                    cells[rank] = cell
                    calls = tuple(c for c in trace.calls if c.cell_id == cell.cell_id)
                    traces[rank] = replace(trace, cells=(cell,), calls=calls)
        silent = tuple(rank for rank in range(self.world_size) if rank not in self.ranks)
        return CellTrace(wanted.label, cells, traces, self.world_size, silent)


@dataclass(frozen=True)
class CellTrace:
    """What the ranks called in one cell.

    Attributes:
        label: ``In[12]``.
        cells: The cell as each rank ran it.
        traces: By rank, with the calls of this cell alone.
        world_size: Number of ranks in the session.
        silent: Ranks that did not answer.
    """

    label: str
    cells: Mapping[int, TracedCell]
    traces: Mapping[int, RankTrace]
    world_size: int
    silent: tuple[int, ...] = ()

    @cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """The calls, each with all ranks that made it."""
        return tuple(collectives(self.traces.values()))

    @cached_property
    def waits(self) -> tuple[Wait, ...]:
        """Who waited for whom."""
        return tuple(wait for collective in self.collectives for wait in collective.waits)

    @property
    def began(self) -> float:
        """When the first rank began it."""
        return min(cell.began for cell in self.cells.values())

    @property
    def ended(self) -> float:
        """When the last rank had ended it; until now, where it still runs."""
        return max(cell.ended or self.traces[rank].now for rank, cell in self.cells.items())

    @cached_property
    def stragglers(self) -> tuple[Straggler, ...]:
        """The rank that others waited for longest, and those waited for nearly as long.

        None where nobody waited for anybody notably.
        """
        found = stragglers(self.waits)
        least = max(NOTABLE_S, NOTABLE_SHARE * (self.ended - self.began))
        if not found or found[0].seconds < least:
            return ()
        return tuple(one for one in found if one.seconds >= NEARLY_SHARE * found[0].seconds)

    @property
    def verdict(self) -> str:
        """Who was waited for, in a sentence."""
        total, all_found = describe_seconds(self.ended - self.began), self.stragglers
        if not all_found:
            return f"no rank held up the others in {total}"
        found = all_found[0]
        if len(all_found) > 1:
            return f"the ranks waited for one another: {_waited(all_found)}, of {total}"
        return (
            f"rank {found.rank} was waited for {describe_seconds(found.seconds)} of {total} "
            f"({name_ranks(found.waiting)}), mostly at {found.source}"
        )

    @property
    def notes(self) -> list[str]:
        """What the user should know about the numbers."""
        notes = list(_EXPLAINED)
        if any(" on cuda" in call.site.text for t in self.traces.values() for call in t.calls):
            notes.append("on CUDA the times are those of the CPU, which only queues the calls")
        lost = {
            rank: cell.num_calls - len(self.traces[rank].calls) for rank, cell in self.cells.items()
        }
        if num := max(lost.values()):
            notes.append(f"the first {num:,} calls of each rank are no longer known")
        if any(not cell.ended for cell in self.cells.values()):
            notes.append("the cell still runs")
        if self.silent:
            notes.append(f"{name_ranks(self.silent)} did not answer")
        return notes

    def render(
        self, *, lists_all: bool = False, image: bytes | None = None, hints: Sequence[str] = ()
    ) -> dict[str, str]:
        """Return table and sentence as one mime bundle.

        Args:
            lists_all: A row for each call; else one for all calls of a line.
            image: The timeline as PNG, for the HTML.
            hints: More notes.
        """
        rows, num_hidden = self._rows(lists_all=lists_all)
        hidden = [f"{num_hidden:,} more rows are left out: these are the ones that took longest"]
        notes = [*hidden[: num_hidden > 0], *self.notes, *hints]
        count = sum(1 for _ in self.collectives)
        heading = f"{self.label} · {name_ranks(self.cells)} · {count:,} call{'s' * (count != 1)}"
        html = [f"<b>{heading}</b>"]
        if image is None:
            html.append(f" · {escape(self.verdict, quote=False)}")
        else:  # the sentence is its title
            html.append(image_html(image, self.verdict))
        html += [_table_html(rows, self.stragglers), *map(small, notes)]
        table = align([HEADINGS, *(row.cells for row in rows)], _ARE_NUMBERS)
        text = [heading, self.verdict, *table, *notes]
        return {
            "text/html": f"<div>{''.join(html)}</div>",
            "text/plain": "\n".join(text),
        }

    def _rows(self, *, lists_all: bool) -> tuple[list[Row], int]:
        """Return the rows to show in the order of first calls, and how many are left out."""
        grouped: dict[object, list[Collective]] = defaultdict(list)
        for place, collective in enumerate(self.collectives):
            grouped[place if lists_all else _line_of(collective)].append(collective)
        limit = MAX_ROWS_OF_ALL if lists_all else MAX_ROWS
        found = [make_row(same, self.world_size) for same in grouped.values()]
        slow = sorted(range(len(found)), key=lambda place: -found[place].cost_s)[:limit]
        return [found[place] for place in sorted(slow)], len(found) - len(slow)


# Rows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Calls of one line, or a single call.

    Attributes:
        cells: A text for each of `HEADINGS`.
        cost_s: Time that ranks have spent there.
        source: The line where somebody was waited for longest; empty where nobody was.
    """

    cells: tuple[str, ...]
    cost_s: float
    source: str = ""


def make_row(same: Sequence[Collective], world_size: int) -> Row:
    """Say what *same*, of one line, have taken together."""
    sites = [collective.site for collective in same]
    op, num_ranks = sites[0].op, len(sites[0].ranks)
    sizes = [[call.site.size_bytes for call in one.calls.values()] for one in same]
    timed = [(one.inside_s, size) for one, size in zip(same, sizes, strict=True)]
    known = [(seconds, data_size(op, size, num_ranks)) for seconds, size in timed if seconds]
    inside = [seconds for seconds, _ in known]
    algbw = _bandwidth(known)
    factor = bus_factor(op, num_ranks)
    found = stragglers(wait for one in same for wait in one.waits)
    notable = [one for one in found if one.seconds >= NOTABLE_S]
    cells = (
        _numbers([one.seq for one in same]),
        _count(len(same), op, is_async=sites[0].is_async),
        _group_name(same, world_size),
        _data(same),
        _sizes([size for of_one in sizes for size in of_one]),
        describe_seconds(median(inside)) if inside else DASH,
        _waited(notable),
        _per_second(algbw),
        _per_second(None if algbw is None or factor is None else algbw * factor),
        _lines(same),
    )
    cost = sum(inside) + sum(one.seconds for one in found)
    return Row(cells, cost, notable[0].source if notable else "")


def describe_seconds(seconds: float) -> str:
    """Return *seconds* with two digits or more: ``1.8 s``, ``240 ms``, ``35 µs``."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        value = seconds * factor
        if value >= 9.95:
            return f"{value:,.0f} {unit}"
        if value >= 0.995:
            return f"{value:.1f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def _line_of(collective: Collective) -> object:
    site = collective.site
    return site.op, site.source, site.kind, site.is_async, len(site.ranks)


def _bandwidth(known: Sequence[tuple[float, int]]) -> float | None:
    size = sum(size for _, size in known)
    return algorithm_bandwidth(size, sum(seconds for seconds, _ in known)) if size else None


def _numbers(numbers: Sequence[int]) -> str:
    first, last = min(numbers), max(numbers)
    if not last:
        return DASH
    return str(last) if first == last else f"{first}–{last}"


def _count(num: int, op: str, *, is_async: bool) -> str:
    return f"{num:,} × " * (num > 1) + op + " (async)" * is_async


def _group_name(same: Sequence[Collective], world_size: int) -> str:
    groups = list(dict.fromkeys((one.site.group, one.site.ranks) for one in same))
    name, ranks = groups[0]
    if len(groups) > 1:
        pairs = f"{len(groups)} pairs"
        return pairs if same[0].site.kind == "p2p" else f"{len(groups)} groups of {len(ranks)}"
    if same[0].site.kind == "p2p":
        return " → ".join(map(str, ranks if len(ranks) > 1 else ("any", *ranks)))
    if len(ranks) < world_size:
        return name_ranks(ranks)
    return "world" if name == "0" else f"all ranks ({name})"


def _data(same: Sequence[Collective]) -> str:
    texts = list(dict.fromkeys(one.site.text for one in same))
    first = texts[0].partition("(")[2].removesuffix(")")
    return first + f" and {len(texts) - 1} more" * (len(texts) > 1)


def _sizes(sizes: Sequence[int]) -> str:
    return describe_sizes(sizes) if any(sizes) else DASH


def _waited(found: Sequence[Straggler]) -> str:
    parts = [f"{describe_seconds(one.seconds)} for rank {one.rank}" for one in found]
    if len(parts) == 1:
        return f"{parts[0]} ({name_ranks(found[0].waiting)})"
    more = len(parts) - MAX_NAMED_STRAGGLERS
    shown = ", ".join(parts[:MAX_NAMED_STRAGGLERS])
    return (shown + f", {more} more rank{'s' * (more > 1)}" * (more > 0)) or DASH


def _per_second(bandwidth: float | None) -> str:
    return DASH if bandwidth is None else describe_rate(bandwidth)


def _lines(same: Sequence[Collective]) -> str:
    """Name the line, and that of the receiver where it is another."""
    sources = [one.site.source for one in same]
    sources += [call.site.source for one in same for call in one.calls.values()]
    return " → ".join(list(dict.fromkeys(sources))[:2])


# HTML ------------------------------------------------------------------------------------------


_TABLE = "border-collapse:collapse;border:0;margin:4px 0;font-size:12px"
_CELL = "border:0;padding:1px 10px 1px 0;vertical-align:top;text-align:"


def _table_html(rows: Sequence[Row], found: Sequence[Straggler]) -> str:
    sources = {one.source for one in found}
    body = "".join(_row_html(row, sources) for row in rows)
    head = "".join(_cells_html(HEADINGS, "th", "font-weight:normal"))
    return (
        f'<div style="overflow-x:auto"><table style="{_TABLE}">'
        f'<thead style="border:0"><tr style="{FAINT}">{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row_html(row: Row, sources: Collection[str]) -> str:
    tint = MARK if row.source in sources else "background:transparent"
    return f'<tr style="{tint}">{"".join(_cells_html(row.cells, "td"))}</tr>'


def _cells_html(cells: Iterable[str], tag: Literal["td", "th"], more: str = "") -> Iterator[str]:
    for heading, cell, is_number in zip(HEADINGS, cells, _ARE_NUMBERS, strict=True):
        side = "right" if is_number else "left"
        # Where the page is narrow the words give way, and the numbers stay in their columns.
        wrap = "normal" if heading in _MAY_WRAP else "pre"
        style = f"{_CELL}{side};white-space:{wrap}" + f";{more}" * bool(more)
        yield f'<{tag} style="{style}">{escape(cell, quote=False)}</{tag}>'


def image_html(image: bytes, said: str) -> str:
    """Show a PNG of twice the size it is to have, with what it says in words."""
    width = int.from_bytes(image[16:20])  # of the header that every PNG begins with
    data = base64.b64encode(image).decode()
    return (
        f'<div><img alt="{escape(said)}" src="data:image/png;base64,{data}" '
        f'width="{width // 2}" style="max-width:100%"></div>'
    )
