"""A cell that is a module: every rank can import it, and so can every process that a rank starts.

    %%dist --module data ──▶ runs in the module `data` ──▶ went well: written to data.py, imported
                                                     └──▶ failed: all stays as it was

The file lies in the session's private folder, which is on the import path of the ranks and of their
children. When the cell is run again, the module takes the place of the one before, also under names
that were imported from it; what was made by the old one stays what it is.

Not covered: objects of other modules that hold something of the old one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbdist.errors import UsageError


class CellModules:
    """The modules that cells of this session are.

    Args:
        shell: Runs the cells.
        folder: Where their files lie.
    """

    def __init__(self, shell: Any, folder: Path) -> None:
        self._shell, self._folder = shell, folder
        sys.path.insert(0, str(folder))  # all ranks: another one may write the file

    def __repr__(self) -> str:
        return f"<CellModules in {self._folder}>"

    @contextlib.contextmanager
    def running(self, name: str, code: str) -> Iterator[None]:
        """Run a cell, the text of which is *code*, as module *name*.

        Call `keep` within it once the cell has gone well; else all is as it was.

        Raises:
            UsageError: Another module is called *name*.
        """
        path = self._folder / f"{name}.py"
        before = sys.modules.get(name)
        self._refuse_other_modules(name, path, before)
        module = types.ModuleType(name)
        module.__file__ = str(path)
        module.__spec__ = importlib.util.spec_from_file_location(name, path)
        shell, cells = self._shell, (self._shell.user_module, self._shell.user_ns)
        sys.modules[name] = module  # dataclasses look for their module while they are made
        shell.user_module, shell.user_ns = module, module.__dict__
        self._is_kept = False
        try:
            yield
        finally:
            shell.user_module, shell.user_ns = cells
            if not self._is_kept:
                _put(name, before)
        if self._is_kept:
            self._write(path, code)
            _renew(shell.user_ns, before, module)
            shell.user_ns[name] = module

    def keep(self) -> None:
        """Have the module that is running from now on."""
        self._is_kept = True

    def _refuse_other_modules(self, name: str, path: Path, before: object) -> None:
        found = getattr(before, "__file__", None) or _origin(name)
        if before is not None or found is not None:
            if found == str(path):
                return
            raise UsageError(
                f"{name!r} is a module already: {found or 'built into Python'}.\n"
                "Give the cell another name after --module; nothing has run."
            )

    def _write(self, path: Path, code: str) -> None:
        """Put the file there, whole; every rank does, with one content."""
        _let_children_find(self._folder)
        before = path.stat().st_mtime_ns // 10**9 if path.exists() else 0
        if before and path.read_text(encoding="utf-8") == code:
            return
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(code, encoding="utf-8")
        # Python takes what it has compiled for new as long as size and whole seconds are the same.
        second = max(int(time.time()), before + 1)
        os.utime(draft, (second, second))
        draft.replace(path)


def _put(name: str, module: types.ModuleType | None) -> None:
    if module is None:
        sys.modules.pop(name, None)
    else:
        sys.modules[name] = module


def _origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin or "a package without a file"


def _renew(
    namespace: dict[str, Any], before: types.ModuleType | None, module: types.ModuleType
) -> None:
    """Let names that mean the module *before*, or were imported from it, mean *module*'s."""
    if before is None:
        return
    for name, value in list(namespace.items()):
        if value is before:
            namespace[name] = module
        elif name in vars(before) and vars(before)[name] is value and name in vars(module):
            namespace[name] = vars(module)[name]


def _let_children_find(folder: Path) -> None:
    """Put *folder* on the import path of the programs that this process starts."""
    there = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if str(folder) not in there:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *there])
