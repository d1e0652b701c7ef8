"""One JupyterLab and one browser for all tests here; pictures go to build/screenshots."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.browser.lab import Lab, chromium
from tests.browser.page import NotebookPage

PICTURES = Path(__file__).parents[2] / "build" / "screenshots"
NO_BROWSER = (
    "Chromium is missing, so nothing was tried in a real JupyterLab. "
    "On Debian: apt install chromium fonts-dejavu fonts-noto-color-emoji"
)

Open = Callable[[Sequence[str]], NotebookPage]


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    executable = chromium()
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail(NO_BROWSER)
        pytest.skip(NO_BROWSER)
    with Lab(tmp_path_factory.mktemp("lab"), executable) as lab:
        yield lab
    assert lab.leftovers == []
    assert lab.refused == []


@pytest.fixture(autouse=True)
def no_complaints(lab: Lab) -> Iterator[None]:
    """The browser's console shows no error."""
    lab.complaints.clear()
    yield
    assert lab.complaints == []


@pytest.fixture(scope="module")
def open_notebook(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open a notebook with the given cells; its kernel ends with the module."""
    opened: list[NotebookPage] = []

    def open_(cells: Sequence[str]) -> NotebookPage:
        stem = re.sub(r"\W", "_", request.node.name.removesuffix(".py"))
        opened.append(lab.notebook(f"{stem}_{len(opened)}.ipynb", cells))
        return opened[-1]

    yield open_
    for page in opened:
        page.close()


@pytest.fixture
def pictures() -> Path:
    return PICTURES
