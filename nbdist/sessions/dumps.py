"""Where a rank is, or was, that cannot say so itself: read what its faulthandler has written.

    frames_of_crash   of a dump that a fatal signal has left     pure
    ask               have a process write one now, and read it  `nbdist.rank.crashes` set it up

Not covered: a process that is stopped, sleeps, or waits for a file is not asked.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from nbdist import private
from nbdist.wire import CELL_PREFIXES, STACK_SIGNAL, Frame

FATAL = "Fatal Python error: "
ASK_S = 0.3
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib/python3|^<")
_asking = threading.Lock()  # two answers in one file could not be told apart


def frames_of_crash(dump: str, codes: Mapping[str, str]) -> tuple[Frame, ...]:
    """Return where a process was when it crashed; empty where *dump* tells of no crash.

    Args:
        dump: All that its faulthandler has written.
        codes: Sources of cells, by label.
    """
    _, fatal, after = dump.rpartition(FATAL)
    return frames_in(after, codes) if fatal else ()


def frames_in(dump: str, codes: Mapping[str, str]) -> tuple[Frame, ...]:
    """Return the frames of a dump from the first line of a cell on, the outermost first."""
    steps = [found.groups() for line in dump.splitlines() if (found := _FRAME.match(line))]
    steps.reverse()
    first = next((i for i, step in enumerate(steps) if step[0].startswith(CELL_PREFIXES)), None)
    if first is None:
        return ()
    return tuple(_frame(name, int(line), does, codes) for name, line, does in steps[first:])


def _frame(filename: str, line: int, function: str, codes: Mapping[str, str]) -> Frame:
    lines = codes.get(filename, "").splitlines()
    return Frame(
        location=f"{filename}:{line}",
        function=function,
        source=lines[line - 1].strip() if 0 < line <= len(lines) else "",
        is_cell=filename.startswith(CELL_PREFIXES),
        is_library=_LIBRARY.search(filename) is not None,
    )


def ask(pid: int, path: Path) -> tuple[Frame, ...]:
    """Have *pid* write to *path* where its main thread is, and return it; empty: it does not say.

    The thread may hold Python's lock. Waits for `ASK_S` at most.
    """
    with _asking, contextlib.suppress(OSError):
        if not can_answer(pid):
            return ()
        os.truncate(path, 0)
        os.kill(pid, STACK_SIGNAL)
        return frames_in(_written(path), {})
    return ()


def can_answer(pid: int) -> bool:
    """Whether the signal harms *pid* in no way: it has a handler, and no system call is cut short.

    One that sleeps, or waits for a file, gets back from that early, whatever the handler says. So
    the main thread has to be computing, or waiting for a lock: that wait begins again.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    has_handler = int(fields["SigCgt"], 16) >> (STACK_SIGNAL - 1) & 1
    is_computing = fields["State"].startswith("R")
    waits_in = Path(f"/proc/{pid}/wchan").read_text(encoding="ascii", errors="replace")
    return bool(has_handler) and (is_computing or waits_in.startswith("futex_"))


def _written(path: Path) -> str:
    """Return what has come to *path*, as soon as nothing more comes."""
    deadline, text = time.monotonic() + ASK_S, ""
    while time.monotonic() < deadline:
        before, text = text, private.read_text(path)
        if text and text == before:
            break
        time.sleep(0.01)
    return text
