"""``%dist``, ``%%dist`` and their aliases, as IPython sees them.

Loading the extension loads this and nothing else; what the magics do is in
`nbdist.notebook.commands`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from IPython.core.magic import Magics, cell_magic, line_cell_magic, line_magic, magics_class

from nbdist.sessions.imports import own_imports


@magics_class
class DistMagics(Magics):
    """The magics of nbdist."""

    shell: Any

    @property
    def _commands(self) -> Any:
        name = "nbdist.notebook.commands"
        commands = sys.modules.get(name)
        if commands is None:  # at the first cell: to look at the path takes 0.2 ms each time
            with own_imports():
                commands = importlib.import_module(name)
        return commands.Commands(self.shell)

    @line_cell_magic
    def dist(self, line: str, cell: str | None = None) -> Any:
        """Run a cell on the ranks (``%%dist``), or manage them (``%dist VERB``)."""
        if cell is not None:
            return self._commands.run_cell(line, cell)
        return self._commands.command(line)

    @line_cell_magic
    def autodist(self, line: str, cell: str | None = None) -> Any:
        """Send plain cells to the ranks: ``%autodist on``, ``%autodist off``."""
        if cell is not None:
            return self._commands.run_plain_cell(cell)
        return self._commands.autodist(line)

    @line_magic
    def sync(self, line: str) -> None:
        """Wait until every rank has come to its end of the cells so far."""
        self._commands.sync(line)

    # Old habits -------------------------------------------------------------------------------

    @line_magic
    def dist_init(self, line: str) -> None:
        """Do what ``%dist start`` does."""
        self._commands.command(f"start {line}")

    @line_magic
    def dist_status(self, line: str) -> None:
        """Do what ``%dist status`` does."""
        self._commands.command(f"status {line}")

    @line_magic
    def dist_shutdown(self, line: str) -> None:
        """Do what ``%dist stop`` does."""
        self._commands.command(f"stop {line}")

    @line_magic
    def dist_mode(self, line: str) -> None:
        """Do what ``%autodist`` does: ``--enable`` and ``--disable``."""
        self._commands.autodist({"e": "on", "d": "off"}.get(line.strip().lstrip("-")[:1], line))

    @cell_magic
    def distributed(self, line: str, cell: str) -> Any:
        """Do what ``%%dist`` does."""
        return self._commands.run_cell(line, cell)

    @cell_magic
    def rank(self, line: str, cell: str) -> Any:
        """Do what ``%%dist RANKS`` does."""
        return self._commands.run_cell(line, cell)
