"""Ask the ranks what collectives they have called, for ``%dist trace``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

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
    asked: dict[int, Any] = {}
    for rank in ranks:
        with contextlib.suppress(KeyError):  # it has died meanwhile
            asked[rank] = client.control(rank, wire.TRACE_REQUEST, {"cells": cells})
    deadline = time.monotonic() + ANSWER_S
    return {
        rank: RankTrace.from_json(answer.result()["content"])
        for rank, answer in asked.items()
        if answer.wait(max(0.0, deadline - time.monotonic()))
    }
