"""The one session that the magics and the Python API share, and its end with the process."""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from nbdist.config import Config, load_config
from nbdist.errors import SessionError
from nbdist.sessions.imports import own_imports

if TYPE_CHECKING:
    from nbdist.sessions.session import Session
    from nbdist.sessions.values import RankValues

_current: Session | None = None
_owner_pid = 0


def get() -> Session:
    """Return the running session.

    Raises:
        SessionError: There is none.
    """
    if not is_running() or _current is None:
        raise SessionError(
            "No ranks are running. Start some with `%dist start` or `nbdist.start()`."
        )
    return _current


def is_running() -> bool:
    """Whether there is a session that has not been stopped."""
    return _current is not None and not _current.is_stopped


def start(
    config: Config | None = None,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
    yes: bool = False,
    **overrides: Any,
) -> Session:
    """Start ranks and make them the current session.

    Args:
        config: A resolved configuration (`nbdist.load_config`); the default one when ``None``.
        on_progress: Told in a few words what is being waited for.
        yes: Start them also where they are a lot for this machine.
        **overrides: Keys of the configuration: ``nbdist.start(nproc=4, device="cpu")``. Only where
            no *config* is given.

    Raises:
        SessionError: One is running already.
        ConfigError: A key or a value is wrong.
        LaunchError: The ranks did not come up, or there is no room for so many; nothing is left
            running.
    """
    global _current
    if is_running():
        raise SessionError(f"A session is running already: {get()!r}. Stop it first: `.stop()`.")
    if overrides:
        if config is not None:
            raise SessionError("Give either a config or keys of it, not both.")
        config = load_config(None, overrides)
    config = config if config is not None else load_config()
    if not yes:
        with own_imports():
            from nbdist.launchers.room import check_room

        check_room(config)
    _current = _start(config, on_progress)
    _end_with_this_process()
    return _current


def attach(session_id: str | None = None) -> Session:
    """Take a session whose kernel was killed, with all its variables, and make it the current one.

    Its `restored` runs are of the cells that were not over when the kernel went; they go on.

    Args:
        session_id: As ``nbdist ps`` shows it; the only session that waits when ``None``.

    Raises:
        SessionError: A session is running here, none waits, or it cannot be reached.
    """
    global _current
    if is_running():
        raise SessionError(
            f"A session is running here already: {get()!r}.\n"
            "`%dist stop` (`.stop()`) ends it; then attach to the other one."
        )
    with own_imports():
        from nbdist.sessions import attach as attaching

    _current = attaching.attach(session_id)
    _end_with_this_process()
    return _current


def _start(config: Config, on_progress: Callable[[str], None]) -> Session:
    """Launch the processes, and import what drives them while they import torch."""
    with own_imports():
        from nbdist.launchers import start as launching

    processes = launching.launch(config)
    try:
        with own_imports():
            from nbdist.sessions import session

        return session.connect(config, processes, on_progress)
    except BaseException:
        processes.stop()
        raise


def _end_with_this_process() -> None:
    """Have the session end when this process does, but for a death without warning."""
    global _owner_pid
    if _owner_pid != os.getpid():
        _owner_pid = os.getpid()
        atexit.register(stop)
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is signal.SIG_DFL:
                signal.signal(signum, _end_on_signal)


def _end_on_signal(signum: int, _frame: FrameType | None) -> None:
    """Have the session ended, and die as one does of this signal."""
    stop_soon()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def stop_soon() -> None:
    """Have the current session ended, if there is one, and do not wait; for the last moments.

    The session stays the current one, so that `stop` can wait for its end.
    """
    if _current is not None and os.getpid() == _owner_pid:
        _current.stop_soon()


def stop() -> None:
    """Stop the current session, if there is one; its processes end with it."""
    global _current
    session, _current = _current, None
    if (
        session is not None and os.getpid() == _owner_pid
    ):  # a forked child leaves its parent's alone
        session.stop()


def launch(function: Callable[..., Any], *args: Any) -> RankValues:
    """Run ``function(*args)`` on every rank of the current session and return what it returns.

    For those who come from notebook launchers. The ranks are started with the default configuration
    if none are running, and stay.

    Args:
        function: May be defined in a notebook cell; names it uses must exist on the ranks.
        *args: Anything that can be sent.

    Returns:
        One value per rank.

    Raises:
        CellFailed: It raised on some rank.
    """
    session = get() if is_running() else start()
    session.push({"_nbdist_function": function, "_nbdist_arguments": args})
    return session.run("_nbdist_function(*_nbdist_arguments)").result()
