"""Press the stop button at a chosen line of our own code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any


def interrupted_at(step: int, functions: Collection[str], act: Callable[[], Any]) -> Any:
    """Return what *act* returns, with a KeyboardInterrupt on the way.

    Args:
        step: At which of the lines that are run in *functions*; beyond the last one nothing is.
        functions: Their names.
        act: What is done.
    """
    num_lines = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal num_lines
        if event == "line" and frame.f_code.co_name in functions:
            num_lines += 1
            if num_lines == step + 1:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return act()
    finally:
        sys.settrace(before)
