"""The last part of what each rank printed: kept for a page that asks, and counted where it is lost.

Tails.add ──▶ one Tail per rank ──▶ Tails.take_new      what the page has not
                                └─▶ Tails.whole         all that is kept, for a new page
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MAX_LINES = 5000
MAX_CHARS = 2**18
MAX_CHARS_OF_ALL = 2**23

Kind = Literal["stdout", "stderr", "note", "clear"]
Piece = tuple[int, Kind, str]
"""Rank, where it was written to, text; of a ``clear`` the text is ``wait`` or empty."""


@dataclass(frozen=True)
class News:
    """What is to be sent to the page.

    Attributes:
        pieces: In the order they came, neighbours of one rank and kind as one.
        lost: By rank, the number of lines that came before them and are not kept.
    """

    pieces: tuple[Piece, ...]
    lost: dict[int, int]


@dataclass(frozen=True)
class _Chunk:
    number: int  # counts up over all ranks
    kind: Kind
    text: str
    num_lines: int


class _Tail:
    """The end of one rank's text, never more than `MAX_LINES` lines and *max_chars* characters."""

    def __init__(self, max_chars: int) -> None:
        self.chunks: deque[_Chunk] = deque()
        self.num_lost = 0
        self._max_chars = max_chars
        self._num_lines = 0
        self._num_chars = 0

    def add(self, number: int, kind: Kind, text: str) -> list[_Chunk]:
        """Add *text*; return what had to go for it."""
        if kind == "clear" and not text:
            self.forget()
        chunk, cut = self._fitting(number, kind, text)
        gone = [cut] if cut.num_lines else []
        while cut.text and self.chunks:  # the end of a lost line must not stand before this one
            gone.append(self._take_oldest())
        self.chunks.append(chunk)
        self._num_lines += chunk.num_lines
        self._num_chars += len(chunk.text)
        while self._is_over_full and len(self.chunks) > 1:
            gone.append(self._take_oldest())
        self.num_lost += sum(chunk.num_lines for chunk in gone)
        return gone

    def forget(self) -> None:
        """Keep nothing: the rank cleared its output."""
        self.chunks.clear()
        self.num_lost = self._num_lines = self._num_chars = 0

    @property
    def _is_over_full(self) -> bool:
        return self._num_lines > MAX_LINES or self._num_chars > self._max_chars

    def _fitting(self, number: int, kind: Kind, text: str) -> tuple[_Chunk, _Chunk]:
        """Return the end of *text* that fits as one chunk, and what stands before it."""
        kept = text[-self._max_chars :]
        if kept.count("\n") > MAX_LINES or len(kept) < len(text):
            lines = kept.split("\n")[-MAX_LINES:]
            # The first line may be cut in two, but one line alone is kept as it is.
            kept = "\n".join(lines[1:] if len(lines) > 1 else lines)
        cut = text[: len(text) - len(kept)]
        return (
            _Chunk(number, kind, kept, kept.count("\n")),
            _Chunk(number, kind, cut, cut.count("\n")),
        )

    def _take_oldest(self) -> _Chunk:
        chunk = self.chunks.popleft()
        self._num_lines -= chunk.num_lines
        self._num_chars -= len(chunk.text)
        return chunk


class Tails:
    """The ends of what some ranks printed.

    Args:
        ranks: Which.
    """

    def __init__(self, ranks: Iterable[int]) -> None:
        ranks = tuple(ranks)
        max_chars = max(min(MAX_CHARS, MAX_CHARS_OF_ALL // max(len(ranks), 1)), 2**12)
        self._tails = {rank: _Tail(max_chars) for rank in ranks}
        self._number = 0
        self._num_sent = 0
        self._lost_unsent: dict[int, int] = {}

    def add(self, rank: int, kind: Kind, text: str) -> None:
        """Add what *rank* put out."""
        self._number += 1
        for gone in self._tails[rank].add(self._number, kind, text):
            if gone.num_lines and gone.number > self._num_sent:
                self._lost_unsent[rank] = self._lost_unsent.get(rank, 0) + gone.num_lines

    def take_new(self) -> News:
        """Return what has been added since the last call."""
        chunks = [
            (chunk, rank)
            for rank, tail in self._tails.items()
            for chunk in _after(self._num_sent, tail.chunks)
        ]
        lost, self._lost_unsent = self._lost_unsent, {}
        self._num_sent = self._number
        return News(_pieces(chunks), lost)

    def whole(self) -> News:
        """Return all that is kept."""
        chunks = [(chunk, rank) for rank, tail in self._tails.items() for chunk in tail.chunks]
        self._num_sent, self._lost_unsent = self._number, {}
        lost = {rank: tail.num_lost for rank, tail in self._tails.items() if tail.num_lost}
        return News(_pieces(chunks), lost)


def _after(number: int, chunks: deque[_Chunk]) -> list[_Chunk]:
    """Return the chunks that came after *number*, looking at those alone."""
    found = []
    for chunk in reversed(chunks):
        if chunk.number <= number:
            break
        found.append(chunk)
    return found


def _pieces(chunks: list[tuple[_Chunk, int]]) -> tuple[Piece, ...]:
    chunks.sort(key=lambda item: item[0].number)
    runs: list[tuple[int, Kind, list[str]]] = []
    for chunk, rank in chunks:
        if runs and runs[-1][:2] == (rank, chunk.kind) and chunk.kind in ("stdout", "stderr"):
            runs[-1][2].append(chunk.text)
        else:
            runs.append((rank, chunk.kind, [chunk.text]))
    return tuple((rank, kind, "".join(texts)) for rank, kind, texts in runs)
