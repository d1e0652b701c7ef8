"""``%autodist on``: plain cells go to the ranks, as if they began with ``%%dist``.

    cell ──▶ a command of ours, or ``%%local``? ──▶ the notebook
        └──▶ ranks are running, autodist is on  ──▶ %%autodist ──▶ the ranks

Without ranks all cells are the notebook's. What front ends run unseen (silent requests) always is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nbdist.notebook.transform import first_line, is_for_ranks


class AutoDist:
    """An input transformer of IPython: of each cell that is run it says where it goes.

    Args:
        shell: The IPython shell whose cells these are.
    """

    has_side_effects = True  # so IPython leaves it out where it asks whether a cell is complete

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self.is_on = False
        self.is_aside = False

    def __repr__(self) -> str:
        return f"<AutoDist {'on' if self.is_on else 'off'}>"

    def __call__(self, lines: list[str]) -> list[str]:
        """Return *lines* as they are to be run."""
        if self._sends_cells() and is_for_ranks(lines):
            return ["%%autodist\n", *lines]
        return first_line(lines)

    def _sends_cells(self) -> bool:
        return self.is_on and not self.is_aside and not self._is_silent() and _has_ranks()

    def _is_silent(self) -> bool:
        kernel = getattr(self._shell, "kernel", None)
        parent = kernel.get_parent("shell") if kernel is not None else None
        return bool(parent and parent["content"].get("silent"))


def install(shell: Any) -> None:
    """Look at the cells of *shell* from now on; a second time changes nothing."""
    if of(shell) is None:
        shell.input_transformers_cleanup.append(AutoDist(shell))


def remove(shell: Any) -> None:
    """Look at the cells of *shell* no more."""
    if (transformer := of(shell)) is not None:
        shell.input_transformers_cleanup.remove(transformer)


def of(shell: Any) -> AutoDist | None:
    """Return what looks at the cells of *shell*."""
    found = (each for each in shell.input_transformers_cleanup if isinstance(each, AutoDist))
    return next(found, None)


@contextmanager
def aside(shell: Any) -> Iterator[None]:
    """Leave code alone that *shell* is given from within a cell: the cell was looked at."""
    transformer = of(shell) or AutoDist(shell)
    before, transformer.is_aside = transformer.is_aside, True
    try:
        yield
    finally:
        transformer.is_aside = before


def _has_ranks() -> bool:
    current = sys.modules.get("nbdist.sessions.current")  # without it there was never a session
    return current is not None and current.is_running()
