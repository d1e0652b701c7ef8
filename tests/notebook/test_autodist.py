"""Cells that go to the ranks without ``%%dist``: `%autodist on`, and a remark in the first line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook.driving import Notebook

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def shared() -> Iterator[Notebook]:
    """A notebook with two ranks that all tests of this file share."""
    with Notebook() as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        started = notebook.run("%dist_init --num-processes 2 device=cpu")
        assert started.status == "ok", started
        yield notebook


@pytest.fixture
def notebook(shared: Notebook) -> Iterator[Notebook]:
    yield shared
    shared.run("%autodist off")


def test_a_remark_in_the_first_line_names_the_ranks(notebook: Notebook) -> None:
    assert notebook.run("# dist: ranks=1\nrank * 10").display == "[rank1] 10"
    assert notebook.run("# dist:\nrank * 0").display == "[ranks 0, 1] 0"
    failed = notebook.run("# dist: ranks=0\n\n1 / 0")
    assert "In[" in failed.display
    assert ":3" in failed.display
    assert notebook.run("# dist: of all points\n'here'").of_kind("execute_result")


def test_plain_cells_go_to_the_ranks_until_switched_off(notebook: Notebook) -> None:
    notebook.run("where = 'notebook'")
    said = notebook.run("%autodist on")

    shown = notebook.run("where = f'rank {rank}'\nworld_size")
    here = notebook.run("%%local\nimport asyncio\nawait asyncio.sleep(0)\nwhere")

    assert "%autodist off" in said.streams
    assert shown.display == "[ranks 0, 1] 2\non ranks 0, 1: %autodist is on"
    assert here.of_kind("execute_result")[0]["data"]["text/plain"] == "'notebook'"
    assert notebook.value("where") == "notebook"
    notebook.run("%autodist off")
    assert notebook.run("where").of_kind("execute_result")
    assert notebook.run("%%dist 1\nwhere").display == "[rank1] 'rank 1'"


def test_what_fails_stands_at_the_line_of_the_page(notebook: Notebook) -> None:
    notebook.run("%autodist on")

    failed = notebook.run("x = 1\n1 / 0")
    wrong = notebook.run("x = 1\nfor")

    assert failed.status == "error"
    assert ":2" in failed.display
    assert "1 / 0" in failed.display
    assert wrong.error.startswith("SyntaxError")


def test_cells_of_ours_are_what_they_were(notebook: Notebook) -> None:
    notebook.run("%autodist on")

    assert notebook.run("%%dist 0\nrank").display == "[rank0] 0"
    assert notebook.run("%%dist --local\ny = 5\ny").of_kind("execute_result")
    assert notebook.value("y") == 5
    assert notebook.run("%dist status").streams.startswith("2 ranks")
    assert notebook.run("%sync").streams == "ranks 0, 1 are here\n"
    assert "per loop" in notebook.run("%timeit -n 1 -r 1 dist.get_rank()").display


def test_without_ranks_all_cells_are_the_notebooks(run_folder: object) -> None:
    with Notebook() as notebook:
        notebook.run("%load_ext nbdist")
        assert notebook.run("%dist_mode --enable").streams.startswith("Plain cells run on")

        assert notebook.run("1 + 1").of_kind("execute_result")
        notebook.run("%dist start 1 device=cpu")
        assert notebook.run("rank").display.startswith("[rank0] 0")
        notebook.run("%dist stop")
        assert notebook.run("1 + 1").of_kind("execute_result")
        assert notebook.run("%dist_mode -d").streams.startswith("Plain cells run here")


def test_a_cell_may_be_a_module(notebook: Notebook) -> None:
    made = notebook.run("%%dist --module mine\ndef f(x):\n    return 1 / x")
    magic = notebook.run("%%dist --module mine\nx = 1\n%timeit f(1)")

    assert made.status == "ok"
    assert notebook.run("%%dist\nmine.f(2)").display == "[ranks 0, 1] 0.5"
    failed = notebook.run("%%dist\nmine.f(0)")
    assert ":3" in failed.display
    assert "    return 1 / x" in failed.display
    assert magic.error.startswith("SyntaxError")
