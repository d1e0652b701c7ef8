"""Ask the ranks what collectives they have called, for ``%dist trace``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from nbdist import wire
from nbdist.sessions.transport import RankClient
from nbdist.wire import RankTrace

ANSWER_S = 5.0  # for all: ten thousand calls are a megabyte a rank


def rank_traces(
    client: RankClient, ranks: Iterable[int], cells: Sequence[str] | Literal["last"] | None
) -> dict[int, RankTrace]:
    """Return what *ranks* still know; those that do not answer in time are left out.

    Args:
        client: The connection to the ranks.
        ranks: Whom to ask.
        cells: Labels of the cells wanted; ``"last"`` for the last that called any; all when
            ``None``.
    """
    answers = client.ask_all(ranks, wire.TRACE_REQUEST, {"cells": cells}, ANSWER_S)
    return {rank: RankTrace.from_json(content) for rank, content in answers.items()}
