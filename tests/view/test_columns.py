from __future__ import annotations

from nbdist.view.columns import align, clip


def test_numbers_are_flush_right_and_words_flush_left() -> None:
    rows = [("rank", "op", "line"), ("0", "all_reduce", "In[3]:4"), ("12", "send", "")]

    assert list(align(rows, (True, False, False))) == [
        "rank  op          line",
        "   0  all_reduce  In[3]:4",
        "  12  send",
    ]


def test_no_rows_are_no_lines() -> None:
    assert list(align([], ())) == []


def test_a_line_is_cut_only_where_it_is_too_long() -> None:
    assert clip("12345", 5) == "12345"
    assert clip("123456", 5) == "1234…"
