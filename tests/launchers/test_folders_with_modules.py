"""Starts in a folder whose files have the names of modules: random.py, torch.py, nbdist.py, ...

Each of them raises when it is imported, so that a start that succeeds has imported none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.notebook.driving import Notebook

OF_PYTHON = [
    *("random", "logging", "queue", "select", "json", "string", "copy", "code", "test", "types"),
    *("socket", "selectors", "signal", "struct", "traceback", "dataclasses", "secrets", "ast"),
    *("sqlite3", "uuid", "pickle", "mmap", "inspect", "tokenize"),
]
INSTALLED = [
    *("zmq", "torch", "numpy", "nbdist", "ipyparallel", "psutil", "tornado", "traitlets"),
    *("IPython", "ipykernel", "jupyter_client", "omegaconf", "yaml", "dateutil", "tqdm"),
]
SCRIPT = Path(__file__).parent / "start_script.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder full of traps, with one module that the user means to import."""
    for name in (*OF_PYTHON, *INSTALLED):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the folder')\n")
    (tmp_path / "mylib.py").write_text("value = 7\ndef doubled(x): return 2 * x\n")
    return tmp_path


@pytest.mark.ranks
def test_a_script_starts_ranks_in_a_folder_full_of_module_names(
    run_folder: Path, folder: Path
) -> None:
    # The script's own folder comes first on its path, not this one.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "2"], cwd=folder, capture_output=True, text=True, timeout=50
    )

    found: dict[str, Any] = json.loads(done.stdout)
    assert found["error"] is None
    assert [value for _, value in found["values"]] == [1, 1]


@pytest.mark.ranks
def test_a_kernel_starts_ranks_there_and_cells_import_what_a_plain_kernel_would(
    run_folder: Path, folder: Path
) -> None:
    # These a plain kernel cannot do without, or finds in the folder itself.
    for name in ("types", "nbdist", "tqdm"):
        (folder / f"{name}.py").unlink()
    look = "__import__('sys').path"
    with Notebook(cwd=folder) as notebook:
        before = notebook.value(look)
        notebook.run("%load_ext nbdist")
        started = notebook.run("%dist start -n 2 device=cpu")
        after = notebook.value(look)
        cell = notebook.run(
            "%%dist\n"
            "import subprocess, sys, mylib, random, queue, code\n"
            "from torch.utils.data import DataLoader\n"
            "rows = list(DataLoader(range(4), batch_size=4, num_workers=1,\n"
            "                       collate_fn=lambda rows: mylib.doubled(sum(rows))))\n"
            "child = subprocess.run([sys.executable, '-c', 'import mylib; print(mylib.value)'],\n"
            "                       capture_output=True, text=True)\n"
            "(mylib.value, rows, child.stdout, random.random() < 1)"
        )

    assert started.status == "ok", started.error
    assert before == after
    assert cell.status == "ok", cell.error
    assert "(7, [12], '7\\n', True)" in cell.display
    assert before.index("") > 0


@pytest.mark.ranks
def test_a_start_names_the_file_that_was_imported_in_place_of_a_module(
    run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "ipyparallel.py").write_text("mine = 1\n")
    with Notebook(cwd=tmp_path) as notebook:
        notebook.run("import ipyparallel\n%load_ext nbdist")

        started = notebook.run("%dist start -n 1 device=cpu")

    assert started.status == "error"
    assert f"{tmp_path}/ipyparallel.py was imported in place of" in started.error
    assert "another name" in started.error


@pytest.mark.ranks
def test_an_error_in_a_cell_names_the_file_that_hides_a_module(
    run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "PIL.py").write_text("mine = 1\n")
    (tmp_path / "mylib.py").write_text("mine = 1\n")
    with Notebook(cwd=tmp_path) as notebook:
        notebook.run("%load_ext nbdist\n%dist start -n 1 device=cpu")

        hidden = notebook.run("%%dist\nimport PIL.Image")
        missing = notebook.run("%%dist\nimport mylib\nmylib.yours")

    assert f"{tmp_path}/PIL.py hides the module that is meant" in hidden.display
    assert "hides" not in missing.display
