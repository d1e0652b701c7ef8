"""Watch the cells that take long: say who waits for whom, and where every rank is.

    agent ──state──▶ where all ranks stand in their groups, whose process is stopped
    ranks ──snapshot──▶ the line each main thread is at
        └──▶ diagnose ──▶ the run: a hang, or the end of one

One daemon thread a session; it needs no help of the ranks' main threads. It never ends a cell by
itself, and what goes wrong in it is told to the cells it watches.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbdist.launchers.start import Processes
from nbdist.processes import exit_words
from nbdist.sessions import dumps
from nbdist.sessions.diagnosis import RankSight, diagnose
from nbdist.sessions.load import CpuSight, overload, sight_of
from nbdist.sessions.run import Place, Run
from nbdist.sessions.stacks import still_place
from nbdist.sessions.states import snapshots
from nbdist.sessions.transport import RankClient
from nbdist.wire import Frame, GroupCall, Snapshot

LOOK_S = 0.5
ANSWER_S = 0.4  # a control thread that has not answered by then is busy in a C call, or stopped
YOUNG_S = 1.0  # a cell is looked at from then on
SILENT_S = 0.8  # from then on its process is asked for the line
ASK_AGAIN_S = 3.0  # a signal may cut a system call short


@dataclass
class _Memory:
    """What was last known of one rank.

    Attributes:
        answered_at: When its control thread last answered, on the monotonic clock.
        place: Where its main thread was.
        since: Since when it has been there.
        stack: Where it was when its process was last asked, since it did not answer.
        asked_at: When that was.
        cpu: What the host last knew of it.
        overload: What has kept it from running since the time before.
    """

    answered_at: float
    place: tuple[str, ...] = ()
    since: float = 0.0
    stack: tuple[Frame, ...] = ()
    asked_at: float = 0.0
    cpu: CpuSight | None = None
    overload: str = ""


class Monitor:
    """Watches the runs of one session; `start` and `close` its thread.

    Args:
        processes: Of the session.
        client: The connection to its ranks.
        after_s: Without progress for so long, a hang is called one.
    """

    def __init__(self, processes: Processes, client: RankClient, after_s: float) -> None:
        self._processes = processes
        self._client = client
        self._after_s = after_s
        # Weak: what a run brought along goes as soon as nobody else has it.
        self._runs: list[weakref.ref[Run]] = []
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._memory: dict[int, _Memory] = {}
        self._thread = threading.Thread(target=self._watch, name="nbdist-monitor", daemon=True)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed.is_set() else f"{len(self._runs)} runs"
        return f"<Monitor {state}>"

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._is_closed.set()

    def add(self, run: Run) -> None:
        """Watch *run* until it is over."""
        with self._lock:
            self._runs.append(weakref.ref(run))

    def _watch(self) -> None:
        while not self._is_closed.wait(LOOK_S):
            self._watch_once()

    def _watch_once(self) -> None:
        with self._lock:
            running = [run for ref in self._runs if (run := ref()) is not None and not run.done]
            self._runs = list(map(weakref.ref, running))
        due = [run for run in running if run.age_s > YOUNG_S]
        blockage = self._processes.blockage
        if not due or blockage:
            self._memory.clear()
            for run in due:
                run.note_hang(blockage)
            return
        try:
            self._look(due)
        except Exception as exc:  # noqa: BLE001 - the edge of a thread: the cells are told
            for run in due:
                run.note_hang(
                    f"The monitor of this cell has failed ({type(exc).__name__}: {exc}); "
                    "a hang will not be explained. The stop button works as ever."
                )

    def _look(self, runs: Sequence[Run]) -> None:
        living = [r for r in range(self._processes.plan.nproc) if r not in self._processes.exits]
        found = snapshots(self._client, living, ANSWER_S)
        self._remember(living, found)
        state = self._processes.ask_state(ANSWER_S)
        # Where the guard is off the ranks know themselves, and the table tells of old times.
        calls = [call for snapshot in found.values() for call in snapshot.calls]
        if not calls:
            calls = [GroupCall.from_json(call) for call in state.get("calls", ())]
        where = {rank: place_of(rank, snapshot, calls) for rank, snapshot in found.items()}
        for run in runs:
            run.note_places({rank: where[rank] for rank in run.running_ranks if rank in where})
            sights = [
                self._sight(rank, run, found.get(rank), set(state.get("stopped", ())))
                for rank in range(self._processes.plan.nproc)
            ]
            label = run.request.label
            run.note_hang(diagnose(label, sights, calls, time.time(), self._after_s))

    def _remember(self, ranks: Sequence[int], found: Mapping[int, Snapshot]) -> None:
        """Keep when each of *ranks* has answered last, and since when it is where it is."""
        now = time.monotonic()
        for rank in ranks:
            memory = self._memory.setdefault(rank, _Memory(now))
            if rank in found:
                memory.answered_at, place = now, still_place(found[rank].stack)
                if place != memory.place:
                    memory.place, memory.since = place, now
                memory.stack, memory.cpu, memory.overload = (), None, ""
            else:
                self._look_at_silent(rank, memory, now)

    def _look_at_silent(self, rank: int, memory: _Memory, now: float) -> None:
        """Ask the process and the host where the control thread does not answer."""
        pid = self._processes.pids[rank]
        before, memory.cpu = memory.cpu, sight_of(pid)
        memory.overload = overload(before, memory.cpu)
        silent_s, asked_s = now - memory.answered_at, now - memory.asked_at
        if silent_s > SILENT_S and asked_s > ASK_AGAIN_S:
            memory.asked_at = now
            memory.stack = dumps.ask(pid, self._processes.folder.rank_stack(rank))

    def _sight(
        self, rank: int, run: Run, snapshot: Snapshot | None, stopped: set[int]
    ) -> RankSight:
        memory = self._memory.get(rank)
        now = time.monotonic()
        part: Any = "absent"
        if rank in run.ranks:
            part = "running" if rank in run.running_ranks else "ended"
        exit_event = self._processes.exits.get(rank)
        is_dead = exit_event is not None
        return RankSight(
            rank=rank,
            part=part,
            process="dead" if is_dead else "stopped" if rank in stopped else "alive",
            how=exit_words(exit_event["code"]) if exit_event is not None else run.ending_of(rank),
            snapshot=snapshot,
            silent_s=0.0 if memory is None else now - memory.answered_at,
            still_s=None if memory is None or not memory.since else now - memory.since,
            pid=self._processes.pids.get(rank),
            stack=() if memory is None else memory.stack,
            overload="" if memory is None else memory.overload,
        )


def place_of(rank: int, snapshot: Snapshot, calls: Sequence[GroupCall]) -> Place:
    """Say where a rank is: it waits in ``all_reduce #41``, or is at ``In[12]:4 load_batch``."""
    waiting = [call for call in calls if call.rank == rank and call.phase == "waiting"]
    if waiting:
        call = max(waiting, key=lambda call: call.since)
        return Place(f"{call.text.partition('(')[0]} #{call.seq}", is_waiting=True)
    frame = _last_of_cell(snapshot.stack)
    if frame is None:
        return Place("")
    named = "" if frame.function == "<module>" else f" {frame.function}"
    return Place(f"{frame.location}{named}")


def _last_of_cell(stack: Sequence[Frame]) -> Frame | None:
    return next((frame for frame in reversed(stack) if frame.is_cell), None)
