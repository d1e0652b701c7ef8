"""Follow a run in the notebook: show it live, serve its questions, stop it, show what it left."""

from __future__ import annotations

import contextvars
import getpass
import threading
import time
from collections import deque
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

from IPython.display import publish_display_data

from nbdist.errors import NbdistError
from nbdist.notebook.busy import kept_busy
from nbdist.notebook.frontend import live_mode
from nbdist.notebook.live import REFRESH_S, LiveView, State, make_view
from nbdist.notebook.stopping import StopButton
from nbdist.sessions.run import Run, RunEvent
from nbdist.sessions.session import Session
from nbdist.view.hang import Diagnosis, Hang, hang_text
from nbdist.view.progress import remark_text
from nbdist.wire import Progress, Status

MEANWHILE_S = 0.05  # an answer has to wait for so long at most

END_STATES: dict[Status, State] = {
    "ok": "done",
    "error": "failed",
    "stopped": "stopped",
    "dead": "dead",
}


def follow(
    session: Session, run: Run, shell: Any, button: StopButton, timeout_s: float | None = None
) -> None:
    """Wait until *run* is over and show its final output; Ctrl-C and ■ stop it.

    Args:
        session: Whose run it is.
        run: What to follow.
        shell: The IPython shell whose cell this is.
        button: Notes the presses; it was there before the run was sent.
        timeout_s: Stop the run after so many seconds.

    Raises:
        CellFailed: The cell failed on some rank; its output has been shown.
        CellStopped: It was stopped, or timed out.
    """
    with kept_busy(shell), session.awaited(run):
        _follow(session, run, shell, button, timeout_s)
    run.raise_failure()


def _follow(
    session: Session, run: Run, shell: Any, button: StopButton, timeout_s: float | None
) -> None:
    live = make_view(live_mode(session.config.live, shell), run.ranks, run.request.label)
    bundle: dict[str, str] = {}
    try:
        _watch(session, run, live, button, timeout_s)
        if button.is_pressed and not run.done:
            _note_hang(run, run.hang)
            # A second press stops waiting for ranks that do not answer.
            session.stop_run(run, "The cell was stopped", give_up=lambda: button.num_presses > 1)
        _drain(run, live)
        outputs = run.outputs
        for output in outputs:
            live.state(output.rank, END_STATES[output.status])
        session.warn_uneven(run)
        session.name_way_out(run)
        bundle = run.render(has_text=not live.shows_text)
    finally:
        live.close(is_replaced=bool(bundle))
    if bundle:
        publish_display_data(bundle)
    _recover_if_wanted(session, button)


def _recover_if_wanted(session: Session, button: StopButton) -> None:
    report: object
    try:
        with button.raising():
            report = session.recover_if_wanted()
    except NbdistError as exc:
        report = f"recover=auto did not succeed: {exc}"
    except KeyboardInterrupt:
        report = "recover=auto was stopped; `%dist recover` goes on with it"
    if report is not None:
        print(report)  # noqa: T201 - what the user has asked for with recover=auto


def _watch(
    session: Session, run: Run, live: LiveView, button: StopButton, timeout_s: float | None
) -> None:
    """Show and serve what happens, until the run is over or to be stopped."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    questions = Questions(run, live)
    while not run.done and not button.is_pressed:
        if deadline is not None and time.monotonic() > deadline:
            run.timed_out_s = timeout_s
            _note_hang(run, run.hang)
            session.stop_run(run, f"The cell ran longer than --timeout {timeout_s:g} s")
            return
        hang = run.hang  # read once: the monitor may take it back
        if isinstance(hang, Diagnosis) and session.config.hang.action == "stop":
            _note_hang(run, hang)
            session.stop_run(run, "The cell was stopped, as hang.action=stop asks for")
            return
        if questions.waiting:
            questions.serve(session, button)
            continue
        event = run.next_event(REFRESH_S)
        if event is not None:
            questions.take(event)
        live.tick()


def _note_hang(run: Run, hang: Hang | None) -> None:
    """Keep in the final output what the cell hung in when it was stopped."""
    if isinstance(hang, Diagnosis):
        run.notes.append(f"It was stopped in this: {hang.headline}.")


def _drain(run: Run, live: LiveView) -> None:
    """Take what came last; a question of a cell that is over is not put to anyone."""
    while (event := run.next_event(0)) is not None:
        _show_live(event, live, run)


def _show_live(
    event: RunEvent, live: LiveView, run: Run, asking: Container[int] = frozenset()
) -> None:
    if event.kind == "output":
        bars = [output for output in event.outputs if isinstance(output, Progress)]
        others = tuple(output for output in event.outputs if not isinstance(output, Progress))
        # As lines, bars stand among the text; elsewhere they are part of how the rank is doing.
        live.take(event.rank, event.outputs if live.shows_text else others)
        for bar in bars:
            if bar.depth == 0:
                live.progress(event.rank, bar.done, bar.total, remark_text(bar))
    elif event.kind == "places":
        for rank in set(event.places) & set(run.running_ranks):
            if rank in asking:
                continue
            place = event.places[rank]
            live.state(rank, "waiting" if place.is_waiting else "running", place.text)
    elif event.kind == "ended":
        live.state(event.rank, END_STATES[event.content["status"]], event.content["error"])
        _show_failures(event, live, run)
    elif event.kind == "died":
        how = event.content["how"]
        live.state(event.rank, "dead", how)
        live.note(f"[rank{event.rank}] {how}; those that wait for it are freed")
        _show_failures(event, live, run)


def _show_failures(event: RunEvent, live: LiveView, run: Run) -> None:
    """Show at once why a rank has failed: the others may go on for long."""
    if event.kind == "died" or event.content["status"] == "error":
        live.failed(run.failures)


class Questions:
    """The questions of the ranks: put to the user one after the other, while the rest goes on.

    `input()` holds the main thread. Meanwhile another one takes what the ranks send, so that the
    page stays as alive as before; a question that comes then waits for its turn.

    Args:
        run: Whose ranks ask.
        live: What shows it.
    """

    def __init__(self, run: Run, live: LiveView) -> None:
        self._run = run
        self._live = live
        self.waiting: deque[RunEvent] = deque()

    def take(self, event: RunEvent) -> None:
        """Show *event*, or keep it for later where it is a question."""
        if event.kind == "input":
            self.waiting.append(event)
            self._live.state(event.rank, "asking", "waits for your answer")
        elif event.kind == "hang":
            hang = self._run.hang
            self._live.warn(None if hang is None else hang_text(hang))
        else:
            _show_live(event, self._live, self._run, {each.rank for each in self.waiting})

    def serve(self, session: Session, button: StopButton) -> None:
        """Put the first question to the user, and send the answer to its rank."""
        question = self.waiting[0]
        self._live.show_all()
        with self._going_on():
            answer = _ask(question, button)
            if answer is not None:
                session.answer_input(question.rank, answer)
        self.waiting.popleft()
        if answer is not None and question.rank in self._run.running_ranks:
            self._live.state(question.rank, "running")

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Show in a thread what happens meanwhile."""
        is_over = threading.Event()

        def show() -> None:
            while not is_over.is_set():
                event = self._run.next_event(MEANWHILE_S)
                if event is not None:
                    self.take(event)
                self._live.tick()

        of_this_cell = contextvars.copy_context()  # it says under which cell output belongs
        thread = threading.Thread(target=of_this_cell.run, args=[show], name="nbdist-meanwhile")
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()


def _ask(event: RunEvent, button: StopButton) -> dict[str, str] | None:
    """Put the question of a rank to the user; ``None`` when the answer is the stop button."""
    prompt = f"[rank{event.rank}] {event.content['prompt']}"
    try:
        with button.raising():
            if event.content["is_password"]:
                return {"text": getpass.getpass(prompt)}
            return {"text": input(prompt)}
    except KeyboardInterrupt:
        return None
    except Exception as exc:  # noqa: BLE001 - a front end without stdin raises its own kind
        return {"error": f"this front end cannot ask: {exc}"}
