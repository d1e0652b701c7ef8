"""Starts where something around them is odd: they succeed, or name the cause at once."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import nbdist
from nbdist.launchers.start import last_words
from tests.launchers.unsharing import needs_unshare

SCRIPT = Path(__file__).parent / "start_script.py"
PACKAGE = Path(nbdist.__file__).parent


def started(
    cwd: Path, *prefix: str, umask: int = -1, environment: Mapping[str, str] = {}
) -> dict[str, Any]:
    """Start two ranks in a process of their own, and return what became of it."""
    done = subprocess.run(
        [*prefix, sys.executable, str(SCRIPT), "2"],
        cwd=cwd,
        env={**os.environ, **environment},
        umask=umask,
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def with_mount(options: str, place: Path) -> tuple[str, ...]:
    """Return a command that runs what follows with a small disk of its own at *place*."""
    return (
        "unshare",
        "-m",
        "sh",
        "-c",
        f'mount -t tmpfs -o {options} tmpfs {place}; exec "$@"',
        "sh",
    )


# What starts ------------------------------------------------------------------------------------


ODD = {
    "an ASCII locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "warnings as errors": {"PYTHONWARNINGS": "error"},
    "another cluster": {
        "IPP_CONNECTION_INFO": '{"interface": "x"}',
        "IPP_SESSION_KEY": "x",
        "IPP_ENABLE_CURVE": "1",
    },
    "no place for IPython": {"IPYTHONDIR": "/dev/null/ipython", "HOME": "/dev/null"},
    "a safe path": {"PYTHONSAFEPATH": "1"},
}


@pytest.mark.ranks
@pytest.mark.parametrize("environment", ODD.values(), ids=ODD.keys())
def test_it_starts_in_an_odd_environment(
    run_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    found = started(tmp_path, environment=environment)

    assert found["error"] is None
    assert [value for _, value in found["values"]] == [1, 1]
    assert list(run_folder.iterdir()) == []


@pytest.mark.ranks
def test_it_starts_with_a_umask_that_closes_all(run_folder: Path, tmp_path: Path) -> None:
    # As root every file can be opened; without this right its owner is what counts.
    capsh = shutil.which("capsh")
    drop = "--drop=cap_dac_override,cap_dac_read_search"
    prefix = (capsh, drop, "--", "-c", 'exec "$@"', "sh") if capsh and os.getuid() == 0 else ()

    found = started(tmp_path, *prefix, umask=0o777)

    assert found["error"] is None
    assert list(run_folder.iterdir()) == []


@needs_unshare
@pytest.mark.ranks
@pytest.mark.parametrize("options", ["size=64k", "size=1m", "ro"])
def test_it_starts_where_shared_memory_cannot_be_used(
    run_folder: Path, tmp_path: Path, options: str
) -> None:
    found = started(tmp_path, *with_mount(options, Path("/dev/shm")))

    assert found["error"] is None
    assert found["big"] == 2**20


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.ranks
def test_a_working_folder_that_was_deleted_is_named(run_folder: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()

    found = started(gone, "sh", "-c", f'rmdir {gone}; exec "$@"', "sh")

    assert "The working folder of this process cannot be found" in found["error"]
    assert "%cd" in found["error"]


@needs_unshare
@pytest.mark.ranks
@pytest.mark.parametrize("options", ["nr_inodes=4", "nr_inodes=13", "size=8k"])
def test_a_full_disk_is_named(run_folder: Path, tmp_path: Path, options: str) -> None:
    disk = run_folder / "disk"
    disk.mkdir(mode=0o700)

    found = started(
        tmp_path,
        *with_mount(f"{options},mode=700", disk),
        environment={"NBDIST_RUNTIME_DIR": str(disk)},
    )

    assert str(disk) in found["error"]
    assert "No space left" in found["error"] or "is full" in found["error"]


# The words of a failed start ----------------------------------------------------------------------


def test_the_error_is_named_before_a_long_log_of_its_consequences() -> None:
    log = "\n".join(
        [
            "Traceback (most recent call last):",
            '  File "a.py", line 1',
            "PermissionError: no entry",
            "During handling of the above exception, another exception occurred:",
            "Traceback (most recent call last):",
            *['  File "b.py", line 1'] * 20,
            "SystemExit: 255",
        ]
    )

    said = last_words(log).splitlines()

    assert said[0] == "The cause: PermissionError: no entry"
    assert said[-1] == "SystemExit: 255"
    assert len(said) < 20


def test_a_log_that_shows_its_error_is_not_told_twice() -> None:
    log = 'Traceback (most recent call last):\n  File "a.py"\nValueError: so'

    assert last_words(log) == f"Its log ends with:\n{log}"
    assert last_words("") == "It wrote nothing."
    assert last_words("no traceback") == "Its log ends with:\nno traceback"


# Text files ---------------------------------------------------------------------------------------


def text_files_without_encoding(source: str) -> Iterator[int]:
    """Yield the lines that open a text file and leave its encoding to the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
        is_text = name in ("read_text", "write_text") or (
            name in ("open", "fdopen") and not any("b" in str(mode) for mode in modes)
        )
        is_ours = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in (
            "os",
            "private",
            "Image",
        )
        has_encoding = any(word.arg == "encoding" for word in node.keywords)
        if is_text and not has_encoding and (name == "fdopen" or not is_ours):
            yield node.lineno


@pytest.mark.parametrize(
    ("source", "num_found"),
    [
        ("open(p)", 1),
        ("p.open('w')", 1),
        ("p.read_text()", 1),
        ("p.write_text(t, encoding='utf-8')", 0),
        ("open(p, 'rb')", 0),
        ("os.fdopen(f, 'w')", 1),
        ("os.open(p, 0)", 0),
        ("private.read_text(p)", 0),
    ],
)
def test_a_text_file_without_an_encoding_would_be_found(source: str, num_found: int) -> None:
    assert len(list(text_files_without_encoding(source))) == num_found


def test_no_text_file_depends_on_the_locale() -> None:
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := list(text_files_without_encoding(path.read_text(encoding="utf-8"))))
    }

    assert found == {}
