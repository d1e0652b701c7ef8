"""Take a session whose kernel was killed: its ranks, its variables, and the cell that was running.

    leases  ──▶ attach ──▶ agent.sock: the lease ends, and how the ranks are is told
                      └──▶ ipyparallel's connection file ──▶ Session
    journals ──Feeder──▶ Run                the output so far, and what comes

What a kernel that is gone has sent reaches nobody any more, neither replies nor output: all that is
known of its cells is what the ranks have kept of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nbdist import private, wire
from nbdist.config import from_dict
from nbdist.errors import LaunchError, SessionError
from nbdist.folder import SessionFolder, runtime_root
from nbdist.launchers.devices import DevicePlan
from nbdist.launchers.launcher import connection_file
from nbdist.launchers.start import Processes, replace_controller
from nbdist.sessions import transport
from nbdist.sessions.journals import Entry, KeptCell, Tail, last_number, order_of
from nbdist.sessions.leases import choose
from nbdist.sessions.run import Run
from nbdist.sessions.session import Session
from nbdist.sessions.transport import Message
from nbdist.wire import CellError, CellReply, CellRequest

CONNECT_TIMEOUT_S = 10.0
LOOK_S = 0.05
CHECK_S = 2.0
SLACK_S = 1.0  # what ended just before the kernel was killed may not have reached it


def attach(session_id: str | None = None) -> Session:
    """Take a session whose kernel is gone.

    Args:
        session_id: As `choose` takes it.

    Returns:
        The session; its `restored` runs are of the cells that were not over when the kernel went.

    Raises:
        SessionError: There is no such session, another kernel has it, or it does not answer.
    """
    folder = choose(runtime_root(), session_id)
    agent = folder.process("agent")
    if agent is None or not agent.is_alive:
        raise SessionError(
            f"The agent of session {folder.session_id} is gone, and its ranks with it.\n"
            f"`nbdist stop {folder.session_id}` in a shell clears up."
        )
    processes, config = read(folder)
    try:
        processes.link.connect(is_agent_alive=lambda: agent.is_alive, timeout_s=CONNECT_TIMEOUT_S)
        processes.attach()
        controller = processes.controller  # the agent may not have noticed its end yet
        if processes.is_controller_lost or controller is None or not controller.is_alive:
            replace_controller(processes, num_watching=0)
        client = transport.connect(connection_file(folder, "client"))
        living = set(range(processes.plan.nproc)) - set(processes.exits)
        try:
            client.wait_for_ranks(living, lambda: _trouble(processes))
        except BaseException:
            client.close(linger=0)
            raise
        session = Session(config, processes, client)
    except BaseException as exc:
        processes.link.close()  # it waits for another kernel again
        if isinstance(exc, LaunchError):
            raise SessionError(_unreachable(folder, exc)) from exc
        raise
    Feeder(session, processes).start()
    return session


def read(folder: SessionFolder) -> tuple[Processes, Any]:
    """Return the processes of the session in *folder*, not connected yet, and its configuration."""
    spec = json.loads(private.read_bytes(folder.agent_spec))
    plan = DevicePlan(
        device=spec["device"],
        nproc=spec["nproc"],
        gpus=tuple(spec["gpus"]),
        backend=spec["backend"],
        threads=spec["threads"],
    )
    processes = Processes(folder, plan, controller=folder.process("controller"))
    return processes, from_dict(spec["config"])


def _trouble(processes: Processes) -> str | None:
    return "Its agent has ended." if processes.is_agent_lost else None


def _unreachable(folder: SessionFolder, exc: LaunchError) -> str:
    session_id = folder.session_id
    return (
        f"Session {session_id} cannot be reached: {str(exc).partition('Nothing was')[0].strip()}\n"
        f"`%dist attach {session_id}` tries again; `nbdist stop {session_id}` in a shell ends it."
    )


# The cells that were running ------------------------------------------------------------------


def cells_to_restore(cells: Iterable[KeptCell], left_at: float) -> list[CellRequest]:
    """Return what to give back: the cells that were not over when the kernel went, as sent.

    Without any such it is the last one, which may have been over too late to reach the kernel.

    Args:
        cells: As all ranks have kept them, since `SLACK_S` before the kernel went.
        left_at: When it went, in seconds since the epoch.
    """
    ordered = sorted(cells, key=lambda cell: cell.order)
    begun = {cell.rank: cell.order for cell in ordered if cell.ended_at is None}

    def is_open(cell: KeptCell) -> bool:
        """Not over on this rank, or queued on another one behind the cell that runs there."""
        is_late = cell.ended_at is None or cell.ended_at > left_at
        return is_late or any(begun.get(r, cell.order) < cell.order for r in cell.request.ranks)

    chosen = [cell for cell in ordered if is_open(cell)] or ordered[-1:]
    return list({cell.request.cell_id: cell.request for cell in chosen}.values())


@dataclass
class _Reading:
    """Where one rank's journal has been read to.

    Attributes:
        tail: Its end.
        cell_id: The cell that the next lines are of.
        num_batches: Of that cell, so far.
        over: Cells that it has ended.
        question: What the user is asked.
        num_idle: How often it has said that it runs none of the cells it has not ended.
    """

    tail: Tail
    cell_id: str = ""
    num_batches: int = 0
    over: set[str] = dataclasses.field(default_factory=set)
    question: Mapping[str, Any] | None = None
    num_idle: int = 0


class Feeder:
    """Lets runs hear what the ranks have kept and keep on keeping, until all are over.

    A thread; it ends with the runs, or with the session.

    Args:
        session: Gets the runs as its `restored`.
        processes: Of the session. Cells that were over when its last kernel went are left out.
    """

    def __init__(self, session: Session, processes: Processes) -> None:
        self._session = session
        self._processes = processes
        self._runs: dict[str, Run] = {}
        self._hearers: dict[str, Callable[[Message], None]] = {}
        cells = self._recent_cells()
        for request in cells_to_restore(cells, processes.left_at):
            run, hear = session.take_back(request)
            self._runs[request.cell_id], self._hearers[request.cell_id] = run, hear
        session.restored = tuple(self._runs.values())
        self._readings = {rank: self._reading_of(rank) for rank in range(session.world_size)}
        for rank in self._readings:
            self._read(rank)
        self._bury(cells)

    def __repr__(self) -> str:
        return f"<Feeder of {len(self._runs)} runs>"

    def start(self) -> None:
        """Read on from now on, where there is anything to wait for."""
        if self._open_runs:
            threading.Thread(target=self._feed, name="nbdist-journals", daemon=True).start()
        else:
            self._close()

    def _recent_cells(self) -> list[KeptCell]:
        """Return what the ranks ran when the last kernel went, and what it had sent after that."""
        journals, since = self._session.journals, self._processes.left_at - SLACK_S
        newest = [
            cell for rank in journals.ranks for cell in itertools.islice(journals.cells(rank), 1)
        ]
        begun = [cell.order for cell in newest if self._has_begun(cell)]

        def is_recent(cell: KeptCell) -> bool:
            if cell.ended_at is None:
                return self._has_begun(cell)
            return cell.ended_at > since or any(cell.order > order for order in begun)

        return [
            cell
            for rank in journals.ranks
            for cell in itertools.takewhile(is_recent, journals.cells(rank))
        ]

    def _has_begun(self, cell: KeptCell) -> bool:
        """Whether *cell* runs, or did until its rank died while there was no kernel."""
        if cell.ended_at is not None:
            return False
        death = self._processes.exits.get(cell.rank, {})
        has_died = death.get("pid") == cell.pid and death["at"] > self._processes.left_at
        return has_died or self._session.journals.is_process_alive(cell)

    def _reading_of(self, rank: int) -> _Reading:
        """Open the journal of *rank* at the place from where it tells of the runs."""
        folder = self._processes.folder.journals(rank)
        oldest = min(map(order_of, self._runs), default=None)
        numbers = [last_number(folder)]
        if oldest is not None:
            cells = self._session.journals.cells(rank)
            numbers += [
                c.file_number for c in itertools.takewhile(lambda c: c.order >= oldest, cells)
            ]
        return _Reading(Tail(folder, min(numbers)))

    @property
    def _open_runs(self) -> list[Run]:
        """The runs that some living rank has not ended, given up on or not."""
        living = self._session.living_ranks
        return [
            run
            for cell_id, run in self._runs.items()
            if any(r in living and cell_id not in self._readings[r].over for r in run.ranks)
        ]

    def _feed(self) -> None:
        try:
            self._feed_until_over()
        except Exception as exc:  # noqa: BLE001 - the edge of a thread: the runs are told
            text = f"what the ranks kept of it cannot be read: {type(exc).__name__}: {exc}"
            for run in self._session.restored:
                run.abandon(CellError("NotKept", text))
        finally:
            self._close()

    def _feed_until_over(self) -> None:
        check_at = time.monotonic() + CHECK_S
        while self._open_runs and self._session.is_alive:
            time.sleep(LOOK_S)  # a file that grows wakes nobody
            for rank in self._session.living_ranks:
                self._read(rank)
            if time.monotonic() > check_at:
                self._check()
                check_at = time.monotonic() + CHECK_S

    def _close(self) -> None:
        for reading in self._readings.values():
            reading.tail.close()

    def _read(self, rank: int) -> None:
        reading = self._readings[rank]
        for entry in reading.tail.read():
            if "cell" in entry:
                reading.cell_id, reading.num_batches = entry["cell"]["cell_id"], 0
            elif reading.cell_id in self._hearers:
                self._hand_on(rank, reading, entry)
        if reading.question is not None:
            self._hear(rank, reading.cell_id, wire.INPUT_REQUEST, reading.question)
            reading.question = None

    def _hand_on(self, rank: int, reading: _Reading, entry: Entry) -> None:
        if "outputs" in entry:
            reading.num_batches += 1
            self._hear(rank, reading.cell_id, wire.OUTPUT_BATCH, entry)
        elif "input" in entry:
            reading.question = entry["input"]
        elif "reply" in entry:
            reading.question = None
            reading.over.add(reading.cell_id)
            reply = {**entry["reply"], "num_batches": reading.num_batches}  # all that were kept
            self._hear(rank, reading.cell_id, wire.CELL_REPLY, reply)

    def _hear(self, rank: int, cell_id: str, kind: str, content: Mapping[str, Any]) -> None:
        self._hearers[cell_id](Message("", rank, kind, content, []))

    def _bury(self, cells: Iterable[KeptCell]) -> None:
        """Tell the runs of ranks that died while there was no kernel."""
        session = self._session
        for cell in cells:
            run = self._runs.get(cell.request.cell_id)
            if (
                run is not None
                and cell.reply is None
                and not session.journals.is_process_alive(cell)
            ):
                self._readings[cell.rank].over.add(cell.request.cell_id)
                session.note_death(run, cell.rank)
        for run in self._runs.values():
            for rank in set(run.ranks) & set(session.dead_ranks):
                session.note_death(run, rank)

    # Ranks whose journal does not tell how it went ------------------------------------------------

    def _check(self) -> None:
        """End the runs on ranks that run none of them, though their journals hold no end."""
        for rank in self._session.living_ranks:
            reading = self._readings[rank]
            missing = [
                c for c, r in self._runs.items() if rank in r.ranks and c not in reading.over
            ]
            running = self._session.running_cell(rank) if missing else None
            self._read(rank)
            if not missing or running is None or running in missing:
                reading.num_idle = 0
                continue
            reading.num_idle += 1
            if reading.num_idle > 1:  # not between two cells by chance
                for cell_id in set(missing) - reading.over:
                    reading.over.add(cell_id)
                    self._hear(rank, cell_id, wire.CELL_REPLY, _not_kept().to_json())


def _not_kept() -> CellReply:
    error = CellError(
        "NotKept",
        "the cell is over on this rank, or never reached it; what became of it was not kept",
    )
    return CellReply(status="error", num_batches=0, error=error)
