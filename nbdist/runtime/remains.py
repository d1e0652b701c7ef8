"""What is left of groups that were cut off: their backends, which nobody should have to end.

    cut off ──keep_backends──▶ held here ──the group is gone──▶ remains ──end──▶ a thread for each

The last reference to a gloo backend joins its threads. After a cut one of them may be stuck until
the timeout of the group, half an hour by default, and where a group is dropped cannot be foreseen:
by torch, the user, a frame that ends, the collector. Here it waits in a daemon, which ends with it.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from nbdist.runtime import torch_private
from nbdist.runtime.hooks import Hooks
from nbdist.runtime.torch_private import ProcessGroup


class Remains:
    """Outlives groups, and ends their backends."""

    def __init__(self) -> None:
        self._kept: weakref.WeakSet[ProcessGroup] = weakref.WeakSet()
        self._orphans: list[Any] = []  # backends whose group is gone

    def __repr__(self) -> str:
        return f"<Remains of {len(self._kept)} groups, {len(self._orphans)} of them gone>"

    def keep_backends(self, hooks: Hooks) -> None:
        """Hold the backends of all groups there are, until they are gone; any thread may call."""
        for group in torch_private.living_groups():
            native = hooks.in_use(group)
            if native not in self._kept:
                self._kept.add(native)
                backends = torch_private.backends_of(group)
                weakref.finalize(native, self._orphans.extend, backends).atexit = False

    def end(self) -> None:
        """End the backends of groups that are gone, each in a thread of its own: one may be stuck.

        Who still has such a group in C++, as DDP has, lets go of it in the same moment as Python
        does; call this later than that.
        """
        while self._orphans:
            held = [self._orphans.pop()]
            threading.Thread(target=held.clear, name="nbdist-end-backend", daemon=True).start()
