"""What docs/coming-from.md tells people to type is there."""

from __future__ import annotations

import re
from pathlib import Path

import nbdist
from nbdist.notebook.commands import HELP, Commands
from nbdist.notebook.magics import DistMagics
from nbdist.notebook.options import cell_options, start_options

TEXT = Path(__file__).parents[1].joinpath("docs", "coming-from.md").read_text(encoding="utf-8")
HELPERS = TEXT.partition("\n## torchrun")[0]


def rows(text: str) -> list[list[str]]:
    """Return the cells of each row: there, here, what differs."""
    return [line.split("|")[1:4] for line in text.splitlines() if line.count("|") >= 4]


def typed(pattern: str) -> set[str]:
    """Return what *pattern* finds in what is typed here."""
    words = [word for _, here, _ in rows(TEXT) for word in re.findall(r"`([^`]+)`", here)]
    return {match for word in words for match in re.findall(pattern, word)}


def test_every_helper_that_is_the_same_can_be_imported() -> None:
    same = [there for there, here, _ in rows(HELPERS) if here.strip().startswith("the same")]
    names = {name for there in same for name in re.findall(r"`(\w+)\(", there)}

    assert {"setup", "all_gather_list", "setup_env_local_multi_gpu", "get_world_size"} <= names
    assert names <= set(nbdist.__all__)


def test_every_name_of_nbdist_is_there() -> None:
    names = typed(r"nbdist\.(\w+)")

    assert {"launch", "all_gather_objects", "session"} <= names
    assert names <= set(nbdist.__all__)


def test_every_command_is_there() -> None:
    verbs = typed(r"^%dist (\w+)")

    assert {"start", "recover", "push"} <= verbs
    assert verbs <= set(Commands(None)._verbs())


def test_every_magic_is_there() -> None:
    ours = {name for kind in DistMagics.magics.values() for name in kind}

    names = typed(r"^%+(\w+)") - {"run", "debug", "load_ext"}  # IPython's

    assert {"dist", "autodist"} <= names
    assert names <= ours
    assert {"dist_init", "dist_mode", "dist_status", "dist_shutdown", "sync", "rank"} <= ours
    assert all(name in HELP for name in ("%autodist", "%%local", "%sync", "--module"))


def test_every_first_line_of_a_cell_is_understood() -> None:
    lines = typed(r"^%%dist ?(.*)")

    assert {"0,2", "-t 1", "-a", "--module NAME"} <= lines
    for line in lines:
        cell_options(line.replace("NAME", "x"))
    for line in typed(r"^%dist start ?(.*)"):
        start_options("start", line).config()
