"""Drive one real Jupyter kernel from outside, and time what it sends back.

Time is that of a front end: from sending the request until both the reply and the kernel's "idle"
are here. Sizes are those on the wire, headers included.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

START_TIMEOUT_S = 120.0


class CellTimeout(Exception):
    """A cell was not over in time; the kernel is of no use any more."""


@dataclass(frozen=True)
class Message:
    """One message that reached the front end while a cell ran.

    Attributes:
        kind: Its message type, such as ``stream`` or ``comm_msg``.
        text: Content and metadata as JSON, as they were on the wire.
        at_s: Seconds since the request was sent.
        size_bytes: Of all its frames.
    """

    kind: str
    text: str
    at_s: float
    size_bytes: int


@dataclass(frozen=True)
class CellRun:
    """A cell as the front end saw it.

    Attributes:
        status: ``ok`` or ``error``, of the kernel's reply.
        duration_s: From the request to reply and idle.
        messages: All of its iopub messages in order of arrival.
        error: Name and message of what the cell ended with, if it ended badly.
    """

    status: str
    duration_s: float
    messages: tuple[Message, ...]
    error: str

    @property
    def size_bytes(self) -> int:
        return sum(message.size_bytes for message in self.messages)

    @property
    def everything(self) -> str:
        return "\n".join(message.text for message in self.messages)

    def first_s(self, needle: str) -> float:
        """When *needle* was first on the wire, in any kind of message but the echo of the code."""
        for message in self.messages:
            if message.kind != "execute_input" and needle in message.text:
                return message.at_s
        raise LookupError(f"{needle!r} never came; this did: {self.everything[-500:]}")


class Kernel:
    """A running kernel started by the command *argv*; ends at `close`, with a grace period."""

    def __init__(self, argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path) -> None:
        self._manager = KernelManager(kernel_name="python3")
        self._manager._kernel_spec = KernelSpec(argv=[str(word) for word in argv])
        path = f"{Path(argv[0]).parent}{os.pathsep}{os.environ['PATH']}"
        self._manager.start_kernel(
            env={**os.environ, "PATH": path, **env}, cwd=str(cwd), stderr=subprocess.DEVNULL
        )
        self._client: BlockingKernelClient = self._manager.client()
        self._client.start_channels()
        self._client.wait_for_ready(timeout=START_TIMEOUT_S)

    def run(self, code: str, *, timeout_s: float = 60.0, can_ask: bool = False) -> CellRun:
        """Run one cell to its end.

        Args:
            code: Its source.
            timeout_s: How long to wait for the end.
            can_ask: Let it ask the user, who never answers.

        Raises:
            CellTimeout: It was not over after *timeout_s*.
        """
        listener = Listener(self._client)
        listener.parent = self._client.execute(code, allow_stdin=can_ask, stop_on_error=False)
        try:
            return listener.listen(timeout_s)
        except TimeoutError:
            raise CellTimeout(f"not over after {timeout_s:.0f} s: {code!r:.80}") from None

    def check(self, code: str, *, timeout_s: float = 120.0) -> CellRun:
        """Run one cell that must succeed for the benchmark to go on.

        Raises:
            RuntimeError: It failed.
        """
        run = self.run(code, timeout_s=timeout_s)
        if run.status != "ok":
            raise RuntimeError(f"{code.splitlines()[0]}: {run.error}")
        return run

    def interrupt(self) -> None:
        """Press the stop button; any thread may."""
        self._manager.interrupt_kernel()

    def close(self) -> None:
        """Shut the kernel down as a front end does; twice does nothing more."""
        self._client.stop_channels()
        if self._manager.has_kernel:
            self._manager.shutdown_kernel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Kernel {'running' if self._manager.has_kernel else 'closed'}>"


class Listener:
    """Collects what belongs to one cell, from the moment it is made."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.parent = ""
        self._client = client
        self._messages: list[Message] = []
        self._status = ""
        self._error = ""
        self._is_idle = False
        self._start = time.perf_counter()

    def listen(self, timeout_s: float) -> CellRun:
        iopub, shell = self._client.iopub_channel.socket, self._client.shell_channel.socket
        assert iopub is not None
        assert shell is not None
        poller = zmq.Poller()
        poller.register(iopub, zmq.POLLIN)
        poller.register(shell, zmq.POLLIN)
        while not (self._is_idle and self._status):
            left_s = timeout_s - self._elapsed_s()
            ready = dict(poller.poll(max(0, int(1e3 * left_s))))
            if not ready:
                raise TimeoutError
            if iopub in ready:
                self._take(iopub.recv_multipart())
            if shell in ready:
                self._take(shell.recv_multipart())
        return CellRun(self._status, self._elapsed_s(), tuple(self._messages), self._error)

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._start

    def _take(self, frames: list[bytes]) -> None:
        at_s = self._elapsed_s()
        session = self._client.session
        # after the signature: header, parent header, metadata, content, then buffers
        parts = session.feed_identities(frames)[1]
        message: dict[str, Any] = session.deserialize(parts)
        if message["parent_header"].get("msg_id") != self.parent:
            return
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "execute_reply":
            self._status = content["status"]
            self._error = f"{content['ename']}: {content['evalue']}" if "ename" in content else ""
            return
        if kind == "status":
            self._is_idle = content["execution_state"] == "idle"
        text = b"".join(bytes(part) for part in parts[3:]).decode(errors="replace")
        self._messages.append(Message(kind, text, at_s, sum(map(len, frames))))
