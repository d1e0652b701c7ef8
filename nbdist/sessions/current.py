"""The one session that the magics and the Python API share, and its end with the process."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbdist.config import Config, load_config
from nbdist.errors import SessionError
from nbdist.sessions.deferral import deferred_interrupts

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
    **overrides: Any,
) -> Session:
    """Start ranks and make them the current session.

    Args:
        config: A resolved configuration (`nbdist.load_config`); the default one when ``None``.
        on_progress: Told in a few words what is being waited for.
        **overrides: Keys of the configuration: ``nbdist.start(nproc=4, device="cpu")``. Only where
            no *config* is given.

    Raises:
        SessionError: One is running already.
        ConfigError: A key or a value is wrong.
        LaunchError: The ranks did not come up; nothing is left running.
    """
    global _current, _owner_pid
    if is_running():
        raise SessionError(f"A session is running already: {get()!r}. Stop it first: `.stop()`.")
    if overrides:
        if config is not None:
            raise SessionError("Give either a config or keys of it, not both.")
        config = load_config(None, overrides)
    _current = _start(config if config is not None else load_config(), on_progress)
    if _owner_pid != os.getpid():
        _owner_pid = os.getpid()
        atexit.register(stop)
    return _current


def _start(config: Config, on_progress: Callable[[str], None]) -> Session:
    """Launch the processes, and import what drives them while they import torch."""
    with deferred_interrupts():
        from nbdist.launchers import start as launching

    processes = launching.launch(config)
    try:
        with deferred_interrupts():
            from nbdist.sessions import session

        return session.connect(config, processes, on_progress)
    except BaseException:
        processes.stop()
        raise


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
    session.push_function("_nbdist_function", function)
    session.push({"_nbdist_arguments": args})
    return session.run("_nbdist_function(*_nbdist_arguments)").result()
