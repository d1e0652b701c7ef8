"""Give this process the name under which ``ps``, ``top``, ``htop`` and ``nvidia-smi`` list it.

For those who look, and for nobody else: nbdist finds a process by its number, its start time and
the mark in its environment (`nbdist.processes`), and never by a title.

The arguments are written over where they lie. Libraries that take the environment's memory as well,
for longer titles, wipe ``/proc/PID/environ``, and with it the mark. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path


def set_title(title: str) -> None:
    """Call this process *title*; what it forks has the same one until it sets its own.

    ``ps -f`` shows as much of it as the arguments had room for, ``top`` 15 characters. Where Linux
    keeps such things to itself, nothing is done.
    """
    with contextlib.suppress(OSError):
        _write_over_arguments(title.encode())
        Path("/proc/self/comm").write_bytes(title.encode())


def _write_over_arguments(title: bytes) -> None:
    start, end = _where_arguments_lie()
    num_bytes = end - start
    if num_bytes > 2:
        # The last byte is no NUL, which tells Linux to show what comes before the first one, and
        # not the padding behind it (get_mm_cmdline in fs/proc/base.c).
        shown = title[: num_bytes - 2].ljust(num_bytes - 1, b"\0") + b"."
        ctypes.memmove(start, shown, num_bytes)


def _where_arguments_lie() -> tuple[int, int]:
    """Return the first address of this process's arguments and the one behind the last."""
    # From the state (field 3) on; the program's name, before the bracket, may be any bytes.
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[45]), int(fields[46])
