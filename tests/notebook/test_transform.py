from __future__ import annotations

import pytest

from nbdist.notebook.transform import first_line, is_for_ranks


@pytest.mark.parametrize(
    ("first", "becomes"),
    [
        ("%%rank[0,1]\n", "%%dist [0,1]\n"),
        ("%%rank [0, 2] -o x\n", "%%dist [0, 2] -o x\n"),
        ("%%rank[-1]\n", "%%dist [-1]\n"),
        ("# dist: ranks=0,2\n", "%%dist 0,2\n"),
        ("#dist:ranks=1: -o x\n", "%%dist 1: -o x\n"),
        ("# dist: --timeout 5\n", "%%dist --timeout 5\n"),
        ("# dist:\n", "%%dist \n"),
        ("%%local\n", "# %%local \n"),
    ],
)
def test_a_first_line_becomes_what_ipython_knows(first: str, becomes: str) -> None:
    assert first_line([first, "print(rank)\n"]) == [becomes, "print(rank)\n"]


@pytest.mark.parametrize(
    "first",
    [
        "%%rank 0,1\n",
        "%%ranks[0]\n",
        "x = '%%rank[0]'\n",
        "%%dist 0\n",
        "# dist: the distance of the points\n",
        "# dist: ranks= \n",
        "# dist is the distance\n",
        "# distance: -1\n",
        "%%locally\n",
    ],
)
def test_other_first_lines_stay(first: str) -> None:
    assert first_line([first, "print(rank)\n"]) == [first, "print(rank)\n"]


def test_only_the_first_line_is_looked_at() -> None:
    lines = ["# a remark\n", "%%rank[0]\n"]

    assert first_line(lines) == lines
    assert first_line([]) == []


@pytest.mark.parametrize(
    "cell",
    [
        "x = 1",
        "# first\n\nx = 1",
        "%timeit f()",
        "!nvidia-smi",
        "%%time\nf()",
        "%load_ext autoreload",
    ],
)
def test_plain_cells_are_for_the_ranks(cell: str) -> None:
    assert is_for_ranks(cell.splitlines(keepends=True))


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "\n# only\n# remarks\n",
        "%dist status",
        "# see\n%dist push x",
        "%%dist 0\nx",
        "%dist_init -n 2",
        "%%rank[0]\nx",
        "%autodist off",
        "%%local\nx = 1",
        "%sync",
        "%load_ext nbdist",
        "%reload_ext nbdist",
        "# dist: ranks=0\nx",
    ],
)
def test_our_commands_and_remarks_stay_in_the_notebook(cell: str) -> None:
    assert not is_for_ranks(cell.splitlines(keepends=True))
