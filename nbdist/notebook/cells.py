"""Follow a run in the notebook: show it live, serve its questions, stop it, show what it left."""

from __future__ import annotations

import getpass
import time
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
    with kept_busy(shell):
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
        event = run.next_event(REFRESH_S)
        if event is not None and event.kind == "input":
            answer = _ask(event, button)
            if answer is not None:
                session.answer_input(event.rank, answer)
        elif event is not None and event.kind == "hang":
            hang = run.hang
            live.warn(None if hang is None else hang_text(hang))
        elif event is not None:
            _show_live(event, live, run)
        live.tick()


def _note_hang(run: Run, hang: Hang | None) -> None:
    """Keep in the final output what the cell hung in when it was stopped."""
    if isinstance(hang, Diagnosis):
        run.notes.append(f"It was stopped in this: {hang.headline}.")


def _drain(run: Run, live: LiveView) -> None:
    """Take what came last; a question of a cell that is over is not put to anyone."""
    while (event := run.next_event(0)) is not None:
        _show_live(event, live, run)


def _show_live(event: RunEvent, live: LiveView, run: Run) -> None:
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
