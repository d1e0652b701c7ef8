"""ANSI colours: read, written again in their shortest form, turned into HTML, or taken out.

The HTML has inline styles only, and only values that JupyterLab's sanitiser lets through in an
untrusted notebook: hex colours, no ``var()``. The eight base colours are mid-tones with a contrast
of about 4 to 1 on white and on black alike; backgrounds are translucent.

Not covered: blinking, double underlines, fonts.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

ESCAPE = (
    r"\x1b\[[0-?]*+[ -/]*+[@-~]"  # CSI: colours, cursor moves
    r"|\x1b\][^\x07\x1b\n]*+(?:\x07|\x1b\\)?"  # OSC: titles, links
    r"|\x1b[ -/]*+[0-~]"
    r"|\x1b"
)
_ESCAPE = re.compile(ESCAPE)
SGR_BODY = r"\[([0-9;:]{0,99})m"
_SGR = re.compile(r"\x1b" + SGR_BODY)
_RESETS = ("\x1b[0m", "\x1b[m")

_BASE_COLORS = ("", "#e0453f", "#258f46", "#a0790a", "#3f7fe8", "#c24fc0", "#13899a", "")
_GREY = "#7d7d7d"
_TINTS = ("#00000033", *(f"{color}40" for color in _BASE_COLORS[1:7]), "#80808040")


@dataclass(frozen=True)
class Style:
    """How text is drawn. Colours are SGR codes: ``31``, ``48;5;208``; empty is the default."""

    color: str = ""
    background: str = ""
    is_bold: bool = False
    is_dim: bool = False
    is_italic: bool = False
    is_underlined: bool = False
    is_inverse: bool = False
    is_struck: bool = False

    @property
    def sgr(self) -> str:
        """The escape sequence that switches from the default to this style."""
        codes = [code for code, (name, value) in _SWITCHES.items() if value and getattr(self, name)]
        codes += [color for color in (self.color, self.background) if color]
        return f"\x1b[{';'.join(codes)}m" if codes else ""

    @property
    def css(self) -> str:
        """The same as the value of a ``style`` attribute."""
        return _css(self)


PLAIN = Style()

_SWITCHES: dict[str, tuple[str, bool]] = {
    "1": ("is_bold", True),
    "2": ("is_dim", True),
    "3": ("is_italic", True),
    "4": ("is_underlined", True),
    "7": ("is_inverse", True),
    "9": ("is_struck", True),
    "23": ("is_italic", False),
    "24": ("is_underlined", False),
    "27": ("is_inverse", False),
    "29": ("is_struck", False),
}


@lru_cache(maxsize=512)
def after_sgr(style: Style, parameters: str) -> Style:
    """Return the style that follows *style* after the escape sequence ``ESC [ parameters m``."""
    codes = parameters.replace(":", ";").split(";")
    while codes:
        code = codes.pop(0).lstrip("0")
        if not code:
            style = PLAIN
        elif code in _SWITCHES:
            name, value = _SWITCHES[code]
            style = _changed(style, name, value)
        elif code == "22":
            style = dataclasses.replace(style, is_bold=False, is_dim=False)
        elif code in ("38", "48"):
            style = _with_color(style, code, _take_color(codes))
        elif code in ("39", "49"):
            style = _with_color(style, code, "")
        elif re.fullmatch("[34][0-7]|9[0-7]|10[0-7]", code):
            style = _with_color(style, code, code)
    return style


def _with_color(style: Style, code: str, color: str) -> Style:
    if color and code in ("38", "48"):
        color = f"{code};{color}"
    is_background = code.startswith(("4", "10"))
    return _changed(style, "background" if is_background else "color", color)


def _changed(style: Style, name: str, value: Any) -> Style:
    return dataclasses.replace(style, **{name: value})


def _take_color(codes: list[str]) -> str:
    """Take the arguments of 38 and 48 from *codes*: ``5;208`` or ``2;255;128;0``."""
    num_arguments = {"5": 2, "2": 4}.get(codes[0] if codes else "", 1)
    taken, codes[:] = codes[:num_arguments], codes[num_arguments:]
    is_complete = len(taken) == num_arguments > 1
    return ";".join(str(min(int(code or 0), 255)) for code in taken) if is_complete else ""


def strip_ansi(text: str) -> str:
    """Take all escape sequences out of *text*."""
    return _ESCAPE.sub("", text) if "\x1b" in text else text


def ansi_to_html(text: str) -> str:
    """Escape *text* for HTML and turn its colours into spans with inline styles."""
    if "\x1b" not in text:
        return escape(text, quote=False)
    # Texts and parameters take turns, since the pattern has one group.
    pieces = _SGR.split(text)
    style, html = PLAIN, [_span(pieces[0], PLAIN)]
    for parameters, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        style = after_sgr(style, parameters)
        html.append(_span(piece, style))
    return "".join(html)


def open_style(text: str) -> str:
    """Return the escape sequence of the style that is still on at the end of *text*."""
    style = PLAIN
    # What stands before the last reset is of no account.
    for match in _SGR.finditer(text, max(0, *map(text.rfind, _RESETS))):
        style = after_sgr(style, match[1])
    return style.sgr


def complete_lines(text: str) -> tuple[str, ...]:
    """Cut *text* into lines each of which has its colours even when it stands alone."""
    lines = text.split("\n")
    if "\x1b" not in text:
        return tuple(lines)
    style, complete = PLAIN, []
    for line in lines:
        begin = style.sgr
        # Most lines end what they began; then there is no need to read all of it.
        if line.startswith(_RESETS, line.rfind("\x1b")):
            style = PLAIN
        else:
            for match in _SGR.finditer(line):
                style = after_sgr(style, match[1])
        complete.append(begin + line + "\x1b[0m" * bool(style.sgr))
    return tuple(complete)


def _span(text: str, style: Style) -> str:
    html = escape(strip_ansi(text), quote=False)
    return f'<span style="{style.css}">{html}</span>' if html and style.css else html


@lru_cache(maxsize=512)
def _css(style: Style) -> str:
    color, background = _color_css(style.color), _background_css(style.background)
    if style.is_inverse:
        color, background = "#ffffff", color or _GREY
    lines = ["underline"] * style.is_underlined + ["line-through"] * style.is_struck
    rules = {
        "color": color,
        "background": background,
        "font-weight": "bold" * style.is_bold,
        "opacity": "0.7" * style.is_dim,
        "font-style": "italic" * style.is_italic,
        "text-decoration": " ".join(lines),
    }
    return ";".join(f"{name}:{value}" for name, value in rules.items() if value)


def _color_css(code: str) -> str:
    if ";" in code:
        return _exact_color(code)
    return _GREY if code == "90" else _BASE_COLORS[int(code[-1])] if code else ""


def _background_css(code: str) -> str:
    if ";" in code:
        return _exact_color(code) + "66"
    return _TINTS[int(code[-1])] if code else ""


def _exact_color(code: str) -> str:
    """Turn ``38;5;208`` or ``38;2;255;128;0`` into ``#rrggbb``."""
    _, kind, *numbers = (int(number) for number in code.split(";"))
    red, green, blue = numbers if kind == 2 else _palette(numbers[0])
    return f"#{red:02x}{green:02x}{blue:02x}"


def _palette(index: int) -> tuple[int, int, int]:
    """Red, green and blue of xterm's 256 colours."""
    if index < 16:
        color = _BASE_COLORS[index % 8] or _GREY
        return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)
    if index >= 232:
        return (8 + 10 * (index - 232),) * 3
    steps = (0, 95, 135, 175, 215, 255)
    index -= 16
    return steps[index // 36], steps[index // 6 % 6], steps[index % 6]
