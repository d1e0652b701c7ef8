from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.view.marks import mark


def marked(*texts: str, own: tuple[str, ...] = ()) -> list[str]:
    return [
        "".join(f"[{piece.text}]" if piece.is_marked else piece.text for piece in pieces)
        for pieces in mark(texts, own)
    ]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("loss 2.31 at 10", "loss 2.28 at 10"), ["loss [2.31] at 10", "loss [2.28] at 10"]),
        (("x=1e-05", "x=1e+05"), ["x=[1e-05]", "x=[1e+05]"]),
        (("-1.5", "1.5"), ["[-1.5]", "[1.5]"]),
        (("0x7f3a", "0x7f3b"), ["[0x7f3a]", "[0x7f3b]"]),
        (("cuda:0", "cuda:1"), ["cuda:[0]", "cuda:[1]"]),
        (("[1, 2]", "[1, 3]"), ["[1, [2]]", "[1, [3]]"]),
        (("a b c", "a b c"), ["a b c", "a b c"]),
        (("all is well", "all is not well"), ["all is well", "all is [not ]well"]),
        (("None", "[{'rank': 0}]"), ["[None]", "[[{'rank': 0}]]"]),
        (("a", "a", "b"), ["[a]", "[a]", "[b]"]),
    ],
)
def test_the_words_that_differ_are_marked(texts: tuple[str, ...], expected: list[str]) -> None:
    assert marked(*texts) == expected


def test_the_number_of_a_rank_in_its_own_line_is_no_news() -> None:
    assert marked("rank 0 has 5", "rank 1 has 6", own=("0", "1")) == [
        "rank 0 has [5]",
        "rank 1 has [6]",
    ]


def test_the_number_of_another_rank_is_news() -> None:
    assert marked("from 1", "from 0", own=("0", "1")) == ["from [1]", "from [0]"]


@given(st.lists(st.text("ab 01.-é\n"), min_size=2, max_size=4))
def test_nothing_is_lost(texts: list[str]) -> None:
    assert ["".join(piece.text for piece in pieces) for pieces in mark(texts)] == texts


@given(st.lists(st.text("ab 01."), min_size=2, max_size=4))
def test_what_is_not_marked_is_the_same_in_all(texts: list[str]) -> None:
    unmarked = {
        "".join(piece.text for piece in pieces if not piece.is_marked) for pieces in mark(texts)
    }

    assert len(unmarked) == 1
