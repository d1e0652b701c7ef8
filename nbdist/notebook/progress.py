"""Say what a start is waiting for, once it takes longer than a second."""

from __future__ import annotations

import sys
import time
from typing import Any

from IPython.display import clear_output

from nbdist.notebook.frontend import kind_of

PATIENCE_S = 1.0


class StartProgress:
    """One line that changes while the ranks start, and is gone when they have.

    On a page it is cleared, on a terminal it goes to stderr, elsewhere nothing is said: a notebook
    test compares outputs.
    """

    def __init__(self, shell: Any) -> None:
        self._kind = kind_of(shell)
        self._started = time.monotonic()
        self._shown = ""

    def __enter__(self) -> StartProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and self._kind == "page":
            clear_output(wait=True)

    def show(self, text: str) -> None:
        """Show *text*, if it is time to and it is new."""
        if text == self._shown or time.monotonic() - self._started < PATIENCE_S:
            return
        self._shown = text
        if self._kind == "page":
            clear_output(wait=True)
            sys.stdout.write(f"{text} …\n")
        elif self._kind == "terminal":
            sys.stderr.write(f"{text} …\n")
