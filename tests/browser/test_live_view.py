"""The live view on a page, of ranks that are played by the test: looks, keyboard, screen reader.

A cell of the notebook tells a view what ranks would; each of its acts begins when the test makes a
file, and the cell ends after the last one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, expect

from nbdist.notebook.tail import MAX_LINES
from tests.browser.conftest import Open
from tests.browser.lab import Lab
from tests.browser.page import NotebookPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

STAGE = """
import pathlib, time
from IPython.display import display
from nbdist.notebook import live, live_widget
from nbdist.wire import Clear, Text
live_widget.QUIET_S = 0

def printed(view, rank, text, name="stdout"):
    view.take(rank, (Text(name, text),))

def play(name, num_ranks, *acts):
    view = live.make_view("widget", range(num_ranks), "In[12]")
    for number, act in enumerate(acts):
        while number and not pathlib.Path(f"{name}-{number}").exists():
            view.tick()
            time.sleep(0.02)
        exec(act, globals() | {"view": view})
    while not pathlib.Path(f"{name}-end").exists():
        view.tick()
        time.sleep(0.02)
    view.close()
    display("the final output")
"""

TRAINING = """
for rank in range(4):
    for epoch in range(30):
        loss = 1 / (epoch + rank + 1)
        printed(view, rank, f"epoch {epoch} rank {rank} \\x1b[32mloss\\x1b[0m {loss:.4f}\\n")
    printed(view, rank, "\\r 10 %", "stderr")
    printed(view, rank, "\\r 40 %\\n", "stderr")
    view.progress(rank, (40, 22, 40, 100)[rank], 100, "train")
view.state(0, "waiting", "all_reduce #41")
view.state(2, "waiting", "all_reduce #41")
view.state(1, "running", "In[12]:4")
view.state(3, "done")
"""
HANG = """
view.warn("ranks 0, 2 wait in all_reduce #41 (In[12]:7)\\nrank 1 is in load_batch() at In[12]:4")
"""
FAILURE = """
view.warn(None)
view.state(1, "failed", "ValueError: expected 32 rows, got 31")
view.state(3, "dead", "was killed by SIGKILL")
view.note("[rank3] was killed by SIGKILL; those that wait for it are freed")
"""


class Play:
    """A cell that plays ranks.

    Args:
        page: Its notebook.
        acts: What happens, as code with the name ``view``.
        num_ranks: How many ranks there are.
    """

    _numbers = itertools.count()

    def __init__(self, page: NotebookPage, *acts: str, num_ranks: int = 4) -> None:
        self.page = page
        self.name = f"play-{next(self._numbers)}"
        lines = "".join(f", {act!r}" for act in acts)
        page.write_cell(1, f"play({self.name!r}, {num_ranks}{lines})")
        page.begin(1)
        self.view = page.cell(1).locator(".nbdist-live")
        self.view.wait_for()

    def act(self, number: int) -> None:
        """Let the act *number* begin; they count from 0, which has begun."""
        (self.page.lab.folder / f"{self.name}-{number}").touch()

    def picture(self, path: Path) -> None:
        """Write a picture of the view."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.view.screenshot(path=path)

    def end(self) -> None:
        """End the cell."""
        (self.page.lab.folder / f"{self.name}-end").touch()
        self.page.wait_until_idle()

    def tab(self, name: int | str) -> Locator:
        pattern = re.compile("all ranks" if name == "all" else rf"rank {name}:")
        return self.view.get_by_role("tab", name=pattern)

    @property
    def selected(self) -> Locator:
        return self.view.get_by_role("tab", selected=True)

    @property
    def rows(self) -> Locator:
        return self.log.locator(".nbdist-row")

    @property
    def log(self) -> Locator:
        return self.view.get_by_role("tabpanel")


@pytest.fixture(scope="module")
def page(lab: Lab, open_notebook: Open) -> NotebookPage:
    (lab.folder / "stage.py").write_text(STAGE)
    page = open_notebook(["from stage import *", ""])
    page.run(0)
    return page


@pytest.fixture(autouse=True)
def cell_ends(page: NotebookPage) -> Iterator[None]:
    yield
    for name in {path.name.rpartition("-")[0] for path in page.lab.folder.glob("play-*")}:
        (page.lab.folder / f"{name}-end").touch()
    if page.state() and any((page.state() or {})["isRunning"]):
        page.press_stop()
        page.wait_until_idle()


def test_a_glance_tells_what_every_rank_does(page: NotebookPage, pictures: Path) -> None:
    play = Play(page, TRAINING, HANG, FAILURE)
    expect(play.view).to_contain_text("2 waiting · 1 running · 1 done")
    expect(play.view).to_contain_text("slowest: rank 1, 22 %")
    expect(play.view.locator(".nbdist-card")).to_be_hidden()
    for name, label in [
        (0, "rank 0: waiting, all_reduce #41, 40 of 100, train"),
        (1, "rank 1: running, In[12]:4, 22 of 100, train"),
        (3, "rank 3: done, 100 of 100, train"),
    ]:
        expect(play.tab(name)).to_have_attribute("aria-label", label)
    play.tab(1).click()
    play.picture(pictures / "live-4-ranks-light.png")

    play.act(1)
    expect(play.view.locator(".nbdist-card")).to_contain_text("rank 1 is in load_batch()")
    play.picture(pictures / "live-hang-light.png")
    page.use_theme("Dark")
    play.picture(pictures / "live-hang-dark.png")

    play.act(2)
    expect(play.view.locator(".nbdist-card")).to_be_hidden()
    expect(play.view).to_contain_text("1 failed · 1 dead · 2 waiting")
    expect(play.view).to_contain_text("[rank3] was killed by SIGKILL; those that wait")
    play.picture(pictures / "live-failure-dark.png")
    page.use_theme("Light")
    play.picture(pictures / "live-failure-light.png")

    play.end()
    assert page.text(1) == "'the final output'"
    [output] = page.outputs(1)
    assert list(output["data"]) == ["text/plain"]


def test_states_differ_without_colour_and_in_words(page: NotebookPage) -> None:
    states = ["running", "waiting", "failed", "stopped", "done", "dead"]
    acts = "".join(f"view.state({rank}, {state!r})\n" for rank, state in enumerate(states))

    play = Play(page, acts, num_ranks=6)

    expect(play.tab(5)).to_have_attribute("aria-label", "rank 5: dead")
    signs = play.view.locator(".nbdist-sign").all_inner_texts()
    assert len(set(signs)) == 6
    words = [play.tab(rank).get_attribute("aria-label") for rank in range(6)]
    assert words == [f"rank {rank}: {state}" for rank, state in enumerate(states)]
    play.end()


def test_the_first_rank_that_fails_selects_itself(page: NotebookPage) -> None:
    play = Play(page, "printed(view, 2, 'the last words\\n')", "view.state(2, 'failed', 'OSError')")
    expect(play.selected).to_have_attribute("aria-label", "rank 0: running")

    play.act(1)

    expect(play.selected).to_have_attribute("aria-label", "rank 2: failed, OSError")
    expect(play.log).to_contain_text("the last words")
    play.end()


def test_what_the_reader_selected_stays_selected(page: NotebookPage) -> None:
    play = Play(page, "", "view.state(2, 'failed', 'OSError')")
    play.tab(3).click()

    play.act(1)

    expect(play.tab(2)).to_have_attribute("aria-label", "rank 2: failed, OSError")
    expect(play.selected).to_have_attribute("aria-label", "rank 3: running")
    play.end()


def test_the_keyboard_goes_through_the_ranks(page: NotebookPage) -> None:
    play = Play(page, "".join(f"printed(view, {rank}, 'I am {rank}')\n" for rank in range(4)))
    play.tab(0).focus()
    keyboard = page.tab.keyboard

    for key, selected in [
        ("ArrowRight", "rank 1: running"),
        ("ArrowDown", "rank 2: running"),
        ("End", "rank 3: running"),
        ("ArrowRight", "all ranks"),
        ("ArrowLeft", "rank 3: running"),
        ("Home", "all ranks"),
        ("ArrowRight", "rank 0: running"),
    ]:
        keyboard.press(key)
        expect(play.selected).to_have_attribute("aria-label", selected)
        expect(play.selected).to_be_focused()
    expect(play.rows).to_have_text("I am 0")
    stops = play.view.locator("[role=tab][tabindex='0']")
    assert stops.count() == 1, "one stop of the tab key for all chips"
    keyboard.press("Tab")
    expect(play.log).to_be_focused()
    play.end()


def test_the_lines_of_all_ranks_are_labelled_and_whole(page: NotebookPage) -> None:
    play = Play(
        page,
        "printed(view, 0, 'one\\nhalf')\nprinted(view, 1, 'two\\n')\n"
        "printed(view, 0, ' a line\\n')\nprinted(view, 2, 'oh\\n', 'stderr')",
    )

    play.tab("all").click()

    lines = ["[rank0] one", "[rank1] two", "[rank0] half a line", "[rank2] stderr: oh"]
    expect(play.rows).to_have_text(lines)
    play.end()


def test_the_log_follows_its_end_unless_the_reader_scrolled_up(page: NotebookPage) -> None:
    more = "printed(view, 0, ''.join(f'line {i}\\n' for i in range(%d, %d)))"
    play = Play(page, more % (0, 100), more % (100, 200), more % (200, 300))
    newest = play.view.get_by_role("button", name="newest")
    expect(play.log.get_by_text("line 99", exact=True)).to_be_in_viewport()
    expect(newest).to_be_hidden()

    play.log.hover()
    page.tab.mouse.wheel(0, -5000)
    expect(play.log.get_by_text("line 0", exact=True)).to_be_in_viewport()
    play.act(1)
    expect(play.log.get_by_text("line 199", exact=True)).to_be_attached()
    expect(play.log.get_by_text("line 0", exact=True)).to_be_in_viewport()

    newest.click()
    expect(play.log.get_by_text("line 199", exact=True)).to_be_in_viewport()
    play.act(2)
    expect(play.log.get_by_text("line 299", exact=True)).to_be_in_viewport()
    play.end()


def test_the_log_shows_whole_lines(page: NotebookPage) -> None:
    play = Play(
        page, "printed(view, 0, ''.join(f'line {i} ' + 'x' * i + '\\n' for i in range(100)))"
    )
    expect(play.log.get_by_text("line 99")).to_be_in_viewport()

    first, last = play.log.evaluate("""log => {
      const row = parseFloat(getComputedStyle(log).lineHeight);
      const top = log.getBoundingClientRect().top;
      const rows = [...log.querySelectorAll(".nbdist-row")];
      const places = rows.map((one) => (one.getBoundingClientRect().bottom - top) / row);
      return [places.find((place) => place > 0.01), places.at(-1)];
    }""")

    # In lines: each one ends where the next begins, and the last where the log does.
    assert first == pytest.approx(round(first), abs=0.01)
    assert last == pytest.approx(13, abs=0.01)
    play.end()


def test_a_flood_is_cut_and_counted(page: NotebookPage) -> None:
    play = Play(page, "for i in range(20): printed(view, 0, f'old {i}\\n' * 1000)")

    expect(play.log).to_contain_text("… 15,000 earlier lines not shown here …")
    expect(play.log).to_contain_text("old 19")
    assert play.rows.count() == MAX_LINES
    play.end()


def test_what_ranks_print_is_text_and_never_html(page: NotebookPage) -> None:
    evil = "<img src=x onerror='window.hacked = 1'><b>bold</b>"

    play = Play(
        page,
        f"printed(view, 0, {evil!r})\nview.state(0, 'running', {evil!r})\nview.warn({evil!r})",
    )

    expect(play.rows).to_have_text(evil)
    expect(play.view.locator(".nbdist-card")).to_have_text(evil)
    assert play.view.locator("img, b").count() == 0
    play.end()


def test_sixty_four_ranks_stay_usable(page: NotebookPage, pictures: Path) -> None:
    play = Play(
        page,
        "for rank in range(64):\n"
        "    printed(view, rank, f'hello from {rank}\\n')\n"
        "    view.progress(rank, rank, 64)\n"
        "    view.state(rank, ('running', 'waiting', 'running', 'done')[rank % 4], 'In[12]:2')\n"
        "view.state(17, 'failed', 'RuntimeError: bad')",
        "view.state(40, 'dead', 'was killed by SIGKILL')",
        num_ranks=64,
    )
    expect(play.view.get_by_role("tab")).to_have_count(65)
    expect(play.rows).to_have_text("hello from 17")
    box = play.view.bounding_box()
    assert box is not None
    assert box["height"] < 300
    play.picture(pictures / "live-64-ranks-light.png")

    untouched = play.tab(5)
    untouched.evaluate("tab => { tab.isTheSame = true; }")
    play.act(1)
    expect(play.tab(40)).to_have_attribute("aria-label", re.compile("rank 40: dead"))
    assert untouched.evaluate("tab => tab.isTheSame === true")
    play.end()


def test_a_screen_reader_hears_a_summary_and_no_flood(page: NotebookPage) -> None:
    play = Play(
        page,
        "",
        "for i in range(50):\n"
        "    view.progress(0, i, 50); view.state(0, 'running', f'line {i}')\n"
        "    printed(view, 0, f'{i}\\n')\n"
        "    end = time.monotonic() + 0.03\n"
        "    while time.monotonic() < end: view.tick()",
        "view.state(1, 'failed', 'OSError')",
    )
    spoken = play.view.get_by_role("status")
    expect(spoken).to_have_text("In[12]: 4 running")
    spoken.evaluate("""node => {
      window.heard = 0;
      new MutationObserver(() => { window.heard += 1; }).observe(
        node, {childList: true, characterData: true, subtree: true});
    }""")

    play.act(1)
    expect(play.tab(0)).to_have_attribute("aria-label", re.compile("49 of 50"))
    assert page.tab.evaluate("window.heard") == 0, "nothing worth saying has happened"

    play.act(2)
    expect(spoken).to_have_text("In[12]: 1 failed · 3 running. rank 1: failed, OSError")
    play.end()


def test_short_cells_one_after_the_other_leave_nothing(lab: Lab, page: NotebookPage) -> None:
    page.write_cell(
        1,
        "for i in range(5):\n"
        "    view = live.make_view('widget', range(4), 'In[1]')\n"
        "    printed(view, 0, 'x')\n"
        "    view.tick()\n"
        "    view.close()\n"
        "    display(i)",
    )

    page.run(1)

    assert page.text(1) == "4"
    assert lab.complaints == []
