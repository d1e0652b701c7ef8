"""Tell of a cell that runs in the background (``-a``) what its user would otherwise not see.

A thread per run, started by its cell, so that what it prints appears under that cell.
"""

from __future__ import annotations

import contextvars
import threading
import time

from nbdist.sessions.run import Run
from nbdist.view.hang import Diagnosis, hang_text

LOOK_S = 0.5


def tell_troubles(run: Run) -> None:
    """Print why *run* hangs, once for each reason; returns at once."""
    of_this_cell = contextvars.copy_context()  # it says under which cell output belongs
    threading.Thread(
        target=of_this_cell.run, args=[_tell, run], name="nbdist-background", daemon=True
    ).start()


def _tell(run: Run) -> None:
    told: set[str] = set()
    while not run.done:
        time.sleep(LOOK_S)
        hang = run.hang
        headline = hang.headline if isinstance(hang, Diagnosis) else hang
        if hang is not None and headline is not None and headline not in told and not run.done:
            told.add(headline)
            text = hang_text(hang) if isinstance(hang, Diagnosis) else hang
            print(f"{run.request.label}: {text}\n  `.cancel()` of this run stops it.")  # noqa: T201
