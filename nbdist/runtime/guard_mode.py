"""`nbdist.guard`: the mode of this rank's guard, for code in cells."""

from __future__ import annotations

from nbdist.errors import SetupError
from nbdist.runtime.guard import Guard, Mode

_current: Guard | None = None


def set_current(installed: Guard) -> None:
    """Let `guard` speak of this one."""
    global _current
    _current = installed


def guard(mode: Mode | None = None) -> Mode:
    """Return the guard's mode, and change it where *mode* is given.

    To be called on all ranks at the same point between two collectives: a rank whose guard is off
    is waited for in vain by the others' guards.

    Args:
        mode: ``on`` checks collectives before they run and waits for the peers in Python; ``trace``
            compares with those that have come and never waits; ``off`` looks at nothing.

    Raises:
        ValueError: There is no such mode.
        SetupError: A mode is given, but this is no rank of a session: there is no guard.
    """
    if _current is None:
        if mode not in (None, "off"):
            raise SetupError(
                f"nbdist.guard({mode!r}) needs a rank of a session (`%dist start`): under "
                "torchrun, or alone, there is no guard."
            )
        return "off"
    if mode is not None:
        _current.set_mode(mode)
    return _current.mode
