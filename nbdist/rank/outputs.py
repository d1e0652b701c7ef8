"""Take down everything a cell puts out, in order, and send it on in batches.

    print, display, warnings ──▶ Recorder ──▶ pending ──every 50 ms──▶ iopub batch
    fd 1 and 2 (C++, children) ──▶ pipe ──────┤   └──── rest ────────▶ the cell's reply
    progress bars ──▶ Bars, asked now and then ┘  └──── all text ────▶ the rank's log

What belongs to no running cell (late threads, idle children) goes to the log alone, never into
another cell. Beyond ``log_bytes`` of one cell only the last lines are kept, here on the rank; what
lies between is counted and dropped.
"""

from __future__ import annotations

import base64
import codecs
import collections
import contextvars
import io
import itertools
import operator
import os
import select
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

from nbdist.rank.logs import RankLog
from nbdist.rank.progress import Bar, Bars, BarSource
from nbdist.rank.secrets import Secrets
from nbdist.wire import Area, Clear, Display, Dropped, Output, Text, log_heading

FIRST_FLUSH_S = 0.004  # a short cell is over by then, and all of it travels in its reply
FLUSH_S = 0.05
MAX_BATCH_BYTES = 2**20
TAIL_BYTES = 2**16  # of a cell beyond its bound
BAR_BYTES = 200  # of one progress bar's record, about

StreamName = Literal["stdout", "stderr"]
Piece = tuple[StreamName, str]  # a `Text` in the making: a print makes two, and there are many
_cell: contextvars.ContextVar[object | None] = contextvars.ContextVar("nbdist_cell", default=None)


class Recorder:
    """Collects the output of the running cell; at most one cell runs at a time.

    Args:
        log: Takes all text, whether or not a cell runs.
        pipe: Non-blocking read end of the pipe that is this process's fd 1 and 2.
        publish: Sends one batch; called from the flusher thread and from the main thread.
        log_bytes: Most bytes of output kept of one cell.
        secrets: What is not to be published, also not in two halves.

    Attributes:
        refused: How many messages of the running cell cannot be shown, by their kind.
    """

    def __init__(
        self,
        log: RankLog,
        pipe: int,
        publish: Callable[[str, list[Output]], None],
        log_bytes: int,
        secrets: Secrets | None = None,
    ) -> None:
        self._secrets = secrets
        self._held: list[Piece] = []  # what a secret may begin with
        self._log = log
        self._pipe = pipe
        self._publish = publish
        self._log_bytes = log_bytes
        self._is_forked = False
        os.register_at_fork(after_in_child=self._note_fork)
        self._lock = threading.RLock()
        self._cell_id: str | None = None
        self._token: object | None = None
        self._old_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._pending: list[Output | Piece | Bar] = []
        self._open: dict[int, _Line] = {}  # by thread, see `write`
        self._main = threading.main_thread().ident or 0
        self._bars = Bars()
        self._areas: dict[str, int] = {}  # numbers of output widgets, by their ids
        self._entered: list[str] = []
        self._pending_bytes = 0
        self._kept_bytes = 0
        self._tail: collections.deque[tuple[Output | Piece, int]] = collections.deque()
        self._tail_bytes = 0
        self._dropped_bytes = 0
        self._num_batches = 0
        self.refused: collections.Counter[str] = collections.Counter()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._partial: dict[StreamName, list[str]] = {"stdout": [], "stderr": []}
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self._has_output = threading.Event()
        self._is_over = threading.Event()

    def start_threads(self) -> None:
        """Start the flusher and the reader of the pipe; both end with the process."""
        threading.Thread(target=self._flush_forever, name="nbdist-output", daemon=True).start()
        threading.Thread(target=self._read_forever, name="nbdist-pipe", daemon=True).start()

    def _note_fork(self) -> None:
        self._is_forked = True

    # A cell's life ----------------------------------------------------------------------------

    def begin(self, cell_id: str, label: str) -> None:
        """Take what comes from now on for the output of *cell_id*, called *label* in the log."""
        with self._lock:
            self.take_pipe()
            self._close_lines()
            self._log.write(log_heading(label).encode())
            self._cell_id, self._token = cell_id, object()
            _cell.set(self._token)
            self._old_threads = weakref.WeakSet(threading.enumerate())
            self._old_threads.discard(threading.main_thread())
            self._pending, self._pending_bytes, self._held = [], 0, []
            self._kept_bytes = self._dropped_bytes = self._num_batches = 0
            self._tail.clear()
            self._tail_bytes = 0
            self._bars.clear()
            self._areas.clear()
            self._entered.clear()
            self.refused.clear()
            self._is_over.clear()

    def end(self) -> tuple[list[Output], int]:
        """Close the cell.

        Returns:
            Its output that has not been published, and the number of batches published before.
        """
        with self._lock:
            self.take_pipe()
            self._close_lines()
            self._pending.extend(self._bars.last())
            outputs = self._take_pending(is_exact=True)
            self._dropped_bytes += self._bars.num_refused * BAR_BYTES
            self._bars.clear()
            if self._dropped_bytes:
                outputs.append(Dropped(self._dropped_bytes))
            outputs.extend(merge_text(output for output, _ in self._tail))
            self._tail.clear()
            self._decoder.reset()  # half a character of this cell is none of the next one's
            self._cell_id = self._token = None
            self._is_over.set()
            return outputs, self._num_batches

    # What comes in ----------------------------------------------------------------------------

    def write(self, name: StreamName, text: str) -> None:
        """Take *text* from Python's stdout or stderr, from any thread.

        One print writes several pieces. They are put together by thread, so that lines of threads
        that print at once stay whole; a beginning whose end does not come is shown after a while.
        """
        if self._is_forked:  # a child's text comes back through the pipe
            os.write(1 if name == "stdout" else 2, text.encode(errors="replace"))
            return
        thread = threading.get_ident()
        with self._lock:
            line = self._open.get(thread)
            if line is None or line.name != name:
                line = self._open_line(thread, name)
            line.pieces.append(text)
            if "\n" in text:
                self._close_line(thread)

    def _open_line(self, thread: int, name: StreamName) -> _Line:
        self._close_line(thread)  # of the other stream
        self.take_pipe()  # what a child wrote before this line stands before it
        line = self._open[thread] = _Line(name, self._is_ours())
        # Between cells nobody clears it: the flusher would run in circles. To set it is slow.
        if self._cell_id is not None and not self._has_output.is_set():
            self._has_output.set()
        return line

    def _close_line(self, thread: int) -> None:
        """Take what *thread* has written and not ended."""
        line = self._open.pop(thread, None)
        if line is not None:
            text = "".join(line.pieces)
            if line.is_ours:
                self._keep((line.name, text), len(text))
            self._log_lines(line.name, text)

    def _close_lines(self) -> None:
        for thread in [*self._open]:
            self._close_line(thread)

    def show(self, output: Display | Area | Clear) -> None:
        """Take a display, an update of one, or what says where outputs stand and which go."""
        if self._is_forked:  # only text passes through the pipe
            if isinstance(output, Display):
                self.write("stdout", f"{output.data.get('text/plain', '')}\n")
            return
        with self._lock:
            if self._is_ours():
                self.take_pipe()
                self._close_line(threading.get_ident())
                if not isinstance(output, Display):  # what is in front of it stays in front of it
                    self._pending = list(self._bars.take(self._pending))
                size = sum(
                    len(v) for v in getattr(output, "data", {}).values() if isinstance(v, str)
                )
                self._keep(output, size)

    def clear(self, *, wait: bool) -> None:
        """Take ``clear_output``: of the cell, or of the output widget that was entered last."""
        with self._lock:
            self.show(Clear(wait, self._area))

    def enter(self, widget: str) -> None:
        """Take what comes for the output of the widget of this id, until it is left."""
        with self._lock:
            if self._is_ours() and widget not in self._entered:
                self._entered.append(widget)
                self._areas.setdefault(widget, len(self._areas) + 1)
                self.show(Area(self._area))

    def leave(self, widget: str) -> None:
        """Take what comes for the cell's output again, or for that of another widget around it."""
        with self._lock:
            if widget in self._entered:
                self._entered.remove(widget)
                self.show(Area(self._area))

    @property
    def _area(self) -> int:
        return self._areas[self._entered[-1]] if self._entered else 0

    def refuse(self, kind: str) -> None:
        """Count a message of this *kind*, which nobody can show."""
        with self._lock:
            if self._is_ours():
                self.refused[kind] += 1

    @property
    def is_forked(self) -> bool:
        """Whether this process is a child of the rank, where only the pipe leads to the cell."""
        return self._is_forked

    def touch_bar(self, source: BarSource) -> None:
        """Take note that a progress bar has begun, moved, or is over; any thread may."""
        if self._is_forked or (source in self._bars and not source.is_over):
            return
        with self._lock:
            if not self._is_ours():
                return
            self.take_pipe()
            bar = self._bars.touch(source)
            if bar is not None:
                self._close_line(threading.get_ident())
                self._pending.append(bar)
            self._has_output.set()  # for a bar that is shown only if it goes on

    def take_pipe(self) -> None:
        """Take what C++ and child processes have written to fd 1 and 2 so far."""
        with self._lock:
            while self._poll.poll(0):
                try:
                    data = os.read(self._pipe, 65536)
                except BlockingIOError:  # the agent has read it meanwhile
                    return
                self._close_line(self._main)  # children are mostly its own
                self._log.write(data)
                if self._cell_id is not None:
                    self._keep(("stdout", self._decoder.decode(data)), len(data))

    def _is_ours(self) -> bool:
        """Whether the calling thread works for the running cell, not for an earlier one."""
        if self._cell_id is None:
            return False
        token = _cell.get()
        if token is not None:
            return token is self._token
        return threading.current_thread() not in self._old_threads

    def _keep(self, output: Output | Piece, size_bytes: int) -> None:
        if self._tail or self._kept_bytes + size_bytes > self._log_bytes:
            self._keep_in_tail(output, size_bytes)
            return
        self._kept_bytes += size_bytes
        self._pending.append(output)
        self._pending_bytes += size_bytes
        if len(self._pending) == 1:
            self._has_output.set()
        elif self._pending_bytes > MAX_BATCH_BYTES:
            self._publish_pending()

    def _keep_in_tail(self, output: Output | Piece, size_bytes: int) -> None:
        if isinstance(output, tuple) and size_bytes > TAIL_BYTES:
            name, text = output
            self._dropped_bytes += size_bytes - TAIL_BYTES
            output, size_bytes = (name, text[-TAIL_BYTES:]), TAIL_BYTES
        self._tail.append((output, size_bytes))
        self._tail_bytes += size_bytes
        while self._tail_bytes > TAIL_BYTES and len(self._tail) > 1:
            _, size = self._tail.popleft()
            self._tail_bytes -= size
            self._dropped_bytes += size

    def _log_lines(self, name: StreamName, text: str) -> None:
        """Write whole lines to the log; the rest waits for its end."""
        partial = self._partial[name]
        partial.append(text)
        if "\n" in text:
            lines, newline, rest = "".join(partial).rpartition("\n")
            self._log.write((lines + newline).encode(errors="replace"))
            partial[:] = [rest] if rest else []

    # What goes out ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Publish what there is as one batch, beginnings of lines as well."""
        with self._lock:
            self._close_lines()
            self._publish_pending()

    def tick(self) -> None:
        """Publish what there is, and what was begun a tick ago and has not ended."""
        with self._lock:
            for thread, line in [*self._open.items()]:
                if line.has_waited:
                    self._close_line(thread)
                line.has_waited = True
            self._publish_pending()

    def _publish_pending(self) -> None:
        with self._lock:
            if self._cell_id is None:
                return
            self._pending.extend(self._bars.due())
            outputs = self._take_pending()
            if self._secrets:
                outputs = self._hold_back(outputs, self._secrets)
            if outputs:
                self._num_batches += 1
                self._publish(self._cell_id, outputs)

    def publish_all(self) -> None:
        """Publish at once what has come so far, from Python and from the pipe."""
        with self._lock:
            self.take_pipe()
            self.flush()

    def _hold_back(self, outputs: list[Output], secrets: Secrets) -> list[Output]:
        """Keep the end of *outputs* for the next batch where a secret may begin with it."""
        if not outputs or not isinstance(last := outputs[-1], Text):
            return outputs
        shown, held = secrets.split(last.text)
        self._held = [(last.name, held)] if held else []
        return [*outputs[:-1], *([Text(last.name, shown)] if shown else [])]

    def _take_pending(self, *, is_exact: bool = False) -> list[Output]:
        pending, self._pending, self._pending_bytes = [*self._held, *self._pending], [], 0
        self._held = []
        if not self._open:  # else the flusher has to come again
            self._has_output.clear()
        if self._bars.is_used:
            return merge_text(self._bars.take(pending, is_exact=is_exact))
        return merge_text(cast("list[Output | Piece]", pending))

    def _flush_forever(self) -> None:
        while True:
            self._has_output.wait(self._bars.interval_s)
            if not self._is_over.wait(FIRST_FLUSH_S):
                self.tick()
                self._is_over.wait(FLUSH_S)

    def _read_forever(self) -> None:
        """Wait for the pipe, so that output comes while the main thread is in a long call."""
        poll = select.poll()  # its own: a poll object serves one thread at a time
        poll.register(self._pipe, select.POLLIN)
        while True:
            poll.poll()
            self.take_pipe()


class _Line:
    """What a thread has written to one stream since its last line ended.

    Attributes:
        is_ours: It belongs to the running cell.
        has_waited: It was there at the last tick already.
    """

    __slots__ = ("has_waited", "is_ours", "name", "pieces")

    def __init__(self, name: StreamName, is_ours: bool) -> None:
        self.name = name
        self.is_ours = is_ours
        self.has_waited = False
        self.pieces: list[str] = []


def merge_text(outputs: Iterable[Output | Piece]) -> list[Output]:
    """Join neighbouring pieces of text of one stream."""
    merged: list[Output] = []
    for is_text, group in itertools.groupby(outputs, key=lambda output: isinstance(output, tuple)):
        if not is_text:
            merged.extend(cast("Iterable[Output]", group))
            continue
        by_stream = itertools.groupby(cast("Iterable[Piece]", group), operator.itemgetter(0))
        for name, pieces in by_stream:
            merged.append(Text(name, "".join(text for _, text in pieces)))
    return merged


class RankStream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` of a rank."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, recorder: Recorder, name: StreamName) -> None:
        self._recorder = recorder
        self._name: StreamName = name
        self.name = f"<{name}>"
        self.buffer = _Bytes(self)

    def write(self, text: str) -> int:
        """Record *text*."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text:
            self._recorder.write(self._name, text)
        return len(text)

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The file descriptor that children get; what they write comes to the same cell."""
        return 1 if self._name == "stdout" else 2

    def isatty(self) -> bool:
        """It is not a terminal."""
        return False


class _Bytes(io.RawIOBase):
    """The ``buffer`` of a stream, for those who write bytes."""

    def __init__(self, stream: RankStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._stream.write(raw.decode(errors="replace"))
        return len(raw)


def install_streams(recorder: Recorder) -> None:
    """Make *recorder* take what Python code prints."""
    sys.stdout = RankStream(recorder, "stdout")
    sys.stderr = RankStream(recorder, "stderr")


def scalar_of(value: Any) -> float | int | None:
    """Return *value* as a plain number where it is one real number, else ``None``.

    Numbers of Python and NumPy, and tensors without dimensions; a bool is not a number here.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind is not None:  # NumPy
        return value.item() if kind in "iuf" and getattr(value, "shape", None) == () else None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and value.dim() == 0:
        is_plain = type(value) in (torch.Tensor, torch.nn.Parameter)
        if is_plain and not value.is_complex() and value.dtype is not torch.bool:
            try:
                number = value.detach().item()
            except RuntimeError:  # it has no data: on the meta device, or traced
                return None
            return number if isinstance(number, (int, float)) else None
    return None


def display_from(
    kind: Literal["display", "update", "result"],
    data: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
    display_id: str | None = None,
    scalar: float | int | None = None,
) -> Display:
    """Return a display whose data can travel as JSON (images become base64 text)."""
    from ipykernel.jsonutil import json_clean

    as_text = {
        mime: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for mime, value in data.items()
    }
    return Display(
        kind=kind,
        data=json_clean(as_text),
        metadata=json_clean(dict(metadata or {})),
        display_id=display_id,
        scalar=scalar,
    )
