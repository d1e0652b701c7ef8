"""Tell of a cell that runs in the background (``-a``) what its user would otherwise not see.

A thread per run, started by its cell, so that what it prints appears under that cell.
"""

from __future__ import annotations

import contextvars
import threading

from nbdist.sessions.run import Run
from nbdist.view.hang import hang_headline, hang_text

LOOK_S = 0.5


def tell_troubles(run: Run) -> None:
    """Print why *run* hangs, once for each reason; returns at once."""
    of_this_cell = contextvars.copy_context()  # it says under which cell output belongs
    threading.Thread(
        target=of_this_cell.run, args=[_tell, run], name="nbdist-background", daemon=True
    ).start()


def _tell(run: Run) -> None:
    told: set[str | None] = set()
    while not run.wait(LOOK_S):
        hang = run.hang
        headline = hang_headline(hang)
        if hang is not None and headline not in told:
            told.add(headline)
            print(  # noqa: T201
                f"{run.request.label}: {hang_text(hang)}\n  `.cancel()` of this run stops it."
            )
