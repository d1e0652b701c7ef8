"""Move values between the notebook and the ranks; on a rank they queue up behind its cells.

pull   every rank ── value ──▶ notebook
push   notebook ── value, packed once ──▶ every rank
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nbdist import packing, wire
from nbdist.errors import TransferError
from nbdist.launchers.start import Processes
from nbdist.packing import ValueFolder
from nbdist.pushing import Definitions
from nbdist.sessions.transport import CONTROLLER_LOST, Message, RankClient
from nbdist.sessions.unanswered import Unanswered
from nbdist.sessions.values import RankValues, tensor_from

INTERRUPT_AGAIN_S = 0.5
STOPPING_S = 1.0  # how long a request that was told to stop is waited for

Ranks = tuple[int, ...]


@dataclass
class _Transfer:
    """One request for values on its way.

    Attributes:
        request_id: Names it.
        ranks: Those asked.
        replies: What has come, by rank.
        changed: Notified when one has come.
        is_given_up: Nobody waits for replies any more.
    """

    request_id: str
    ranks: Ranks
    replies: dict[int, Message] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_given_up: bool = False

    @property
    def silent_ranks(self) -> Ranks:
        """Those that have not replied."""
        return tuple(rank for rank in self.ranks if rank not in self.replies)

    @property
    def failures(self) -> dict[int, str]:
        """What went wrong, by rank."""
        replies = {rank: message.content for rank, message in self.replies.items()}
        return {rank: c["error"] for rank, c in replies.items() if c["status"] != "ok"}

    def take(self, message: Message) -> None:
        """Take a reply; called in the IO thread."""
        with self.changed:
            self.replies[message.rank] = message
            if self.is_given_up:
                _discard(message)
            self.changed.notify_all()

    def give_up(self) -> None:
        """Throw away what has come and what comes later."""
        with self.changed:
            self.is_given_up = True
            for message in self.replies.values():
                _discard(message)


class Exchange:
    """Moves values between the notebook and the ranks of one session.

    Args:
        client: The connection to the ranks.
        processes: Of the session.
        unanswered: Keeps which ranks have not answered.
        begin: Called before each request; gives it an id.
        note_failure: Called when the ranks have to agree before they go on.
    """

    def __init__(
        self,
        client: RankClient,
        processes: Processes,
        unanswered: Unanswered,
        *,
        begin: Callable[[], str],
        note_failure: Callable[[], None],
    ) -> None:
        self._client = client
        self._processes = processes
        self._unanswered = unanswered
        self._begin = begin
        self._note_failure = note_failure
        self._folder = ValueFolder(processes.folder.shared_memory(), processes.folder.path)

    def __repr__(self) -> str:
        return f"<Exchange by {self._folder!r}>"

    def pull(self, ranks: Ranks, expression: str, max_bytes: int | None) -> RankValues:
        """Return the value of *expression* from each of *ranks*; errors as in `Session.pull`."""
        content = {"action": "pull", "expression": expression, "max_bytes": max_bytes}
        replies = self._ask(ranks, content)
        values = {}
        try:
            for rank, reply in replies.items():
                values[rank] = self.unpack(reply.content["value"], reply.buffers)
        finally:  # the user may not have waited for all of them, or one is of an unknown class
            for reply in replies.values():
                _discard(reply)
        return RankValues(values)

    def push(self, ranks: Ranks, values: Mapping[str, Any]) -> None:
        """Set the variables *values* on each of *ranks*; errors as in `Session.push`."""
        definitions = Definitions(values.values(), _label_of_cell)
        packed = packing.pack(dict(values), self._folder, definitions=definitions)
        try:
            self._ask(ranks, {"action": "push", "value": packed.header}, packed.buffers)
        finally:
            for path in packed.files:
                path.unlink(missing_ok=True)

    def discard(self, request_id: str, rank: int) -> None:
        """Delete the values that *rank* had for a request when it died, and had not told of."""
        self._folder.discard_values(packing.writer_name(rank), request_id)

    def unpack(self, header: Mapping[str, Any], buffers: list[memoryview]) -> Any:
        """Return the value that came as *header* and *buffers*."""
        return packing.unpack(header, buffers, self._folder, tensor_from)

    def _ask(
        self, ranks: Ranks, content: Mapping[str, Any], buffers: Iterable[bytes] = ()
    ) -> dict[int, Message]:
        """Send a request to each of *ranks* and wait for all replies, or for a death.

        Raises:
            TransferError: It failed on some rank; what the others sent is thrown away.
        """
        transfer = _Transfer(self._begin(), ranks)
        sent_id = self._send(transfer, content, buffers)
        try:
            self._wait(transfer)
        except BaseException:
            transfer.give_up()
            raise
        finally:
            for rank in set(transfer.silent_ranks) & set(self._processes.exits):
                self._unanswered.answered(transfer.request_id, rank)  # died a moment too early
                self.discard(transfer.request_id, rank)
            if transfer.request_id not in self._unanswered:  # else when the last one answers
                self._client.forget(sent_id)
        if problem := self._problem_of(transfer):
            self._note_failure()
            transfer.give_up()
            raise TransferError(problem)
        return dict(sorted(transfer.replies.items()))

    def _send(
        self, transfer: _Transfer, content: Mapping[str, Any], buffers: Iterable[bytes]
    ) -> str:
        """Send the request, and have its replies heard until all have come; return the sent id."""
        client, unanswered, request_id = self._client, self._unanswered, transfer.request_id

        def hear(message: Message) -> None:
            unanswered.answered(request_id, message.rank)  # first: who waits goes on at once
            transfer.take(message)
            if request_id not in unanswered:
                client.forget(message.request_id)

        unanswered.expect(request_id, transfer.ranks)
        content = {**content, "cell_id": request_id}
        try:
            return client.request(transfer.ranks, wire.VALUE_REQUEST, content, hear, buffers)
        except BaseException:
            unanswered.forget(request_id)
            raise

    def _wait(self, transfer: _Transfer) -> None:
        """Wait until *transfer* is over; once a rank has failed, stop those that may wait for it.

        Raises:
            KeyboardInterrupt: The user did not want to wait; the ranks were told to stop.
        """
        try:
            with transfer.changed:
                while not self._is_over(transfer) and not transfer.failures:
                    transfer.changed.wait(0.2)
                while not transfer.changed.wait_for(
                    lambda: self._is_over(transfer), INTERRUPT_AGAIN_S
                ):
                    self._stop(transfer)
        except KeyboardInterrupt:
            self._note_failure()
            self._stop(transfer)
            with transfer.changed:
                transfer.changed.wait_for(lambda: self._is_over(transfer), STOPPING_S)
            raise

    def _stop(self, transfer: _Transfer) -> None:
        self._client.interrupt(transfer.silent_ranks, [transfer.request_id])

    def _is_over(self, transfer: _Transfer) -> bool:
        silent = transfer.silent_ranks
        is_dead = any(rank in self._processes.exits for rank in silent)
        is_out_of_reach = self._processes.is_lost or self._processes.blockage is not None
        return not silent or is_dead or is_out_of_reach

    def _problem_of(self, transfer: _Transfer) -> str | None:
        if silent := transfer.silent_ranks:
            return self._loss(silent)
        failures = transfer.failures
        if not failures:
            return None
        consequences = ("KeyboardInterrupt", "PeerFailed")  # of what another rank has met
        rank = min(failures, key=lambda r: (failures[r].startswith(consequences), r))
        return f"rank {rank}: {failures[rank]}"

    def _loss(self, silent: Ranks) -> str:
        """Say which of the *silent* ranks is gone, or why none is heard.

        The others may only be waiting for it.
        """
        if self._processes.is_controller_lost:
            return CONTROLLER_LOST
        if self._processes.blockage and not set(silent) & set(self._processes.exits):
            return self._processes.blockage
        rank = next((rank for rank in silent if rank in self._processes.exits), silent[0])
        way_out = (
            "`%dist stop` clears up; `%dist start` starts anew."
            if self._processes.is_lost
            else "`%dist recover` puts a fresh rank in its place; the others keep their variables."
        )
        return (
            f"rank {rank} {self._processes.ending_of(rank)} before it had answered.\n"
            f"`%dist logs -r {rank}` shows what it wrote last.\n{way_out}"
        )


def _label_of_cell(filename: str) -> str:
    """Return ``In[5]`` for the file name that IPython gives a cell; any other as it is."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    words = None if shell is None else shell.compile.format_code_name(filename)
    return filename if words is None else str(words[1])


def _discard(message: Message) -> None:
    if message.content.get("value"):
        packing.discard(message.content["value"])
