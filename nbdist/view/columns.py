"""Text that keeps to a width: cells that stand below one another, lines that are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

BETWEEN = "  "


def align(rows: Sequence[Sequence[str]], are_numbers: Sequence[bool]) -> Iterator[str]:
    """Give *rows* as lines; columns that are numbers are flush right, the others flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        columns = zip(row, widths, are_numbers, strict=True)
        yield BETWEEN.join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in columns
        ).rstrip()


def clip(line: str, max_chars: int) -> str:
    """Cut *line* where it is longer than *max_chars*."""
    return line if len(line) <= max_chars else f"{line[: max_chars - 1]}…"
