from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbdist import private
from nbdist.sessions import dumps
from nbdist.sessions.dumps import frames_in, frames_of_crash

LIVE = """\
Stack (most recent call first):
  File "/venv/lib/python3.11/ctypes/__init__.py", line 517 in string_at
  File "/home/me/own.py", line 3 in helper
  File "In[3]", line 2 in f
  File "In[3]", line 4 in <module>
  File "/venv/lib/python3.11/site-packages/IPython/core/interactiveshell.py", line 3553 in run_code
"""
CRASH = f"Fatal Python error: Segmentation fault\n\n{LIVE}\nExtension modules: numpy (total: 1)\n"
CODE = {"In[3]": "# %%dist\n    helper()\ndef g(): ...\nf()"}


def test_the_frames_are_those_of_the_user_with_their_lines() -> None:
    frames = frames_of_crash(CRASH, CODE)

    assert [(frame.location, frame.function, frame.source) for frame in frames] == [
        ("In[3]:4", "<module>", "f()"),
        ("In[3]:2", "f", "helper()"),
        ("/home/me/own.py:3", "helper", ""),
        ("/venv/lib/python3.11/ctypes/__init__.py:517", "string_at", ""),
    ]
    assert [frame.is_cell for frame in frames] == [True, True, False, False]
    assert [frame.is_library for frame in frames] == [False, False, False, True]


def test_the_last_crash_of_a_dump_counts() -> None:
    earlier = CRASH.replace("In[3]", "In[1]")

    assert frames_of_crash(earlier + LIVE + CRASH, CODE) == frames_of_crash(CRASH, CODE)


@pytest.mark.parametrize(
    "dump",
    [
        "",
        LIVE,
        "Fatal Python error: Segmentation fault\n\n<no Python frame>\n",
        'Fatal Python error: Aborted\n\n  File "/lib/x.py", line 1 in f\n',
        'Fatal Python error: Aborted\n  File "In[3]", line ??? in f',
    ],
)
def test_what_tells_of_no_crash_in_a_cell_has_no_frames(dump: str) -> None:
    assert frames_of_crash(dump, CODE) == ()


def test_a_line_that_its_cell_does_not_have_has_no_source() -> None:
    [frame] = frames_in('  File "In[3]", line 99 in f', CODE)

    assert (frame.location, frame.source) == ("In[3]:99", "")


def test_a_process_without_a_handler_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    os.close(private.create_file(path))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        frames = dumps.ask(process.pid, path)

        assert frames == ()
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert dumps.ask(process.pid, path) == ()
