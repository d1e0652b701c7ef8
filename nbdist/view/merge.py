"""Show once what ranks have in common even where they are not quite alike.

    Block per unlike ranks ── cut into lines, compare ──▶ Block: what they have in common
                                                          Variants: where they differ

A line is common where it is the same to the last character; nothing is normalised. What a rank put
out is what all the parts that name it hold, in their order.

Not covered: ranks that differ in several lines *and* have not the same number of them; they stay
apart, but for what all of them begin and end with.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Literal

from nbdist.view.ansi import complete_lines
from nbdist.view.consolidate import Shown
from nbdist.view.fold import Block, fold, identity
from nbdist.view.mime import display_text, is_rich
from nbdist.view.progress import Bar
from nbdist.wire import Dropped, Text

MAX_DIFFERING_LINES = 50  # of one stretch of text; above that its ranks are shown one by one
MAX_LINE_CHARS = 1000  # of a line that stands beside those of other ranks


@dataclass(frozen=True)
class Variants:
    """A place where ranks differ, and what each of them has there.

    Attributes:
        kind: ``line``: every block is one line of text; ``object``: every block is one figure,
            table or the like; ``whole``: the blocks have too little in common.
        blocks: Two or more, in the order of their first ranks.
    """

    kind: Literal["line", "object", "whole"]
    blocks: tuple[Block, ...]


Part = Block | Variants


def blocks_of(part: Part) -> tuple[Block, ...]:
    """Return the blocks of *part*, in reading order."""
    return (part,) if isinstance(part, Block) else part.blocks


_Kind = Literal["stdout", "stderr", "value", "object", "dropped", "bar"]


@dataclass(frozen=True)
class _Run:
    """The lines of one text, or one object (as its identity) that counts as a line."""

    kind: _Kind
    lines: tuple[Hashable, ...]
    shown: Shown | None = None

    @property
    def is_text(self) -> bool:
        return self.shown is None

    def output(self) -> Shown:
        if self.shown is not None:
            return self.shown
        name: Literal["stdout", "stderr"] = "stderr" if self.kind == "stderr" else "stdout"
        return Text(name, "\n".join(map(str, self.lines)) + "\n")


@dataclass(frozen=True)
class _Strip:
    """What ranks put out, cut into lines; *source* is what it was made of, if it is all of that."""

    ranks: tuple[int, ...]
    runs: tuple[_Run, ...]
    source: Block | None = None

    @property
    def shape(self) -> tuple[tuple[_Kind, int], ...]:
        return tuple((run.kind, len(run.lines)) for run in self.runs)

    @property
    def num_lines(self) -> int:
        return sum(len(run.lines) for run in self.runs)

    def lines(self) -> Iterator[Hashable]:
        return chain.from_iterable(run.lines for run in self.runs)

    def cut(self, start: int, stop: int) -> _Strip:
        """Keep the lines from *start* on, up to *stop*."""
        if start == 0 and stop == self.num_lines:
            return self
        kept, begin = [], 0
        for run in self.runs:
            lines = run.lines[max(start - begin, 0) : max(stop - begin, 0)]
            if lines:
                kept.append(_Run(run.kind, lines, run.shown))
            begin += len(run.lines)
        return _Strip(self.ranks, tuple(kept))

    def block(self) -> Block:
        return self.source or Block(self.ranks, tuple(run.output() for run in self.runs))


def merge(blocks: Sequence[Block]) -> tuple[Part, ...]:
    """Find what *blocks*, no two of which are equal, have in common.

    Lines are compared one by one where ranks have the same number of them; where they have not,
    what all of them begin and end with is shown once. Blocks with little in common stay as they
    are.
    """
    if len(blocks) < 2:
        return tuple(blocks)
    strips = [_Strip(block.ranks, tuple(_runs(block.outputs)), block) for block in blocks]
    return tuple(_join(_merge(strips)))


def _merge(strips: Sequence[_Strip]) -> Iterator[Part]:
    alike: dict[Hashable, list[_Strip]] = {}
    for strip in strips:
        alike.setdefault(strip.shape, []).append(strip)
    if len(alike) > 1:
        start, end = _num_common_lines(strips)
        is_much = 2 * (start + end) >= max(strip.num_lines for strip in strips)
        if is_much or _has_bar(strips[0], start, end):
            yield from _merge_around(strips, start, end)
            return
    for group in alike.values():
        yield from _merge_alike(group)


def _has_bar(strip: _Strip, start: int, end: int) -> bool:
    """Whether a bar, which tells of all ranks, is among the first or the last lines."""
    kinds = [run.kind for run in strip.runs for _ in run.lines]
    return "bar" in kinds[:start] or "bar" in kinds[len(kinds) - end :]


def _runs(outputs: Iterable[Shown]) -> Iterator[_Run]:
    for output in outputs:
        if isinstance(output, Text):
            yield _Run(output.name, complete_lines(output.text.removesuffix("\n")))
        elif isinstance(output, Dropped):
            yield _Run("dropped", (output,), output)
        elif isinstance(output, Bar):
            yield _Run("bar", (output,), output)
        elif is_rich(output):
            yield _Run("object", (identity([output]),), output)
        else:
            yield _Run("value", complete_lines(display_text(output).removesuffix("\n")))


def _common(strip: _Strip, strips: Iterable[_Strip]) -> Block:
    """Return *strip*, which is the same for all *strips*, as theirs."""
    ranks = sorted(rank for each in strips for rank in each.ranks)
    return _Strip(tuple(ranks), strip.runs).block()


def _variants(strips: Iterable[_Strip]) -> tuple[Block, ...]:
    """Put strips that are equal into one block."""
    blocks = [strip.block() for strip in strips]
    return fold({rank: block.outputs for block in blocks for rank in block.ranks})


def _join(parts: Iterable[Part]) -> Iterator[Part]:
    """Make one of neighbouring blocks with the same ranks, and one stack of what has no likes."""
    for (kind, ranks), members in groupby(parts, key=_kind):
        if kind in ("line", "object"):
            yield from members
            continue
        blocks = tuple(block for part in members for block in blocks_of(part))
        if kind == "common":
            yield Block(ranks, tuple(output for block in blocks for output in block.outputs))
        else:
            yield Variants("whole", blocks) if len(blocks) > 1 else blocks[0]


def _kind(part: Part) -> tuple[str, tuple[int, ...]]:
    return ("common", part.ranks) if isinstance(part, Block) else (part.kind, ())


# Ranks with different numbers of lines ---------------------------------------------------------


def _merge_around(strips: Sequence[_Strip], start: int, end: int) -> Iterator[Part]:
    """Show the first *start* and the last *end* lines once, and merge what lies between."""
    first = strips[0]
    if start:
        yield _common(first.cut(0, start), strips)
    middles = [strip.cut(start, strip.num_lines - end) for strip in strips]
    yield from _merge([middle for middle in middles if middle.runs])
    if end:
        yield _common(first.cut(first.num_lines - end, first.num_lines), strips)


def _num_common_lines(strips: Sequence[_Strip]) -> tuple[int, int]:
    """Count the lines that all *strips* begin with, and of the rest those that all end with."""
    lines = [[(run.kind, line) for run in strip.runs for line in run.lines] for strip in strips]
    start = min(_num_equal(lines[0], others) for others in lines[1:])
    rests = [line[start:][::-1] for line in lines]
    return start, min(_num_equal(rests[0], others) for others in rests[1:])


def _num_equal(lines: Sequence[Hashable], others: Sequence[Hashable]) -> int:
    pairs = zip(lines, others, strict=False)
    unequal = (place for place, (line, other) in enumerate(pairs) if line != other)
    return next(unequal, min(len(lines), len(others)))


# Ranks with the same number of lines -----------------------------------------------------------


def _merge_alike(strips: Sequence[_Strip]) -> Iterator[Part]:
    parts = list(_compare(strips)) if len(strips) > 1 else []
    if any(_kind(part)[0] != "whole" for part in parts):
        yield from parts
    else:
        yield Variants("whole", tuple(strip.block() for strip in strips))


def _compare(strips: Sequence[_Strip]) -> Iterator[Part]:
    """Compare strips of one shape: a stretch of text line by line, objects one by one."""
    begin = 0
    for is_text, runs in groupby(strips[0].runs, key=lambda run: run.is_text):
        num_lines = sum(len(run.lines) for run in runs)
        steps = [num_lines] if is_text else [1] * num_lines
        for step in steps:
            pieces = [strip.cut(begin, begin + step) for strip in strips]
            yield from _compare_text(pieces) if is_text else _compare_objects(pieces)
            begin += step


def _compare_objects(strips: Sequence[_Strip]) -> Iterator[Part]:
    run = strips[0].runs[0]
    if all(strip.runs[0].lines == run.lines for strip in strips):
        yield _common(strips[0], strips)
    else:
        yield Variants("object" if run.kind == "object" else "whole", _variants(strips))


def _compare_text(strips: Sequence[_Strip]) -> Iterator[Part]:
    """Give the lines that are the same once, in their places among those that are not."""
    num_lines = strips[0].num_lines
    most = min(MAX_DIFFERING_LINES, num_lines // 2) if num_lines > 1 else 1
    differing = _differing_lines(strips, most)
    if len(differing) > most:
        yield Variants("whole", _variants(strips))
        return
    begin = 0
    for place in differing:
        if begin < place:
            yield _common(strips[0].cut(begin, place), strips)
        yield _line([strip.cut(place, place + 1) for strip in strips])
        begin = place + 1
    if begin < num_lines:
        yield _common(strips[0].cut(begin, num_lines), strips)


def _differing_lines(strips: Sequence[_Strip], most: int) -> list[int]:
    """Return the places of lines that are not the same in all *strips*; give up above *most*."""
    places: set[int] = set()
    lines = list(strips[0].lines())
    for strip in strips[1:]:
        unequal = (i for i, (a, b) in enumerate(zip(lines, strip.lines(), strict=True)) if a != b)
        places.update(islice(unequal, most + 1))
        if len(places) > most:
            break
    return sorted(places)


def _line(strips: Sequence[_Strip]) -> Variants:
    is_short = all(len(str(line)) <= MAX_LINE_CHARS for strip in strips for line in strip.lines())
    # Without its source, so that a value is a line of text as well.
    pieces = [_Strip(strip.ranks, strip.runs) for strip in strips]
    return Variants("line" if is_short else "whole", _variants(pieces))
