"""A cell as plain text: every line says whose it is, so that ``grep '[rank1]'`` finds it."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import indent

from nbdist.view.ansi import strip_ansi
from nbdist.view.consolidate import Shown, describe_dropped
from nbdist.view.failures import Cause, group_failures, trace_lines
from nbdist.view.fold import Block
from nbdist.view.merge import blocks_of
from nbdist.view.mime import display_text
from nbdist.view.names import label_ranks, label_stream
from nbdist.view.page import Page
from nbdist.view.progress import Bar
from nbdist.view.scalars import ScalarTable
from nbdist.wire import Dropped, RankOutput, Text

_INDENTS = {"where": "  ", "source": "      ", "error": "  ", "note": "  "}


def render_text(page: Page) -> str:
    """Write *page* as plain text without a line break at its end."""
    failures = [_cause(cause) for cause in page.causes]
    failures += [waiting.headline() for waiting in page.waiting]
    parts = [_block(block) for part in page.parts for block in blocks_of(part)]
    if page.table:
        parts.append(_table(page.table))
    parts = [*failures, *parts] if page.begins_with_causes else [*parts, *failures]
    parts += page.notes
    parts += [page.collectives] if page.collectives else []
    return "\n".join(parts)


def failures_text(ranks: Iterable[RankOutput]) -> str:
    """Say why a cell has failed on *ranks*, as its plain text will."""
    failures = group_failures(ranks)
    waiting = [waiting.headline() for waiting in failures.waiting]
    return "\n".join([*map(_cause, failures.causes), *waiting])


def _block(block: Block) -> str:
    return "\n".join(_output(block.ranks, output) for output in block.outputs)


def _output(ranks: tuple[int, ...], output: Shown) -> str:
    if isinstance(output, Text):
        return _prefix(label_stream(ranks, output.name), strip_ansi(output.text))
    if isinstance(output, Dropped):
        return _prefix(label_stream(ranks, ""), describe_dropped(output))
    if isinstance(output, Bar):
        return label_stream(ranks, "") + output.text
    return _prefix(label_stream(ranks, ""), strip_ansi(display_text(output)))


def _prefix(label: str, text: str) -> str:
    return label + text.removesuffix("\n").replace("\n", "\n" + label)


def _table(table: ScalarTable) -> str:
    labels = [label_ranks([rank]) for rank, _ in table.rows]
    labels += [total.name for total in table.totals]
    whose = [""] * len(table.rows) + [total.ranks for total in table.totals]
    width = max(map(len, labels))
    lines = [
        f"{label:<{width}} {value} {ranks}"
        for label, value, ranks in zip(labels, table.aligned(), whose, strict=True)
    ]
    return "\n".join(map(str.rstrip, lines))


def _cause(cause: Cause) -> str:
    heads = [
        _prefix(
            label_stream(message.ranks, ""), cause.name + f": {message.text}" * bool(message.text)
        )
        for message in cause.messages
    ]
    trace = [
        _prefix(label_stream(line.ranks or cause.ranks, ""), indent(line.text, _INDENTS[line.kind]))
        for line in trace_lines(cause)
    ]
    return "\n".join([*heads, *trace])
