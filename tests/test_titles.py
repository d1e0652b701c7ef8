from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nbdist.processes import MARK

TELL = """
import json, os, subprocess, sys
from pathlib import Path
from nbdist.titles import set_title

before = Path("/proc/self/environ").read_bytes()
for title in json.loads(sys.argv[1]):
    set_title(title)
facts = {
    "ps": subprocess.check_output(["ps", "-o", "args=", "-p", str(os.getpid())], text=True),
    "cmdline": Path("/proc/self/cmdline").read_text(),
    "comm": Path("/proc/self/comm").read_text(),
    "environment": Path("/proc/self/environ").read_bytes() == before,
    "mark": os.environ["NBDIST_SESSION"],
}
print(json.dumps(facts))
"""


def titled(*titles: str, arguments: int = 100) -> dict[str, str | bool]:
    """Return what can be seen of a process that has given itself *titles*, one after another."""
    command = [sys.executable, "-c", TELL, json.dumps(titles), "x" * arguments]
    told = subprocess.check_output(command, env={MARK: "abc", "PYTHONPATH": ":".join(sys.path)})
    facts: dict[str, str | bool] = json.loads(told)
    return facts


def test_ps_and_top_show_the_title_and_nothing_else() -> None:
    facts = titled("nbdist rank 3")

    assert facts["ps"] == "nbdist rank 3\n"
    assert facts["cmdline"] == "nbdist rank 3\0"
    assert facts["comm"] == "nbdist rank 3\n"


def test_a_second_title_leaves_nothing_of_the_first() -> None:
    assert titled("nbdist agent", "rank")["ps"] == "rank\n"


@pytest.mark.parametrize("title", ["nbdist rank 3", "x" * 100_000])
def test_the_environment_by_which_processes_are_found_stays(title: str) -> None:
    facts = titled(title)

    assert facts["environment"]
    assert facts["mark"] == "abc"


def test_a_title_without_room_is_cut() -> None:
    title = "long " * 1000

    shown = titled(title)["cmdline"]

    assert isinstance(shown, str)
    assert title.startswith(shown.rstrip("\0"))
    assert len(shown) > 100
