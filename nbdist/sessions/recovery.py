"""Let the ranks go on after a failure: together, and with a fresh rank in the place of a dead one.

a cell failed ──▶ note_failure ──▶ before the next one: settle (queued on every rank, not awaited)
a rank is dead ──▶ replace: the hub forgets it ──▶ the agent forks ──▶ all ranks make their groups
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nbdist import wire
from nbdist.errors import LaunchError, SessionError
from nbdist.launchers.agent_link import Event
from nbdist.launchers.start import Processes, describe_exit
from nbdist.sessions.deferral import deferred_interrupts
from nbdist.sessions.transport import Message, RankClient
from nbdist.view import name_ranks

STATE_S = 1.0
SETTLE_TIMEOUT_S = 60.0
FORK_S = 5.0
SHARE_TIMEOUT_S = 600.0  # hashing and copying take a second per GB


@dataclass(frozen=True)
class RecoveryReport:
    """What was done to make the session whole again.

    Attributes:
        replaced: Ranks that are fresh processes now; empty where none was dead.
        copied: What they got from the others, and what they could not get.
        seconds: How long it took until all groups were whole again, without the copy.
    """

    replaced: tuple[int, ...]
    copied: str
    seconds: float

    def __str__(self) -> str:
        if not self.replaced:
            return self.copied or "all ranks live and have agreed to go on"
        return f"{name_ranks(self.replaced)} replaced in {self.seconds:.1f} s\n{self.copied}"


@dataclass
class Settling:
    """One agreement of the ranks to go on.

    Attributes:
        meeting: Names it.
        generation: Of the process groups, where they were made anew.
        ranks: Those that have to answer.
        replies: What they said, by rank.
    """

    meeting: str
    generation: int
    ranks: tuple[int, ...]
    replies: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether every rank has answered."""
        return len(self.replies) == len(self.ranks)

    @property
    def problem(self) -> str | None:
        """What some rank could not do; ``None`` as long as nothing went wrong."""
        for rank, content in sorted(self.replies.items()):
            if content["status"] != "ok":
                return f"rank {rank}: {content['error']}"
        return None


class Recovery:
    """What a session knows of failures that the ranks have not settled yet.

    Args:
        processes: Of the session.
        client: The connection to its ranks.
        first_number: Of its agreements; no number is ever used twice in a session.
    """

    def __init__(self, processes: Processes, client: RankClient, first_number: int) -> None:
        self._processes = processes
        self._client = client
        self._numbers = itertools.count(first_number)
        self._changed = threading.Condition()
        self._is_due = False
        self._store_address = processes.store_address
        self._current: Settling | None = None

    def __repr__(self) -> str:
        return f"<Recovery {'due' if self._is_due else 'not due'}>"

    @property
    def is_due(self) -> bool:
        """Whether the ranks have to agree before they can use their groups again."""
        return self._is_due or self._processes.store_address != self._store_address

    def note_failure(self) -> None:
        """Say that a cell has failed on some rank; any thread may."""
        self._is_due = True

    @property
    def open_meeting(self) -> str | None:
        """Name of the agreement that is under way, to interrupt it; ``None`` where none is."""
        current = self._current
        if current is None or current.is_over:
            return None
        silent = set(current.ranks) - set(current.replies)
        return current.meeting if silent - set(self._processes.exits) else None

    def settle(self, ranks: tuple[int, ...], *, must_rebuild: bool = False) -> Settling:
        """Tell *ranks* to agree, before whatever they are told next; returns at once."""
        self._is_due = False
        self._store_address = self._processes.store_address
        content = {"must_rebuild": must_rebuild, "store": self._store_address}
        return self._ask(ranks, {"action": "settle", **content})

    def _ask(self, ranks: tuple[int, ...], content: dict[str, Any]) -> Settling:
        number = next(self._numbers)
        settling = Settling(f"settle/{number}", number, ranks)
        content |= {"meeting": settling.meeting, "generation": settling.generation}

        def hear(message: Message) -> None:
            with self._changed:
                settling.replies[message.rank] = message.content
                if settling.problem is not None:
                    self._is_due = True
                if settling.is_over:
                    self._client.forget(message.request_id)
                self._changed.notify_all()

        self._current = settling
        self._client.request(ranks, wire.RECOVER_REQUEST, content, hear)
        return settling

    def wait(self, settling: Settling, timeout_s: float = SETTLE_TIMEOUT_S) -> None:
        """Wait until all ranks have agreed.

        Raises:
            SessionError: They could not.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not settling.is_over and settling.problem is None:
                silent = set(settling.ranks) - set(settling.replies)
                if dead := sorted(silent & set(self._processes.exits)):
                    self._is_due = True
                    raise SessionError(_died_meanwhile(dead))
                if self._processes.is_lost or self._processes.blockage:
                    self._is_due = True
                    raise SessionError(
                        self._processes.blockage
                        or "The ranks went out of reach while they were to agree to go on.\n"
                        "`%dist status` says why."
                    )
                if time.monotonic() > deadline:
                    raise SessionError(self._missing_text(settling, timeout_s))
                self._changed.wait(0.1)
        self._raise_problem(settling)

    def _raise_problem(self, settling: Settling) -> None:
        if settling.problem is not None:
            raise SessionError(
                f"The ranks could not agree to go on.\n{settling.problem}\n"
                "`%dist recover` tries again; `%dist restart` starts anew."
            )

    def _missing_text(self, settling: Settling, timeout_s: float) -> str:
        missing = set(settling.ranks) - set(settling.replies)
        # Whose process is stopped keeps all the others: name that one alone.
        stopped = missing & set(self._processes.ask_state(STATE_S).get("stopped", ()))
        how = " (stopped from outside)" if stopped else ""
        return (
            f"{name_ranks(sorted(stopped or missing))}{how} did not come within {timeout_s:.0f} s "
            "to agree to go on.\n`%dist status` says what they do; `%dist restart` starts anew."
        )

    def share(self, ranks: tuple[int, ...], source: int | None, also: Sequence[str]) -> str:
        """Give fresh ranks what the others have alike; return what was copied and what not.

        Args:
            ranks: All of them.
            source: The rank to copy from; the lowest that is not fresh when ``None``.
            also: Variables to copy from it although the others have them otherwise.

        Raises:
            SessionError: It failed; the fresh ranks begin empty.
        """
        settling = self._ask(ranks, {"action": "share", "source": source, "also": list(also)})
        self.wait(settling, SHARE_TIMEOUT_S)
        return str(settling.replies[ranks[0]]["report"])

    def replace(self, dead: tuple[int, ...], living: tuple[int, ...]) -> Settling:
        """Put fresh ranks in the place of *dead* ones; return when all groups are whole again.

        Raises:
            SessionError: A fresh rank did not come up; the living ones keep their variables.
        """
        try:
            for rank in dead:
                self._client.release(rank)
        except LaunchError as exc:
            raise SessionError(f"{exc}\n`%dist recover` tries again.") from exc
        self._processes.not_spawned.clear()
        deaths = {rank: self._processes.exits[rank] for rank in dead}
        settling = self.settle(living, must_rebuild=True)
        try:
            self._spawn(dead, settling)
        except BaseException:
            with deferred_interrupts():
                self._call_off(settling, deaths)
            raise
        return settling

    def _spawn(self, dead: tuple[int, ...], settling: Settling) -> None:
        """Have fresh ranks made, and wait until they and the others are one again."""
        self._processes.joined -= set(dead)
        for rank in dead:
            self._processes.link.send(
                "spawn", rank=rank, generation=settling.generation, meeting=settling.meeting
            )
        self._wait_for_fresh(dead, settling)
        try:
            self._client.wait_for_ranks(dead, lambda: self._lost_again(dead))
        except LaunchError as exc:
            self._is_due = True
            raise SessionError(
                f"{exc}\n`%dist recover` tries again; the other ranks keep their variables."
            ) from exc
        self.wait(settling)

    def _call_off(self, settling: Settling, deaths: Mapping[int, Event]) -> None:
        """Let nobody wait for an agreement that cannot be reached any more.

        Args:
            settling: The agreement.
            deaths: How the ranks had ended that fresh ones were asked for.
        """
        self._is_due = True
        processes = self._processes

        def is_forked() -> bool:
            return processes.is_lost or all(
                rank in processes.not_spawned or processes.exits.get(rank) is not death
                for rank, death in deaths.items()
            )

        with processes.changed:  # else the next time would make a second process of a rank
            processes.changed.wait_for(is_forked, FORK_S)
        with contextlib.suppress(OSError):  # the agent is gone, and all ranks with it
            processes.kill(set(deaths) - set(processes.exits))  # the next time makes another
        silent = set(settling.ranks) - set(settling.replies) - set(processes.exits)
        self._client.interrupt(silent, [settling.meeting])

    def _lost_again(self, ranks: Sequence[int]) -> str | None:
        """Say which of the fresh *ranks* has ended, or that all is lost."""
        processes = self._processes
        if processes.is_lost:
            return "The session has ended meanwhile."
        ended = [rank for rank in ranks if rank in processes.exits]
        return describe_exit(processes.exits[ended[0]]) if ended else None

    def _wait_for_fresh(self, ranks: tuple[int, ...], settling: Settling) -> None:
        processes = self._processes
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        has_begun = set(ranks) - set(processes.exits)
        with processes.changed:
            while not set(ranks) <= processes.joined:
                has_begun |= set(ranks) - set(processes.exits)
                self._raise_problem(settling)  # it may be what a fresh one has ended of
                for rank in has_begun & set(processes.exits):
                    self._is_due = True
                    raise SessionError(
                        f"{describe_exit(processes.exits[rank])}\n`%dist recover` tries again."
                    )
                if lost := sorted(set(settling.ranks) & set(processes.exits)):
                    raise SessionError(_died_meanwhile(lost))
                if refused := sorted(set(ranks) & set(processes.not_spawned)):
                    self._is_due = True
                    raise SessionError(
                        f"No process could be made for {name_ranks(refused)}: "
                        f"{processes.not_spawned[refused[0]]}\n"
                        "`%dist recover` tries again; the other ranks keep their variables."
                    )
                if processes.is_lost or time.monotonic() > deadline:
                    raise SessionError(
                        f"{name_ranks(ranks)} did not come up within {SETTLE_TIMEOUT_S:.0f} s.\n"
                        "`%dist logs` shows what it wrote; `%dist restart` starts anew."
                    )
                processes.changed.wait(0.2)


def _died_meanwhile(ranks: Sequence[int]) -> str:
    return (
        f"{name_ranks(ranks)} died while the ranks were to agree to go on.\n"
        "`%dist recover` puts a fresh one in its place."
    )
