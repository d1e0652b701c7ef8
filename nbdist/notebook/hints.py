"""Say what was meant for the ranks where a plain cell of the notebook fails.

    print(x)     a name that the notebook does not have, and the ranks do
    %debug       after a cell that failed on the ranks: its frames are there

Other errors are left alone, and so is the error itself: the hint stands below it. The ranks are
asked on their control channel, which answers while cells run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from nbdist.errors import CellFailed

ASK_S = 0.3


def install(shell: Any) -> None:
    """Give hints in *shell* from now on; a second time changes nothing."""
    if not isinstance(shell.debugger, _Debugger):
        shell.events.register("post_run_cell", _after_cell)
        shell.debugger = _Debugger(shell.debugger)


def remove(shell: Any) -> None:
    """Give no more hints in *shell*."""
    if isinstance(shell.debugger, _Debugger):
        shell.events.unregister("post_run_cell", _after_cell)
        shell.debugger = shell.debugger.original


class _Debugger:
    """The shell's debugger, which has nothing to show of what failed on a rank."""

    def __init__(self, original: Callable[..., None]) -> None:
        self.original = original

    def __call__(self, force: bool = False) -> None:
        failure = getattr(sys, "last_value", None)
        if isinstance(failure, CellFailed):
            _say(how_to_debug(failure.ranks))
        else:
            self.original(force)


def how_to_debug(ranks: tuple[int, ...]) -> str:
    """Say how to get at what failed on *ranks*."""
    if not ranks:
        return "The last cell failed on the ranks and left no frame there to look at."
    return (
        f"The last cell failed on rank {ranks[0]}, not in the notebook. Its frame is there until "
        "another cell runs:\n"
        f"%%dist {ranks[0]}\n%debug"
    )


def _after_cell(result: Any) -> None:
    """Hint at the ranks where *result* is a failure for want of a name that they have."""
    error = getattr(result, "error_in_exec", None)
    current = sys.modules.get("nbdist.sessions.current")  # without it there was never a session
    name = _missing_name(error)
    if current is None or name is None or not current.is_running():
        return
    ranks = current.get().ranks_with(name, ASK_S)
    if ranks:
        from nbdist.view import name_ranks

        _say(
            f"{name!r} lives on {name_ranks(ranks)}: `%%dist` as the first line runs a cell there, "
            f"`%dist pull {name}` brings it here."
        )


def _missing_name(error: BaseException | None) -> str | None:
    """Return the global name that a line of the notebook's own did not find."""
    if type(error) is not NameError or error.__traceback__ is None:
        return None
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    is_of_notebook = trace.tb_frame.f_globals.get("__name__") == "__main__"
    return error.name if is_of_notebook else None


def _say(text: str) -> None:
    print(text)  # noqa: T201 - under the cell, as the error is
