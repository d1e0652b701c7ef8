"""Which form of a displayed object is shown: as text, as an image, or as the HTML it brought."""

from __future__ import annotations

import base64
import json
from html import escape
from html.parser import HTMLParser

from nbdist.view.ansi import strip_ansi
from nbdist.view.stream import settle
from nbdist.wire import Display

_IMAGES = ("image/svg+xml", "image/png", "image/jpeg", "image/gif", "image/webp")
_SOURCES = ("text/markdown", "text/latex")
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input"}
    | {"link", "meta", "param", "source", "track", "wbr"}
)


def display_text(display: Display) -> str:
    """Return *display* as text, colours included.

    That is its ``text/plain``, or the source of Markdown and LaTeX where that only says
    ``<IPython.core.display.Markdown object>``.
    """
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
        image = display.data.get(mime)
        if isinstance(image, str) and image:
            return _image(mime, image, display)
    return ""


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


def _image(mime: str, image: str, display: Display) -> str:
    if mime == "image/svg+xml":
        data = base64.b64encode(image.encode()).decode()
    else:
        data = "".join(image.split())
    said = escape(strip_ansi(display_text(display)) if "text/plain" in display.data else mime)
    wanted = display.metadata.get(mime)
    sizes = "".join(
        f' {name}="{int(wanted[name])}"'
        for name in ("width", "height")
        if isinstance(wanted, dict) and isinstance(wanted.get(name), int | float)
    )
    return f'<img alt="{said}" src="data:{mime};base64,{data}"{sizes} style="max-width:100%">'


class _OpenTags(HTMLParser):
    """Keeps the stack of open tags, and sees what must not be there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.has_stray_end = False
        self.has_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.has_script |= tag == "script" or any(
            name.startswith("on") or (value or "").lstrip().lower().startswith("javascript:")
            for name, value in attrs
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
