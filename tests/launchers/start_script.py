"""Start a session as a script would, say how it is, and wait to be killed or told to go on.

    start_script.py NPROC [HOW [key=value ...]]

HOW: stop (default), leave (exit without stop), crash, stay

Prints one JSON object: what the ranks are, or the error of the start.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import nbdist


def facts(session: Any) -> dict[str, Any]:
    environment = session.run("import os; (os.environ['MASTER_PORT'], nbdist.all_reduce(rank))")
    return {
        "summary": session.summary,
        "session_id": session.session_id,
        "values": list(environment.result(60)),
        "has_torch": "torch" in sys.modules,
        "big": float(session.pull("torch.ones(2**20)", 0)[0].sum()),
        "error": None,
    }


def say(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main(nproc: int, how: str, overrides: list[str]) -> None:
    try:
        config = nbdist.load_config(None, [f"nproc={nproc}", "device=cpu", *overrides])
        session = nbdist.start(config)
    except nbdist.NbdistError as exc:
        say({"error": f"{type(exc).__name__}: {exc}"})
        return
    say(facts(session))
    if how == "stay":
        sys.stdin.read()
    elif how == "crash":
        os._exit(1)
    elif how == "stop":
        session.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "stop", sys.argv[3:])
