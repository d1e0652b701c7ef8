"""What a cell's first line means to nbdist, where IPython's magics do not see it. Pure.

    %%rank[0,1]              %%dist [0,1]
    # dist: ranks=0,2        %%dist 0,2        for linters, which take it for a comment
    %%local                  the rest of the cell, in the notebook

Line numbers stay those of the page.
"""

from __future__ import annotations

import re

_RANK_MAGIC = re.compile(r"%%rank\s*(\[[^\]\n]*\])")
# Nothing else behind the colon: `# dist: the distance` is a remark.
_REMARK = re.compile(r"#\s*dist:[ \t]*(?:ranks=(?=\S)|(?=-|$))", re.MULTILINE)
_LOCAL = re.compile(r"%%local\b[ \t]*")
_OUR_COMMANDS = re.compile(
    r"%{1,2}(dist|dist_\w+|distributed|rank|autodist|local|sync)\b|%\w*load_ext\s+nbdist\b"
)


def first_line(lines: list[str]) -> list[str]:
    """Turn what stands in the first line of a cell into what IPython knows."""
    if not lines:
        return lines
    first = lines[0]
    for pattern, meaning in (
        (_RANK_MAGIC, r"%%dist \1"),
        (_REMARK, "%%dist "),
        (_LOCAL, "# %%local "),
    ):
        if pattern.match(first):
            return [pattern.sub(meaning, first, count=1), *lines[1:]]
    return lines


def is_for_ranks(lines: list[str]) -> bool:
    """Whether ``%autodist on`` sends these lines to the ranks: not our own commands, not remarks.

    Looked at is the first line that says something; a cell for the notebook says ``%%local``.
    """
    if lines and _REMARK.match(lines[0]):
        return False
    telling = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    return bool(telling) and not _OUR_COMMANDS.match(telling[0])
