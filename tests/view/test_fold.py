from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from nbdist.view.consolidate import Shown
from nbdist.view.fold import Block, fold, identity
from nbdist.wire import Display, Dropped
from tests.view.build import result, stderr, stdout

OUTPUT = (
    st.sampled_from(["a\n", "b\n", "1.0\n"]).map(stdout)
    | st.sampled_from(["a\n", "b\n"]).map(stderr)
    | st.sampled_from([1, 1.0, True, math.nan, -0.0, 0.0]).map(lambda x: result(repr(x), x))
    | st.integers(1, 2).map(Dropped)
)
OUTPUTS = st.dictionaries(st.integers(0, 9), st.lists(OUTPUT, max_size=2))


def test_ranks_with_equal_output_are_shown_once() -> None:
    same = (stdout("hello\n"),)

    assert fold({0: same, 1: same, 2: same}) == (Block((0, 1, 2), same),)


def test_blocks_come_in_the_order_of_their_first_rank() -> None:
    a, b = (stdout("a\n"),), (stdout("b\n"),)

    assert fold({3: a, 2: b, 1: a, 0: b}) == (Block((0, 2), b), Block((1, 3), a))


def test_numbers_are_never_normalised_away() -> None:
    almost = {0: [stdout("loss 0.1000000\n")], 1: [stdout("loss 0.1000001\n")]}

    assert [block.ranks for block in fold(almost)] == [(0,), (1,)]


def test_nan_on_all_ranks_is_equal() -> None:
    assert len(fold({rank: [result("nan", float("nan"))] for rank in range(3)})) == 1


def test_one_and_one_point_zero_differ() -> None:
    assert len(fold({0: [result("1", 1)], 1: [result("1", 1.0)]})) == 2


def test_the_same_text_on_another_stream_differs() -> None:
    assert len(fold({0: [stdout("a\n")], 1: [stderr("a\n")]})) == 2


def test_payloads_that_json_does_not_know_are_compared_too() -> None:
    odd = Display("display", {"application/x": {1, 2}})

    assert identity([odd]) == identity([odd])


@given(OUTPUTS)
def test_every_rank_is_in_exactly_one_block(outputs: dict[int, list[Shown]]) -> None:
    ranks = [rank for block in fold(outputs) for rank in block.ranks]

    assert sorted(ranks) == sorted(outputs)


@given(OUTPUTS)
def test_nothing_is_lost(outputs: dict[int, list[Shown]]) -> None:
    for block in fold(outputs):
        for rank in block.ranks:
            assert repr(block.outputs) == repr(tuple(outputs[rank]))


@given(OUTPUTS)
def test_no_two_blocks_are_equal(outputs: dict[int, list[Shown]]) -> None:
    blocks = fold(outputs)

    assert len({identity(block.outputs) for block in blocks}) == len(blocks)
    assert [block.ranks[0] for block in blocks] == sorted(block.ranks[0] for block in blocks)
