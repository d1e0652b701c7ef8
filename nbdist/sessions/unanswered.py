"""Keep the book of requests that ranks have not answered: who is busy with earlier ones."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Unanswered:
    """Which ranks have not answered which requests, given up on or not; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent: dict[str, set[int]] = {}

    def __repr__(self) -> str:
        return f"<Unanswered {len(self._silent)} requests>"

    def __contains__(self, request_id: str) -> bool:
        """Whether some rank has still to answer the request."""
        return request_id in self._silent

    def expect(self, request_id: str, ranks: Iterable[int]) -> None:
        """Note that each of *ranks* has to answer the request; before it is sent."""
        with self._lock:
            self._silent[request_id] = set(ranks)

    def answered(self, request_id: str, rank: int) -> None:
        """Note that *rank* has answered the request, or never will."""
        self._strike({rank}, [request_id])

    def died(self, ranks: Iterable[int]) -> None:
        """Note that *ranks* will answer nothing that was asked of them so far."""
        self._strike(set(ranks), list(self._silent))

    def answered_but(self, rank: int, request_id: str | None) -> None:
        """Note that *rank* is busy with this request at most: what else it said got lost."""
        self._strike({rank}, [other for other in list(self._silent) if other != request_id])

    def forget(self, request_id: str) -> None:
        """Expect no answer to the request: it was never sent."""
        with self._lock:
            self._silent.pop(request_id, None)

    def busy(self, living: Iterable[int]) -> tuple[int, ...]:
        """Return those of *living* that have not answered everything."""
        with self._lock:
            busy = set().union(*self._silent.values())
        return tuple(rank for rank in living if rank in busy)

    def _strike(self, ranks: set[int], request_ids: Iterable[str]) -> None:
        with self._lock:
            for request_id in request_ids:
                silent = self._silent.get(request_id, set())
                silent -= ranks
                if not silent:
                    self._silent.pop(request_id, None)
