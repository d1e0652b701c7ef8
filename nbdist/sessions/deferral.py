"""Hold an interrupt back while something is on that must not be cut in two.

NumPy's C part refuses to be imported a second time: an interrupt within its first import would
leave a kernel that can never start ranks again.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Note a SIGINT that comes within the block, and raise it at the end.

    In another thread than the main one, where signals never arrive, this does nothing.

    Raises:
        KeyboardInterrupt: One came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    presses: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _frame: presses.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if presses:
        raise KeyboardInterrupt
