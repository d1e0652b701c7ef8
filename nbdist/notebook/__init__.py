"""nbdist in a notebook: the magics, and how a cell looks while it runs. IPython only here."""

from __future__ import annotations

from typing import Any


def load(shell: Any) -> None:
    """Register the magics in *shell*; a second time changes nothing."""
    from nbdist.notebook import autodist, hints
    from nbdist.notebook.magics import DistMagics

    if not isinstance(shell.magics_manager.registry.get("DistMagics"), DistMagics):
        shell.register_magics(DistMagics)
    autodist.install(shell)
    hints.install(shell)


def unload(shell: Any) -> None:
    """Take away what changes other cells. The ranks go on: a reload must not cost a model."""
    from nbdist.notebook import autodist, hints

    autodist.remove(shell)
    hints.remove(shell)
