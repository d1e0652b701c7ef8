"""Let ``input()`` on a rank ask the person at the notebook."""

from __future__ import annotations

import builtins
import getpass
import threading
from collections.abc import Callable, Mapping
from typing import Any

from nbdist.wire import INPUT_REQUEST


class InputRelay:
    """Sends prompts to the notebook and waits for the answers.

    Args:
        publish: Sends (message type, cell id, content) to the notebook.
        running_cell: Returns the id of the running cell, or ``None``.
        flush: Sends what was printed so far: who is asked has to see it.
    """

    def __init__(
        self,
        publish: Callable[[str, str, dict[str, Any]], None],
        running_cell: Callable[[], str | None],
        flush: Callable[[], None],
    ) -> None:
        self._publish = publish
        self._running_cell = running_cell
        self._flush = flush
        self._answered = threading.Event()
        self._answer: Mapping[str, Any] = {}

    def install(self) -> None:
        """Make ``input`` and ``getpass.getpass`` ask the notebook."""
        builtins.input = self._input
        getpass.getpass = self._getpass

    def answer(self, content: Mapping[str, Any]) -> None:
        """Take the answer; any thread may call."""
        self._answer = content
        self._answered.set()

    def _input(self, prompt: object = "") -> str:
        return self._ask(str(prompt), is_password=False)

    def _getpass(self, prompt: str = "Password: ", *_: object, **__: object) -> str:
        return self._ask(prompt, is_password=True)

    def _ask(self, prompt: str, *, is_password: bool) -> str:
        cell_id = self._running_cell()
        if cell_id is None or threading.current_thread() is not threading.main_thread():
            raise EOFError("input() works only in the main thread of a running cell.")
        self._flush()
        self._answered.clear()
        self._publish(INPUT_REQUEST, cell_id, {"prompt": prompt, "is_password": is_password})
        while not self._answered.wait(3600):  # woken by the answer, or by KeyboardInterrupt
            pass
        if "error" in self._answer:
            raise EOFError(self._answer["error"])
        return str(self._answer["text"])
