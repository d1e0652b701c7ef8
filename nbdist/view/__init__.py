"""Turn what the ranks printed into one picture.

    RankOutput per rank ── consolidate, fold, merge, group ──▶ Page ──▶ text/html, text/plain

Pure: outputs in, mime bundle out. Knows nothing of sockets, sessions or widgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from nbdist.view.failures import summary
from nbdist.view.html import render_html
from nbdist.view.lines import LineStreamer
from nbdist.view.names import name_ranks
from nbdist.view.page import lay_out
from nbdist.view.text import failures_text, render_text
from nbdist.wire import CallCount, RankOutput

__all__ = ["LineStreamer", "failures_text", "name_ranks", "render", "summary"]


def render(
    ranks: Iterable[RankOutput],
    *,
    fold: bool = True,
    has_text: bool = True,
    calls: Mapping[int, Sequence[CallCount]] | None = None,
    world_size: int | None = None,
    notes: Sequence[str] = (),
) -> dict[str, str]:
    """Show the outputs of *ranks* as one mime bundle; the same outputs give the same bytes.

    Args:
        ranks: What each rank made of the cell, in any order.
        fold: Show once what ranks have in common, what differs beside it, and numbers that differ
            as a table.
        has_text: Show stdout and stderr; ``False`` where they were streamed already.
        calls: What collectives each rank called; they become the last line.
        world_size: Number of ranks in the session, which tells the world's group from others.
        notes: What the user should know beside the output; they stand below it.

    Returns:
        ``text/html`` and ``text/plain`` with the same facts; empty if there is nothing to show.
    """
    page = lay_out(
        ranks,
        is_folded=fold,
        has_text=has_text,
        calls=calls,
        world_size=world_size,
        notes=notes,
    )
    if page.is_empty:
        return {}
    return {"text/html": render_html(page), "text/plain": render_text(page)}
