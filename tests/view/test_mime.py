from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from nbdist.view.html_outputs import object_html
from nbdist.view.mime import close_tags, display_html, display_text
from nbdist.wire import Display
from tests.view.build import PNG, png, shown

SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
FRAME = "<table><tr><td>1</td></tr></table>"


def svg_in(html: str) -> str:
    [encoded] = re.findall(r"data:image/svg\+xml;base64,([^\"]*)", html)
    return base64.b64decode(encoded).decode()


def test_text_is_preferred_as_text() -> None:
    assert display_text(shown({"text/plain": "a", "text/html": "<b>a</b>"})) == "a"


def test_markdown_and_latex_are_shown_by_their_source() -> None:
    placeholder = "<IPython.core.display.Markdown object>"

    assert display_text(shown({"text/plain": placeholder, "text/markdown": "*a*"})) == "*a*"
    assert display_text(shown({"text/latex": "$a$"})) == "$a$"


def test_json_is_written_out() -> None:
    placeholder = "<IPython.core.display.JSON object>"
    long = {"names": ["é" * 50, "b" * 50]}

    assert display_text(shown({"application/json": {"b": 1, "a": 2}})) == '{"b": 1, "a": 2}'
    assert display_text(shown({"application/json": long, "text/plain": placeholder})) == (
        '{\n  "names": [\n    "' + "é" * 50 + '",\n    "' + "b" * 50 + '"\n  ]\n}'
    )
    assert display_text(shown({"application/json": [1], "text/plain": "one"})) == "one"


def test_markdown_becomes_html() -> None:
    source = "# Title\n\n*a* `b` and <b>c</b>\n\n| x | y |\n|---|---|\n| 1 | 2 |"

    html = display_html(shown({"text/markdown": source, "text/plain": "<...>"}))

    assert "<h1>Title</h1>" in html
    assert "<em>a</em> <code>b</code> and <b>c</b>" in html
    assert re.search(r"<td>1</td>\s*<td>2</td>", html)


@pytest.mark.parametrize(
    "script",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "<a href='javascript:alert(1)'>a</a>",
        "</td></tr></table>out",
    ],
)
def test_markdown_brings_nothing_active(script: str) -> None:
    html = object_html(shown({"text/markdown": f"a\n\n{script}"}))

    assert not re.search(r"<script|<img|<a href=.javascript|</table>", html)


def test_formulas_in_markdown_are_left_to_the_page() -> None:
    html = display_html(shown({"text/markdown": "where $a_1 < b_1$ and\n\n$$\\sum_i *x*_i$$"}))

    assert "\\(a_1 &lt; b_1\\)" in html
    assert "$$\n\\sum_i *x*_i\n$$" in html


def test_latex_is_left_to_the_page() -> None:
    formula = shown({"text/latex": "$\\displaystyle a < b$", "text/plain": "<...>"})

    assert display_html(formula) == "<div>$\\displaystyle a &lt; b$</div>"


@pytest.mark.parametrize("data", [5, None, ["# a"], b"# a"])
def test_what_is_no_text_is_neither_markdown_nor_latex(data: Any) -> None:
    false = {"text/markdown": data, "text/latex": data, "text/plain": "plain"}

    assert display_html(shown(false)) == ""


def test_html_wins_over_markdown_and_that_over_an_image() -> None:
    data = {"text/html": FRAME, "text/markdown": "*a*", "image/png": png("AAAA")}

    assert display_html(shown(data)) == FRAME
    del data["text/html"]
    assert "<em>a</em>" in display_html(shown(data))


def test_a_payload_without_text_is_named() -> None:
    assert display_text(shown({"image/png": png("AAAA")})) == "<image/png>"
    assert display_text(shown({})) == ""


def test_html_is_shown_as_html() -> None:
    assert display_html(shown({"text/plain": "1", "text/html": FRAME})) == FRAME


def test_plain_text_has_no_html() -> None:
    assert display_html(shown({"text/plain": "1"})) == ""


def test_html_wins_over_an_image() -> None:
    assert display_html(shown({"text/html": FRAME, "image/png": png("AAAA")})) == FRAME


@pytest.mark.parametrize(
    "script",
    [
        "<script>alert(1)</script>",
        "<SCRIPT src=x>",
        "<a href=' JavaScript:x'>a</a>",
        "<a href='java&#x0A;script:x'>a</a>",
        "<b onclick='x'>a</b>",
    ],
)
def test_html_that_needs_a_script_is_left_aside(script: str) -> None:
    assert display_html(shown({"text/plain": "1", "text/html": FRAME + script})) == ""


def test_html_may_talk_about_scripts() -> None:
    talk = "<td>javascript: onclick= &lt;script&gt;</td>"

    assert display_html(shown({"text/html": talk})) == talk


def test_an_image_is_kept_in_the_html() -> None:
    figure = Display(
        "display",
        {"text/plain": '<Figure "a">', "image/png": f"{PNG}\nAAAA\n"},
        {"image/png": {"width": 320, "height": 240.0}},
    )

    assert display_html(figure) == (
        '<img alt="&lt;Figure &quot;a&quot;&gt;" src="data:image/png;base64,iVBORw0KGgoAAAAA"'
        ' width="320" height="240" style="max-width:100%">'
    )


MARKUP = '"><script>alert(1)</script>'


@pytest.mark.parametrize("mime", ["png", "jpeg", "gif", "webp", "svg+xml"])
@pytest.mark.parametrize("data", [MARKUP, "AAAA", "", "é", f"{PNG}{MARKUP}", 5, None, [MARKUP]])
def test_what_is_no_such_image_is_text_with_a_note(mime: str, data: Any) -> None:
    false = shown({f"image/{mime}": data, "text/plain": "<Figure>"})

    assert display_html(false) == ""
    assert display_text(false).startswith(f"<Figure>\n(image/{mime} is not shown: this is no such")
    assert "<script>" not in object_html(false)


@pytest.mark.parametrize(
    ("mime", "content"),
    [
        ("jpeg", b"\xff\xd8\xff\xe0"),
        ("gif", b"GIF89a"),
        ("webp", b"RIFF\n\0\0\0WEBPVP8 "),
    ],
)
def test_an_image_of_any_kind_is_kept(mime: str, content: bytes) -> None:
    image = shown({f"image/{mime}": base64.b64encode(content).decode(), "text/plain": "<Figure>"})

    assert f"data:image/{mime};base64," in display_html(image)
    assert display_text(image) == "<Figure>"


@pytest.mark.parametrize(
    "wanted", [float("inf"), float("nan"), -1, 0, 1e9, '"><script>', [1], None, {}]
)
def test_a_size_that_is_none_is_left_out(wanted: Any) -> None:
    metadata = {"image/png": {"width": wanted, "height": 5}}

    html = display_html(Display("display", {"image/png": png("AAAA")}, metadata))

    assert 'height="5" style' in html
    assert "width=" not in html


@pytest.mark.parametrize(
    "svg",
    [
        "<svg/>",
        '\ufeff<?xml version="1.0"?>\n<!-- a --><!-- b -->\n<svg xmlns="x">',
        '<!DOCTYPE svg PUBLIC "a"\n "b" [<!ENTITY c "d">]>\n<svg:svg>',
    ],
)
def test_an_svg_may_begin_in_many_ways(svg: str) -> None:
    assert display_html(shown({"image/svg+xml": svg}))


def test_a_text_that_is_almost_an_svg_is_refused_at_once() -> None:
    assert display_html(shown({"image/svg+xml": "<!---->" * 10_000 + "<?a?>" * 10_000})) == ""


def test_svg_becomes_an_image() -> None:
    html = display_html(shown({"image/svg+xml": "<svg></svg>"}))

    assert svg_in(html) == '<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    assert "<svg" not in html


@pytest.mark.parametrize(
    ("svg", "completed"),
    [
        ('<svg width="1">', f'<svg xmlns="{SVG}" width="1">'),
        ("<svg/>", f'<svg xmlns="{SVG}"/>'),
        (f'<svg\nxmlns="{SVG}" width="1"/>', f'<svg\nxmlns="{SVG}" width="1"/>'),
        (
            '<?xml version="1.0"?><svg><use xlink:href="#a"/></svg>',
            f'<?xml version="1.0"?><svg xmlns="{SVG}" xmlns:xlink="{XLINK}">'
            '<use xlink:href="#a"/></svg>',
        ),
        (f'<svg:svg xmlns:svg="{SVG}"/>', f'<svg:svg xmlns:svg="{SVG}"/>'),
    ],
)
def test_an_svg_is_told_what_it_is(svg: str, completed: str) -> None:
    """A page takes it without its name space; an image may not lack that."""
    assert svg_in(display_html(shown({"image/svg+xml": svg}))) == completed


@pytest.mark.parametrize(
    ("html", "closed"),
    [
        (FRAME, FRAME),
        ("<b>open", "<b>open</b>"),
        ("<div><p>a<p>b</div>", "<div><p>a<p>b</div>"),
        ("a<br>b<img src=x>", "a<br>b<img src=x>"),
        ("<div/>a", "<div/>a</div>"),
        ("a</br>b", "a</br>b"),
        ("</td></tr></table>out", ""),
        ("<!-- never ends", ""),
        ("<b>a</b><div class='", ""),
    ],
)
def test_html_cannot_break_out_of_its_place(html: str, closed: str) -> None:
    assert close_tags(html) == closed
