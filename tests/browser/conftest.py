"""One JupyterLab and one browser for all tests here; pictures go to build/screenshots."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Where a test fails, keep a picture of each open page and the end of the server's log."""
    report = yield
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    if report.failed and (lab := funcargs.get("lab")) is not None:
        report.sections.append(("log of the server", lab.log()))
        for number, tab in enumerate(lab.context.pages):
            name = re.sub(r"\W+", "-", item.name)
            with contextlib.suppress(Error):  # a page that hangs has no picture
                tab.screenshot(path=PICTURES / f"failed-{name}-{number}.png")
    return report


@pytest.fixture
def pictures() -> Path:
    return PICTURES
