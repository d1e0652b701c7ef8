"""A process that a cell forks is not the rank: it ends where the cell's code ends in it.

    cell ──os.fork()──▶ the rank   goes on, replies, tells the others how its cell ended
                └─────▶ the child  goes on in the same code, to its end, and no further

Workers of multiprocessing and of DataLoader end by themselves, before they come here.

Not run at a child's end: what was registered with `atexit`, and the flush of files left open.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from typing import NoReturn


def end_child(failure: BaseException | None) -> NoReturn:
    """End this process as Python ends a script that came to its end, or raised *failure*."""
    code = 1
    try:
        code = _code_after(failure)
        with contextlib.suppress(Exception):  # a stream of the user's own
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _code_after(failure: BaseException | None) -> int:
    if failure is None:
        return 0
    if not isinstance(failure, SystemExit):
        traceback.print_exception(failure)
        return 1
    if failure.code is None or isinstance(failure.code, int):
        return (failure.code or 0) & 0xFF
    print(failure.code, file=sys.stderr)  # noqa: T201 - as Python does
    return 1
