"""The names of the package, and that looking at them costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import nbdist
from nbdist import errors

PACKAGE = Path(nbdist.__file__).parent
BESIDE_THE_KERNEL = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for folder in ("cli", "notebook", "sessions", "view", "launchers")
    for path in (PACKAGE / folder).rglob("*.py")
    if path.stem != "__main__"
)


def imported_by(code: str, *names: str) -> list[str]:
    """Return which of *names* a fresh Python has imported after *code*."""
    look = f"{code}\nimport sys\nprint(*[n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_every_name_of_the_package_is_there() -> None:
    assert {
        name: getattr(nbdist, name, None) is not None for name in nbdist.__all__
    } == dict.fromkeys(nbdist.__all__, True)
    assert set(nbdist.__all__) <= set(dir(nbdist))


def test_every_error_is_a_name_of_the_package() -> None:
    ours = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }

    assert ours <= set(nbdist.__all__)
    assert all(issubclass(getattr(nbdist, name), nbdist.NbdistError) for name in ours)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = nbdist.nonsense


def test_importing_the_package_imports_nothing_else() -> None:
    heavy = ("torch", "numpy", "zmq", "ipyparallel", "IPython", "omegaconf", "psutil", "asyncio")

    assert imported_by("import nbdist", *heavy) == []


def test_what_runs_beside_the_kernel_imports_no_torch() -> None:
    assert "nbdist.sessions.session" in BESIDE_THE_KERNEL

    code = "import importlib\n" + "\n".join(
        f"importlib.import_module({name!r})" for name in BESIDE_THE_KERNEL
    )

    assert imported_by(code, "torch", "nbdist.rank", "nbdist.runtime") == []


@pytest.fixture(scope="module")
def agent() -> dict[str, list[str]]:
    """Return what a process that has imported all an agent needs has: modules and threads."""
    code = (
        "import json, os, sys\nos.environ |= dict.fromkeys(('OMP_NUM_THREADS', "
        "'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')\n"
        "from nbdist.rank import agent; agent.import_engine()\n"
        "threads = os.listdir('/proc/self/task')\n"
        "print(json.dumps({'modules': list(sys.modules), 'threads': threads}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_what_runs_on_a_rank_imports_nothing_of_the_notebook(agent: dict[str, list[str]]) -> None:
    foreign = {
        "ipywidgets",
        "anywidget",
        "matplotlib",
        "nbdist.notebook",
        "nbdist.sessions",
        "nbdist.view",
        "nbdist.launchers",
    }

    assert "torch" in agent["modules"]
    assert foreign & set(agent["modules"]) == set()


def test_an_agent_that_has_imported_all_has_one_thread(agent: dict[str, list[str]]) -> None:
    assert len(agent["threads"]) == 1


def test_loading_the_extension_imports_no_torch_and_starts_nothing() -> None:
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "import threading, nbdist\n"
        "shell = InteractiveShell()\nbefore = set(shell.user_ns), threading.active_count()\n"
        "nbdist.load_ipython_extension(shell); nbdist.load_ipython_extension(shell)\n"
        "assert (set(shell.user_ns), threading.active_count()) == before\n"
        "assert 'dist' in shell.magics_manager.magics['cell']\n"
        "nbdist.unload_ipython_extension(shell)"
    )

    assert imported_by(code, "torch", "zmq", "ipyparallel", "omegaconf", "numpy") == []
