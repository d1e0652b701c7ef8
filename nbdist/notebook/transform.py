"""Input that IPython's magics cannot match by themselves."""

from __future__ import annotations

import re

_RANK_MAGIC = re.compile(r"%%rank\s*(\[[^\]\n]*\])")


def rank_magic(lines: list[str]) -> list[str]:
    """Turn a first line ``%%rank[0,1]`` into ``%%dist [0,1]``."""
    if lines and _RANK_MAGIC.match(lines[0]):
        return [_RANK_MAGIC.sub(r"%%dist \1", lines[0], count=1), *lines[1:]]
    return lines
