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
    if getattr(shell, "kernel", None) is None:
        return "terminal"
    return "headless" if _cell_id(shell) is None else "page"


def live_mode(wanted: str, shell: Any) -> Live:
    """Return how a running cell is shown.

    VS Code gets lines: whether it can load a widget's code depends on the network and on a
    question it puts to its user, and the kernel hears of neither. ``live=widget`` is for those
    who know that it can.

    Args:
        wanted: ``live`` of the configuration; the environment's ``NBDIST_LIVE`` wins over it.
        shell: The IPython shell.
    """
    chosen = os.environ.get("NBDIST_LIVE", wanted)
    if chosen in ("widget", "lines", "off"):
        return chosen  # type: ignore[return-value]
    by_kind: dict[Kind, Live] = {"page": "widget", "terminal": "lines", "headless": "off"}
    live = by_kind[kind_of(shell)]
    return "lines" if live == "widget" and _is_vs_code(shell) else live


def _is_vs_code(shell: Any) -> bool:
    """Whether the cell that runs now is one of VS Code, which names cells by their address."""
    return (_cell_id(shell) or "").startswith("vscode-notebook-cell:")


def _cell_id(shell: Any) -> str | None:
    """Return the id of the cell that runs now, if the front end sent one."""
    cell_id = (shell.kernel.get_parent("shell") or {}).get("metadata", {}).get("cellId")
    return None if cell_id is None else str(cell_id)
