"""Who will not come any more, as far as one rank has to care.

    table: cancellations ──▶ later than the latest agreement? ──▶ Mismatch, PeerFailed

What was cancelled before the ranks agreed to go on (`cut`) is over.
"""

from __future__ import annotations

import time

from nbdist.errors import CollectiveMismatch, PeerFailed
from nbdist.runtime.known_groups import KnownGroup
from nbdist.runtime.slots import Record
from nbdist.runtime.table import Cancellation, Table
from nbdist.runtime.wording import where_text


class Outlook:
    """The cancellations that still hold.

    Attributes:
        cut: What was cancelled up to this stamp is over.
    """

    def __init__(self, table: Table) -> None:
        self.cut = max(table.cut, table.epoch)
        self._table = table

    def __repr__(self) -> str:
        return f"<Outlook after {self.cut}, {len(self.all())} ranks will not come>"

    def agree(self, cut: int) -> None:
        """Take what was cancelled up to *cut* for over."""
        self.cut = cut
        self._table.agree(cut)

    def first(self) -> Cancellation | None:
        """Return the first reason why some rank will not come, if any."""
        return self._table.cancellation(range(self._table.world_size), self.cut)

    def all(self) -> tuple[Cancellation, ...]:
        """Return why ranks will not come, one for each that has said so."""
        ranks = range(self._table.world_size)
        found = (self._table.cancellation([rank], self.cut) for rank in ranks)
        return tuple(dict.fromkeys(cancel for cancel in found if cancel is not None))

    def wait(self, timeout_s: float) -> bool:
        """Wait until some rank will not come; say whether it is so."""
        deadline, seen = time.monotonic() + timeout_s, self.cut
        while self._table.wait_for_cancel(seen, deadline - time.monotonic()):
            seen = self._table.epoch
            if self.first() is not None:
                return True
        return False

    def raise_if_cancelled(self, group: KnownGroup, record: Record, seq: int) -> None:
        """Raise if some rank of *group* will not come any more."""
        if (failure := self.failure(group, record, seq)) is not None:
            raise failure

    def failure(
        self, group: KnownGroup, record: Record, seq: int
    ) -> CollectiveMismatch | PeerFailed | None:
        """Return what it means to a call that some rank of *group* will not come, if that is so."""
        if self._table.epoch <= self.cut:
            return None
        cancellation = self._table.cancellation(group.key.ranks, self.cut)
        if cancellation is None:
            return None
        return error_of(cancellation, f"{where_text(record, group.name, seq)}; nothing was sent")


def error_of(cancellation: Cancellation, where: str) -> CollectiveMismatch | PeerFailed:
    """Return what *cancellation* means to a rank that is at *where*."""
    if cancellation.kind == "mismatch":
        return CollectiveMismatch(cancellation.reason)
    return PeerFailed(
        f"{cancellation.reason}\n"
        f"This rank waited for it in {where}.\n"
        "All variables of this rank are kept; the next cell works with the same groups.",
        culprit=cancellation.culprit,
        kind=cancellation.kind,
    )
