from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.view.ansi import strip_ansi
from nbdist.view.stream import settle

ANYTHING = st.lists(
    st.text("ab \n\r\b\t\x07\x1b[;0123ABCDGJKm", max_size=8)
    | st.sampled_from(["\x1b[2K", "\x1b[A", "\x1b[31m", "\x1b[0m", "\r\n", "\x1b[3C", "\x1b[J"])
).map("".join)


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("plain\n", "plain\n"),
        ("windows\r\n", "windows\n"),
        ("one\rtwo", "two"),
        ("longer\rab", "abnger"),
        ("kept\r", "kept"),
        ("kept\r\r\nnext", "kept\nnext"),
        ("ab\b\bc", "cb"),
        ("\b\bx", "x"),
        ("bell\x07\x00 gone", "bell gone"),
        ("tab\tstays", "tab\tstays"),
        ("hidden\r      \rx", "x"),
        ("blanks at the end  \n", "blanks at the end  \n"),
        ("erased\r\x1b[Kx", "x"),
        ("erased\x1b[2K\rx", "x"),
        ("one\ntwo\x1b[A\x1b[2K\rONE", "ONE\ntwo"),
        ("one\ntwo\nthree\x1b[2A\x1b[J", "one"),
        ("a\x1b[3Cb", "a   b"),
        ("abc\x1b[2Dx", "axc"),
        ("abc\x1b[1Gx", "xbc"),
        ("title\x1b]0;t\x07", "title"),
        ("cursor\x1b[?25l hidden", "cursor hidden"),
        ("a\x1b[99Bb", "ab"),
    ],
)
def test_text_looks_as_on_a_terminal(written: str, seen: str) -> None:
    assert settle(written) == seen


def test_a_progress_bar_becomes_its_last_state() -> None:
    bar = "".join(f"\r{percent:3}%|{'#' * (percent // 10):10}|" for percent in range(0, 101, 10))

    assert settle(bar + "\n") == "100%|##########|\n"


def test_a_bar_that_clears_itself_leaves_nothing() -> None:
    assert settle("\r 50%|#####     |\r                \r") == ""


def test_nested_bars_keep_a_line_each() -> None:
    nested = "outer 0%\n\rinner 0%\r\x1b[Aouter 50%\n\rinner 99%"

    assert settle(nested) == "outer 50%\ninner 99%"


def test_colours_stay() -> None:
    assert settle("\x1b[31mred\x1b[0m\n") == "\x1b[31mred\x1b[0m\n"


def test_colours_stay_with_what_was_written_in_them() -> None:
    assert settle("plain\r\x1b[31mre\x1b[0m") == "\x1b[31mre\x1b[0main"


def test_rows_that_scrolled_off_are_out_of_reach() -> None:
    text = "first\n" + "x\n" * 500 + "\x1b[9999A\rNEW"

    settled = settle(text)

    assert settled.startswith("first\n")
    assert "NEW" in settled


def test_a_huge_cursor_move_costs_nothing() -> None:
    settled = settle("a\x1b[99999Cb" * 100)

    assert len(settled) < 1000


def test_time_is_linear() -> None:
    start = time.perf_counter()
    settle("\r" + "\rstep 100 of 1000" * 100_000 + "\x1b[" * 100_000 + "\b" * 100_000)

    assert time.perf_counter() - start < 5


@given(ANYTHING)
def test_settling_twice_changes_nothing(text: str) -> None:
    assert settle(settle(text)) == settle(text)


@given(ANYTHING)
def test_no_control_character_is_left(text: str) -> None:
    plain = strip_ansi(settle(text))

    assert all(char >= " " or char in "\n\t" for char in plain)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.just("\n")))
def test_text_without_control_characters_is_left_alone(text: str) -> None:
    assert settle(text) == text


@given(st.text("abc \n\r\b"))
def test_carriage_returns_and_backspaces_move_as_one_char_at_a_time(text: str) -> None:
    assert _visible(settle(text)) == _visible(_one_by_one(text))


def _one_by_one(text: str) -> str:
    lines = []
    for line in text.split("\n"):
        chars: list[str] = []
        column = 0
        for char in line:
            if char == "\r":
                column = 0
            elif char == "\b":
                column = max(column - 1, 0)
            else:
                chars[column : column + 1] = [char]
                column += 1
        lines.append("".join(chars))
    return "\n".join(lines)


def _visible(text: str) -> list[str]:
    return [line.rstrip(" ") for line in text.split("\n")]
