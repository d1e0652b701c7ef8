"""Each kind of final output of four real ranks, in both themes; the pictures are for people."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import ViewportSize, expect

from tests.browser.conftest import Open
from tests.browser.kinds import KINDS
from tests.browser.page import NotebookPage

pytestmark = [pytest.mark.browser, pytest.mark.timeout(150)]

NARROW: ViewportSize = {"width": 760, "height": 800}

# What a reader must find, in this order.
READS = {
    "lines": r"model +small.*dropout +0\.1\b.*dropout +0\.01.*batch +32",
    "numbers": r"rank.*0.*1.*2.*3.*mean",
    "tensors": r"rank 0.*\[0, 1, 2\].*rank 3.*\[12, 16, 20\]",
    "figures": r"rank 0.*rank 1.*rank 2.*rank 3",
    "tables": r"rank 0.*step.*loss.*rank 3.*2\.2",
    "long": r"124 of 144 lines",
    "progress": r"training.*40/40",
    "failure": r"ranks 1–3.*RuntimeError.*rank 0.*tensor\(1\.\)",
}

RICH = """%%dist
import ipywidgets
from IPython.display import JSON, SVG, Latex, Markdown, Math
display(Markdown("## A title\\n\\n**bold** with $a_1$\\n\\n| x | y |\\n|---|---|\\n| 1 | 2 |"))
display(Math(r"\\frac{1}{2}"), Latex(r"\\begin{align}x &= 1\\end{align}"))
display(SVG("<svg width='40' height='20'><rect width='40' height='20'/></svg>"))
display(JSON({"lr": 0.1}))
display(ipywidgets.IntSlider())
half?
"""


@pytest.fixture(scope="module")
def four(open_notebook: Open) -> NotebookPage:
    page = open_notebook(
        ["%load_ext nbdist\n%dist start -n 4", *(f"%%dist\n{cell}" for cell in KINDS.values())]
    )
    assert "4 ranks on 1 host" in page.run(0)
    return page


@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_well_in_both_themes_and_in_a_narrow_window(
    four: NotebookPage, kind: str, pictures: Path
) -> None:
    number = 1 + list(KINDS).index(kind)

    text = four.run(number)

    assert re.search(READS[kind], text, re.DOTALL), text
    area = four.area(number)
    assert_nothing_is_cut_off(four, number)
    four.screenshot(pictures / f"output-{kind}-light.png", number)
    wide = four.tab.viewport_size
    assert wide is not None
    try:
        four.use_theme("Dark")
        expect(area).to_be_visible()
        four.screenshot(pictures / f"output-{kind}-dark.png", number)
        four.tab.set_viewport_size(NARROW)
        assert_nothing_is_cut_off(four, number)
    finally:
        four.tab.set_viewport_size(wide)
        four.use_theme("Light")


def test_rich_output_looks_as_that_of_one_kernel(four: NotebookPage, pictures: Path) -> None:
    four.run(1)
    four.write_cell(1, "%%dist\ndef half(x):\n    'Halve.'\n    return x / 2")
    four.run(1)
    four.write_cell(1, RICH)

    text = four.run(1)

    area = four.area(1)
    expect(area.locator("h2")).to_have_text("A title")
    expect(area.locator("strong")).to_have_text("bold")
    expect(area.locator("td", has_text=re.compile("^2$"))).to_have_count(1)
    expect(area.locator("mjx-container")).to_have_count(3)
    assert area.locator("img").evaluate("image => image.naturalWidth") == 40
    assert re.search(r'"lr": 0\.1.*IntSlider\(value=0\).*Halve\..*not live', text, re.DOTALL), text
    four.screenshot(pictures / "output-rich-light.png", 1)


def assert_nothing_is_cut_off(page: NotebookPage, number: int) -> None:
    """What is wider than the page can be reached by scrolling, and by nothing else."""
    lost = page.area(number).evaluate(
        """area => [...area.querySelectorAll('*')].filter(e => {
          const {overflowX} = getComputedStyle(e);
          return e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && overflowX === 'hidden';
        }).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert lost == []
