"""Free a rank that is stuck in a native collective, and make its groups usable again.

    control thread   abort ──shutdown(2)──▶ sockets of gloo and the store ──▶ error in main thread
    main thread      rebuild ──▶ a fresh group stands in for each one ──▶ the same objects work

Nothing of torch frees a call that gloo waits in; the end of its connections does, and where gloo
loses that on the way to the one who waits, `waiting` does. A fresh native group then stands in for
each broken one (`hooks` sends the calls there), so every object that holds the old one goes on:
DDP, FSDP2, meshes, DTensors, the user's handles. The next rebuild drops it, and with it go its
threads and sockets: after any number of rebuilds a process has one dead backend a group, the first.

The end of a gloo backend joins its threads, and one that was cut off may have a thread that is
stuck until the group's timeout (see `waiting`). So nobody who drops a group may be the last to hold
its backend: whoever cuts off a group keeps that, and a thread of its own ends it (`Remains`).

An abort is a decision of the whole group, since every peer sees the connections end. It names the
generation it means, and a late one is ignored.

Not covered: a C call that is no collective; optimizer steps that one rank has done and another not;
what a collective that was cut off has written to its tensors. Sockets are told apart by when they
were made: one that another thread opens while a group is being made is taken for the group's.
NCCL's half has never run on a GPU; see `NCCL` of `backends`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from nbdist.errors import CollectiveAborted
from nbdist.runtime import torch_private
from nbdist.runtime.backends import KINDS, BackendKind, abort_watched
from nbdist.runtime.hooks import Hooks
from nbdist.runtime.hooks import hooks as the_hooks
from nbdist.runtime.meeting import GroupRecipe, Meeting, MeetingStore, recipe_of
from nbdist.runtime.remains import Remains
from nbdist.runtime.sockets import (
    Sockets,
    all_sockets,
    answer_listeners,
    new_sockets,
    shut_down,
)
from nbdist.runtime.torch_private import ProcessGroup, Store
from nbdist.runtime.waiting import Waiting

CONNECT_TIMEOUT_S = 30.0
REDUCE_PATIENCE_S = 10.0  # all ranks have issued these calls, so that they end
CUT_OFF_PATIENCE_S = 0.2
ADDRESSES_OF_A_MEMBER = 4  # gloo has one for each of its threads, which are two


class Lifeline:
    """Cuts off and rebuilds the groups of this process.

    Attributes:
        generation: Of the groups there are now: 0, and one more after each rebuild.
    """

    def __init__(
        self, *, hooks: Hooks = the_hooks, kinds: Mapping[str, BackendKind] = KINDS
    ) -> None:
        self.generation = 0
        self._hooks = hooks
        self._kinds = kinds
        self._aborted: str | None = None
        self._lock = threading.Lock()
        self._sockets: Sockets = {}  # of groups
        self._store_sockets: Sockets = {}
        self._before: Sockets | None = None  # while a group or a store is being made
        self._connects_since = math.inf
        self._remains = Remains()
        self._ddp_modules: weakref.WeakSet[Any] = weakref.WeakSet()
        self._undo: list[Callable[[], None]] = []
        self._waiting = Waiting(self.raise_if_aborted)

    def __repr__(self) -> str:
        state = "aborted" if self._aborted else "ready"
        return f"<Lifeline of generation {self.generation}, {state}>"

    def install(self, *, generation: int = 0) -> None:
        """Watch groups and DDP modules being made. Before any are; a second call does nothing."""
        self.generation = generation
        if self._undo:
            return
        self._hooks.install()
        self._waiting.install()
        self._hooks.waiter = self._waiting.around
        self._undo = [
            self._waiting.close,
            self._forget_waiter,
            torch_private.wrap_group_maker(self._watched),
            torch_private.replace_connect(self._connect),
            torch_private.replace_store_waits(self._waiting.apart_from_groups),
            torch_private.watch_ddp(self._ddp_modules.add),
        ]

    def close(self) -> None:
        """Watch nothing any more; may be called twice."""
        while self._undo:
            self._undo.pop()()

    def leave(self) -> None:
        """In a forked child: watch nothing, and leave the parent's threads alone."""
        self._waiting.forget_helpers()
        self.close()

    def _forget_waiter(self) -> None:
        self._hooks.waiter = None

    @property
    def ddp_modules(self) -> tuple[Any, ...]:
        """The DDP modules that live."""
        return tuple(self._ddp_modules)

    def open_store(self, host: str, port: int, timeout: timedelta) -> Store:
        """Connect to the store; an abort frees those who wait in it, too."""
        before, opened = all_sockets(), list[Store]()
        self._waiting.apart_from_groups(
            lambda: opened.append(torch_private.open_store(host, port, timeout))
        )
        with self._lock:
            self._store_sockets = new_sockets(before)
        return opened[0]

    def meeting_store(self, host: str, port: int, timeout: timedelta) -> MeetingStore:
        """Return a connection to the same store that an abort leaves alone."""
        connect = functools.partial(torch_private.open_store, host, port, timeout)
        return MeetingStore(connect, self._waiting.apart_from_groups)

    # Cutting off: any thread ------------------------------------------------------------------

    @property
    def aborted(self) -> str | None:
        """Why the groups were cut off; ``None`` while they are in order."""
        return self._aborted

    @property
    def tells_who_waits(self) -> bool:
        """Whether each call that was cut off ends with an error; those of NCCL do not."""
        return self._waiting.is_gloo_only

    @property
    def connecting_s(self) -> float:
        """How long a group, or a backend, has been in the making; 0 where none is."""
        return max(0.0, time.monotonic() - self._connects_since)

    def raise_if_aborted(self) -> None:
        """Raise if the groups were cut off and not made anew yet.

        Raises:
            CollectiveAborted: They were. On NCCL this is the only sign of it.
        """
        if self._aborted is not None:
            raise CollectiveAborted(
                f"{self._aborted}\nThe collectives of this rank were cut off; tensors they were "
                "writing to may hold partial results.\n"
                "The groups are made anew before the next cell; all other variables are kept."
            )

    def abort(self, reason: str, *, generation: int) -> int:
        """Cut off whatever this process does in its groups; the main thread gets an error.

        Any thread may call, and call twice.

        Args:
            reason: For people.
            generation: The one that is meant; any other is left alone.

        Returns:
            How many connections were shut down.
        """
        with self._lock:
            if generation != self.generation:
                return 0
            self._aborted = reason  # first: what ends because of us can be told from other errors
            self._remains.keep_backends(self._hooks)
            if self._before is not None:
                self._sockets |= new_sockets(self._before)
            sockets = self._sockets | self._store_sockets
        num_shut = shut_down(sockets)
        self._waiting.cut_off()
        for name, kind in self._kinds.items():
            if kind.abort is not None:
                groups = torch_private.living_groups()
                backends = [b for group in groups for b in torch_private.backends_of(group, name)]
                abort_watched(kind.abort, backends, name)
        return num_shut

    # Making anew: the main thread of every rank --------------------------------------------------

    def rebuild(
        self, store: Store, generation: int, *, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> tuple[str, ...]:
        """Make all groups anew behind the same objects, together with all ranks of the world.

        Groups that not all of their members have (a `new_group` that was cut off) are left broken.

        Args:
            store: A fresh connection (`open_store`): the old one was cut off.
            generation: The new one, alike on all ranks and never used before.
            timeout_s: How long to wait for the other ranks.

        Returns:
            Names of the groups made anew, in the order in which they were first made.

        Raises:
            RebuildError: A rank did not come.
            CollectiveAborted: This generation was aborted as well.
        """
        groups = torch_private.living_groups()
        world = groups[0]
        self._begin(generation)
        base = torch_private.prefix_store(f"gen{generation}", store)
        meeting = Meeting(base, world.rank(), world.size(), timeout_s, self.raise_if_aborted)
        with meeting.left_by_all():
            return self._rebuild(groups, meeting, base, timeout_s)

    def _rebuild(
        self, groups: list[ProcessGroup], meeting: Meeting, base: Store, timeout_s: float
    ) -> tuple[str, ...]:
        recipes = [recipe_of(group, self._hooks) for group in groups]
        common = meeting.agree(recipes)
        world, world_store = groups[0], base
        for group, recipe in zip(groups, recipes, strict=True):
            if (recipe.name, recipe.ranks) not in common:
                continue
            group_store = torch_private.prefix_store(f"{recipe.name}/", world_store)
            if group is world:
                world_store = group_store
            self._replace(group, group_store, recipe, timedelta(seconds=timeout_s))
        meeting.wait("made", "")
        self.reset_modules(patience_s=CUT_OFF_PATIENCE_S)
        return tuple(name for name, _ in common)

    def join(
        self,
        make_world: Callable[[Store], None],
        store: Store,
        generation: int,
        *,
        rank: int,
        world_size: int,
        group_count: int,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Be a fresh rank among others that `rebuild`: make the world's group, then all others.

        Args:
            make_world: Calls `init_process_group` with the store it gets.
            store: A connection to the store.
            generation: That of the rebuild.
            rank: Of this process.
            world_size: Number of ranks.
            group_count: How many groups the others have made so far.
            timeout_s: How long to wait for the other ranks.
        """
        self._begin(generation)
        base = torch_private.prefix_store(f"gen{generation}", store)
        meeting = Meeting(base, rank, world_size, timeout_s, self.raise_if_aborted)
        with meeting.left_by_all():
            world, *others = meeting.agree(None).values()
            make_world(base)
            [made] = torch_private.living_groups()
            torch_private.set_group_timeout(made, timedelta(seconds=world.timeout_s))
            for recipe in others:
                if rank in recipe.ranks:
                    torch_private.replay_group(
                        recipe.name,
                        recipe.ranks,
                        recipe.backend,
                        recipe.description,
                        timedelta(seconds=recipe.timeout_s),
                    )
            torch_private.set_group_count(group_count)
            meeting.wait("made", "")

    def reset_modules(self, *, patience_s: float = REDUCE_PATIENCE_S) -> None:
        """Let every DDP and FSDP2 module forget a half-done step.

        Args:
            patience_s: How long calls of the step that are under way may take to end.
        """
        self._waiting.let_reducers_end(patience_s)
        for module in list(self._ddp_modules):
            torch_private.reset_ddp(module)
        for root in torch_private.fsdp_roots():
            torch_private.reset_fsdp(root)

    def end_remains(self) -> None:
        """End what is left of groups that were cut off and are gone; nobody has to wait for that.

        Called when nothing of the cells that used them is held any more, such as an error with its
        frames.
        """
        self._remains.end()

    def _begin(self, generation: int) -> None:
        self._remains.keep_backends(self._hooks)
        with self._lock:
            self.generation = generation
            self._aborted = None
            old, self._sockets = self._sockets, {}
        # What is still on its way in the old groups would keep their threads until its timeout.
        shut_down(old)

    def _replace(
        self, group: ProcessGroup, store: Store, recipe: GroupRecipe, connect: timedelta
    ) -> None:
        timeout = timedelta(seconds=recipe.timeout_s)
        fresh = torch_private.make_group(group, store)
        for name in dict.fromkeys(torch_private.group_backends(group).values()):
            with self._watching():
                backend = self._kinds[name].make(store, group, timeout, connect)
            torch_private.add_backend(fresh, group, name, backend)
        torch_private.name_group(fresh, group)
        self._hooks.stand_in(group, fresh)
        torch_private.set_group_store(group, store)

    # Whose sockets these are --------------------------------------------------------------------

    def _watched(self, make_group: Callable[..., Any]) -> Callable[..., Any]:
        def make_watched_group(*args: Any, **kwargs: Any) -> Any:
            self.raise_if_aborted()
            with self._watching():
                made = make_group(*args, **kwargs)
            self._waiting.look_at_groups()
            return made

        return make_watched_group

    def _connect(self, connect: Callable[[], None], size: int) -> None:
        """Connect a backend with its peers in a thread: one that has given up would never come.

        A wait for it has no socket yet that an abort could shut. Who is left in it may hold the
        store, and the group is made on some ranks only: all are made anew.
        """

        def left() -> None:
            if self._before is not None:
                answer_listeners(new_sockets(self._before), size * ADDRESSES_OF_A_MEMBER)
            self.abort("The making of a group was interrupted.", generation=self.generation)

        with self._connecting():  # rpc connects a backend that is no group's
            self._waiting.apart(connect, left)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Take the sockets that appear inside for those of groups and stores."""
        before = all_sockets()
        with self._lock:
            self._before = before
        try:
            with self._connecting():
                yield
        finally:
            with self._lock:
                self._before = None
                self._sockets |= new_sockets(before)

    @contextlib.contextmanager
    def _connecting(self) -> Iterator[None]:
        """Say since when a connection is in the making."""
        outer, self._connects_since = self._connects_since, time.monotonic()
        try:
            yield
        finally:
            self._connects_since = outer
