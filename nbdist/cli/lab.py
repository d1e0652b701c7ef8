"""Open JupyterLab on a folder, in the Python that nbdist is installed in.

This process becomes the server: Ctrl-C, signals and the exit code are JupyterLab's own.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from nbdist.errors import UsageError


def open_lab(folder: Path, arguments: Sequence[str]) -> NoReturn:
    """Become a JupyterLab server whose root is *folder*; it prints its address.

    Args:
        folder: Shown as the root; an existing folder.
        arguments: Handed on to JupyterLab; they win over our own.

    Raises:
        UsageError: There is no such folder, or no JupyterLab.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.\nUsage: nbdist lab [DIR]")
    if importlib.util.find_spec("jupyterlab") is None:
        raise UsageError(
            f"JupyterLab is not installed beside {sys.executable}.\n"
            "Install it with: pip install 'nbdist[lab]'"
        )
    command = lab_command(
        folder, arguments, is_root=os.geteuid() == 0, has_browser=finds_browser(os.environ)
    )
    sys.stdout.write(
        f"JupyterLab on {folder.resolve()}; its address follows. Ctrl-C twice ends it.\n"
    )
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - our own interpreter, no shell


def lab_command(
    folder: Path, arguments: Sequence[str], *, is_root: bool, has_browser: bool
) -> list[str]:
    """Return the command line of the server."""
    command = [sys.executable, "-P", "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}"]
    # Else its address drowns in what its extensions have to say.
    command.append("--log-level=WARN")
    if is_root:
        command.append("--allow-root")
    if not has_browser:
        command.append("--no-browser")
    return [*command, *arguments]


def finds_browser(environ: Mapping[str, str]) -> bool:
    """Whether a browser can be opened from here; one that runs in the terminal does not count."""
    if not any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
