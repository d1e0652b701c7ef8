"""What hands type beside what the manual says: each is done, or answered with the right words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.driving import Notebook
from tests.notebook.test_kernel import ranks_of

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """A notebook with two ranks that all tests of this file share."""
    with Notebook() as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        assert notebook.run("%dist start 2 device=cpu params.api_key=hush").status == "ok"
        yield notebook


@pytest.fixture
def own_notebook(run_folder: Path) -> Iterator[Notebook]:
    """A notebook without ranks for one test alone."""
    with Notebook() as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        yield notebook


def test_a_bare_number_is_the_number_of_ranks(notebook: Notebook) -> None:
    assert len(ranks_of(notebook)) == 2


def test_a_restart_takes_changes_and_keeps_the_rest(own_notebook: Notebook) -> None:
    own_notebook.run("%dist start 1 seed=3 device=cpu params.lr=1")

    more = own_notebook.run("%dist restart -n 2 params.lr=2")

    assert more.streams == "2 ranks on 1 host · cpu · cpu:gloo · seed 3\n"
    assert own_notebook.run("%%dist\nprint(cfg.params.lr)").display == "[ranks 0, 1] 2"


def test_a_restart_that_is_refused_leaves_the_ranks_alone(notebook: Notebook) -> None:
    before = ranks_of(notebook)

    unknown = notebook.run("%dist restart sed=9")
    too_many = notebook.run("%dist restart 20000")
    not_yet = notebook.run("%dist restart 'mesh={dp: 2}'")
    mixed = notebook.run("%dist restart --ranks 1 seed=9")

    assert "Did you mean 'seed'?" in unknown.error
    assert "--yes" in too_many.error
    assert "mesh is not supported yet" in not_yet.error
    assert "--ranks replaces ranks" in mixed.error
    assert ranks_of(notebook) == before


def test_a_key_or_a_section_of_the_configuration_can_be_asked_for(notebook: Notebook) -> None:
    assert notebook.run("%dist config seed").streams == "seed: 0\n"
    assert notebook.run("%dist config hang nproc").streams == (
        "hang:\n  after_s: 10.0\n  action: warn\n  certain: error\nnproc: 2\n"
    )
    assert notebook.run("%dist config params").streams == "params:\n  api_key: '***'\n"
    assert "Did you mean 'seed'?" in notebook.run("%dist config sed").error


def test_another_configuration_is_answered_with_what_differs(notebook: Notebook) -> None:
    again = notebook.run("%dist start 2 seed=7 device=cpu params.api_key=hash")

    assert "seed (0, 7)" in again.error
    assert "params.api_key (***, ***)" in again.error
    assert "hush" not in again.error
    assert "hash" not in again.error


def test_a_variable_that_is_not_here_is_answered_with_one_that_is(notebook: Notebook) -> None:
    nothing = notebook.run("%dist push weigt")
    notebook.run("weight = 1")
    near = notebook.run("%dist push weigt")
    notebook.run("del weight")

    assert nothing.error.endswith("You have none yet.")
    assert near.error.endswith("Did you mean 'weight'?")


def test_a_plain_cell_that_lacks_a_name_of_the_ranks_says_where_it_lives(
    notebook: Notebook,
) -> None:
    notebook.run("%%dist 1\nmine = 1")

    everywhere = notebook.run("print(rank)")
    on_one = notebook.run("mine")

    assert everywhere.error == "NameError: name 'rank' is not defined"
    assert "'rank' lives on ranks 0, 1" in everywhere.streams
    assert "'mine' lives on rank 1" in on_one.streams
    assert "%dist pull mine" in on_one.streams


def test_other_errors_of_plain_cells_stay_as_they_are(notebook: Notebook) -> None:
    assert notebook.run("nobody_has_this").streams == ""
    assert notebook.run("import json\njson.loads('{')").streams == ""
    assert notebook.run("exec('device', {'__name__': 'library'})").streams == ""


def test_busy_ranks_are_asked_as_well(notebook: Notebook) -> None:
    running = notebook.run("%%dist -a\nimport time\ntime.sleep(1)")
    cell = notebook.run("device")
    notebook.run("nbdist = __import__('nbdist')\n_ = nbdist.session().run('1').result()")
    notebook.run("del nbdist")

    assert running.status == "ok"
    assert "'device' lives on ranks 0, 1" in cell.streams
    assert cell.duration_s < 1


def test_without_a_session_a_name_error_is_a_plain_one(own_notebook: Notebook) -> None:
    assert own_notebook.run("rank").streams == ""

    own_notebook.run("%dist start 1 device=cpu")
    own_notebook.run("%dist stop")

    assert own_notebook.run("rank").streams == ""


def test_a_wrong_name_on_the_ranks_is_answered_with_the_right_one(notebook: Notebook) -> None:
    function = notebook.run("%%dist\nprnt(1)")
    attribute = notebook.run("%%dist\ndist.all_redce(torch.ones(1))")

    assert "Did you mean: 'print'?" in function.display
    assert "Did you mean: 'all_reduce'?" in attribute.display


def test_a_check_of_what_is_not_there_shows_what_was_typed(notebook: Notebook) -> None:
    cell = notebook.run("%dist check nothing")

    assert "name 'nothing' is not defined" in cell.display
    assert "check_replicas" not in cell.display


def test_a_value_that_goes_to_the_notebook_does_not_stay_on_the_rank(notebook: Notebook) -> None:
    notebook.run("%%dist\nimport weakref\nbig = torch.ones(3)\nref = weakref.ref(big)")

    notebook.run("%%dist -o here\nbig")
    notebook.run("%%dist\ndel big")

    assert notebook.run("%%dist\nprint(ref())").display == "[ranks 0, 1] None"
    assert notebook.run("%%dist\n6 * 7").status == "ok"
    assert notebook.run("%%dist\nprint(_)").display == "[ranks 0, 1] 42"


def test_the_output_of_an_earlier_cell_can_be_shown_again(notebook: Notebook) -> None:
    number = notebook.value("len(In)")
    notebook.run("%%dist\nprint('the first')")
    notebook.run("%%dist\nprint('the second')")

    assert notebook.run("%dist last").display == "[ranks 0, 1] the second"
    assert notebook.run(f"%dist last In[{number}]").display == "[ranks 0, 1] the first"
    assert notebook.run(f"%dist last {number}").display == "[ranks 0, 1] the first"
