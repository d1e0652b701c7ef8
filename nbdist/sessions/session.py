"""A session: running ranks, the cells on them, and the values that pass between.

Session.run ──▶ Run            one message per rank, queued there
Session.pull / push            values, queued behind the cells
Session.interrupt              reaches the code that runs now
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from nbdist import private, wire
from nbdist.config import Config
from nbdist.errors import SessionError
from nbdist.launchers import start as launching
from nbdist.launchers.launcher import connection_file
from nbdist.sessions import transport
from nbdist.sessions.channels import Channels
from nbdist.sessions.exchange import Exchange
from nbdist.sessions.journals import Journals
from nbdist.sessions.monitor import Monitor
from nbdist.sessions.ranks import parse_ranks
from nbdist.sessions.recovery import Recovery, RecoveryReport
from nbdist.sessions.referee import Referee
from nbdist.sessions.run import Run
from nbdist.sessions.states import ANSWER_S, RankState, rank_states, snapshots
from nbdist.sessions.traces import rank_traces
from nbdist.sessions.transport import CONTROLLER_LOST, Message, RankClient
from nbdist.sessions.unanswered import Unanswered
from nbdist.sessions.uneven import has_uneven_calls, uneven_ends
from nbdist.sessions.values import RankValues
from nbdist.view import name_ranks
from nbdist.view.trace import Trace
from nbdist.wire import CellError, CellRequest, GroupCall

MAX_VALUE_BYTES = 2**30
INTERRUPT_S = 5.0  # how long an interrupted cell may take to end
INTERRUPT_AGAIN_S = 0.5
STOPPING_S = 1.0  # how long the next cell waits for one that was told to stop
FREED_S = 2.0  # how long a death may take to free those who wait for the dead rank
SNAPSHOT_S = 1.0
FIRST_ANSWER_S = 0.3
ANSWER_ALL_S = 5.0  # how long ranks may take to answer over another controller
ANSWER_ANY_S = 20.0  # while none has: it is the machine that is busy then, and not a rank
NUMBERS_OF_A_KERNEL = 10**6  # of agreements; the next kernel of the session begins beyond

RankSpec = str | int | Sequence[int] | None

P = ParamSpec("P")
Returned = TypeVar("Returned")


def _one_at_a_time(
    method: Callable[Concatenate[Session, P], Returned],
) -> Callable[Concatenate[Session, P], Returned]:
    """Let no other thread tell the ranks anything meanwhile: two would replace one rank twice."""

    @functools.wraps(method)
    def wait_and_call(session: Session, /, *args: P.args, **kwargs: P.kwargs) -> Returned:
        with session._asking:
            return method(session, *args, **kwargs)

    return wait_and_call


class Session:
    """A running set of ranks. Made by `nbdist.start`; a context manager that stops it.

    Args:
        config: The resolved configuration it was started with.
        processes: Its processes.
        client: The connection to its ranks.
    """

    def __init__(self, config: Config, processes: launching.Processes, client: RankClient) -> None:
        self.config = config
        self._processes = processes
        self._client = client
        self._numbers = itertools.count(1)
        self._runs: weakref.WeakValueDictionary[str, Run] = weakref.WeakValueDictionary()
        self._sent: dict[str, str] = {}  # of cells that are heard of: the id of the message
        self._unanswered = Unanswered()
        self._turn = processes.turn or 0
        first_number = self._turn * NUMBERS_OF_A_KERNEL + 1
        self._recovery = Recovery(processes, client, first_number)
        if self._turn:
            self._recovery.note_failure()  # whether the last cell has failed, nobody here knows
        self._incomplete: set[int] = set()  # fresh ranks that nothing was copied to yet
        self._silent_since_loss: set[int] = set()  # nobody knows which of their replies got lost
        self.restored: tuple[Run, ...] = ()  # cells that ran when another kernel lost the session
        self._lock = threading.Lock()
        self._asking = threading.RLock()  # see `_one_at_a_time`
        self._is_stopped = False
        self._exchange = Exchange(
            client,
            processes,
            self._unanswered,
            begin=self._begin,
            note_failure=self._recovery.note_failure,
        )
        processes.on_exit = self._on_exit
        self._monitor = Monitor(processes, client, config.hang.after_s)
        self._monitor.start()
        self._referee = Referee(
            processes, client, self._unanswered, on_ending=self._recovery.note_failure
        )
        if config.hang.certain == "error":
            self._referee.start()
        self._channels = Channels(processes)
        self._channels.start()

    def __repr__(self) -> str:
        if self._is_stopped:
            return "<Session, stopped>"
        busy = any(not run.done for run in list(self._runs.values()))
        state = "busy" if busy else "idle"
        dead = f", {name_ranks(self.dead_ranks)} dead" if self.dead_ranks else ""
        return f"<Session {self.world_size} ranks on 1 host, {state}{dead}>"

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def session_id(self) -> str:
        """The name of the session's folder, as ``nbdist ps`` shows it."""
        return self._processes.folder.session_id

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self._processes.plan.nproc

    @property
    def summary(self) -> str:
        """The session in one line, the same for the same configuration."""
        return launching.session_summary(self._processes.plan, self.config.seed)

    @property
    def trouble(self) -> str | None:
        """What beside the ranks has failed; ``None`` while nothing has."""
        if self._processes.is_agent_lost:
            return "the agent is gone, and the ranks with it"
        if self._processes.is_controller_lost:
            return "the controller is gone; the next cell puts another in its place"
        return self._processes.blockage or self._processes.failure or self._client.trouble

    @property
    def limits(self) -> tuple[str, ...]:
        """What the ranks' torch does not allow; empty where it allows all that is needed."""
        return self._processes.limits

    @property
    def dead_ranks(self) -> tuple[int, ...]:
        """Ranks whose process is gone."""
        return tuple(sorted(self._processes.exits))

    @property
    def living_ranks(self) -> tuple[int, ...]:
        """Ranks whose process is there."""
        return tuple(rank for rank in range(self.world_size) if rank not in self.dead_ranks)

    @property
    def busy_ranks(self) -> tuple[int, ...]:
        """Living ranks that have not answered an earlier cell, pull or push, given up on or not."""
        return self._unanswered.busy(self.living_ranks)

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped."""
        return self._is_stopped

    @property
    def is_alive(self) -> bool:
        """Whether the session can run cells: not stopped, and its agent is there."""
        return not self._is_stopped and not self._processes.is_agent_lost

    @property
    def journals(self) -> Journals:
        """The output of the last cells, as the ranks have kept it."""
        return Journals(self._processes.folder)

    # Cells ------------------------------------------------------------------------------------

    @_one_at_a_time
    def run(
        self,
        code: str,
        ranks: RankSpec = None,
        *,
        want_value: bool = True,
        number: int | None = None,
        max_value_bytes: int = MAX_VALUE_BYTES,
        module: str | None = None,
    ) -> Run:
        """Send *code* to *ranks* and return at once.

        Args:
            code: A cell; IPython syntax and ``await`` are allowed.
            ranks: As in ``%%dist``: ``"0,2"``, ``1``, ``[0, 1]``; all when ``None``.
            want_value: Send the value of the last expression back, for `Run.result`.
            number: The notebook's execution count, for tracebacks.
            max_value_bytes: Refuse to send a value larger than this.
            module: Make the cell a module of this name, which ranks and their children can import.

        Raises:
            RankError: There is no such rank.
            SessionError: The session has stopped, or one of the ranks is dead.
        """
        self._check_alive()
        report = self.recover_if_wanted()
        targets = self._targets(ranks)
        serial = next(self._numbers)
        request = CellRequest(
            cell_id=self._name(serial),
            code=code,
            label=f"In[{number}]" if number is not None else f"run[{serial}]",
            number=number,
            ranks=targets,
            want_value=want_value,
            max_value_bytes=max_value_bytes,
            module=module,
        )
        run = Run(request, self._exchange.unpack, self.interrupt, self.world_size)
        if report is not None:
            run.notes.append(str(report))
        self._settle_first()
        self._forget_dead_cells()
        self._runs[request.cell_id] = run
        self._send_cell(run, wire.to_json(request))
        self._monitor.add(run)
        for rank in set(targets) & set(self.dead_ranks):  # it may have died a moment ago
            self.note_death(run, rank)
        return run

    def _name(self, serial: int) -> str:
        """Return an id that no request of this session had, whichever kernel sent it."""
        return f"{self.session_id}-{self._turn}.{serial}"

    def take_back(self, request: CellRequest) -> tuple[Run, Callable[[Message], None]]:
        """Return the run of a cell that an earlier kernel has sent, and what hears for it.

        The caller has what the ranks kept of it heard, message by message.
        """
        run = Run(request, self._exchange.unpack, self.interrupt, self.world_size)
        self._runs[request.cell_id] = run
        hear = self._hearer_of(run)
        self._monitor.add(run)
        return run, hear

    def _send_cell(self, run: Run, content: Mapping[str, Any]) -> None:
        cell_id, hear = run.request.cell_id, self._hearer_of(run)
        try:
            self._sent[cell_id] = self._client.request(run.ranks, wire.CELL_REQUEST, content, hear)
        except BaseException:
            self._unanswered.forget(cell_id)
            self._runs.pop(cell_id, None)
            raise

    def _forget_dead_cells(self) -> None:
        """Hear no more of cells whose last message never came: a rank died, or a batch was lost.

        Not of those that a living rank has still to answer, given up on or not.
        """
        for cell_id, request_id in list(self._sent.items()):
            run = self._runs.get(cell_id)
            if run is None or (run.is_past_stragglers and cell_id not in self._unanswered):
                self._client.forget(request_id)
                self._sent.pop(cell_id, None)

    def _hearer_of(self, run: Run) -> Callable[[Message], None]:
        """Return what is to hear the messages about *run*, until all ranks have replied."""
        client, unanswered, sent = self._client, self._unanswered, self._sent
        cell_id = run.request.cell_id
        unanswered.expect(cell_id, run.ranks)
        keep_alive = run  # an abandoned run must hear its late replies

        def hear(message: Message) -> None:
            if message.kind == wire.CELL_REPLY:  # first: who waits for the run goes on at once
                unanswered.answered(cell_id, message.rank)
                if message.content["status"] != "ok":
                    self._recovery.note_failure()
            keep_alive.hear(message)
            if keep_alive.done and cell_id not in unanswered:
                client.forget(message.request_id)
                sent.pop(cell_id, None)

        return hear

    @_one_at_a_time
    def _settle_first(self) -> None:
        """Let all ranks agree to go on after a failure, before what is sent to them next.

        Not while one is dead, and not while one is busy with an earlier cell: the others can run
        cells meanwhile, and their collectives say what is wrong.
        """
        _wait_a_moment(lambda: not self._is_stopping, STOPPING_S)
        if self._recovery.is_due and not self.dead_ranks and not self.busy_ranks:
            self._recovery.settle(tuple(range(self.world_size)))

    @property
    def _is_stopping(self) -> bool:
        """Whether a cell was told to stop and has not come to its end."""
        return any(not run.done and run.is_stopping for run in list(self._runs.values()))

    def select(self, ranks: RankSpec) -> tuple[int, ...]:
        """Return the ranks that *ranks* names, dead ones as well.

        Raises:
            RankError: There is no such rank.
        """
        if ranks is None:
            return tuple(range(self.world_size))
        text = str(ranks) if isinstance(ranks, (str, int)) else ",".join(map(str, ranks))
        return parse_ranks(text, self.world_size)

    def _targets(self, ranks: RankSpec) -> tuple[int, ...]:
        self._check_alive()
        targets = self.select(ranks)
        if half_done := sorted(self._incomplete & set(targets)):
            raise SessionError(
                f"The replacement of {name_ranks(half_done)} has not come to its end.\n"
                "`%dist recover` goes on with it; `%dist restart` starts anew."
            )
        dead = sorted(set(targets) & set(self.dead_ranks))
        if dead:
            raise SessionError(
                f"{name_ranks(dead)} cannot run this: rank {dead[0]} "
                f"{self._processes.ending_of(dead[0])}.\n{self._way_out()}"
            )
        return targets

    def _way_out(self) -> str:
        living = ",".join(map(str, self.living_ranks))
        if not living:
            return "`%dist restart` starts a fresh set of ranks."
        return (
            "`%dist recover` puts a fresh rank in its place, and the others keep their variables; "
            f"`%%dist {living}` runs a cell on the others alone."
        )

    def _check_alive(self) -> None:
        if self._is_stopped:
            raise SessionError("This session has been stopped. Start another with `%dist start`.")
        if self._processes.is_agent_lost:
            raise SessionError(
                "The agent of this session is gone, and its ranks with it.\n"
                "`%dist stop` clears up; `%dist start` starts anew."
            )
        if self._processes.is_controller_lost:
            self._replace_controller()
        if self._silent_since_loss:
            self._ask_silent()

    @_one_at_a_time
    def _replace_controller(self) -> None:
        """Put another controller in the place of one that is gone, or passes nothing on.

        Returns when the ranks answer, or those that are in no C call.
        """
        processes = self._processes
        if not processes.is_controller_lost and processes.blockage is None:
            return  # another thread has done it
        launching.replace_controller(processes, num_watching=1)
        self._recovery.note_failure()
        self._silent_since_loss = set(self.living_ranks)
        answered: set[int] = set()

        def have_all_answered() -> bool:
            answered.update(self._ask_silent())
            return answered >= set(self.living_ranks)

        _wait_a_moment(have_all_answered, ANSWER_ALL_S)
        if not answered and self.living_ranks:
            _wait_a_moment(lambda: have_all_answered() or bool(answered), ANSWER_ANY_S)
        if not answered and self.living_ranks:
            raise SessionError(
                "The ranks do not answer over the new controller after "
                f"{ANSWER_ALL_S + ANSWER_ANY_S:.0f} s.\n"
                "`%dist status` says what they do; `%dist recover` tries again."
            )

    def _ask_silent(self) -> set[int]:
        """Ask ranks whose replies may have been lost what they run; return those that answer."""
        found = snapshots(self._client, self._silent_since_loss, FIRST_ANSWER_S)
        for rank, snapshot in found.items():
            self._unanswered.answered_but(rank, snapshot.cell_id)
        self._silent_since_loss &= set(self.busy_ranks)  # a reply of these may yet get lost
        return set(found)

    def warn_uneven(self, run: Run) -> None:
        """Add a note to *run* where some rank has called fewer collectives than the others.

        The next collective of that group would meet the wrong one.
        """
        if run.has_failed or not has_uneven_calls(run.calls):
            return
        state = self._processes.ask_state(SNAPSHOT_S)
        calls = [GroupCall.from_json(call) for call in state.get("calls", ())]
        if warning := uneven_ends(calls, run.ranks):
            run.notes.append(warning)

    def name_way_out(self, run: Run) -> None:
        """Add a note to *run* where a rank has died, and nothing is done about it by itself."""
        dead = sorted(set(run.ranks) & set(self.dead_ranks))
        if dead and self.is_alive and self.config.recover != "auto":
            run.notes.append(self._way_out())

    def awaited(self, run: Run) -> AbstractContextManager[None]:
        """Return a context in which nothing else is sent before *run* is over, as at a prompt.

        So it is known to whom of its ranks nobody can come any more, and their calls are ended.
        """
        return self._referee.watching(run)

    def interrupt(self, run: Run) -> None:
        """Stop *run* on the ranks where it is not over; returns at once."""
        run.is_stopping = True
        meeting = self._recovery.open_meeting
        self._client.interrupt(
            self.living_ranks if meeting else run.running_ranks,
            [run.request.cell_id, *([meeting] if meeting else [])],
        )

    def stop_run(
        self, run: Run, why: str, give_up: Callable[[], bool] = lambda: False
    ) -> tuple[int, ...]:
        """Stop *run* and wait until it is over, but no longer than `INTERRUPT_S`.

        Args:
            run: What to stop.
            why: Goes into the error of ranks that do not answer.
            give_up: Asked now and then; ``True`` ends the wait.

        Returns:
            The ranks that did not stop: they are in a call that Python cannot interrupt.
        """
        deadline = time.monotonic() + INTERRUPT_S
        while time.monotonic() < deadline and not give_up():
            # Again and again: Python swallows an interrupt that falls into a destructor.
            self.interrupt(run)
            if run.wait(INTERRUPT_AGAIN_S):
                return ()
        return run.abandon(self.no_answer(why))

    def no_answer(self, why: str) -> CellError:
        """Return the error of a rank that did not stop when told to."""
        if blockage := self._processes.blockage:
            return CellError(ename="NoAnswer", evalue=f"{why}. {blockage}")
        return CellError(
            ename="NoAnswer",
            evalue=(
                f"{why}, but this rank has not answered: it is in a call that Python cannot "
                "interrupt, in C code that is no collective, or its code catches the interrupt.\n"
                "It goes on; `%dist status` shows when it is free, and `%dist restart --ranks N` "
                "puts a fresh rank in its place; the others keep all they have."
            ),
        )

    def answer_input(self, rank: int, answer: Mapping[str, Any]) -> None:
        """Send the user's answer to the ``input()`` of *rank*: ``text`` or ``error``."""
        self._client.control(rank, wire.INPUT_REPLY, answer)

    # After a failure --------------------------------------------------------------------------

    @_one_at_a_time
    def recover(self, *, source: int | None = None, also: Sequence[str] = ()) -> RecoveryReport:
        """Put a fresh rank in the place of each dead one; the others keep all they have.

        A fresh rank gets from the others what all of these have alike. Also lets the ranks agree to
        go on after a failed cell, which the next cell does anyway. Any thread may call; while one
        replaces ranks, another that wants the same, or to run a cell, waits for it.

        Args:
            source: The rank to copy from; the lowest survivor when ``None``.
            also: Variables to copy from it although they differ between the survivors; also after
                a recovery, as long as no cell has run since.

        Raises:
            SessionError: All ranks are dead, one is busy, or a fresh one does not come up.
        """
        if self._processes.blockage:
            self._replace_controller()
        self._check_alive()
        dead, living = self.dead_ranks, self.living_ranks
        if not living:
            raise SessionError(
                "All ranks are dead, and their variables with them: nothing is left to recover.\n"
                "`%dist restart` starts anew with the same configuration."
            )
        if dead:  # those whom a death frees may be on their way
            _wait_a_moment(lambda: not self.busy_ranks, FREED_S)
        if busy := self.busy_ranks:
            still = "still run" if len(busy) > 1 else "still runs"
            raise SessionError(
                f"{name_ranks(busy)} {still} a cell: stop it (■), then `%dist recover` again.\n"
                "`%dist status` says what they do."
            )
        began = time.monotonic()
        self._incomplete |= set(dead)  # until they have what the others have
        if dead:
            self._recovery.replace(dead, living)
        else:
            rebuild = bool(self._incomplete)
            self._recovery.wait(self._recovery.settle(living, must_rebuild=rebuild))
        seconds = time.monotonic() - began
        fresh, copied = tuple(sorted(self._incomplete)), ""
        if fresh or also:
            copied = self._recovery.share(self.living_ranks, source, also)
            self._incomplete.clear()
        return RecoveryReport(fresh, copied, seconds)

    def recover_if_wanted(self) -> RecoveryReport | None:
        """Replace dead ranks where the configuration says ``recover=auto`` and it can be done now.

        Raises:
            SessionError: As in `recover`.
        """
        wanted = self.config.recover == "auto" and self.dead_ranks and self.living_ranks
        return self.recover() if wanted and not self.busy_ranks else None

    @_one_at_a_time
    def restart_ranks(self, ranks: RankSpec) -> RecoveryReport:
        """End *ranks*, whatever they do, and put fresh ones in their place.

        Raises:
            SessionError: No rank would be left, or as in `recover`.
        """
        self._check_alive()
        chosen = self.select(ranks)
        if not set(self.living_ranks) - set(chosen):
            raise SessionError(
                "No rank would be left to recover from.\n"
                "`%dist restart` without ranks starts all of them anew."
            )
        self._processes.kill(set(chosen) - set(self.dead_ranks))
        return self.recover()

    # Values -----------------------------------------------------------------------------------

    def pull(
        self, expression: str, ranks: RankSpec = None, *, max_bytes: int | None = MAX_VALUE_BYTES
    ) -> RankValues:
        """Return the value of *expression* from each of *ranks*.

        Args:
            expression: A variable, or any Python expression: ``model.head.weight``.
            ranks: As in `run`.
            max_bytes: Refuse to send more than this from one rank; ``None`` for no limit.

        Raises:
            TransferError: It cannot be evaluated or sent on some rank.
        """
        return self._exchange.pull(self._targets(ranks), expression, max_bytes)

    def push(self, values: Mapping[str, Any], ranks: RankSpec = None) -> None:
        """Set the variables *values* on each of *ranks*.

        Functions, classes and instances may be defined in a notebook cell; globals that a function
        reads are the rank's.

        Raises:
            TransferError: A value cannot be pickled here, or not unpickled there.
        """
        self._exchange.push(self._targets(ranks), values)

    def _begin(self) -> str:
        """Let the ranks agree first where they must; return the id of what is sent next."""
        self._settle_first()
        return self._name(next(self._numbers))

    # State ------------------------------------------------------------------------------------

    def states(self) -> list[RankState]:
        """Ask every rank what it is doing; one that does not answer is waited for at most 1 s."""
        return rank_states(self._client, self._processes)

    def trace(self, cells: Sequence[str] | Literal["last"] | None = None) -> Trace:
        """Return what collectives the ranks have called, and when, as far as they still know.

        They answer while a cell runs, too.

        Args:
            cells: Labels of the cells wanted, ``["In[12]"]``; ``"last"`` for the last that called
                any; all when ``None``.
        """
        self._check_alive()
        return Trace(rank_traces(self._client, self.living_ranks, cells), self.world_size)

    def running_cell(self, rank: int) -> str | None:
        """Return the id of the cell that *rank* runs, empty for none; ``None``: it is too busy."""
        snapshot = snapshots(self._client, [rank], ANSWER_S).get(rank)
        return None if snapshot is None else snapshot.cell_id or ""

    def ranks_with(self, name: str, timeout_s: float) -> tuple[int, ...]:
        """Return the ranks that have a variable *name*, as far as they say so in *timeout_s*."""
        if not self.is_alive or self._processes.is_lost:
            return ()
        answers = self._client.ask_all(
            self.living_ranks, wire.NAME_REQUEST, {"name": name}, timeout_s
        )
        return tuple(rank for rank, content in sorted(answers.items()) if content.get("is_known"))

    def log_tail(self, rank: int, num_lines: int) -> str:
        """Return the last *num_lines* lines of the log of *rank*."""
        try:
            text = private.read_text(self._processes.folder.rank_log(rank))
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-num_lines:])

    def _on_exit(self, event: Mapping[str, Any]) -> None:
        """Tell every run that a rank, or the agent with all of them, is gone (link's thread)."""
        if event["event"] == "controller lost":
            for run in list(self._runs.values()):
                run.abandon(CellError("ControllerLost", CONTROLLER_LOST))
            return
        ranks = [event["rank"]] if event["event"] == "exited" else range(self.world_size)
        self._unanswered.died(ranks)  # a fresh rank will not answer for them
        for run in list(self._runs.values()):
            for rank in ranks:
                self._note_death(run, rank, event)

    def note_death(self, run: Run, rank: int) -> None:
        """Tell *run* that *rank* is gone, or that another process has its place."""
        event = self._processes.exits.get(rank)
        if event is None:
            self._tell_death(run, rank, "ended before the cell did")
        else:
            self._note_death(run, rank, event)
        self._unanswered.answered(run.request.cell_id, rank)

    def _note_death(self, run: Run, rank: int, event: Mapping[str, Any]) -> None:
        tail, stack = str(event.get("tail", "")), str(event.get("stack", ""))
        self._tell_death(run, rank, self._processes.ending_of(rank), tail, stack)

    def _tell_death(self, run: Run, rank: int, how: str, tail: str = "", stack: str = "") -> None:
        if rank in run.running_ranks:
            self._exchange.discard(run.request.cell_id, rank)
        run.note_death(rank, how, tail, stack)

    def stop_soon(self) -> None:
        """Have all ranks ended, and do not wait for it; a signal handler may call this."""
        self._processes.stop_soon()

    def stop(self) -> None:
        """End all ranks and every other process of the session; may be called twice."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
        self._processes.on_exit = lambda _: None
        for run in list(self._runs.values()):
            for rank in run.running_ranks:
                run.note_death(rank, "was stopped with its session")
        self._monitor.close()
        self._referee.close()
        self._channels.close()
        self._processes.stop()
        self._client.close(linger=0)


def _wait_a_moment(is_over: Callable[[], bool], timeout_s: float) -> None:
    """Return as soon as *is_over* says so, or after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while not is_over() and time.monotonic() < deadline:
        time.sleep(0.005)


def connect(
    config: Config, processes: launching.Processes, on_progress: Callable[[str], None]
) -> Session:
    """Wait for the ranks that were launched, and return the session that drives them.

    Args:
        config: The resolved configuration.
        processes: As `nbdist.launchers.start.launch` returned them.
        on_progress: Told in a few words what is being waited for.

    Raises:
        LaunchError: A rank or another process did not come up. The caller stops the rest.
    """
    launching.wait_until_joined(processes, on_progress)
    client = transport.connect(connection_file(processes.folder, "client"))
    try:
        client.wait_for_ranks(range(processes.plan.nproc), processes.start_failure)
        processes.attach()
    except BaseException:
        client.close(linger=0)
        raise
    return Session(config, processes, client)
