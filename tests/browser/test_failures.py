"""When things fail, in a real JupyterLab: a hang is explained and stopped, a dead rank replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.page import NotebookPage
from tests.browser.test_cells import begin, expect_static_output

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

START = "%load_ext nbdist\n%dist start -n 3 device=cpu hang.after_s=1"
TOTAL = "%%dist\ntotal = torch.ones(1)\ndist.all_reduce(total)\ntotal.item()"
HANG = """%%dist
import time

def load_batch():
    time.sleep(600)

print("step 1 of rank", rank)
if rank == 1:
    load_batch()
dist.all_reduce(torch.ones(4))
"""


@pytest.fixture(scope="module")
def page(open_notebook: Open) -> NotebookPage:
    """A notebook with three ranks; its cell 1 is for the test, cell 2 uses the group of all."""
    page = open_notebook([START, "", TOTAL])
    page.run(0)
    return page


def expect_a_working_group(page: NotebookPage) -> None:
    page.run(2)
    assert "3.0" in page.outputs(2)[-1]["data"]["text/plain"]


@pytest.mark.parametrize("button", ["toolbar", "view"])
def test_a_hang_is_explained_and_stopped(page: NotebookPage, pictures: Path, button: str) -> None:
    view = begin(page, HANG)
    expect(view).to_contain_text("ranks 0, 2 wait in all_reduce", timeout=30_000)
    expect(view).to_contain_text("rank 1 sleeps in time.sleep")
    expect(view.get_by_role("tab", name="rank 0: waiting")).to_have_count(1)
    page.screenshot(pictures / f"hang-{button}-light.png", 1)

    page.stop_cell(1, button)

    assert "CellStopped" in page.text(1)
    plain = expect_static_output(page)["text/plain"]
    assert "It was stopped in this: ranks 0, 2 wait in all_reduce" in plain
    page.screenshot(pictures / f"hang-{button}-stopped-light.png", 1)
    expect_a_working_group(page)


def test_a_rank_that_raises_selects_itself_and_is_the_cause(
    page: NotebookPage, pictures: Path
) -> None:
    source = HANG.replace("    load_batch()", "    time.sleep(4)\n    raise ValueError('bad')")
    view = begin(page, source)

    expect(view.get_by_role("tab", name="rank 0: waiting")).to_have_count(1)
    page.wait_until_idle(timeout_s=20)

    assert "ValueError on rank 1" in page.text(1)
    plain = expect_static_output(page)["text/plain"]
    assert "ranks 0, 2 waited for rank 1 in all_reduce" in plain
    page.screenshot(pictures / "failure-light.png", 1)
    page.use_theme("Dark")
    page.screenshot(pictures / "failure-dark.png", 1)
    page.use_theme("Light")
    expect_a_working_group(page)


def test_a_dead_rank_is_replaced(page: NotebookPage, pictures: Path) -> None:
    page.write_cell(
        1, "%%dist\nif rank == 2:\n    import os; os.kill(os.getpid(), 9)\ndist.barrier()"
    )
    page.run(1)
    assert "died" in expect_static_output(page)["text/plain"]
    page.screenshot(pictures / "dead-light.png", 1)

    page.write_cell(1, "%dist recover")
    assert "rank 2 replaced" in page.run(1)
    page.screenshot(pictures / "recovered-light.png", 1)
    expect_a_working_group(page)


def test_a_stopped_controller_is_named_and_a_killed_one_costs_no_variable(
    page: NotebookPage, pictures: Path, tmp_path: Path
) -> None:
    controller = min(
        (p for p in page.lab.processes() if p.cmdline() == ["nbdist", "controller"]),
        key=lambda process: process.pid,  # the other one is its heart monitor
    )
    go = tmp_path / "go"
    view = begin(
        page,
        f"%%dist\nimport os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "kept = 20 + rank",
    )
    controller.suspend()
    expect(view).to_contain_text("is stopped from outside", timeout=30_000)
    page.screenshot(pictures / "controller-stopped-light.png", 1)

    controller.kill()
    page.wait_until_idle(timeout_s=30)
    assert "The controller of this session" in expect_static_output(page)["text/plain"]
    page.screenshot(pictures / "controller-killed-light.png", 1)

    go.touch()
    page.write_cell(1, "%%dist\nkept")
    page.run(1)
    assert "20" in expect_static_output(page)["text/plain"]
    expect_a_working_group(page)
