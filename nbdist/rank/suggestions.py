"""Find what was meant by a name that is not there, as Python does where it prints an error itself.

Pure. CPython 3.11 makes its suggestions in C and for its own printing only, so these are ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import FrameType

MAX_NAMES = 5000  # torch has 1,500
LIKENESS = 0.7  # as difflib measures it: `prnt` and `print` have 0.89


def suggestion(exception: BaseException) -> str:
    """Return ``Did you mean: 'print'?`` for a wrong name or attribute, else an empty text."""
    wrong = getattr(exception, "name", None)
    if not isinstance(exception, NameError | AttributeError) or not isinstance(wrong, str):
        return ""
    try:
        known = set(_known(exception))
    except Exception:  # noqa: BLE001 - the object's own `__dir__` may raise anything
        return ""
    if len(known) > MAX_NAMES or wrong in known:
        return ""
    public = [name for name in known if wrong.startswith("_") or not name.startswith("_")]
    near = difflib.get_close_matches(wrong, sorted(public), n=1, cutoff=LIKENESS)
    return f"Did you mean: {near[0]!r}?" if near else ""


def _known(exception: NameError | AttributeError) -> Iterable[str]:
    """Return the names that could have stood there."""
    if isinstance(exception, AttributeError):
        return () if exception.obj is None else filter(_is_text, dir(exception.obj))
    frame = _innermost(exception)
    if frame is None:
        return ()
    names = (*frame.f_locals, *frame.f_globals, *frame.f_builtins)
    return filter(_is_text, names)


def _is_text(name: object) -> bool:
    return isinstance(name, str)


def _innermost(exception: BaseException) -> FrameType | None:
    trace = exception.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else trace.tb_frame
