"""Cells whose output comes from all sides at once, and the lines that must be there in the end."""

from __future__ import annotations

NUM_LINES = 20
SETUP = (
    f"NUM_LINES = {NUM_LINES}\n"
    + """
import os, subprocess, sys, threading, time
import ipywidgets
import matplotlib.pyplot as plt
from tqdm.auto import tqdm

def say(who, number):
    for line in range(NUM_LINES):
        print(who, number, line, flush=line % 3 == 0)
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
        print("main", number, value, flush=value % 3 == 0)
    os.system(f"echo child {number}")
    if number % 20 == 0:
        plt.plot([number, 1])
        plt.show()
    thread.join()
"""
)


def lines_of(number: int) -> list[str]:
    """Return all lines that cell *number* prints on each rank, sorted."""
    lines = [f"{who} {number} {line}" for who in ("main", "thread") for line in range(NUM_LINES)]
    return sorted([*lines, f"child {number}"])


def has_widget(number: int) -> bool:
    return number % 3 == 0


def has_figure(number: int) -> bool:
    return number % 20 == 0
