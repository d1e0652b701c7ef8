"""Every error nbdist raises on purpose.

    NbdistError                    catch this to catch them all
    ├── ConfigError                a key, a value or a file of the configuration is wrong
    ├── RankError                  a rank was named that does not exist
    ├── UsageError                 a command or helper was called in a way it does not know
    ├── LaunchError                a session could not be started; nothing is left running
    ├── SessionError               there is no session, or it cannot do this now
    ├── CellFailed                 a cell ended with an error on one rank or more
    │   └── CellStopped            it ended because someone stopped it
    ├── RankDied                   the process of a rank is gone
    ├── TransferError              a value could not be pulled or pushed
    ├── CollectiveError            a collective could not end; a RuntimeError too, as torch's are
    │   ├── CollectiveMismatch     the ranks called different things
    │   ├── PeerFailed             another rank will not come to it
    │   ├── CollectiveTimeout      the group's timeout was over
    │   └── CollectiveAborted      it was cut off; its tensors may hold partial results
    ├── RebuildError               the groups could not be made anew
    ├── SetupError                 a variable, a device or an init method is missing or wrong
    └── NotPrivate                 a file or folder is another user's, or open to others

Where Python or torch has a name for what happened, the error has that type too: `UsageError` is a
ValueError, `SetupError` a ValueError and a RuntimeError, `NotPrivate` a PermissionError.

A message says what happened (with values), where to look, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

#: What happened at a rank that will not come to its collectives any more.
Kind = Literal["failed", "died", "stopped", "mismatch"]


class NbdistError(Exception):
    """Base of all errors that nbdist raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        """Show the message alone in a notebook: our own frames help nobody there."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(NbdistError):
    """A key, a value or a file of the configuration is wrong."""


class RankError(NbdistError):
    """A rank was named that does not exist, or a rank list cannot be read."""


class UsageError(NbdistError, ValueError):
    """A command or a helper was called in a way it does not know; nothing has run."""


class LaunchError(NbdistError):
    """A session could not be started; nothing of it is left running."""


class SessionError(NbdistError):
    """There is no session, or the session cannot do this now."""


class CellFailed(NbdistError):
    """A cell ended with an error on one rank or more; its outputs are shown above the error.

    Attributes:
        ranks: Those that live and failed by themselves, not for want of another.
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class CellStopped(CellFailed):
    """A cell ended because someone stopped it."""


class RankDied(NbdistError):
    """The process of a rank is gone."""


class TransferError(NbdistError):
    """A value could not be pulled from a rank or pushed to it."""


class CollectiveError(NbdistError, RuntimeError):
    """A collective could not be completed; the variables of this rank are as they were."""


class CollectiveMismatch(CollectiveError):
    """The ranks of a group called different things where they have to call the same."""


class PeerFailed(CollectiveError):
    """Another rank will not come to the collective that this one is in.

    Attributes:
        culprit: The rank at which it began; -1 for nobody's.
        kind: What happened there.
    """

    def __init__(self, message: str, culprit: int = -1, kind: Kind = "failed") -> None:
        super().__init__(message)
        self.culprit = culprit
        self.kind = kind


class CollectiveTimeout(CollectiveError):
    """The timeout of the group was over before every rank had come."""


class CollectiveAborted(CollectiveError):
    """A collective was cut off; its tensors may hold partial results."""


class RebuildError(NbdistError):
    """The groups could not be made anew, because a rank did not come."""


class SetupError(NbdistError, ValueError, RuntimeError):
    """A variable, a device or an init method that a rank needs is missing or wrong."""


class NotPrivate(NbdistError, PermissionError):
    """A file or a folder is another user's or open to others; nothing was read from it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names what is nearest to *name* among *known*.

    Args:
        name: What the user typed.
        known: All names that would have been right.

    Returns:
        ``"Did you mean 'start'?"`` where something is near, else the whole list of right names.
    """
    import difflib  # half of the time of importing this module, which `%load_ext` does

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "There are: " + ", ".join(names) + "."
