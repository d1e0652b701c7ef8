from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.notebook import tail
from nbdist.notebook.tail import MAX_CHARS, MAX_LINES, Tails


def test_pieces_keep_their_order_and_neighbours_are_one() -> None:
    tails = Tails([0, 1])
    tails.add(0, "stdout", "one\n")
    tails.add(0, "stdout", "two\n")
    tails.add(1, "stdout", "three\n")
    tails.add(0, "stderr", "four\n")

    news = tails.take_new()

    assert news.pieces == (
        (0, "stdout", "one\ntwo\n"),
        (1, "stdout", "three\n"),
        (0, "stderr", "four\n"),
    )
    assert news.lost == {}


def test_what_was_taken_is_not_taken_again() -> None:
    tails = Tails([0])
    tails.add(0, "stdout", "one\n")
    tails.take_new()
    tails.add(0, "stdout", "two\n")

    assert tails.take_new().pieces == ((0, "stdout", "two\n"),)
    assert tails.take_new().pieces == ()
    assert tails.whole().pieces == ((0, "stdout", "one\ntwo\n"),)
    assert tails.take_new().pieces == ()


def test_lines_beyond_the_limit_go_and_are_counted() -> None:
    tails = Tails([0])
    for number in range(MAX_LINES + 10):
        tails.add(0, "stdout", f"{number}\n")

    news = tails.take_new()

    [(_, _, text)] = news.pieces
    assert text.startswith("10\n")
    assert news.lost == {0: 10}


def test_one_huge_text_is_cut_at_a_line() -> None:
    tails = Tails([0])
    tails.add(0, "stdout", "".join(f"line {number}\n" for number in range(100_000)))

    news = tails.take_new()

    [(_, _, text)] = news.pieces
    assert text.startswith("line ")
    assert text.endswith("line 99999\n")
    assert news.lost == {0: 100_000 - text.count("\n")}


def test_a_line_without_end_is_bounded() -> None:
    tails = Tails([0])
    for _ in range(100):
        tails.add(0, "stdout", "x" * 100_000)

    [(_, _, text)] = tails.take_new().pieces

    assert 0 < len(text) <= MAX_CHARS


def test_many_ranks_share_what_there_is() -> None:
    ranks = range(1024)
    tails = Tails(ranks)
    for rank in ranks:
        tails.add(rank, "stdout", "a line of text\n" * 20_000)

    news = tails.whole()

    assert sum(len(text) for _, _, text in news.pieces) <= tail.MAX_CHARS_OF_ALL
    assert len(news.lost) == len(ranks)


def test_a_clear_forgets_at_once_and_a_waiting_one_is_passed_on() -> None:
    tails = Tails([0])
    tails.add(0, "stdout", "old\n")
    tails.add(0, "clear", "")
    tails.add(0, "stdout", "new\n")
    tails.add(0, "clear", "wait")

    assert tails.whole().pieces == ((0, "clear", ""), (0, "stdout", "new\n"), (0, "clear", "wait"))


@given(
    texts=st.lists(st.text(alphabet="ab\n", max_size=30), max_size=60),
    takes=st.sets(st.integers(0, 59)),
)
def test_every_line_is_sent_or_counted(texts: list[str], takes: set[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tail, "MAX_LINES", 7)
        tails = Tails([0])
        sent, lost, last = "", 0, ""
        for number, text in enumerate(texts):
            tails.add(0, "stdout", text)
            if number in takes or number == len(texts) - 1:
                news = tails.take_new()
                last = "".join(piece for _, _, piece in news.pieces)
                sent += last
                lost += news.lost.get(0, 0)

    printed = "".join(texts)
    assert sent.count("\n") + lost == printed.count("\n")
    assert printed.endswith(last)
