"""Drive a real Jupyter kernel as a front end does, and look at all it sends back.

    with Notebook() as notebook:
        cell = notebook.run("%load_ext nbdist")
        running = notebook.begin("%%dist\nwhile True: pass")
        notebook.interrupt()
        cell = running.finish()

Every process of a notebook carries a mark of its own, so that what it leaves behind can be found.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from tests.processes import processes_marked

MARK = "NBDIST_TEST_KERNEL"
PATIENCE_S = 50.0
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"

Content = dict[str, Any]


@dataclass(frozen=True)
class Status:
    """What the kernel has said of itself.

    Attributes:
        state: ``busy`` or ``idle``.
        about: Id of the message that it was busy with.
        at: When it came here, on the monotonic clock.
    """

    state: str
    about: str
    at: float


@dataclass(frozen=True)
class Cell:
    """A cell as the front end saw it.

    Attributes:
        status: ``ok`` or ``error``, of the kernel's reply.
        outputs: (message type, content) of what would stand under the cell, in order of arrival;
            nothing is cleared or updated.
        reply: Content of the kernel's reply.
        duration_s: From sending the request to its end.
    """

    status: str
    outputs: tuple[tuple[str, Content], ...]
    reply: Content
    duration_s: float

    def of_kind(self, kind: str) -> list[Content]:
        return [content for name, content in self.outputs if name == kind]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.outputs]

    @property
    def streams(self) -> str:
        return "".join(content["text"] for content in self.of_kind("stream"))

    @property
    def display(self) -> str:
        """The plain text of the one display there must be."""
        [content] = self.of_kind("display_data")
        return str(content["data"]["text/plain"])

    @property
    def error(self) -> str:
        """Name and message of the error on the page."""
        [content] = self.of_kind("error")
        return f"{content['ename']}: {content['evalue']}"


class RunningCell:
    """A cell that was sent; its messages are collected when someone asks.

    Args:
        client: Where they come in.
        cells: All cells that were sent through *client*, by the id of their message: whoever asks
            first takes in what belongs to the others as well.
        answers: What the user types.
        statuses: Takes all that the kernel says of itself meanwhile.
        message_id: Of the cell.
    """

    def __init__(
        self,
        client: BlockingKernelClient,
        cells: dict[str, RunningCell],
        answers: Sequence[str],
        statuses: list[Status],
        message_id: str = "",
    ) -> None:
        self._client = client
        self._cells = cells
        self._statuses = statuses
        self._answers = list(answers)
        self._outputs: list[tuple[str, Content]] = []
        self._reply: Content = {}
        self._is_idle = False
        self.message_id = message_id
        self.began = time.monotonic()

    @property
    def widget(self) -> str:
        """The id of the widget that is shown."""
        [content] = [content for kind, content in self._outputs if kind == "display_data"]
        return str(content["data"][WIDGET_MIME]["model_id"])

    def until_shown(self, text: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Return when *text* has reached the page, printed or in a widget."""
        messages = self._messages(timeout_s)
        while not any(text in json.dumps(content, default=str) for _, content in self._outputs):
            if next(messages, self) is self:
                raise AssertionError(f"the cell ended without showing {text!r}: {self._outputs}")

    def until_asked(self, times: int = 1, *, timeout_s: float = PATIENCE_S) -> None:
        """Return when the user has been asked something, so many times in all."""
        messages = self._messages(timeout_s)
        while sum(kind == "input_request" for kind, _ in self._outputs) < times:
            if next(messages, self) is self:
                raise AssertionError(f"the cell ended without asking: {self._outputs}")

    def until_said(self, told: Callable[[list[Status]], bool], *, timeout_s: float = 10) -> None:
        """Return when *told* is true of what the kernel has said of itself so far."""
        messages = self._messages(timeout_s)
        while not told(self._statuses):
            if next(messages, self) is self:
                raise AssertionError(f"the cell ended before: {self._statuses}")

    def finish(self, *, timeout_s: float = PATIENCE_S) -> Cell:
        """Return the cell when both its reply and the kernel's "idle" are here."""
        for _ in self._messages(timeout_s):
            pass
        duration_s = time.monotonic() - self.began
        return Cell(self._reply["status"], tuple(self._outputs), self._reply, duration_s)

    def _messages(self, timeout_s: float) -> Iterator[None]:
        """Take in one message after the other until the cell is over."""
        channels = [
            self._client.iopub_channel,
            self._client.shell_channel,
            self._client.stdin_channel,
        ]
        poller = zmq.Poller()
        for channel in channels:
            assert channel.socket is not None
            poller.register(channel.socket, zmq.POLLIN)
        deadline = time.monotonic() + timeout_s
        while not (self._reply and self._is_idle):
            rest_s = deadline - time.monotonic()
            ready = dict(poller.poll(max(0, int(1e3 * rest_s))))
            if not ready:
                raise TimeoutError(f"the cell is not over after {timeout_s} s: {self._outputs}")
            for channel in channels:
                if channel.socket in ready:
                    message = channel.get_msg(timeout=1)
                    self._note_status(message)
                    if cell := self._cells.get(message["parent_header"].get("msg_id")):
                        cell._take(message)
                    yield

    def _note_status(self, message: Mapping[str, Any]) -> None:
        if message["header"]["msg_type"] == "status":
            about = str(message["parent_header"].get("msg_id"))
            state = message["content"]["execution_state"]
            self._statuses.append(Status(state, about, time.monotonic()))

    def _take(self, message: Mapping[str, Any]) -> None:
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "execute_reply":
            self._reply = content
        elif kind == "status":
            self._is_idle = content["execution_state"] == "idle"
        elif kind == "input_request":
            self._outputs.append((kind, content))
            if self._answers:
                self._client.input(self._answers.pop(0))
        elif kind != "execute_input":
            self._outputs.append((kind, content))


class Notebook:
    """A kernel of this Python; ends at `close`, and must leave nothing behind.

    Args:
        env: Variables of its environment, beside those of this process.
        cwd: Where it runs.
    """

    def __init__(self, *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self._manager = KernelManager(kernel_name="python3")
        self._manager._kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        )
        environment = {**os.environ, "NBDIST_LIVE": "auto", **(env or {}), MARK: self.mark}
        if environment["NBDIST_LIVE"] == "auto":
            del environment["NBDIST_LIVE"]
        self._manager.start_kernel(env=environment, cwd=str(cwd) if cwd else None)
        self._connect()
        self.pid: int = self.value("__import__('os').getpid()")

    def _connect(self) -> None:
        self._cells: dict[str, RunningCell] = {}
        self.statuses: list[Status] = []
        self._client: BlockingKernelClient = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=PATIENCE_S)

    def run(
        self,
        code: str,
        *,
        answers: Sequence[str] | None = None,
        page: bool = False,
        timeout_s: float = PATIENCE_S,
    ) -> Cell:
        """Run one cell to its end."""
        return self.begin(code, answers=answers, page=page).finish(timeout_s=timeout_s)

    def begin(
        self, code: str, *, answers: Sequence[str] | None = None, page: bool = False
    ) -> RunningCell:
        """Send one cell.

        Args:
            code: Its source.
            answers: What the user types when ``input()`` asks, then nothing more; ``None`` stands
                for a front end that cannot ask.
            page: Send the id of the cell along, as JupyterLab does.
        """
        client = self._client
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": answers is not None,
            "stop_on_error": False,
        }
        metadata = {"cellId": str(uuid.uuid4())} if page else {}
        message = client.session.msg("execute_request", content, metadata=metadata)
        message_id = message["header"]["msg_id"]
        running = RunningCell(client, self._cells, answers or (), self.statuses, message_id)
        self._cells[message_id] = running
        client.shell_channel.send(message)
        return running

    def value(self, expression: str) -> Any:
        """Return the value of *expression*, a literal, in the kernel; it leaves no trace there."""
        running = RunningCell(self._client, self._cells, (), self.statuses)
        message_id = self._client.execute(
            "", silent=True, store_history=False, user_expressions={"it": expression}
        )
        self._cells[message_id] = running
        cell = running.finish()
        found = cell.reply["user_expressions"]["it"]
        assert found["status"] == "ok", found
        return ast.literal_eval(found["data"]["text/plain"])

    def open_subshell(self) -> str:
        """Ask for the thread that a page has its messages answered in; return its id."""
        channel = self._client.control_channel
        channel.send(self._client.session.msg("create_subshell_request", {}))
        reply = channel.get_msg(timeout=PATIENCE_S)
        return str(reply["content"]["subshell_id"])

    def say_to_widget(self, model_id: str, content: Content, subshell: str) -> str:
        """Say *content* to a widget's other half in the kernel; return the id of the message."""
        data = {"method": "custom", "content": content}
        message = self._client.session.msg("comm_msg", {"comm_id": model_id, "data": data})
        message["header"]["subshell_id"] = subshell
        self._client.shell_channel.send(message)
        return str(message["header"]["msg_id"])

    def answer(self, text: str) -> None:
        """Type *text* at the prompt that is open."""
        self._client.input(text)

    def interrupt(self) -> None:
        """Press the stop button."""
        self._manager.interrupt_kernel()

    def restart(self) -> None:
        """Restart the kernel as the button of that name does: ask, wait, kill."""
        self._client.stop_channels()
        self._manager.restart_kernel()
        self._connect()

    def close(self) -> None:
        """Shut the kernel down as a front end does; twice does nothing more."""
        self._client.stop_channels()
        if self._manager.has_kernel:
            self._manager.shutdown_kernel()

    def processes(self) -> list[psutil.Process]:
        """Return the processes of this notebook that live: its kernel, and what came from it."""
        return processes_marked(MARK, self.mark)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
