"""A kernel process with a session, driven by JSON lines on stdin; each is answered by one line.

What it says on stderr is what a notebook would show without having been asked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import nbdist
from nbdist.errors import NbdistError
from tests.sessions.driving import printed, statuses

TIMEOUT_S = 10.0


def start(**overrides: Any) -> dict[str, Any]:
    session = nbdist.start(device="cpu", **overrides)
    return {"id": session.session_id}


def run(code: str) -> dict[str, Any]:
    cell = nbdist.session().run(code)
    is_over = cell.wait(TIMEOUT_S)
    values = list(cell.values()) if is_over and not cell.has_failed else []
    texts = [printed(cell, rank) for rank in cell.ranks]
    return {"is_over": is_over, "statuses": statuses(cell), "values": values, "printed": texts}


def pull(expression: str) -> dict[str, Any]:
    return {"values": list(nbdist.session().pull(expression))}


def push(size: int) -> dict[str, Any]:
    nbdist.session().push({"pushed": "x" * size})
    return {}


def about() -> dict[str, Any]:
    session = nbdist.session()
    return {
        "trouble": session.trouble,
        "states": [state.state for state in session.states()],
        "folder": str(session._processes.folder.path),
    }


def stop() -> dict[str, Any]:
    nbdist.session().stop()
    return {}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    command.__name__: command for command in (start, run, pull, push, about, stop)
}


def answer(line: str) -> dict[str, Any]:
    request = json.loads(line)
    try:
        return COMMANDS[request["command"]](**request["arguments"])
    except NbdistError as exc:
        return {"error": f"{type(exc).__name__}: {exc}"}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)
