"""pdb on a rank: the stop button ends the cell, and a stack is that of the user, with its lines.

``breakpoint()``, ``dist.breakpoint()``, ipdb and ``%debug`` each make a debugger of their own, so
what is changed are the classes of the standard library that all of them come from. The names that
this needs are in Python 3.11 to 3.13; it was run with 3.11.
"""

from __future__ import annotations

import bdb
import functools
import pdb
from types import FrameType, TracebackType
from typing import Any

from nbdist.rank.failures import is_cell
from nbdist.rank.shell import RankDisplayHook


def install() -> None:
    """Change the debuggers of this process; a second time changes nothing."""
    if bdb.Bdb.canonic is not _canonic:
        bdb.Bdb.canonic = _canonic  # type: ignore[method-assign]
        bdb.Bdb.get_stack = _users_stack  # type: ignore[method-assign,assignment]
        pdb.Pdb._cmdloop = _cmdloop  # type: ignore[method-assign]
        pdb.Pdb.user_call = _user_call  # type: ignore[method-assign]
        pdb.Pdb.__init__ = _init  # type: ignore[method-assign]


_canonic_of_file = bdb.Bdb.canonic
_whole_stack = bdb.Bdb.get_stack
_user_call_as_ever = pdb.Pdb.user_call
_init_as_ever = pdb.Pdb.__init__


def _canonic(self: bdb.Bdb, filename: str) -> str:
    """Leave the label of a cell as it is: with a folder in front no source is found."""
    return filename if is_cell(filename) else _canonic_of_file(self, filename)


def _users_stack(
    self: bdb.Bdb, frame: FrameType | None, trace: TracebackType | None
) -> tuple[list[tuple[FrameType, int]], int]:
    """Return the stack from the first line of a cell on; how a cell is run is no part of it."""
    stack, index = _whole_stack(self, frame, trace)
    names = [below.f_code.co_filename for below, _ in stack]
    first = next((i for i, name in enumerate(names) if is_cell(name)), 0)
    return stack[first:], max(0, index - first)


def _user_call(self: Any, frame: FrameType, argument_list: None) -> None:
    """Stop in the last line of a cell, and not in what is called then to show its value."""
    caller = frame.f_back
    is_last = frame.f_code is RankDisplayHook.__call__.__code__ and caller is not None
    if is_last and self.stop_here(frame):
        self.interaction(caller, None)
    else:
        _user_call_as_ever(self, frame, argument_list)


def _cmdloop(self: pdb.Pdb) -> None:
    """Ask until a command goes on with the program; an interrupt ends it, as anywhere in a cell.

    pdb itself would print ``--KeyboardInterrupt--`` and ask again.
    """
    try:
        self.cmdloop()
    except KeyboardInterrupt:
        self.clear_all_breaks()
        self.set_continue()  # traces no more
        self.forget()
        raise
    finally:
        # The outermost frame, which is the rank's, keeps its last debugger, and so would these.
        vars(self).pop("curframe_locals", None)


@functools.wraps(_init_as_ever)
def _init(self: pdb.Pdb, *args: Any, **kwargs: Any) -> None:
    """Leave SIGINT alone after ``c``: the stop button would open the debugger again."""
    _init_as_ever(self, *args, **kwargs)
    self.nosigint = True  # type: ignore[attr-defined]  # typeshed leaves it out
