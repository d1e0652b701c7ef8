"""Talk to the ranks through ipyparallel's Client; every private name of it that this needs is here.

Read in ipyparallel 9.2. Cells are messages of our own type: one down and one reply per rank, output
batches on iopub. Replies and batches are handed on in the client's IO thread.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
from ipyparallel import Client

from nbdist import packing, private, wire
from nbdist.errors import LaunchError, SessionError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 60.0
PROBE = b"nbdist-probe-"  # begins what is no message of a rank, see `nbdist.sessions.channels`

CONTROLLER_LOST = (
    "The controller of this session (an ipyparallel process) is gone, and with it what the ranks "
    "sent last.\n"
    "They go on, and keep all they have; `%dist log` shows what they put out meanwhile.\n"
    "The next cell puts another controller in its place; `%dist recover` does so at once."
)


@dataclass(frozen=True)
class Message:
    """A message from a rank.

    Attributes:
        request_id: Id of the request it is about.
        rank: Who sent it.
        kind: Its type.
        content: JSON content.
        buffers: Raw buffers.
    """

    request_id: str
    rank: int
    kind: str
    content: Mapping[str, Any]
    buffers: list[memoryview]


class RankClient(Client):  # type: ignore[misc]
    """An ipyparallel client that knows nbdist's messages and keeps out of the user's shell.

    Attributes:
        trouble: Why a message could not be taken, if that has ever been so.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.trouble: str | None = None
        self._listeners: dict[str, Callable[[Message], None]] = {}
        self._registered = threading.Condition()
        super().__init__(*args, **kwargs)
        self._queue_handlers[wire.CELL_REPLY] = self._hear
        self._queue_handlers[wire.VALUE_REPLY] = self._hear
        self._queue_handlers[wire.RECOVER_REPLY] = self._hear
        self._registration_callbacks.append(self._note_registration)

    def activate(self, *_: Any, **__: Any) -> None:
        """Register no magics: ``%px`` is not ours to give."""

    def _stop_scheduling_tasks(self) -> None:
        """Say nothing when ids come out of order: no tasks are scheduled here."""

    def _setup_streams(self) -> None:
        """Let no message, whatever is in it, end in a traceback beside the notebook."""
        super()._setup_streams()
        for stream, take in (
            (self._query_stream, self._dispatch_single_reply),
            (self._control_stream, self._dispatch_single_reply),
            (self._mux_stream, self._dispatch_reply),
            (self._iopub_stream, self._dispatch_iopub),
            (self._notification_stream, self._dispatch_notification),
        ):
            stream.on_recv(functools.partial(self._take, take), copy=False)

    def _take(self, take: Callable[[Any], None], msg: Any) -> None:
        try:
            take(msg)
        except Exception as exc:  # the edge of a thread: the next message is as important
            logger.info("a message cannot be taken", exc_info=True)
            self.trouble = f"a message could not be taken: {type(exc).__name__}: {exc}"

    def _note_registration(self, _event: Any) -> None:
        with self._registered:
            self._registered.notify_all()

    def wait_for_ranks(self, ranks: Iterable[int], failure: Callable[[], str | None]) -> None:
        """Wait until all *ranks* are registered.

        Args:
            ranks: The ids that the engines asked for.
            failure: Asked now and then; what it returns ends the wait.

        Raises:
            LaunchError: There was a failure, or it took too long.
        """
        wanted = set(ranks)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        with self._registered:
            while missing := wanted - set(self.ids):
                if problem := failure():
                    raise LaunchError(problem)
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"Ranks {sorted(missing)} did not register with the controller within "
                        f"{CONNECT_TIMEOUT_S:.0f} s. Nothing was left running."
                    )
                self._registered.wait(0.2)

    def release(self, rank: int) -> None:
        """Let the hub forget *rank*, whose process is gone; return when another may have its id.

        Raises:
            LaunchError: The controller does not answer.
        """
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        content = {"id": rank}
        self._io_loop.add_callback(
            self.session.send, self._query_stream, "unregistration_request", content=content
        )
        with self._registered:
            while rank in self._engines:
                if time.monotonic() > deadline:
                    raise LaunchError(f"The controller did not let go of rank {rank}.")
                self._registered.wait(0.2)

    def request(
        self,
        ranks: Iterable[int],
        kind: str,
        content: Mapping[str, Any],
        listener: Callable[[Message], None],
        buffers: Iterable[bytes | memoryview] = (),
    ) -> str:
        """Send one request to the main thread of each of *ranks*.

        Args:
            ranks: The receivers.
            kind: Message type.
            content: JSON content.
            listener: Gets the replies and every iopub message about this request, in the IO thread,
                until `forget` is called.
            buffers: Raw buffers that travel along.

        Returns:
            The id of the request.
        """
        try:
            receivers = [self._engines[rank].encode() for rank in ranks]
        except KeyError as exc:
            raise SessionError(
                f"rank {exc.args[0]} is not back yet: its replacement has not joined.\n"
                "`%dist status` says what it does; `%dist recover` tries again."
            ) from None
        msg = self.session.msg(kind, content=dict(content))
        request_id: str = msg["header"]["msg_id"]
        self._listeners[request_id] = listener
        frames = [*self.session.serialize(msg), *buffers]  # signed once, sent to all
        self._io_loop.add_callback(self._send_to_all, receivers, frames)
        return request_id

    def _send_to_all(self, receivers: list[bytes], frames: list[Any]) -> None:
        # Through the stream, never the bare socket: a send on that takes away the wake-up by which
        # the stream would have noticed a reply, and the cell would never end.
        for receiver in receivers:
            self._mux_stream.send_multipart([receiver, *frames])

    def forget(self, msg_id: str) -> None:
        """Hand on nothing more about this request."""
        self._listeners.pop(msg_id, None)

    def control(self, rank: int, kind: str, content: Mapping[str, Any]) -> Future[Any]:
        """Send a request to the control thread of *rank*, which answers while a cell runs."""
        future: Future[Any] = self._send(
            self._control_stream, kind, content=dict(content), ident=self._engines[rank].encode()
        )
        return future

    def ask_all(
        self, ranks: Iterable[int], kind: str, content: Mapping[str, Any], timeout_s: float
    ) -> dict[int, Mapping[str, Any]]:
        """Ask the control threads of all *ranks* at once; return what those say that answer.

        Args:
            ranks: Whom to ask; those that the hub does not know any more are left out.
            kind: Message type.
            content: JSON content.
            timeout_s: For all of them.
        """
        asked: dict[int, Any] = {}
        for rank in ranks:
            with contextlib.suppress(KeyError):  # it has died meanwhile
                asked[rank] = self.control(rank, kind, content)
        deadline = time.monotonic() + timeout_s
        return {
            rank: answer.result()["content"]
            for rank, answer in asked.items()
            if answer.wait(max(0.0, deadline - time.monotonic()))
        }

    def interrupt(self, ranks: Iterable[int], request_ids: Sequence[str]) -> None:
        """Stop what was asked of *ranks* under these ids; returns at once."""
        for rank in ranks:
            with contextlib.suppress(KeyError):  # it has died meanwhile
                self.control(rank, wire.INTERRUPT_REQUEST, {"cell_ids": list(request_ids)})

    def has_joined(self, rank: int) -> bool:
        """Whether the hub knows *rank*, so that it can be reached."""
        return rank in self._engines

    def _hear(self, msg: Mapping[str, Any]) -> None:
        request_id = msg["parent_header"].get("msg_id", "")
        listener = self._listeners.get(request_id)
        rank = self._engines.get(msg["metadata"].get("engine"))
        if listener is None and msg["content"].get("value"):
            packing.discard(msg["content"]["value"])  # who asked has gone
        if listener is not None and rank is not None:
            buffers = [memoryview(buffer) for buffer in msg.get("buffers", ())]
            kind = msg["header"]["msg_type"]
            listener(Message(request_id, rank, kind, msg["content"], buffers))

    def _dispatch_iopub(self, msg: Any) -> None:
        """Take our own messages here; ipyparallel's way keeps state for every message."""
        if msg[0].bytes.startswith(PROBE):
            return
        _, parts = self.session.feed_identities(msg, copy=False)
        parent = self.session.unpack(parts[2].bytes)
        if parent.get("msg_id") in self._listeners:
            self._hear(self.session.deserialize(parts, content=True, copy=False))


def connect(path: Path) -> RankClient:
    """Connect to the controller whose client connection file will be, or is, at *path*.

    Raises:
        LaunchError: The file did not come, or the controller did not answer.
    """
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while not _is_complete(path):
        if time.monotonic() > deadline:
            raise LaunchError(f"The controller wrote no {path.name} in {CONNECT_TIMEOUT_S:.0f} s.")
        time.sleep(0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about host names, which a loopback session does not use
        try:
            return RankClient(str(path), profile_dir=str(path.parent.parent), context=_context())
        except (OSError, TimeoutError) as exc:
            raise LaunchError(f"The controller cannot be reached: {exc}") from exc


def _context() -> zmq.Context[Any]:
    """Return the process's context; sockets made through it have a name.

    By that another controller knows them again: without it a reply to what was asked before the
    controller was replaced would find nobody.
    """
    context: zmq.Context[Any] = zmq.Context(shadow=zmq.Context.instance())
    context.setsockopt(zmq.IDENTITY, b"notebook-" + secrets.token_hex(8).encode())
    return context


def _is_complete(path: Path) -> bool:
    try:
        json.loads(private.read_bytes(path))
    except (FileNotFoundError, ValueError):
        return False
    return True
