"""Let the ranks meet on a store, and say which groups each of them has.

A signal and an abort reach those who wait here: they look, and do not block in the store.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import TopologicalSorter
from typing import Any, Protocol, TypeVar

from nbdist.errors import RebuildError
from nbdist.runtime import torch_private
from nbdist.runtime.hooks import Hooks
from nbdist.runtime.torch_private import ProcessGroup, Store

POLL_S = (0.0005, 0.01)
_GIVEN_UP = "given up"

Answer = TypeVar("Answer")


class StoreLike(Protocol):
    """What the ranks agree through: torch's stores are one."""

    def set(self, key: str, value: str) -> None:
        """Write *value*."""

    def get(self, key: str) -> bytes:
        """Return what was written."""

    def check(self, keys: list[str]) -> bool:
        """Say whether all *keys* were written."""

    def delete_key(self, key: str) -> bool:
        """Forget *key*; say whether it was there."""


class MeetingStore:
    """A store that a signal gets everybody out of, also when its keeper does not answer.

    Args:
        connect: Makes a connection to the store.
        apart: Does what may never end, where a signal reaches who waits for it.
    """

    def __init__(
        self, connect: Callable[[], StoreLike], apart: Callable[[Callable[[], object]], None]
    ) -> None:
        self._connect, self._apart = connect, apart
        self._store: StoreLike | None = None

    def __repr__(self) -> str:
        return f"<MeetingStore {'not ' if self._store is None else ''}connected>"

    def set(self, key: str, value: str) -> None:
        """Write *value*."""
        self._ask(lambda store: store.set(key, value))

    def get(self, key: str) -> bytes:
        """Return what was written."""
        return self._ask(lambda store: store.get(key))

    def check(self, keys: list[str]) -> bool:
        """Say whether all *keys* were written."""
        return self._ask(lambda store: store.check(keys))

    def delete_key(self, key: str) -> bool:
        """Forget *key*; say whether it was there."""
        return self._ask(lambda store: store.delete_key(key))

    def tidy(self, generation: int, number: int) -> None:
        """Delete what groups older than *generation* and agreements before *number* have left."""
        for key in left_over(self._ask(torch_private.keys_of), generation, number):
            self.delete_key(key)

    def _ask(self, question: Callable[[StoreLike], Answer]) -> Answer:
        """Ask over the connection there is, over a new one where somebody was left in the old."""
        store, found = self._store, list[tuple[StoreLike, Answer]]()

        def ask() -> None:
            connection = self._connect() if store is None else store
            found.append((connection, question(connection)))

        try:
            self._apart(ask)
        except BaseException:
            self._store = None
            raise
        self._store, answer = found[0]
        return answer


def left_over(keys: Sequence[str], generation: int, number: int) -> list[str]:
    """Return those of *keys* that nobody will read any more; pure.

    Args:
        keys: All of a store: the groups' (``gen3/0//cpu//0/1``), and the agreements'
            (``settle/4/1``).
        generation: Of the groups there are.
        number: Of the latest agreement, which all ranks have reached.
    """
    firsts = {"gen": generation, "settle/": number}
    numbered = ((key, re.match(r"(gen|settle/)(\d+)/", key)) for key in keys)
    return [key for key, found in numbered if found and int(found[2]) < firsts[found[1]]]


def wait_for_key(store: StoreLike, key: str, deadline: float, look: Callable[[], None]) -> bool:
    """Wait until *key* was written; say whether it was. `get` would block where no signal reaches.

    Args:
        store: Where the ranks meet.
        key: What another rank writes.
        deadline: When to wait no more, on the monotonic clock.
        look: Called now and then; raises what ends the wait.
    """
    pause = POLL_S[0]
    while not store.check([key]):
        look()
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(2 * pause, POLL_S[1])
    return True


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


class Meeting:
    """Lets the ranks meet on a store where a signal or an abort reaches those who wait."""

    def __init__(
        self, store: Store, rank: int, size: int, timeout_s: float, check: Callable[[], None]
    ) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._timeout_s, self._check = timeout_s, check

    def wait(self, name: str, message: str) -> list[str]:
        """Wait until every rank is at *name*; return what each of them brought."""
        self._store.set(f"{name}/{self._rank}", message or "here")
        deadline = time.monotonic() + self._timeout_s
        for rank in range(self._size):
            if not wait_for_key(self._store, f"{name}/{rank}", deadline, self._look):
                raise RebuildError(
                    f"rank {rank} did not come within {self._timeout_s:g} s to make the "
                    "groups anew.\n`%dist status` says what it does; `%dist recover` tries "
                    "again, `%dist restart` starts all ranks anew."
                )
        return [self._store.get(f"{name}/{rank}").decode() for rank in range(self._size)]

    @contextlib.contextmanager
    def left_by_all(self) -> Iterator[None]:
        """Let nobody wait for this rank where it leaves with an error."""
        try:
            yield
        except Exception as exc:
            reason = (
                f"rank {self._rank} could not make its groups anew: {type(exc).__name__}: {exc}"
            )
            with contextlib.suppress(RuntimeError):  # the store may be what is broken
                self._store.set(_GIVEN_UP, reason)
            raise

    def _look(self) -> None:
        self._check()
        if self._store.check([_GIVEN_UP]):
            raise RebuildError(self._store.get(_GIVEN_UP).decode())

    def agree(
        self, recipes: Sequence[GroupRecipe] | None
    ) -> dict[tuple[str, tuple[int, ...]], GroupRecipe]:
        """Exchange the groups there are; return those that all of their members have.

        A fresh rank has none yet (``None``) and takes what the others have.
        """
        mine = {"groups": None if recipes is None else [asdict(recipe) for recipe in recipes]}
        states = [json.loads(state) for state in self.wait("groups", json.dumps(mine))]
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
            for key in in_order(states)
            if holders[key] | fresh >= set(found[key].ranks)
        }


def in_order(states: Sequence[Mapping[str, Any]]) -> list[tuple[str, tuple[int, ...]]]:
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


def recipe_of(group: ProcessGroup, hooks: Hooks) -> GroupRecipe:
    """Describe a group of this process."""
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
