"""Widgets on a rank: objects like any other, with nobody at the other end.

A page can talk to widgets of its own kernel alone. What a widget of a rank would send would only
cost time, so it is sent nowhere; the notebook shows such a widget as its text.
"""

from __future__ import annotations

from typing import Any

import comm
from comm.base_comm import BaseComm


class UnheardComm(BaseComm):
    """A comm that sends nothing, as in Python without Jupyter."""

    def publish_msg(self, *_: Any, **__: Any) -> None:
        """Send nothing."""


def install() -> None:
    """Let every widget made from now on have a comm that sends nothing."""
    comm.create_comm = UnheardComm
