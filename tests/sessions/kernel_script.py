"""A kernel that can be killed: it runs the code it is told to, one JSON string a line.

After each line it prints, as one line of JSON, the value of ``it``, or the error.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    namespace: dict[str, Any] = {}
    for line in sys.stdin:
        namespace["it"] = None
        try:
            exec(json.loads(line), namespace)
            answer: dict[str, Any] = {"it": namespace["it"]}
        except Exception as exc:  # noqa: BLE001 - whatever it is, the test is told
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
