"""Which form of a displayed object is shown: as text, as an image, or as the HTML it brought."""

from __future__ import annotations

import base64
import json
import re
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
# Browsers pass over white space in a URL.
_SCRIPT_URL = re.compile(r"[\x00-\x20]*" + r"[\t\n\r]*".join("javascript:"), re.IGNORECASE)
_MAX_SIZE = 10_000  # pixels
_SOURCES = ("text/markdown", "text/latex")
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input"}
    | {"link", "meta", "param", "source", "track", "wbr"}
)


def display_text(display: Display) -> str:
    """Return *display* as text, colours included.

    That is its ``text/plain``, or the source of Markdown and LaTeX where that only says
    ``<IPython.core.display.Markdown object>``. What calls itself an image and is none is named.
    """
    text = _plain_text(display)
    return (
        "\n".join([text.removesuffix("\n"), *notes]) if (notes := _false_images(display)) else text
    )


def _plain_text(display: Display) -> str:
    plain = display.data.get("text/plain")
    if plain is None or str(plain).startswith("<IPython.core.display."):
        for mime in _SOURCES:
            if mime in display.data:
                return settle(str(display.data[mime]))
    if plain is not None:
        return settle(str(plain))
    if "application/json" in display.data:
        return json.dumps(display.data["application/json"], sort_keys=True)
    return "<" + ", ".join(sorted(display.data)) + ">" if display.data else ""


def display_html(display: Display) -> str:
    """Return the HTML or the image that *display* brought; empty where text shows it best.

    HTML that needs a script is left aside: none is kept in a saved notebook. So is HTML
    that would break out of the element around it.
    """
    brought = display.data.get("text/html")
    if isinstance(brought, str) and (closed := close_tags(brought)):
        return closed
    for mime in _IMAGES:
        if (data := _image_data(mime, display.data.get(mime))) is not None:
            return _image(mime, data, display)
    return ""


def _image_data(mime: str, image: Any) -> str | None:
    """Return *image* as base64; ``None`` where it is no image of that kind.

    It has to begin like one, and be nothing but base64: so nothing in it is taken for HTML.
    """
    if not isinstance(image, str):
        return None
    if mime == _SVG:
        encoded = base64.b64encode(image.encode(errors="replace")).decode()
        return encoded if _SVG_BEGINS.match(image) else None
    data = "".join(image.split())
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        return None
    return data if re.match(_BEGINS[mime], content, re.DOTALL) else None


def _false_images(display: Display) -> list[str]:
    """Say which images *display* brought that are none; HTML beside them is shown instead."""
    if "text/html" in display.data:
        return []
    brought = {mime: display.data[mime] for mime in _IMAGES if mime in display.data}
    return [
        f"({mime} is not shown: this is no such image: {clip(str(image), 60)!r})"
        for mime, image in brought.items()
        if _image_data(mime, image) is None
    ]


def is_rich(display: Display) -> bool:
    """Tell whether *display* brought HTML or an image, without looking at what is in it."""
    return any(mime in display.data for mime in ("text/html", *_IMAGES))


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
