"""Follow a run in the notebook: show it live, serve its questions, stop it, show what it left."""

from __future__ import annotations

import getpass
import time
from typing import Any

from IPython.display import clear_output, publish_display_data

from nbdist import view
from nbdist.notebook.frontend import live_mode
from nbdist.notebook.live import REFRESH_S, LiveView, make_view
from nbdist.sessions.run import Run, RunEvent
from nbdist.sessions.session import Session


def follow(session: Session, run: Run, shell: Any, timeout_s: float | None = None) -> None:
    """Wait until *run* is over and show its final output; Ctrl-C and ■ stop it.

    Args:
        session: Whose run it is.
        run: What to follow.
        shell: The IPython shell whose cell this is.
        timeout_s: Stop the run after so many seconds.

    Raises:
        CellFailed: The cell failed on some rank; its output has been shown.
        CellStopped: It was stopped, or timed out.
    """
    live = make_view(live_mode(session.config.live, shell), lambda: clear_output(wait=True))
    try:
        _watch(session, run, live, timeout_s)
    except KeyboardInterrupt:
        _stop(session, run, live)
    live.close()
    show(run, has_text=not live.shows_text)
    run.raise_failure()


def show(run: Run, *, has_text: bool = True) -> None:
    """Show what *run* left, as one output."""
    bundle = view.render(run.outputs, fold=run.fold, has_text=has_text)
    if bundle:
        seconds = {str(rank): round(value, 3) for rank, value in run.seconds.items()}
        publish_display_data(bundle, metadata={"nbdist": {"seconds": seconds}})


def _watch(session: Session, run: Run, live: LiveView, timeout_s: float | None) -> None:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while not run.done:
        if deadline is not None and time.monotonic() > deadline:
            run.timed_out_s = timeout_s
            session.stop_run(run, f"The cell ran longer than --timeout {timeout_s:g} s")
            break
        _serve(session, run.next_event(REFRESH_S), live)
        live.tick()
    _drain(session, run, live)


def _drain(session: Session, run: Run, live: LiveView) -> None:
    """Take what came last; a question of a cell that is over is not put to anyone."""
    while (event := run.next_event(0)) is not None:
        if event.kind != "input":
            _serve(session, event, live)


def _serve(session: Session, event: RunEvent | None, live: LiveView) -> None:
    if event is None:
        return
    if event.kind == "output":
        live.take(event.rank, event.outputs)
    elif event.kind == "died":
        live.note(f"[rank{event.rank}] {event.content['how']}; the others go on (■ stops them)")
    elif event.kind == "input":
        session.answer_input(event.rank, _ask(event))


def _ask(event: RunEvent) -> dict[str, str]:
    """Put the question of a rank to the user."""
    prompt = f"[rank{event.rank}] {event.content['prompt']}"
    try:
        if event.content["is_password"]:
            return {"text": getpass.getpass(prompt)}
        return {"text": input(prompt)}
    except KeyboardInterrupt:
        raise
    except Exception as exc:  # noqa: BLE001 - a front end without stdin raises its own kind
        return {"error": f"this front end cannot ask: {exc}"}


def _stop(session: Session, run: Run, live: LiveView) -> None:
    """Stop *run*; a second Ctrl-C stops waiting for ranks that do not answer."""
    why = "The cell was stopped"
    try:
        session.stop_run(run, why)
    except KeyboardInterrupt:
        run.abandon(session.no_answer(why))
    _drain(session, run, live)
