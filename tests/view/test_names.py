from __future__ import annotations

from collections.abc import Iterable

import pytest

from nbdist.view.names import label_ranks, label_stream, name_ranks


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        ((3,), "rank 3"),
        ((0, 1), "ranks 0, 1"),
        ((0, 1, 2), "ranks 0–2"),
        ((0, 2, 3), "ranks 0, 2, 3"),
        ((0, 1, 2, 3, 6), "ranks 0–3, 6"),
        ((0, 1, 2, 8, 9, 10, 12, 13), "ranks 0–2, 8–10, 12, 13"),
        ((0, 2, 4, 6), "ranks 0, 2, 4, 6"),
        (range(0, 64, 8), "ranks 0, 8, …, 56"),
        (range(1, 64, 2), "ranks 1, 3, …, 63"),
        ((0, 2, 4, 6, 9), "ranks 0, 2, 4, 6, 9"),
    ],
)
def test_many_ranks_are_named_shortly(ranks: Iterable[int], name: str) -> None:
    assert name_ranks(ranks) == name


def test_order_and_repetition_do_not_matter() -> None:
    assert name_ranks([2, 0, 1, 1]) == "ranks 0–2"


def test_a_single_rank_is_labelled_as_torchrun_does() -> None:
    assert label_ranks([0]) == "[rank0]"


def test_several_ranks_are_labelled_with_their_names() -> None:
    assert label_ranks(range(4)) == "[ranks 0–3]"
    assert label_ranks([1, 3]) == "[ranks 1, 3]"


def test_stderr_is_marked_with_a_word() -> None:
    assert label_stream([1], "stderr") == "[rank1] stderr: "
    assert label_stream([1], "stdout") == "[rank1] "
