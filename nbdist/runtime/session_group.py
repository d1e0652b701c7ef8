"""The group of the session, which a script may make, use and destroy as if it were its own.

    init_process_group ──▶ contradicts the group? ──▶ ValueError
                       └─▶ the group that is there ──▶ one line: what was joined, what not used
    destroy_process_group ──▶ torch forgets its groups; a sub-group that nobody holds is ended
    the cell ends ──▶ put_back ──▶ torch knows them again

Joining and coming back are local: no rank waits for another. Whatever holds a group (a model, a
mesh) holds the same one all the time, so that guard and rebuild never see another. What a script
has made and nobody holds is dropped with its world, as in torch: a session runs many scripts.

A world of another size, or one over a store of the script's own, cannot be made on a rank: it is
refused, or the session's is joined, in the same way before a destroy and after it. A process that
a rank has forked is another matter: there both are torch's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nbdist.runtime import torch_private
from nbdist.runtime.environment import LOOPBACK
from nbdist.runtime.hooks import Hooks
from nbdist.runtime.hooks import hooks as the_hooks
from nbdist.runtime.remains import Remains

_UNUSED = ("init_method", "store", "pg_options", "device_id")
_NOTHING = (None, "", "env://")


@dataclass(frozen=True)
class World:
    """What a rank has.

    Attributes:
        rank: Of this process.
        size: Number of ranks.
        backends: By device type.
    """

    rank: int
    size: int
    backends: Mapping[str, str]

    def __str__(self) -> str:
        ranks = "1 rank" if self.size == 1 else f"{self.size} ranks"
        return f"nbdist's group of {ranks}"

    @property
    def backend(self) -> str:
        """The backends as torch writes them: ``cpu:gloo,cuda:nccl``."""
        return ",".join(f"{device}:{backend}" for device, backend in self.backends.items())


def contradiction(asked: Mapping[str, Any], world: World) -> str | None:
    """Say what of the arguments of `init_process_group` cannot be had in *world*; pure.

    ``None`` where all of it can. A backend alone has to carry some device there; one that is named
    for a device has to carry that one.
    """
    in_url = parse_qs(urlsplit(str(asked.get("init_method") or "")).query)
    sizes = [asked.get("world_size", -1), *map(int, in_url.get("world_size", ()))]
    ranks = [asked.get("rank", -1), *map(int, in_url.get("rank", ()))]
    for size in sizes:
        if size not in (-1, world.size):
            return f"world_size is {size}, but nbdist's group has {world.size} ranks"
    for rank in ranks:
        if rank not in (-1, world.rank):
            return f"rank is {rank}, but this is rank {world.rank}"
    backend = asked.get("backend")
    if backend is not None and not _carries(str(backend).lower(), world.backends):
        return f"backend is {str(backend)!r}, but nbdist's group has {world.backend}"
    return None


def _carries(wanted: str, backends: Mapping[str, str]) -> bool:
    if ":" not in wanted:
        return wanted in {"undefined", *backends.values()}
    pairs = (pair.strip().partition(":") for pair in wanted.split(","))
    return all(backends.get(device) == backend for device, _, backend in pairs)


def unused(asked: Mapping[str, Any]) -> list[str]:
    """Return the names of what was asked for and means nothing to a group that is there; pure."""
    return [name for name in _UNUSED if not _is_nothing(asked.get(name))]


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value in _NOTHING)


class SessionGroup:
    """The world of this rank, as torch's own functions give and take it.

    Args:
        say: Shows a line under the cell that runs.
        store_address: Returns host and port of the session's store.
        timeout: Of the group, where no script has given one.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        store_address: Callable[[], tuple[str, int]],
        timeout: timedelta,
        *,
        hooks: Hooks = the_hooks,
    ) -> None:
        self._say, self._store_address, self._timeout = say, store_address, timeout
        self._hooks = hooks
        self._remains = Remains()
        self._undo: list[Callable[[], None]] = []
        self._is_forked = False

    def __repr__(self) -> str:
        state = "put aside" if torch_private.is_world_aside() else "in use"
        return f"<SessionGroup {state if self._undo else 'not shared'}>"

    def install(self) -> None:
        """Give scripts this group from now on, once it is made; a second call does nothing."""
        if not self._undo:
            self._undo = [
                torch_private.replace_function("init_process_group", self._init),
                torch_private.replace_function("destroy_process_group", self._destroy),
                torch_private.replace_store_maker(self._keeps_store),
            ]

    def close(self) -> None:
        """Leave all to torch again; may be called twice."""
        while self._undo:
            self._undo.pop()()

    def leave(self) -> None:
        """In a forked child, which is no rank: a script there makes its own group."""
        self._is_forked = True

    def put_back(self) -> bool:
        """Have the group again, if a script has destroyed it, and say so; between two cells.

        Returns:
            Whether it was destroyed.
        """
        self._remains.end()
        if self._is_forked or not torch_private.is_world_aside():
            return False
        torch_private.put_world_back()
        self._say(f"destroy_process_group: {self._world()} is back for the next cell")
        return True

    # What scripts call ------------------------------------------------------------------------

    def _init(self, original: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(original)

        def init_process_group(*args: Any, **kwargs: Any) -> None:
            if self._is_forked:
                torch_private.put_world_aside()  # the parent's, which is of no use here
                original(*args, **kwargs)
            else:
                self._join(signature.bind(*args, **kwargs).arguments)

        return init_process_group

    def _join(self, asked: Mapping[str, Any]) -> None:
        world = self._world()
        if (problem := contradiction(asked, world)) is not None:
            raise ValueError(
                f"{problem}.\n"
                "The ranks of a session are one group, which a script joins and does not make: "
                "leave the argument out.\n"
                "`dist.new_group` makes a group of some ranks; `%dist start` a session of another "
                "size or backend."
            )
        torch_private.put_world_back()
        if asked.get("timeout") is not None:
            self._set_timeout(asked["timeout"])
        without = unused(asked)
        note = f"; not used: {', '.join(without)}" if without else ""
        self._say(f"init_process_group: joined {world}, {world.backend}{note}")

    def _destroy(self, original: Callable[..., None]) -> Callable[..., None]:
        def destroy_process_group(group: Any = None) -> None:
            world = torch_private.default_group()
            if torch_private.is_world_aside() or (group is not None and group is not world):
                original(group)
                return
            if self._is_forked:
                torch_private.put_world_aside()
                return
            # Calls may be under way in a group that ends with this: nobody waits for them.
            self._remains.keep_backends(self._hooks)
            torch_private.put_world_aside()
            self._set_timeout(self._timeout)
            self._remains.end()

        return destroy_process_group

    def _set_timeout(self, timeout: timedelta) -> None:
        world = torch_private.living_groups()[0]
        torch_private.set_group_timeout(self._hooks.in_use(world), timeout)

    def _world(self) -> World:
        group = torch_private.living_groups()[0]
        return World(group.rank(), group.size(), torch_private.group_backends(group))

    def _keeps_store(self, host: str, port: int) -> bool:
        """Whether the session keeps a store there, so that nobody else can."""
        ours, our_port = self._store_address()
        return port == our_port and (host == ours or {host, ours} <= LOOPBACK)
