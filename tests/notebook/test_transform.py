from __future__ import annotations

import pytest

from nbdist.notebook.transform import rank_magic


@pytest.mark.parametrize(
    ("first", "becomes"),
    [
        ("%%rank[0,1]\n", "%%dist [0,1]\n"),
        ("%%rank [0, 2] -o x\n", "%%dist [0, 2] -o x\n"),
        ("%%rank[-1]\n", "%%dist [-1]\n"),
        ("%%rank 0,1\n", "%%rank 0,1\n"),
        ("%%ranks[0]\n", "%%ranks[0]\n"),
        ("x = '%%rank[0]'\n", "x = '%%rank[0]'\n"),
        ("%%dist 0\n", "%%dist 0\n"),
    ],
)
def test_only_a_cell_of_named_ranks_is_changed(first: str, becomes: str) -> None:
    assert rank_magic([first, "print(rank)\n"]) == [becomes, "print(rank)\n"]


def test_only_the_first_line_is_looked_at() -> None:
    lines = ["# a remark\n", "%%rank[0]\n"]

    assert rank_magic(lines) == lines
    assert rank_magic([]) == []
