"""Two hundred cells of mixed output lose no line. Real ranks; the lines are counted."""

from __future__ import annotations

import pytest

from nbdist.sessions.session import Session
from nbdist.wire import Display, Progress
from tests.sessions.driving import finished, printed, ranks, shown, statuses

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

NUM_CELLS = 200
NUM_LINES = 20
SETUP = """
import os, subprocess, sys, threading, time
import ipywidgets
import matplotlib.pyplot as plt
from tqdm.auto import tqdm

def line_of(who, number, line):
    # In one piece: a thread that is held up in mid-line may have its line cut by another.
    print(f"{who} {number} {line}\\n", end="", flush=line % 3 == 0)

def say(who, number):
    for line in range(NUM_LINES):
        line_of(who, number, line)
        if line % 7 == 0:
            time.sleep(0.003)

def mixed(number):
    thread = threading.Thread(target=say, args=("thread", number))
    thread.start()
    slider = ipywidgets.IntSlider()
    if number % 3 == 0:
        display(slider)
    for value in tqdm(range(NUM_LINES), desc="steps"):
        slider.value = value
        line_of("main", number, value)
    os.system(f"echo child {number}")
    if number % 20 == 0:
        plt.plot([number, 1])
        plt.show()
    thread.join()
"""


def expected(number: int) -> list[str]:
    lines = [f"{who} {number} {line}" for who in ("main", "thread") for line in range(NUM_LINES)]
    return sorted([*lines, f"child {number}"])


def check(session: Session, number: int) -> None:
    run = finished(session, f"mixed({number})")

    assert statuses(run) == ["ok", "ok"]
    assert run.gaps == []
    for rank in run.ranks:
        assert sorted(printed(run, rank).splitlines()) == expected(number)
        outputs = shown(run, rank)
        bars = [output for output in outputs if isinstance(output, Progress)]
        assert [bar.done for bar in bars][-1] == NUM_LINES
        displays = [output for output in outputs if isinstance(output, Display)]
        assert len(displays) == (number % 3 == 0) + (number % 20 == 0)


def test_cells_of_mixed_output_lose_no_line(capfd: pytest.CaptureFixture[str]) -> None:
    with ranks(2) as session:
        finished(session, f"NUM_LINES = {NUM_LINES}\n{SETUP}")
        for number in range(NUM_CELLS):
            check(session, number)

        assert session.trouble is None
    seen = capfd.readouterr()
    assert "Traceback" not in seen.out + seen.err
