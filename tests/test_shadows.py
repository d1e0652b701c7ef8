from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdist.shadows import add_working_folder, file_that_hides, without_working_folder

PATH = ["/usr/lib/python", "/venv/lib/site-packages", "/venv/lib/dist-packages"]


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)
    importlib.invalidate_caches()


def test_the_working_folder_comes_behind_the_standard_library() -> None:
    sys.path[:] = ["", *PATH]

    add_working_folder({})

    assert sys.path == ["/usr/lib/python", "", "/venv/lib/site-packages", "/venv/lib/dist-packages"]


def test_without_any_installed_packages_it_comes_first() -> None:
    sys.path[:] = ["/usr/lib/python"]

    add_working_folder({})

    assert sys.path == ["", "/usr/lib/python"]


def test_a_user_who_wants_a_safe_path_has_one() -> None:
    sys.path[:] = ["", *PATH]

    add_working_folder({"PYTHONSAFEPATH": "1"})

    assert sys.path == PATH


@pytest.mark.parametrize("named", ["", "the folder's path"])
def test_what_we_import_does_not_come_from_the_working_folder(tmp_path: Path, named: str) -> None:
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('of the folder')")
    sys.modules.pop("colorsys", None)
    entry = named and str(tmp_path)
    sys.path[:] = [entry, *sys.path, entry]
    before = list(sys.path)

    with without_working_folder():
        importlib.import_module("colorsys")

    assert sys.path == before


def error_of(code: str) -> BaseException:
    try:
        exec(code, {})
    except Exception as exc:  # noqa: BLE001 - whatever the code raises is looked at
        return exc
    raise AssertionError(f"{code!r} raised nothing")


@pytest.mark.parametrize(
    "code",
    [
        "from colorsys import rgb_to_hsv",
        "import colorsys; colorsys.rgb_to_hsv",
        "import colorsys.deeper",
    ],
)
def test_the_file_is_named_that_hides_a_module(tmp_path: Path, code: str) -> None:
    (tmp_path / "colorsys.py").write_text("mine = 1")
    sys.modules.pop("colorsys", None)
    sys.path.insert(0, str(tmp_path))

    assert file_that_hides(error_of(code)) == str(tmp_path / "colorsys.py")


@pytest.mark.parametrize(
    "code", ["import mine; mine.other", "import sys; sys.other", "import no_such_module", "1 / 0"]
)
def test_other_errors_hide_nothing(tmp_path: Path, code: str) -> None:
    (tmp_path / "mine.py").write_text("")
    sys.path.insert(0, "")

    assert file_that_hides(error_of(code)) is None
