"""Keep what this rank puts out in its last cells, for a notebook that comes later.

    CellRequest ──begin──┐
    output batches ─add──┼──▶ <session folder>/cells/rank3/1.jsonl, 2.jsonl, ...
    CellReply ─────end───┘

One JSON object a line: ``cell`` (what was asked, without the code), then any number of ``outputs``
and ``input``, at last ``reply``. A cell without a reply still runs, or its process did not survive
it. `nbdist.sessions.journals` reads this.

Cells follow one another in a file that stays open: to make one costs a short cell more than its
output does. A new file begins with the process, and with the first cell after `FILE_BYTES`; the
oldest files go. What cannot be written (a full disk) is lost, and the cell goes on.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbdist import private
from nbdist.wire import Dropped, output_to_json

FILE_BYTES = 4 * 2**20
MAX_BYTES = 64 * 2**20
encode = json.JSONEncoder(default=str, check_circular=False).encode
KEPT_OF_REQUEST = ("cell_id", "label", "number", "ranks")


class Journal:
    """The files of one rank; any thread may write, one cell runs at a time.

    Args:
        folder: Where they lie; those of a process that was this rank before stay, and count.
        max_cell_bytes: Most bytes kept of one cell, but for its end; what is beyond is counted.
        file_bytes: A file that is larger takes no further cell.
        max_bytes: Most bytes of all files but the last.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_cell_bytes: int,
        file_bytes: int = FILE_BYTES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._folder = folder
        self._max_cell_bytes = max_cell_bytes
        self._max_file_bytes = file_bytes
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._number = 0
        self._file_bytes = self._cell_bytes = self._dropped_bytes = 0
        self._is_line_cut = False
        self._full: deque[tuple[Path, int]] = deque()
        self._find_files()

    def __repr__(self) -> str:
        return f"<Journal {self._path}>"

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._number}.jsonl"

    def _find_files(self) -> None:
        try:
            if not self._folder.exists():
                private.make_folder(self._folder)
            numbers = sorted(int(path.stem) for path in self._folder.glob("*.jsonl"))
            for self._number in numbers:
                self._full.append((self._path, self._path.stat().st_size))
        except OSError:
            return

    def begin(self, request: Mapping[str, Any]) -> None:
        """Begin a cell; *request* is the JSON of its `CellRequest`."""
        head = {name: request[name] for name in KEPT_OF_REQUEST}
        with self._lock:
            if self._fd is None or self._file_bytes > self._max_file_bytes:
                self._begin_file()
            self._cell_bytes = self._dropped_bytes = 0
            self._write({"cell": {**head, "pid": os.getpid(), "since": time.time()}})

    def add(self, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Keep one batch of output, as JSON."""
        self._keep({"outputs": outputs})

    def ask(self, question: Mapping[str, Any] | None) -> None:
        """Keep what the user is asked; ``None``: nothing any more."""
        self._keep({"input": question})

    def _keep(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            self._write(entry, is_bounded=True)

    def end(self, reply: Mapping[str, Any]) -> None:
        """End the cell with *reply*, the JSON of a `CellReply`, without the value it carries."""
        with self._lock:
            if self._dropped_bytes:
                self._write({"outputs": [output_to_json(Dropped(self._dropped_bytes))]})
            kept = {**reply, "value": None}
            if reply.get("value") is not None:
                kept["value_error"] = "the value went to a kernel that is gone; pull it"
            self._write({"reply": kept, "at": time.time()})

    def _write(self, entry: Mapping[str, Any], *, is_bounded: bool = False) -> None:
        if self._fd is None:
            return
        try:
            line = encode(entry).encode() + b"\n"
            if is_bounded and self._cell_bytes + len(line) > self._max_cell_bytes:
                self._dropped_bytes += len(line)
                return
            if self._is_line_cut:  # the disk was full for a moment
                line = b"\n" + line
            written = os.write(self._fd, line)
        except (OSError, TypeError, ValueError):
            return
        self._cell_bytes += written
        self._file_bytes += written
        self._is_line_cut = written < len(line)

    def _begin_file(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._full.append((self._path, self._file_bytes))
        self._number += 1
        self._file_bytes, self._is_line_cut = 0, False
        try:
            self._fd = private.append_file(self._path)
            while sum(size for _, size in self._full) > self._max_bytes:
                self._full.popleft()[0].unlink(missing_ok=True)
        except OSError:
            self._fd = None
