from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.view.ansi import (
    PLAIN,
    Style,
    after_sgr,
    ansi_to_html,
    complete_lines,
    open_style,
    strip_ansi,
)

COLOURED = st.lists(
    st.text("ab<&\n")
    | st.sampled_from(["\x1b[0m", "\x1b[1;31m", "\x1b[38;5;208m", "\x1b[7m", "\x1b[4;9m", "\x1b[m"])
).map("".join)


def test_html_is_escaped() -> None:
    assert ansi_to_html("a < b & \x1b[1mc > d\x1b[0m") == (
        'a &lt; b &amp; <span style="font-weight:bold">c &gt; d</span>'
    )


def test_colour_becomes_an_inline_style() -> None:
    assert ansi_to_html("\x1b[31mred\x1b[0m plain") == (
        '<span style="color:#e0453f">red</span> plain'
    )


def test_styles_add_up_until_they_are_reset() -> None:
    html = ansi_to_html("\x1b[1mbold \x1b[4mand underlined\x1b[22;24mnot")

    assert html == (
        '<span style="font-weight:bold">bold </span>'
        '<span style="font-weight:bold;text-decoration:underline">and underlined</span>not'
    )


def test_the_default_colours_come_back() -> None:
    assert ansi_to_html("\x1b[31;42ma\x1b[39;49mb").endswith("</span>b")


@pytest.mark.parametrize(
    ("parameters", "css"),
    [
        ("38;5;196", "color:#ff0000"),
        ("38;5;244", "color:#808080"),
        ("38;5;1", "color:#e0453f"),
        ("38;2;1;2;3", "color:#010203"),
        ("38:2:1:2:3", "color:#010203"),
        ("38;2;999;0;0", "color:#ff0000"),
        ("48;5;196", "background:#ff000066"),
        ("43", "background:#a0790a40"),
        ("101", "background:#e0453f40"),
        ("90", "color:#7d7d7d"),
        ("94", "color:#3f7fe8"),
        ("30", ""),
        ("37", ""),
        ("2", "opacity:0.7"),
        ("3;9", "font-style:italic;text-decoration:line-through"),
        ("7;31", "color:#ffffff;background:#e0453f"),
        ("38;5", ""),
        ("38", ""),
        ("38;9;1", "font-weight:bold"),
        ("123", ""),
    ],
)
def test_codes_are_read(parameters: str, css: str) -> None:
    assert after_sgr(PLAIN, parameters).css == css


def test_a_style_can_be_written_again() -> None:
    style = Style(color="31", background="48;5;7", is_bold=True, is_struck=True)

    assert style.sgr == "\x1b[1;9;31;48;5;7m"
    assert after_sgr(PLAIN, style.sgr[2:-1]) == style


@given(COLOURED)
def test_lines_taken_apart_keep_their_colours(text: str) -> None:
    html = "\n".join(map(ansi_to_html, complete_lines(text)))

    assert _colours(html) == _colours(ansi_to_html(text))


def test_a_line_that_ends_what_it_began_is_left_as_it_is() -> None:
    assert complete_lines("\x1b[31ma\x1b[0m b\nc") == ("\x1b[31ma\x1b[0m b", "c")


@given(COLOURED)
def test_the_open_style_is_what_all_codes_come_to(text: str) -> None:
    style = PLAIN
    for parameters in re.findall(r"\x1b\[([0-9;]*)m", text):
        style = after_sgr(style, parameters)

    assert open_style(text) == style.sgr


def test_the_open_style_is_known_at_the_end() -> None:
    assert open_style("\x1b[31mred\x1b[1m and bold") == "\x1b[1;31m"
    assert open_style("\x1b[31mred\x1b[0m") == ""


@pytest.mark.parametrize(
    "escape",
    ["\x1b[31m", "\x1b[2K", "\x1b]8;;http://x\x07", "\x1b]0;title\x1b\\", "\x1b(B", "\x1b"],
)
def test_escape_sequences_are_taken_out_of_plain_text(escape: str) -> None:
    assert strip_ansi(f"a{escape}\nb") == "a\nb"


def test_a_link_without_end_takes_no_later_line_with_it() -> None:
    assert strip_ansi("a\x1b]8;;http\nb") == "a\nb"


@given(COLOURED)
def test_html_and_plain_text_say_the_same(text: str) -> None:
    html = ansi_to_html(text)

    assert unescape(re.sub("<[^>]*>", "", html)) == strip_ansi(text)


def _colours(html: str) -> list[tuple[str, str]]:
    """Give every character but line breaks with the style it is drawn in."""
    style, drawn = "", []
    for tag, char in re.findall(r"(<[^>]*>)|(&\w+;|[^\n])", html):
        if tag:
            style = "".join(re.findall('style="([^"]*)"', tag))
        else:
            drawn.append((char, style))
    return drawn
