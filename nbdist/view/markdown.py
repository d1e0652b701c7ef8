"""Markdown as HTML, as a notebook's page would make it; formulas stay, for the page to set.

Raw HTML in it passes as it is: whoever shows the result looks at it as at all HTML of the ranks.
"""

from __future__ import annotations

import functools

import mistune

PLUGINS = ["strikethrough", "table", "task_lists", "footnotes", "math"]


def markdown_html(source: str) -> str:
    """Return *source* as HTML."""
    return str(_markdown()(source)).strip()


@functools.cache
def _markdown() -> mistune.Markdown:
    return mistune.create_markdown(escape=False, plugins=PLUGINS)
