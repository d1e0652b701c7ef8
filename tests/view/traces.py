"""Short ways to write down what ranks called, and when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nbdist.view.trace import CellTrace, Trace
from nbdist.wire import CallSite, RankTrace, TracedCall, TracedCell

START = 1000.0  # no rank's clock begins at 0, which means "not yet"


def site(
    op: str = "all_reduce",
    line: int = 7,
    ranks: tuple[int, ...] = (0, 1, 2, 3),
    data: str = "float32[1000], sum",
    **more: Any,
) -> CallSite:
    return CallSite(
        **{
            "op": op,
            "text": f"{op}({data})",
            "source": f"In[12]:{line}",
            "group": "0",
            "ranks": ranks,
            "size_bytes": 4000,
            **more,
        }
    )


def held(at: CallSite, seq: int, began: float, until: float, ended: float) -> TracedCall:
    """Return a synchronous call: held back by the guard, then native, then over."""
    waited = until - began
    return TracedCall(
        at, "c", seq, START + began, waited, START + until, START + until, START + ended
    )


def unheld(at: CallSite, seq: int, began: float, ended: float) -> TracedCall:
    """Return a synchronous call of the mode ``trace``: the native call waits for the peers."""
    return TracedCall(at, "c", seq, START + began, 0.0, START + began, START + began, START + ended)


def issued(at: CallSite, seq: int, began: float, **times: float) -> TracedCall:
    """Return an asynchronous call: ``wait_began``, ``wait_ended`` and ``done`` come later."""
    call = TracedCall(replace(at, is_async=True), "c", seq, START + began, 0.0, START + began)
    moved: dict[str, Any] = {name: START + time for name, time in times.items()}
    return call._replace(**moved)


def given_up(at: CallSite, seq: int, began: float, ended: float) -> TracedCall:
    """Return a call that the guard held back in vain."""
    waited, returned = ended - began, START + ended
    return TracedCall(at, "c", seq, START + began, waited, returned, is_failed=True)


def waiting(at: CallSite, seq: int, began: float) -> TracedCall:
    """Return a call that is not over."""
    return TracedCall(at, "c", seq, START + began)


def rank_trace(
    rank: int, *calls: TracedCall, ended: float = 2.0, now: float = 3.0, lost: int = 0
) -> RankTrace:
    cell = TracedCell("c", "In[12]", START, START + ended if ended else 0.0, len(calls) + lost)
    known = ("In[12]",) if calls else ()
    return RankTrace(rank, "on", START + now, (cell,), calls, known)


def traced(*calls: list[TracedCall], world_size: int | None = None, **more: Any) -> Trace:
    """Return the trace of one cell, with the calls of each rank from rank 0 on."""
    ranks = {rank: rank_trace(rank, *of_rank, **more) for rank, of_rank in enumerate(calls)}
    return Trace(ranks, world_size or len(ranks))


def cell(*calls: list[TracedCall], world_size: int | None = None, **more: Any) -> CellTrace:
    found = traced(*calls, world_size=world_size, **more).last()
    assert found is not None
    return found


def late(rank: int, *, num_ranks: int = 4, by: float = 1.8, line: int = 7) -> CellTrace:
    """Return a cell in which *rank* came to the only call later than the others."""
    at = site(ranks=tuple(range(num_ranks)), line=line)
    calls = [
        [held(at, 1, 0.2 + by if r == rank else 0.2, 0.2 + by, 0.3 + by)] for r in range(num_ranks)
    ]
    return cell(*calls, ended=2.1)
