"""Cells on real ranks in a real JupyterLab: live while they run, static when they are over.

A cell that is to run for as long as a test looks at it waits for a file, its gate.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.conftest import Open
from tests.browser.lab import Lab
from tests.browser.page import NotebookPage
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

LOAD = "%load_ext nbdist"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
HELLO = "%%dist\nprint('hello from', rank)"
TICKING = """%%dist
import pathlib, time
for step in range(100_000):
    print("step", step, "of rank", rank, flush=True)
    if pathlib.Path({gate!r}).exists():
        break
    time.sleep(0.05)
print("rank", rank, "is over")
"""


TRAINING = """%%dist
import pathlib, time
from tqdm.auto import tqdm
for step in {loop}:
    while step == (22 if rank == 1 else 40) and not pathlib.Path({gate!r}).exists():
        time.sleep(0.05)
"""


class Gate:
    """A file that ends the cells that wait for it."""

    _numbers = itertools.count()

    def __init__(self, lab: Lab) -> None:
        self._path = lab.folder / f"gate-{next(self._numbers)}"
        self.ticking = TICKING.format(gate=str(self._path))
        self.training = partial(TRAINING.format, gate=str(self._path))

    def open(self) -> None:
        self._path.touch()


@pytest.fixture
def gate(lab: Lab) -> Gate:
    return Gate(lab)


@pytest.fixture(scope="module")
def four(open_notebook: Open) -> NotebookPage:
    """A notebook with four ranks and an empty cell, number 1."""
    page = open_notebook([f"{LOAD}\n%dist start -n 4", "", "%%dist\nrank"])
    assert "4 ranks on 1 host" in page.run(0)
    return page


def view_of(page: NotebookPage, number: int = 1) -> Locator:
    return page.cell(number).locator(".nbdist-live")


def begin(page: NotebookPage, source: str, number: int = 1) -> Locator:
    """Begin a cell and return its live view."""
    page.write_cell(number, source)
    page.begin(number)
    view = view_of(page, number)
    view.wait_for()
    return view


def expect_static_output(page: NotebookPage, number: int = 1) -> dict[str, Any]:
    """Return the data of the one output that is left, and see to it that it needs no code."""
    expect(view_of(page, number)).to_have_count(0)
    displays = [o for o in page.outputs(number) if o["output_type"] != "error"]
    assert [o["output_type"] for o in displays] == ["display_data"]
    data: dict[str, Any] = displays[0]["data"]
    assert sorted(data) == ["text/html", "text/plain"]
    assert "<script" not in data["text/html"]
    return data


def expect_ranks_answer(page: NotebookPage) -> None:
    page.run(2)
    assert page.outputs(2)[-1]["output_type"] == "display_data"


def kernel_of(page: NotebookPage) -> dict[str, Any]:
    """Return what the server says of the page's kernel."""
    state = page.state()
    assert state is not None
    kernel: dict[str, Any] = page.lab.ask(f"api/kernels/{state['kernel']}")
    return kernel


def test_four_ranks_stream_and_leave_one_static_output(four: NotebookPage, gate: Gate) -> None:
    view = begin(four, gate.ticking)

    for rank in (2, 0):
        view.get_by_role("tab", name=f"rank {rank}:").click()
        expect(view.get_by_role("tabpanel")).to_contain_text(f"step 9 of rank {rank}")
    view.get_by_role("tab", name="all ranks").click()
    expect(view.get_by_role("tabpanel")).to_contain_text("[rank3] step 9 of rank 3")
    gate.open()
    four.wait_until_idle()

    plain = expect_static_output(four)["text/plain"]
    assert all(f"rank {rank} is over" in plain for rank in range(4))


def test_jupyter_sees_a_busy_kernel_until_the_cell_ends(four: NotebookPage, gate: Gate) -> None:
    view = begin(four, gate.ticking)
    view.get_by_role("button", name="Stop").wait_for()  # a message of the page was answered

    samples = []
    for number in range(100):
        view.get_by_role("tab", name=f"rank {number % 4}:").click()
        samples.append(kernel_of(four))
        four.tab.wait_for_timeout(100)
    gate.open()
    four.wait_until_idle()

    states = [sample["execution_state"] for sample in samples]
    assert ("idle", "idle") not in itertools.pairwise(states)
    assert states.count("busy") > 95
    assert len({sample["last_activity"] for sample in samples}) > 5
    wait_until(lambda: kernel_of(four)["execution_state"] == "idle", "the server to see the end")


def test_a_short_cell_shows_no_view(four: NotebookPage) -> None:
    four.write_cell(1, "%%dist\nrank")
    four.tab.evaluate("""() => {
      window.numViews = 0;
      new MutationObserver(() => {
        window.numViews += document.querySelectorAll('.nbdist-live').length;
      }).observe(document.body, {childList: true, subtree: true});
    }""")

    four.run(1)

    assert four.tab.evaluate("window.numViews") == 0
    expect_static_output(four)


def test_a_cell_that_prints_nothing_leaves_nothing(four: NotebookPage, gate: Gate) -> None:
    silent = "\n".join(line for line in gate.ticking.splitlines() if "print" not in line)

    begin(four, silent)
    gate.open()
    four.wait_until_idle()

    assert four.outputs(1) == []


@pytest.mark.parametrize(
    ("loop", "name"),
    [
        ("tqdm(range(100), 'train', mininterval=0, miniters=1)", "tqdm"),
        ("nbdist.progress(range(100), 'train')", "progress"),
    ],
)
def test_a_loop_is_a_bar_for_each_rank_and_one_line_in_the_end(
    four: NotebookPage, gate: Gate, loop: str, name: str, pictures: Path
) -> None:
    view = begin(four, gate.training(loop=loop))

    expect(view).to_contain_text("slowest: rank 1, 22 %")
    for rank, done in enumerate((40, 22, 40, 40)):
        bar = view.get_by_role("tab", name=f"rank {rank}: running").locator(".nbdist-bar")
        expect(view.get_by_role("tab", name=f"rank {rank}: running")).to_contain_text(f"{done}/100")
        expect(bar).to_have_attribute("style", f"transform: scaleX({done / 100});")
    four.screenshot(pictures / f"live-{name}-light.png", 1)
    gate.open()
    four.wait_until_idle()

    plain = expect_static_output(four)["text/plain"]
    assert [line.split()[-1] for line in plain.splitlines() if "train" in line] == ["100/100"]


@pytest.mark.parametrize("button", ["toolbar", "view"])
def test_an_endless_loop_is_stopped(four: NotebookPage, button: str) -> None:
    view = begin(four, "%%dist\nprint('begun', flush=True)\nwhile True: pass")
    expect(view.get_by_role("tabpanel")).to_contain_text("begun")

    four.stop_cell(1, button)

    assert "CellStopped" in four.text(1)
    expect_static_output(four)
    expect_ranks_answer(four)


def test_a_reload_after_the_cell_changes_nothing(four: NotebookPage, gate: Gate) -> None:
    begin(four, gate.ticking)
    gate.open()
    four.wait_until_idle()
    before = four.text(1)
    four.save()

    four.reload()

    assert four.text(1) == before
    assert "idget" not in before
    expect_ranks_answer(four)


def test_after_a_reload_in_mid_cell_the_view_says_how_it_ended(
    four: NotebookPage, gate: Gate
) -> None:
    view = begin(four, gate.ticking)
    expect(view.get_by_role("tabpanel")).to_contain_text("step 5")
    four.save()
    four.reload()
    gate.open()

    view = view_of(four)
    expect(view).to_contain_text("%dist last shows it again", timeout=30_000)
    expect(view).to_contain_text("4 done")
    expect(view.get_by_role("tabpanel")).to_contain_text("rank 0 is over")
    four.wait_until_idle()
    assert "Loading widget" not in four.text(1)

    begin(four, Gate(four.lab).ticking)
    four.press_stop()
    four.wait_until_idle()
    expect_ranks_answer(four)


def test_the_file_opens_without_a_kernel_and_untrusted(
    lab: Lab, four: NotebookPage, pictures: Path
) -> None:
    begin(four, f"{HELLO}\nimport time; time.sleep(1)")
    four.wait_until_idle()
    saved = four.save()
    assert "widgets" not in saved["metadata"]
    assert WIDGET_MIME not in json.dumps(saved)
    saved["metadata"] = {}
    saved["cells"][0]["source"] += "  # not what was signed"
    (lab.folder / "elsewhere.ipynb").write_text(json.dumps(saved))

    page = lab.notebook("elsewhere.ipynb", has_kernel=False)

    expect(page.area(1)).to_contain_text("hello from 3")
    assert page.text(1) == four.text(1)
    page.screenshot(pictures / "final-untrusted-light.png", 1)
    page.close()


def test_it_becomes_a_page_of_html(lab: Lab, four: NotebookPage, pictures: Path) -> None:
    four.write_cell(1, f"{HELLO}\nrank * 1.5")
    four.run(1)
    four.save()
    source = lab.folder / four.name
    command = [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level", "ERROR"]
    subprocess.run([*command, str(source)], check=True)

    # Without scripts: the frame of the page would ask other hosts for some.
    context = lab.browser.new_context(java_script_enabled=False, offline=True)
    tab = context.new_page()
    tab.set_content(source.with_suffix(".html").read_text())
    body = tab.locator("body")
    for rank in range(4):
        expect(body).to_contain_text(f"hello from {rank}")
    expect(body).to_contain_text("mean 2.25")
    tab.screenshot(path=pictures / "final-nbconvert-light.png")
    context.close()


def test_a_rank_that_dies_selects_itself(open_notebook: Open, gate: Gate) -> None:
    page = open_notebook([f"{LOAD}\n%dist start -n 2", ""])
    page.run(0)
    dying = "import os\nif rank == 1:\n    print('farewell', flush=True)\n    os._exit(3)\n"
    source = gate.ticking.replace("%%dist\n", f"%%dist\n{dying}")

    view = begin(page, source)

    expect(view.get_by_role("tab", selected=True)).to_have_attribute(
        "aria-label", "rank 1: dead, exited with code 3"
    )
    expect(view).to_contain_text("[rank1] exited with code 3; those that wait for it are freed")
    gate.open()
    page.wait_until_idle()
    assert "farewell" in expect_static_output(page)["text/plain"]


def test_eight_ranks_stream_and_a_restart_in_mid_cell_ends_them(
    lab: Lab, open_notebook: Open, gate: Gate, pictures: Path
) -> None:
    page = open_notebook([f"{LOAD}\n%dist start -n 8", "", "1 + 1"])
    before = {process.pid for process in lab.processes()}
    page.run(0)
    ranks = {process.pid for process in lab.processes()} - before
    assert len(ranks) >= 8
    view = begin(page, gate.ticking)
    view.get_by_role("tab", name="rank 7:").click()
    expect(view.get_by_role("tabpanel")).to_contain_text("step 9 of rank 7")
    page.screenshot(pictures / "live-8-ranks-light.png", 1)

    page.restart()

    page.run(2)
    assert page.outputs(2)[0]["data"]["text/plain"] == "2"
    assert "Loading widget" not in page.text(1)
    wait_until(lambda: not ranks & {process.pid for process in lab.processes()}, "the ranks to end")
