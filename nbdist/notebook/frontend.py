"""Which front end a cell was sent from, and what it can show."""

from __future__ import annotations

import os
from typing import Any, Literal

Kind = Literal["page", "terminal", "headless"]
Live = Literal["widget", "lines", "off"]


def kind_of(shell: Any) -> Kind:
    """Return what shows the cell that runs now.

    ``page`` is a person's notebook: JupyterLab, Notebook 7 and VS Code send the id of the cell
    along with its code. nbclient, nbconvert, papermill and nbval do not: they are ``headless``.
    """
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return "terminal"
    metadata = (kernel.get_parent("shell") or {}).get("metadata", {})
    return "page" if "cellId" in metadata else "headless"


def live_mode(wanted: str, shell: Any) -> Live:
    """Return how a running cell is shown.

    Args:
        wanted: ``live`` of the configuration; the environment's ``NBDIST_LIVE`` wins over it.
        shell: The IPython shell.
    """
    chosen = os.environ.get("NBDIST_LIVE", wanted)
    if chosen in ("widget", "lines", "off"):
        return chosen  # type: ignore[return-value]
    by_kind: dict[Kind, Live] = {"page": "widget", "terminal": "lines", "headless": "off"}
    return by_kind[kind_of(shell)]
