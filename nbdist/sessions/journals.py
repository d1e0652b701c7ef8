"""Read what the ranks have kept of their last cells; `nbdist.rank.journal` writes it.

    <session folder>/cells/rank3/1.jsonl, 2.jsonl, ... ──▶ KeptCell, the newest first
                                        └── Tail ──▶ entries, as they come

A line that cannot be read (the disk was full, the rank was killed) is passed over.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbdist import private, wire
from nbdist.errors import SessionError, did_you_mean
from nbdist.folder import SessionFolder
from nbdist.wire import CellError, CellReply, CellRequest, Output, RankOutput, Text

LOG_TAIL_BYTES = 2**20  # far enough to find where a cell began

Entry = Mapping[str, Any]


@dataclass
class KeptCell:
    """One cell, as one rank has kept it.

    Attributes:
        rank: Which.
        request: What was sent, without the code.
        pid: The process that ran it.
        since: When it began there, in seconds since the epoch.
        file_number: Of the file it stands in.
        outputs: All batches it has published.
        reply: How it ended there; ``None``: it has not, or its process has not survived it.
        ended_at: When.
    """

    rank: int
    request: CellRequest
    pid: int
    since: float
    file_number: int
    outputs: list[Output] = field(default_factory=list)
    reply: CellReply | None = None
    ended_at: float | None = None

    @classmethod
    def from_json(cls, rank: int, content: Mapping[str, Any], file_number: int) -> KeptCell:
        """Make the cell that the JSON object at its beginning names."""
        return cls(rank, request_of(content), content["pid"], content["since"], file_number)

    @property
    def order(self) -> tuple[int, ...]:
        """What sorts the cells of a session as they were sent."""
        return order_of(self.request.cell_id)

    def take(self, entry: Entry) -> None:
        """Take one of the lines that follow the cell's beginning."""
        self.outputs.extend(map(wire.output_from_json, entry.get("outputs", ())))
        if "reply" in entry:
            self.reply = CellReply.from_json(entry["reply"])
            self.ended_at = entry["at"]


def request_of(content: Mapping[str, Any]) -> CellRequest:
    """Return the request, without its code, that the JSON object at a cell's beginning names."""
    return CellRequest(
        cell_id=content["cell_id"],
        code="",
        label=content["label"],
        number=content["number"],
        ranks=tuple(content["ranks"]),
    )


def order_of(cell_id: str) -> tuple[int, ...]:
    """Return what sorts cells as they were sent: kernel by kernel, number by number."""
    return tuple(map(int, cell_id.rpartition("-")[2].split(".")))


class Journals:
    """The output of the last cells of a session, on this host."""

    def __init__(self, folder: SessionFolder) -> None:
        self._folder = folder

    def __repr__(self) -> str:
        return f"<Journals of ranks {self.ranks}>"

    @property
    def ranks(self) -> list[int]:
        """The ranks that have kept anything."""
        paths = self._folder.cells.glob("rank*")
        return sorted(int(path.name.removeprefix("rank")) for path in paths)

    def cells(self, rank: int) -> Iterator[KeptCell]:
        """Yield the cells of *rank*, the newest first."""
        for path in reversed(files_of(self._folder.journals(rank))):
            yield from reversed(_cells_in(path, rank))

    def last(self) -> list[KeptCell]:
        """Return the latest cell as each of its ranks has kept it; empty where there is none."""
        newest = [cell for rank in self.ranks for cell in _first(self.cells(rank))]
        return self._latest_of(newest) if newest else []

    def labelled(self, label: str) -> list[KeptCell]:
        """Return the latest cell called *label* as each of its ranks has kept it.

        Raises:
            SessionError: None of that name is kept; the message has those that are.
        """
        found = [
            cell
            for rank in self.ranks
            for cell in _first(c for c in self.cells(rank) if c.request.label == label)
        ]
        if not found:
            raise SessionError(f"No output of {label} is kept. {self._labels_like(label)}")
        return self._latest_of(found)

    def _labels_like(self, label: str) -> str:
        labels = list(
            dict.fromkeys(cell.request.label for rank in self.ranks for cell in self.cells(rank))
        )
        return did_you_mean(label, labels) if labels else "No cell has run yet."

    def _latest_of(self, found: list[KeptCell]) -> list[KeptCell]:
        """Return the latest cell in *found*, one of each rank, as each of its ranks has kept it."""
        latest = max(found, key=lambda cell: cell.order).request
        kept = {cell.rank: [cell] for cell in found if cell.request.cell_id == latest.cell_id}
        for rank in set(latest.ranks) - set(kept):
            kept[rank] = _first(c for c in self.cells(rank) if c.request.cell_id == latest.cell_id)
        return [cell for rank in latest.ranks for cell in kept[rank]]

    def output_of(self, cell: KeptCell) -> RankOutput:
        """Return what is kept of *cell* as the view takes it.

        Where its process has not survived it, the end of the rank's log tells the last words.
        """
        if cell.reply is not None:
            outputs = (*cell.outputs, *cell.reply.outputs)
            return RankOutput(cell.rank, cell.reply.status, outputs, cell.reply.error)
        if self.is_process_alive(cell):
            return RankOutput(cell.rank, "ok", tuple(cell.outputs))
        seen = "".join(output.text for output in cell.outputs if isinstance(output, Text))
        lost = wire.lost_text(self._log_tail(cell), cell.request.label, seen)
        outputs = (*cell.outputs, *([Text("stdout", lost)] if lost else []))
        error = CellError("RankDied", "its process ended before the cell did")
        return RankOutput(cell.rank, "dead", outputs, error)

    def is_process_alive(self, cell: KeptCell) -> bool:
        """Whether the process that ran *cell* still runs."""
        return any(
            identity.is_alive
            for role, identity in self._folder.processes()
            if role == f"rank {cell.rank}" and identity.pid == cell.pid
        )

    def _log_tail(self, cell: KeptCell) -> str:
        """Return the end of the rank's log, if *cell* is the last one that it tells of."""
        newest = next(self.cells(cell.rank), None)
        if newest is None or newest.request.cell_id != cell.request.cell_id:
            return ""
        try:
            text = private.read_bytes(self._folder.rank_log(cell.rank))[-LOG_TAIL_BYTES:]
        except FileNotFoundError:
            return ""
        return wire.end_of_log(text.decode(errors="replace"))


class Tail:
    """Reads the journal of one rank, and reads on.

    Args:
        folder: Of the journal.
        first_number: Of the first file to read.
    """

    def __init__(self, folder: Path, first_number: int = 0) -> None:
        self._folder = folder
        self._file: Any = None
        self._number = first_number - 1
        self._pending = b""

    def __repr__(self) -> str:
        return f"<Tail of {self._folder}, file {self._number}>"

    def read(self) -> Iterator[Entry]:
        """Yield what has come since the last time."""
        while True:
            later = [path for path in files_of(self._folder) if int(path.stem) > self._number]
            if self._file is not None:  # after the look for later ones: this one is complete then
                *lines, self._pending = (self._pending + self._file.read()).split(b"\n")
                yield from _entries(lines)
            if not later:
                return
            self.close()
            self._number, self._pending = int(later[0].stem), b""
            try:
                self._file = os.fdopen(private.open_file(later[0]), "rb")
            except FileNotFoundError:  # it was the oldest, and had to go
                self._file = None

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None


def files_of(folder: Path) -> list[Path]:
    """Return the files of one rank, the oldest first."""
    return sorted(folder.glob("*.jsonl"), key=lambda path: int(path.stem))


def last_number(folder: Path) -> int:
    """Return the number of the latest file of one rank; 0 where there is none."""
    return max((int(path.stem) for path in files_of(folder)), default=0)


def _cells_in(path: Path, rank: int) -> list[KeptCell]:
    try:
        lines = private.read_bytes(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    cells: list[KeptCell] = []
    for entry in _entries(lines):
        if "cell" in entry:
            cells.append(KeptCell.from_json(rank, entry["cell"], int(path.stem)))
        elif cells:
            cells[-1].take(entry)
    return cells


def _entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    for line in lines:
        try:
            entry = wire.encodable(json.loads(line))
        except ValueError:
            continue
        if isinstance(entry, Mapping):
            yield entry


def _first(cells: Iterable[KeptCell]) -> list[KeptCell]:
    """Return the first of *cells* in a list, which is empty where there is none."""
    return list(itertools.islice(cells, 1))
