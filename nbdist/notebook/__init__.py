"""nbdist in a notebook: the magics, and how a cell looks while it runs. IPython only here."""

from __future__ import annotations

from typing import Any


def load(shell: Any) -> None:
    """Register the magics in *shell*; a second time changes nothing."""
    from nbdist.notebook import hints
    from nbdist.notebook.magics import DistMagics
    from nbdist.notebook.transform import rank_magic

    if not isinstance(shell.magics_manager.registry.get("DistMagics"), DistMagics):
        shell.register_magics(DistMagics)
    if rank_magic not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(rank_magic)
    hints.install(shell)


def unload(shell: Any) -> None:
    """Take away what changes other cells. The ranks go on: a reload must not cost a model."""
    from nbdist.notebook import hints
    from nbdist.notebook.transform import rank_magic

    if rank_magic in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(rank_magic)
    hints.remove(shell)
