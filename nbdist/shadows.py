"""Keep what lies in the notebook's folder from standing in for modules that nbdist needs.

A folder may hold a ``random.py``. A plain kernel imports its own things first and puts the folder
on the path afterwards, behind the standard library; so do ranks, and so does nbdist in the kernel.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

SITE = {"site-packages", "dist-packages"}


@contextlib.contextmanager
def without_working_folder() -> Iterator[None]:
    """Import within the block what nbdist needs, and nothing that lies in the working folder."""
    taken = [(at, entry) for at, entry in enumerate(sys.path) if _is_working_folder(entry)]
    for _, entry in taken:
        sys.path.remove(entry)
    try:
        yield
    finally:
        for at, entry in taken:
            sys.path.insert(at, entry)


def drop_working_folder() -> None:
    """Take it off again where ipyparallel has put it first, before all is imported."""
    sys.path[:] = filter(None, sys.path)


def add_working_folder(environ: Mapping[str, str] = os.environ) -> None:
    """Let cells import what lies in the working folder, found where a plain kernel finds it.

    Called when all is imported that a rank needs.

    Read in IPython 9.7, `InteractiveShellApp.init_path`: in front of the installed packages, and
    not at all where ``PYTHONSAFEPATH`` is set.
    """
    drop_working_folder()
    if environ.get("PYTHONSAFEPATH"):
        return
    names = [Path(entry).name for entry in sys.path]
    at = next((index for index, name in enumerate(names) if name in SITE), 0)
    sys.path.insert(at, "")


def file_that_hides(error: BaseException) -> str | None:
    """Return the file in the working folder to which *error* is due, as its name is a module's.

    ``None`` where the error is none of a module, or the module is the user's alone.
    """
    name = _module_of(error).partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None) or getattr(error, "path", None)
    if not name or not isinstance(file, str) or not _is_in_working_folder(Path(file)):
        return None
    elsewhere = [entry for entry in sys.path if not _is_working_folder(entry)]
    is_hiding = name in sys.stdlib_module_names or PathFinder.find_spec(name, elsewhere)
    return file if is_hiding else None


def _module_of(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return error.name or ""
    if isinstance(error, AttributeError) and isinstance(error.obj, type(sys)):
        return error.obj.__name__
    return ""


def _is_in_working_folder(file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # the working folder is gone
        return Path.cwd() in file.absolute().parents[:2]  # a file, or a package's __init__.py
    return False


def _is_working_folder(entry: str) -> bool:
    with contextlib.suppress(OSError):
        return entry == "" or Path(entry).samefile(".")
    return entry == ""
