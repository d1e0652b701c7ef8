"""Let a rank say where it is when it cannot: in a crash, and in a C call that keeps Python's lock.

Both write the main thread's lines into a file of the session (`SessionFolder.rank_stack`), from a C
signal handler that needs no lock. `nbdist.sessions.dumps` reads them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from pathlib import Path

from nbdist import private
from nbdist.wire import STACK_SIGNAL


def install(path: Path) -> None:
    """Write stacks to *path* from now on; on a full disk there are none.

    Not in the children of this process: it is this one whose end the file is to explain.
    """
    with contextlib.suppress(OSError):
        fd = private.append_file(path)  # stays open as long as the process
        os.ftruncate(fd, 0)  # of one that was this rank before
        faulthandler.enable(fd, all_threads=False)
        faulthandler.register(STACK_SIGNAL, fd, all_threads=False, chain=False)
        os.register_at_fork(after_in_child=faulthandler.disable)
