"""Free a rank that is stuck in a native collective, and make its groups usable again.

    control thread   abort ──shutdown(2)──▶ sockets of gloo and the store ──▶ error in main thread
    main thread      rebuild ──▶ a fresh group stands in for each one ──▶ the same objects work

Nothing of torch frees a call that gloo waits in; the end of its connections does. A fresh native
group then stands in for each broken one (`hooks` sends the calls there), so every object that holds
the old one goes on: DDP, FSDP2, meshes, DTensors, the user's handles. The next rebuild drops it,
and with it go its threads and sockets: after any number of rebuilds a process has one dead backend
a group, the first.

An abort is a decision of the whole group, since every peer sees the connections end. It names the
generation it means, and a late one is ignored.

Not covered: a C call that is no collective; optimizer steps that one rank has done and another not;
what a collective that was cut off has written to its tensors. Sockets are told apart by when they
were made: one that another thread opens while a group is being made is taken for the group's.
NCCL's half has never run on a GPU; see `NCCL`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from nbdist.errors import CollectiveAborted, RebuildError
from nbdist.runtime import torch_private
from nbdist.runtime.hooks import Hooks
from nbdist.runtime.hooks import hooks as the_hooks
from nbdist.runtime.torch_private import ProcessGroup, Store
from nbdist.runtime.waiting import Waiting

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0
ABORT_TIMEOUT_S = 10.0
POLL_S = (0.0005, 0.01)

Sockets = dict[int, str]  # file descriptor -> "socket:[inode]"


@dataclass(frozen=True)
class BackendKind:
    """How one kind of native backend is made and cut off.

    Attributes:
        make: From (store, group, timeout of calls, timeout of connecting).
        abort: Cuts off the backends it gets; ``None`` where closing sockets does that.
    """

    make: Callable[[Store, ProcessGroup, timedelta, timedelta], Any]
    abort: Callable[[Sequence[Any]], None] | None = None


def abort_together(backends: Sequence[Any]) -> None:
    """Abort NCCL backends as one: apart, communicators that share ranks can block each other.

    See pytorch#119797 and #132291. `_abort_process_group` does it too, but forgets all groups.
    """
    if not backends:
        return
    backends[0]._group_start()
    try:
        for backend in backends:
            backend.abort()
    finally:
        backends[0]._group_end()


GLOO = BackendKind(make=torch_private.make_gloo)

#: What was read, and never run, of NCCL (torch 2.13 headers, source and issues):
#:
#: - A collective that was aborted returns without an error, and its output holds partial data: look
#:   at `Lifeline.raise_if_aborted` after every synchronize and at the end of a cell.
#: - The main thread is not in the collective but in a synchronize or ``.item()``; abort frees it.
#: - With torch's own defaults a timeout or an abort ends the process: `NCCL_ENVIRONMENT` has to be
#:   set before torch is imported.
#: - NCCL 2.25.1 hangs in abort (pytorch#149153), later ones may (nccl#1777): `Lifeline.abort` gives
#:   it `ABORT_TIMEOUT_S` and then says so; the way out is to replace the process.
#: - After a sticky CUDA error no abort helps: the process has to go.
#: - The default backend of a group stays NCCL: `barrier` takes its device from there.
NCCL = BackendKind(make=torch_private.make_nccl, abort=abort_together)

KINDS: Mapping[str, BackendKind] = {"gloo": GLOO, "nccl": NCCL}

NCCL_ENVIRONMENT: Mapping[str, str] = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
}


@dataclass(frozen=True)
class GroupRecipe:
    """What a fresh rank needs to make a group that the others have.

    Attributes:
        name: torch's name of it.
        ranks: In the world, in the group's order.
        backend: By device type, as torch writes it.
        description: torch's description of it.
        timeout_s: After which its calls fail.
    """

    name: str
    ranks: tuple[int, ...]
    backend: str
    description: str
    timeout_s: float


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
            torch_private.watch_ddp(self._ddp_modules.add),
        ]

    def close(self) -> None:
        """Watch nothing any more; may be called twice."""
        while self._undo:
            self._undo.pop()()

    def _forget_waiter(self) -> None:
        self._hooks.waiter = None

    @property
    def ddp_modules(self) -> tuple[Any, ...]:
        """The DDP modules that live."""
        return tuple(self._ddp_modules)

    def open_store(self, host: str, port: int, timeout: timedelta) -> Store:
        """Connect to the store; an abort frees those who wait in it, too."""
        before = _all_sockets()
        store = torch_private.open_store(host, port, timeout)
        with self._lock:
            self._store_sockets = _new_sockets(before)
        return store

    # Cutting off: any thread ------------------------------------------------------------------

    @property
    def aborted(self) -> str | None:
        """Why the groups were cut off; ``None`` while they are in order."""
        return self._aborted

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
            if self._before is not None:
                self._sockets |= _new_sockets(self._before)
            sockets = self._sockets | self._store_sockets
        num_shut = _shut_down(sockets)
        self._waiting.cut_off()
        for name, kind in self._kinds.items():
            if kind.abort is not None:
                groups = map(self._hooks.in_use, torch_private.living_groups())
                backends = [b for group in groups for b in torch_private.backends_of(group, name)]
                _abort_watched(kind.abort, backends, name)
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
        meeting = _Meeting(base, world.rank(), world.size(), timeout_s, self.raise_if_aborted)
        common = self._agree(meeting, [_recipe(group, self._hooks) for group in groups])
        world_store = base
        for group in groups:
            recipe = _recipe(group, self._hooks)
            if (recipe.name, recipe.ranks) not in common:
                continue
            group_store = torch_private.prefix_store(f"{recipe.name}/", world_store)
            if group is world:
                world_store = group_store
            self._replace(group, group_store, recipe, timedelta(seconds=timeout_s))
        meeting.wait("made", "")
        self.reset_modules()
        return tuple(name for name, _ in common)

    def join(
        self,
        make_world: Callable[[Store], None],
        store: Store,
        generation: int,
        *,
        rank: int,
        world_size: int,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Be a fresh rank among others that `rebuild`: make the world's group, then all others.

        Args:
            make_world: Calls `init_process_group` with the store it gets.
            store: A connection to the store.
            generation: That of the rebuild.
            rank: Of this process.
            world_size: Number of ranks.
            timeout_s: How long to wait for the other ranks.
        """
        self._begin(generation)
        base = torch_private.prefix_store(f"gen{generation}", store)
        meeting = _Meeting(base, rank, world_size, timeout_s, self.raise_if_aborted)
        common = self._agree(meeting, None)
        make_world(base)
        for recipe in list(common.values())[1:]:
            if rank in recipe.ranks:
                torch_private.replay_group(
                    recipe.name,
                    recipe.ranks,
                    recipe.backend,
                    recipe.description,
                    timedelta(seconds=recipe.timeout_s),
                )
        torch_private.set_group_count(meeting.group_count)
        meeting.wait("made", "")

    def reset_modules(self) -> int:
        """Let every DDP and FSDP2 module forget a half-done step; return how many there are."""
        ddp, fsdp = list(self._ddp_modules), torch_private.fsdp_roots()
        for module in ddp:
            torch_private.reset_ddp(module)
        for root in fsdp:
            torch_private.reset_fsdp(root)
        return len(ddp) + len(fsdp)

    def _begin(self, generation: int) -> None:
        with self._lock:
            self.generation = generation
            self._aborted = None
            old, self._sockets = self._sockets, {}
        # What is still on its way in the old groups would keep their threads until its timeout.
        _shut_down(old)

    def _agree(
        self, meeting: _Meeting, recipes: Sequence[GroupRecipe] | None
    ) -> dict[tuple[str, tuple[int, ...]], GroupRecipe]:
        """Exchange the groups there are; return those that all of their members have.

        A fresh rank has none yet (``None``) and takes what the others have.
        """
        mine = {
            "count": torch_private.group_count(),
            "groups": None if recipes is None else [asdict(recipe) for recipe in recipes],
        }
        states = [json.loads(state) for state in meeting.wait("groups", json.dumps(mine))]
        meeting.group_count = max(state["count"] for state in states)
        if recipes is not None:  # a fresh rank's first group is the world, named as theirs was
            torch_private.set_group_count(meeting.group_count)
        fresh = {rank for rank, state in enumerate(states) if state["groups"] is None}
        found: dict[tuple[str, tuple[int, ...]], GroupRecipe] = {}
        holders: dict[tuple[str, tuple[int, ...]], set[int]] = {}
        for rank, state in enumerate(states):
            for fields in state["groups"] or ():
                recipe = GroupRecipe(**{**fields, "ranks": tuple(fields["ranks"])})
                key = (recipe.name, recipe.ranks)
                found.setdefault(key, recipe)
                holders.setdefault(key, set()).add(rank)
        return {
            key: found[key]
            for key in _in_order(states)
            if holders[key] | fresh >= set(found[key].ranks)
        }

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
        before = self._hooks.in_use(group)
        self._hooks.stand_in(group, fresh)
        if before is not group:
            _let_go([before])
            del before
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

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Take the sockets that appear inside for those of groups and stores."""
        before = _all_sockets()
        with self._lock:
            self._before = before
        try:
            yield
        finally:
            with self._lock:
                self._before = None
                self._sockets |= _new_sockets(before)


class _Meeting:
    """Lets the ranks meet on a store where a signal or an abort reaches those who wait."""

    def __init__(
        self, store: Store, rank: int, size: int, timeout_s: float, check: Callable[[], None]
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._timeout_s, self._check = timeout_s, check
        self.group_count = 0

    def wait(self, name: str, message: str) -> list[str]:
        """Wait until every rank is at *name*; return what each of them brought."""
        self._store.set(f"{name}/{self._rank}", message or "here")
        deadline, pause = time.monotonic() + self._timeout_s, POLL_S[0]
        for rank in range(self._size):
            key = f"{name}/{rank}"
            while not self._store.check([key]):
                self._check()
                if time.monotonic() > deadline:
                    raise RebuildError(
                        f"rank {rank} did not come within {self._timeout_s:g} s to make the "
                        "groups anew.\n`%dist status` says what it does; `%dist recover` tries "
                        "again, `%dist restart` starts all ranks anew."
                    )
                time.sleep(pause)
                pause = min(2 * pause, POLL_S[1])
        return [self._store.get(f"{name}/{rank}").decode() for rank in range(self._size)]


def _in_order(states: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[int, ...]]]:
    """Merge the groups of all ranks into one order that is that of each of them.

    Every rank connects its groups one after another: in different orders they would wait for each
    other. Each rank has them in the order in which they were made, the same program on all.
    """
    graph: TopologicalSorter[tuple[str, tuple[int, ...]]] = TopologicalSorter()
    for state in states:
        keys = [(fields["name"], tuple(fields["ranks"])) for fields in state["groups"] or ()]
        for before, key in zip([None, *keys], keys, strict=False):
            graph.add(key, *([] if before is None else [before]))
    return list(graph.static_order())


def _recipe(group: ProcessGroup, hooks: Hooks) -> GroupRecipe:
    backends = torch_private.group_backends(group)
    native = hooks.in_use(group)
    timeout = torch_private.group_timeout(native, torch_private.first_device(group))
    return GroupRecipe(
        name=group.group_name,
        ranks=torch_private.group_ranks(group) or (),
        backend=",".join(f"{device}:{backend}" for device, backend in backends.items()),
        description=group.group_desc,
        timeout_s=timeout.total_seconds(),
    )


def _let_go(groups: list[ProcessGroup]) -> None:
    """Drop native groups, with their threads and sockets, where nobody has to wait for that.

    The last reference to a group joins gloo's threads, and one of them may be stuck (`waiting`)
    until the group's timeout. The thread is a daemon: it ends with the group.
    """
    threading.Thread(target=groups.clear, name="nbdist-let-go", daemon=True).start()


def _abort_watched(
    abort: Callable[[Sequence[Any]], None],
    backends: Sequence[Any],
    name: str,
    timeout_s: float = ABORT_TIMEOUT_S,
) -> bool:
    """Call *abort* in a thread of its own, which is left behind if it hangs; say whether it ended.

    The thread is a daemon: the end of the process stops it.
    """
    thread = threading.Thread(
        target=abort, args=(backends,), name=f"nbdist-abort-{name}", daemon=True
    )
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        logger.error("aborting %s has not ended after %s s", name, timeout_s)
    return not thread.is_alive()


# Sockets ----------------------------------------------------------------------------------------


def _all_sockets() -> Sockets:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            link = os.readlink(entry)  # noqa: PTH115 - no path, but a text
            if link.startswith("socket:["):
                found[int(entry.name)] = link
    return found


def _new_sockets(before: Sockets) -> Sockets:
    return {fd: link for fd, link in _all_sockets().items() if before.get(fd) != link}


def _is_open(fd: int, link: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == link  # noqa: PTH115 - no path, but a text
    except OSError:
        return False


def _shut_down(sockets: Sockets) -> int:
    """Shut down those of *sockets* that are still open, and are connections; return how many."""
    num_shut = 0
    for fd, link in sockets.items():
        if not _is_open(fd, link):  # closed, or its number is another's by now
            continue
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
            is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6)
            if is_tcp and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                connection.shutdown(socket.SHUT_RDWR)
                num_shut += 1
    return num_shut
