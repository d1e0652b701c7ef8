"""What the stack of a rank's main thread says: at which line it is, and whether it waits.

Pure; only the text of its frames is read, and torch's and our own files are known by their names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from nbdist.view.failures import shorten_path
from nbdist.view.hang import Culprit
from nbdist.wire import Frame, GroupCall, Snapshot

# torch's frames and ours in which a main thread stays while a collective is under way.
_WAITING_FILES = re.compile(
    r"(^|/)(torch/distributed/|torch/nn/parallel/distributed\.py:|torch/autograd/graph\.py:"
    r"|nbdist/runtime/[a-z_]+\.py:)"
)
_DISTRIBUTED = re.compile(r"(^|/)torch/distributed/")
_TORCH = re.compile(r"(^|/)torch/")
_DISPATCHER = re.compile(r"(^|/)torch/_ops\.py:")  # between a functional collective and C++
_OURS = re.compile(r"(^|/)nbdist/(runtime|rank)/[a-z_]+\.py:\d+$")
_INPUT = re.compile(r"(^|/)(nbdist/rank/inputs|ipykernel/kernelbase)\.py:")
_INPUT_SOURCE = re.compile(r"(?<!\.)\b(input|getpass)\(|\bgetpass\.getpass\(")
_WAIT_SOURCE = re.compile(r"\.wait\(")
_DEVICE_SOURCE = re.compile(r"\.(synchronize|item|cpu|tolist)\(")
_SLEEP_SOURCE = re.compile(r"(?<!asyncio\.)\bsleep\(")

# Calls in which ranks meet without the guard or the flight recorder seeing it.
_RENDEZVOUS = {"new_group", "split_group", "new_subgroups", "new_subgroups_by_enumeration"}
_RENDEZVOUS |= {"init_process_group", "init_device_mesh", "monitored_barrier"}
MESSAGES = {"send", "recv", "send_object_list", "recv_object_list"}


def is_native_wait(stack: Sequence[Frame]) -> bool:
    """Say whether a main thread is at a place where it can wait for other ranks outside of Python.

    So it is when its innermost frame, but for that of torch's dispatcher, is one of
    ``torch.distributed``, of DDP, of autograd's engine (a backward pass may wait in C++ for DDP's
    reducer) or of our own runtime; or a line outside of other libraries that says ``.wait()``.

    Only together with a call that others have not come to does this mean that it waits: a backward
    pass computes as well.
    """
    frames = [frame for frame in stack if not _DISPATCHER.search(frame.location)]
    if not frames:
        return False
    last = frames[-1]
    if _WAITING_FILES.search(last.location):
        return True
    is_readable = not last.is_library or _TORCH.search(last.location) is not None
    return is_readable and _WAIT_SOURCE.search(last.source) is not None


def still_place(stack: Sequence[Frame]) -> tuple[str, ...]:
    """Return what of a stack stays the same while its thread does not get on.

    Our own waits look up now and then, whether there was an abort or a signal: that is no progress.
    """
    return tuple(frame.location for frame in stack if not _OURS.search(frame.location))


def unrecorded_op(stack: Sequence[Frame]) -> str:
    """Return the rendezvous or message that the stack is inside of, if any."""
    if not is_native_wait(stack):
        return ""
    inside = (frame.function for frame in stack if _DISTRIBUTED.search(frame.location))
    return next((name for name in inside if name in _RENDEZVOUS | MESSAGES), "")


def waits_for_device(stack: Sequence[Frame], call: GroupCall) -> bool:
    """Say whether a main thread waits for the stream that a call on a GPU holds up."""
    return (
        " on cuda" in call.text
        and bool(stack)
        and _DEVICE_SOURCE.search(stack[-1].source) is not None
    )


def line_of(stack: Sequence[Frame]) -> str:
    """Return the innermost line of a cell; without one, of the user's own files."""
    users = [frame for frame in stack if _is_users(frame)]
    cells = [frame for frame in users if frame.is_cell]
    return _short((cells or users)[-1]) if users else ""


def silence(stack: Sequence[Frame], overload: str) -> str:
    """Say why a rank does not answer: it is busy in a C call, at this line, or gets no turn.

    Args:
        stack: Where it is, as far as that is known.
        overload: What keeps it from running, if anything does.
    """
    users = [frame for frame in stack if _is_users(frame)]
    return (overload or "busy in a C call") + (f" {_spot(users)}" if users else "")


def occupation(ranks: tuple[int, ...], snapshot: Snapshot) -> Culprit:
    """Say what *ranks*, which have not ended the cell, do in place of what they are waited for."""
    if snapshot.label is None:
        return Culprit(ranks, "elsewhere", "has not begun the cell, or is just ending it")
    users = [frame for frame in snapshot.stack if _is_users(frame)]
    if not users:
        return Culprit(ranks, "working", f"awaits something in {snapshot.label}")
    if _asks(users[-1], snapshot.stack):
        return Culprit(ranks, "input", f"waits in input() at {line_of(users)}")
    op = unrecorded_op(snapshot.stack)
    if op:
        return Culprit(ranks, "working", f"waits in {op} at {line_of(users)}")
    last, source = users[-1], users[-1].source
    if last is snapshot.stack[-1] and _SLEEP_SOURCE.search(source):
        return Culprit(ranks, "working", f"sleeps in time.sleep at {line_of(users)}", source)
    return Culprit(ranks, "working", f"is {_spot(users)}", source)


def _asks(last: Frame, stack: Sequence[Frame]) -> bool:
    """Say whether the user is asked, *last* being the innermost line of the user's code."""
    is_inside = last is not stack[-1] and _INPUT_SOURCE.search(last.source) is not None
    return is_inside or any(_INPUT.search(frame.location) for frame in stack)


def _spot(users: Sequence[Frame]) -> str:
    """Return ``in load_batch() at In[12]:4``, with the line of the cell behind that of a file."""
    last, cell = users[-1], line_of(users)
    function = "" if last.function.startswith("<") else f"in {last.function}() "
    here = f"{function}at {_short(last)}"
    return here if last.is_cell or cell == _short(last) else f"{here} ({cell})"


def _short(frame: Frame) -> str:
    if frame.is_cell:
        return frame.location
    return shorten_path(frame.location).rpartition("/")[2]


def _is_users(frame: Frame) -> bool:
    return frame.is_cell or not (frame.is_library or _OURS.search(frame.location))
