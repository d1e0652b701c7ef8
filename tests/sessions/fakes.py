"""A session's processes and its client where the test plays the agent and the ranks.

processes, client = fake_processes(run_folder, 3), FakeClient()
processes.agent.plays["spawn"] = lambda rank, **_: [{"event": "joined", "rank": rank, ...}]
client.plays[RECOVER_REQUEST] = lambda rank, content: {"status": "ok"}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nbdist.folder import SessionFolder
from nbdist.launchers.devices import DevicePlan
from nbdist.launchers.start import Processes
from nbdist.sessions.transport import Message

NO_PID = 2**22 + 1  # more than Linux gives out

Content = Mapping[str, Any]


class FakeAgent:
    """Stands in for the link to the agent.

    Attributes:
        told: What it was told: (command, arguments).
        plays: By command, the events that follow it; none where nothing is said.
    """

    def __init__(self, hear: Callable[[dict[str, Any]], None]) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.plays: dict[str, Callable[..., Iterable[dict[str, Any]]]] = {}
        self.hear = hear

    def send(self, command: str, **arguments: Any) -> None:
        self.told.append((command, arguments))
        if play := self.plays.get(command):
            for event in play(**arguments):
                self.hear(event)


class FakeProcesses(Processes):
    """Real but for the link: what the agent says is said by the test."""

    agent: FakeAgent

    def __post_init__(self) -> None:
        self.agent = FakeAgent(self._hear)
        self.link = self.agent  # type: ignore[assignment]  # of the link only `send` is used

    def die(self, rank: int) -> None:
        self.agent.hear({"event": "exited", "rank": rank, "pid": self.pids[rank], "code": -9})


def fake_processes(root: Path, nproc: int) -> FakeProcesses:
    """Return the processes of *nproc* ranks that have joined; no real process has their pids."""
    plan = DevicePlan("cpu", nproc, (), "gloo", 1)
    processes = FakeProcesses(SessionFolder.create(root), plan)
    for rank in range(nproc):
        processes.agent.hear({"event": "spawned", "rank": rank, "pid": NO_PID + rank})
        processes.agent.hear({"event": "joined", "rank": rank, "limits": []})
    return processes


class FakeClient:
    """Stands in for the client; what nobody plays is never answered.

    Attributes:
        plays: By kind, what a rank replies; ``None`` for nothing.
        told_to_stop: (ranks, ids of requests) of each interrupt.
        unregistered: Ranks that the hub does not know.
        listeners: Who hears replies, by the id of what was sent.
    """

    def __init__(self) -> None:
        self.plays: dict[str, Callable[[int, Content], Content | None]] = {}
        self.told_to_stop: list[tuple[set[int], list[str]]] = []
        self.unregistered: set[int] = set()
        self.listeners: dict[str, Callable[[Message], None]] = {}

    def request(
        self,
        ranks: Iterable[int],
        kind: str,
        content: Content,
        listener: Callable[[Message], None],
        buffers: Iterable[bytes] = (),
    ) -> str:
        del buffers
        sent_id = f"sent {len(self.listeners)}"
        self.listeners[sent_id] = listener
        for rank in ranks:
            self.reply(sent_id, rank, self._answer(kind, rank, content))
        return sent_id

    def reply(self, sent_id: str, rank: int, content: Content | None) -> None:
        if content is not None and sent_id in self.listeners:
            self.listeners[sent_id](Message(sent_id, rank, "reply", content, []))

    def _answer(self, kind: str, rank: int, content: Content) -> Content | None:
        play = self.plays.get(kind)
        return None if play is None else play(rank, content)

    def ask_all(
        self, ranks: Iterable[int], kind: str, content: Content, timeout_s: float
    ) -> dict[int, Content]:
        del timeout_s
        answers = {rank: self._answer(kind, rank, content) for rank in ranks}
        return {rank: answer for rank, answer in answers.items() if answer is not None}

    def interrupt(self, ranks: Iterable[int], request_ids: list[str]) -> None:
        self.told_to_stop.append((set(ranks), request_ids))

    def has_joined(self, rank: int) -> bool:
        return rank not in self.unregistered

    def forget(self, sent_id: str) -> None:
        self.listeners.pop(sent_id, None)

    def release(self, rank: int) -> None:
        self.unregistered.add(rank)

    def wait_for_ranks(self, ranks: Iterable[int], failure: Callable[[], str | None]) -> None:
        assert failure() is None
        self.unregistered -= set(ranks)
