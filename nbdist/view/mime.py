"""Which form of a displayed object is shown: as text, as an image, or as HTML."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from html import escape
from html.parser import HTMLParser
from typing import Any

from nbdist.view.ansi import strip_ansi
from nbdist.view.columns import clip
from nbdist.view.stream import settle
from nbdist.wire import Display

WIDGET = "application/vnd.jupyter.widget-view+json"

_SVG = "image/svg+xml"
_BEGINS = {  # a file of that kind
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF....WEBP",
}
_SVG_BEGINS = re.compile(  # atomic, so that no text makes it try for long
    r"\ufeff?\s*+"
    r"(?>(?><\?.*?\?>|<!--.*?-->|<!DOCTYPE\b[^>\[]*(\[[^\]]*\]\s*)?>)\s*+)*+<(\w+:)?svg\b",
    re.DOTALL | re.IGNORECASE,
)
_IMAGES = (_SVG, *_BEGINS)
_NAMESPACES = {  # an image may not lack them; a page knows them by itself
    "xmlns": "http://www.w3.org/2000/svg",
    "xmlns:xlink": "http://www.w3.org/1999/xlink",
}
# Browsers pass over white space in a URL.
_SCRIPT_URL = re.compile(r"[\x00-\x20]*" + r"[\t\n\r]*".join("javascript:"), re.IGNORECASE)
_MAX_SIZE = 10_000  # pixels
_MARKDOWN, _LATEX, _JSON = "text/markdown", "text/latex", "application/json"
_MAX_JSON_CHARS = 80  # on one line
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input"}
    | {"link", "meta", "param", "source", "track", "wbr"}
)


def display_text(display: Display) -> str:
    """Return *display* as text, colours included.

    That is its ``text/plain``, or the source of Markdown, LaTeX and JSON where that only says
    ``<IPython.core.display.Markdown object>``. What calls itself an image and is none is named.
    """
    text = _plain_text(display)
    return (
        "\n".join([text.removesuffix("\n"), *notes]) if (notes := _false_images(display)) else text
    )


def _plain_text(display: Display) -> str:
    plain = display.data.get("text/plain")
    if plain is not None and not str(plain).startswith("<IPython.core.display."):
        return settle(str(plain))
    for mime in (_MARKDOWN, _LATEX):
        if mime in display.data:
            return settle(str(display.data[mime]))
    if _JSON in display.data:
        return _json_text(display.data[_JSON])
    if plain is not None:
        return settle(str(plain))
    return "<" + ", ".join(sorted(display.data)) + ">" if display.data else ""


def _json_text(value: Any) -> str:
    """Write *value* on one line, or on many where that would be too long."""
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= _MAX_JSON_CHARS else json.dumps(value, ensure_ascii=False, indent=2)


def display_html(display: Display) -> str:
    """Return the HTML or the image that *display* brought; empty where text shows it best.

    HTML that needs a script is left aside: none is kept in a saved notebook. So is HTML
    that would break out of the element around it. Formulas stay as they are, since pages look for
    them in HTML as well.
    """
    for mime, as_html in _AS_HTML.items():
        brought = display.data.get(mime)
        if isinstance(brought, str) and (closed := close_tags(as_html(brought))):
            return closed
    for mime in _IMAGES:
        if (data := _image_data(mime, display.data.get(mime))) is not None:
            return _image(mime, data, display)
    return ""


def _markdown_html(source: str) -> str:
    from nbdist.view.markdown import markdown_html

    return markdown_html(source)


_AS_HTML: dict[str, Callable[[str], str]] = {  # the best first, as in a notebook's page
    "text/html": str,
    _MARKDOWN: _markdown_html,
    _LATEX: lambda source: f"<div>{escape(source, quote=False)}</div>",
}


def _image_data(mime: str, image: Any) -> str | None:
    """Return *image* as base64; ``None`` where it is no image of that kind.

    It has to begin like one, and be nothing but base64: so nothing in it is taken for HTML.
    """
    if not isinstance(image, str):
        return None
    if mime == _SVG:
        begin = _SVG_BEGINS.match(image)
        return None if begin is None else _svg_data(image, begin)
    data = "".join(image.split())
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        return None
    return data if re.match(_BEGINS[mime], content, re.DOTALL) else None


def _svg_data(image: str, begin: re.Match[str]) -> str:
    """Return *image*, which *begin* is the beginning of, as base64, with all its name spaces."""
    tag = image[begin.end() : image.find(">", begin.end())]
    missing = "".join(
        f' {name}="{space}"'
        for name, space in _NAMESPACES.items()
        if f"{name}=" not in tag and (name == "xmlns" or "xlink:" in image)
    )
    if begin[2]:  # it has given the name space a name of its own
        missing = ""
    svg = image[: begin.end()] + missing + image[begin.end() :]
    return base64.b64encode(svg.encode(errors="replace")).decode()


def _false_images(display: Display) -> list[str]:
    """Say which images *display* brought that are none; HTML beside them is shown instead."""
    if any(mime in display.data for mime in _AS_HTML):
        return []
    brought = {mime: display.data[mime] for mime in _IMAGES if mime in display.data}
    return [
        f"({mime} is not shown: this is no such image: {clip(str(image), 60)!r})"
        for mime, image in brought.items()
        if _image_data(mime, image) is None
    ]


def is_rich(display: Display) -> bool:
    """Tell whether *display* brought more than text, without looking at what is in it."""
    return any(mime in display.data for mime in (*_AS_HTML, *_IMAGES))


def is_image(display: Display) -> bool:
    """Tell whether *display* is shown as an image, likewise."""
    return is_rich(display) and not any(mime in display.data for mime in _AS_HTML)


def close_tags(html: str) -> str:
    """Close the tags that *html* leaves open; return an empty string where it cannot be shown.

    That is where it holds a script, where a tag is closed that was never opened, or where a comment
    or a tag has no end.
    """
    if html.rfind("<!--") > html.rfind("-->") or html.rfind("<") > html.rfind(">"):
        return ""
    tags = _OpenTags()
    tags.feed(html)
    tags.close()
    if tags.has_script or tags.has_stray_end:
        return ""
    return html + "".join(f"</{t}>" for t in reversed(tags.open))


def _image(mime: str, data: str, display: Display) -> str:
    said = escape(strip_ansi(display_text(display)) if "text/plain" in display.data else mime)
    wanted = display.metadata.get(mime)
    sizes = "".join(
        f' {name}="{int(wanted[name])}"'
        for name in ("width", "height")
        if isinstance(wanted, dict) and _is_size(wanted.get(name))
    )
    return f'<img alt="{said}" src="data:{mime};base64,{data}"{sizes} style="max-width:100%">'


def _is_size(wanted: Any) -> bool:
    return isinstance(wanted, int | float) and 0 < wanted < _MAX_SIZE


class _OpenTags(HTMLParser):
    """Keeps the stack of open tags, and sees what must not be there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.has_stray_end = False
        self.has_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.has_script |= tag == "script" or any(
            name.startswith("on") or bool(_SCRIPT_URL.match(value or "")) for name, value in attrs
        )
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # In HTML, <div/> opens a div.
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if tag not in self.open:
            self.has_stray_end = True
            return
        while self.open.pop() != tag:
            pass
