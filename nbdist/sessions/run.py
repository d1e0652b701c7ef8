"""One cell on its way through the ranks: what has come back so far, and when it is over.

A cell is over on a rank when its reply and all output batches that the reply counts have arrived
(they travel on different sockets), or when the rank is dead, or when `STRAGGLER_S` have passed
since the reply; then what is missing is named below it. Messages come in on the client's IO thread;
whoever waits, waits in their own.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nbdist import packing, view
from nbdist.errors import CellFailed, CellStopped, TransferError
from nbdist.sessions.dumps import frames_of_crash
from nbdist.sessions.transport import Message
from nbdist.sessions.values import RankValues, Unpacker
from nbdist.view.hang import Hang, hang_headline
from nbdist.wire import (
    CELL_REPLY,
    INPUT_REQUEST,
    OUTPUT_BATCH,
    CallCount,
    CellError,
    CellReply,
    CellRequest,
    Clear,
    Output,
    Progress,
    RankOutput,
    Text,
    lost_text,
    output_from_json,
)

logger = logging.getLogger(__name__)

STRAGGLER_S = 2.0


@dataclass(frozen=True)
class Place:
    """Where a rank is now.

    Attributes:
        text: In few words: ``all_reduce #41``, or ``In[12]:4 load_batch``.
        is_waiting: It waits for other ranks there.
    """

    text: str
    is_waiting: bool = False


@dataclass(frozen=True)
class RunEvent:
    """Something that happened to a run.

    Attributes:
        kind: ``output`` (more of it), ``input`` (a rank asks the user), ``ended`` (a rank is done
            with it), ``died`` (a rank is gone), ``places`` (where the ranks are), ``hang`` (they
            wait in vain, or not any more), or ``done`` (everywhere).
        rank: Where; -1 for all.
        outputs: What came, for ``output``.
        content: The question, for ``input``; ``status`` and ``error``, for ``ended``; ``how``, for
            ``died``.
        places: By rank, for ``places``.
    """

    kind: Literal["output", "input", "ended", "died", "places", "hang", "done"]
    rank: int = -1
    outputs: tuple[Output, ...] = ()
    content: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[int, Place] = field(default_factory=dict)


@dataclass
class _RankRun:
    """What has arrived from one rank."""

    batches: list[Output] = field(default_factory=list)
    num_batches: int = 0
    num_unread: int = 0  # of these, those in which something was not what it should be
    foreign: Counter[str] = field(default_factory=Counter)  # messages that are no output, by kind
    reply: CellReply | None = None
    reply_buffers: list[memoryview] = field(default_factory=list)
    ended_at: float = 0.0  # when it replied, died or was given up on, by the monotonic clock
    death: CellError | None = None
    log_tail: str = ""
    abandoned: CellError | None = None
    is_told: bool = False
    _bars: dict[int, int] = field(default_factory=dict)

    def add(self, outputs: Sequence[Output]) -> None:
        """Add what came; of a progress bar only its place and its last record are kept."""
        for output in outputs:
            if isinstance(output, Clear):
                self._bars.clear()  # what comes after it must stay behind it
            place = self._bars.get(output.bar) if isinstance(output, Progress) else None
            if place is not None:
                self.batches[place] = output
                continue
            if isinstance(output, Progress):
                self._bars[output.bar] = len(self.batches)
            self.batches.append(output)

    def take_batch(self, content: Mapping[str, Any]) -> tuple[Output, ...]:
        """Add a batch; it counts as arrived even where it cannot be read."""
        self.num_batches += 1
        self.num_unread += 1
        outputs = tuple(output_from_json(output) for output in content["outputs"])
        self.num_unread -= 1
        self.add(outputs)
        return outputs

    @property
    def has_failed(self) -> bool:
        """Whether it raised here, or the rank is dead."""
        if self.reply is not None:
            return self.reply.status == "error"
        return self.death is not None

    @property
    def num_missing(self) -> int:
        """How many of its batches are not here, as far as its reply says how many there are."""
        expected = 0 if self.reply is None else self.reply.num_batches
        return max(0, expected - self.num_batches) + self.num_unread

    @property
    def is_over(self) -> bool:
        if self.death is not None or self.abandoned is not None:
            return True
        if self.reply is None:
            return False
        is_complete = self.num_batches >= self.reply.num_batches
        return is_complete or time.monotonic() - self.ended_at > STRAGGLER_S


class Run:
    """A cell that was sent to some ranks.

    Made by `Session.run`. Awaitable; at the end of a notebook cell it shows what it has.

    Args:
        request: What was sent.
        unpacker: Turns a value's bytes into an object, for `result`.
        cancel: Interrupts this run on its ranks.
        world_size: Number of ranks in the session.
    """

    def __init__(
        self,
        request: CellRequest,
        unpacker: Unpacker,
        cancel: Callable[[Run], None],
        world_size: int | None = None,
    ) -> None:
        self.request = request
        self.world_size = world_size
        self.ranks = request.ranks
        self.fold = True
        self._unpacker = unpacker
        self._cancel = cancel
        self._parts = {rank: _RankRun() for rank in request.ranks}
        self._changed = threading.Condition()
        self._events: queue.SimpleQueue[RunEvent] = queue.SimpleQueue()
        self._values: RankValues | None = None
        self._unfetched: list[Mapping[str, Any]] = []
        weakref.finalize(self, _discard_all, self._unfetched)
        self.timed_out_s: float | None = None
        self.is_stopping = False
        self.shows_calls = True
        self.notes: list[str] = []
        self.hang: Hang | None = None
        self.places: Mapping[int, Place] = {}
        self._began_at = time.monotonic()

    def __repr__(self) -> str:
        over = [rank for rank in self.ranks if self._parts[rank].is_over]
        where = view.name_ranks(self.ranks)
        if len(over) < len(self.ranks):
            return f"<Run {self.request.label} on {where}, {len(over)} of {len(self.ranks)} done>"
        return f"<Run {self.request.label} on {where}, {'failed' if self.has_failed else 'ok'}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.render() if self.done else {"text/plain": repr(self)}

    # What the ranks say -----------------------------------------------------------------------

    def hear(self, message: Message) -> None:
        """Take a message from a rank, whatever is in it; called in the IO thread."""
        with self._changed:
            part = self._parts[message.rank]
            try:
                self._take(part, message)
            except Exception as exc:  # the edge of a thread; the run has to end all the same
                logger.info("a message of %s cannot be read", self, exc_info=True)
                if message.kind == CELL_REPLY:
                    part.reply, part.ended_at = _unreadable(exc), time.monotonic()
            if part.is_over:
                self._tell_ending(message.rank)
            self._notify_if_done()

    def _take(self, part: _RankRun, message: Message) -> None:
        if message.kind == OUTPUT_BATCH:
            outputs = part.take_batch(message.content)
            self._events.put(RunEvent("output", message.rank, outputs))
        elif message.kind == INPUT_REQUEST:
            self._events.put(RunEvent("input", message.rank, content=message.content))
        elif message.kind == CELL_REPLY:
            part.reply = CellReply.from_json(message.content)
            part.reply_buffers = message.buffers
            part.ended_at = time.monotonic()
            if part.reply.value is not None:
                self._unfetched.append(part.reply.value)
        else:
            part.foreign[message.kind] += 1

    def _tell_ending(self, rank: int) -> None:
        """Tell what came with the reply of *rank*, once: after all batches that went before it."""
        part = self._parts[rank]
        if part.reply is None or part.is_told:
            return
        part.is_told = True
        if part.reply.outputs:
            self._events.put(RunEvent("output", rank, part.reply.outputs))
        ending = {"status": part.reply.status, "error": _in_short(part.reply.error)}
        self._events.put(RunEvent("ended", rank, content=ending))

    def _notify_if_done(self) -> None:
        """Wake who waits for the end; only then, since each wake-up costs a short cell dearly."""
        if self.done:
            self._events.put(RunEvent("done"))
            self._changed.notify_all()

    def note_death(self, rank: int, how: str, log_tail: str = "", stack: str = "") -> None:
        """Take the news that *rank* is gone; called in the agent link's thread.

        Args:
            rank: Which.
            how: ```was killed by SIGKILL``.
            log_tail: The end of its log; what it holds of this cell and has not arrived is kept.
            stack: What its faulthandler has written.
        """
        with self._changed:
            part = self._parts.get(rank)
            if part is None or part.is_over:
                return
            part.log_tail, part.ended_at = log_tail, time.monotonic()
            frames = frames_of_crash(stack, {self.request.label: self.request.code})
            part.death = CellError("RankDied", how.removeprefix("was "), frames)
            self._events.put(RunEvent("died", rank, content={"how": how}))
            self._notify_if_done()

    def note_places(self, places: dict[int, Place]) -> None:
        """Take where the running ranks are; called in the monitor's thread."""
        if places != self.places:
            self.places = places
            self._events.put(RunEvent("places", places=places))

    def note_hang(self, hang: Hang | None) -> None:
        """Take why this cell does not get on; ``None`` while it does. In the monitor's thread."""
        before, self.hang = self.hang, hang  # whoever hears of it reads it
        if hang_headline(hang) != hang_headline(before):
            self._events.put(RunEvent("hang"))

    def abandon(self, error: CellError) -> tuple[int, ...]:
        """Wait no longer for ranks that do not answer.

        Returns:
            The ranks that were still running.
        """
        with self._changed:
            stuck = tuple(rank for rank in self.ranks if not self._parts[rank].is_over)
            for rank in stuck:
                self._parts[rank].abandoned = error
                self._parts[rank].ended_at = time.monotonic()
            self._notify_if_done()
        return stuck

    # What a caller may ask --------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the cell is over on every rank."""
        return all(part.is_over for part in self._parts.values())

    @property
    def is_past_stragglers(self) -> bool:
        """Whether it is over everywhere, so long ago that what was on its way has come."""
        now = time.monotonic()
        return self.done and all(now - part.ended_at > STRAGGLER_S for part in self._parts.values())

    @property
    def age_s(self) -> float:
        """How long ago it was sent."""
        return time.monotonic() - self._began_at

    def ending_of(self, rank: int) -> str:
        """Say how the cell failed on *rank*: ``raised ValueError: bad``; empty where it did not."""
        part = self._parts.get(rank)
        error = part.reply.error if part is not None and part.reply is not None else None
        return "" if error is None else f"raised {_in_short(error)}"

    @property
    def running_ranks(self) -> tuple[int, ...]:
        """The ranks on which the cell is not over."""
        return tuple(rank for rank in self.ranks if not self._parts[rank].is_over)

    @property
    def has_failed(self) -> bool:
        """Whether it ended with anything but *ok* on some rank."""
        return any(output.status != "ok" for output in self.outputs)

    @property
    def outputs(self) -> tuple[RankOutput, ...]:
        """What each rank has put out so far, in rank order."""
        return tuple(self._output_of(rank) for rank in self.ranks)

    @property
    def failures(self) -> tuple[RankOutput, ...]:
        """What the ranks have put out on which it has failed so far; a stop is no failure."""
        return tuple(self._output_of(rank) for rank in self.ranks if self._parts[rank].has_failed)

    def _output_of(self, rank: int) -> RankOutput:
        with self._changed:
            part = self._parts[rank]
            if part.reply is None:
                error = part.death or part.abandoned
                status: Any = "dead" if part.death else "stopped" if part.abandoned else "ok"
                return RankOutput(rank, status, (*part.batches, *self._lost(part)), error)
            outputs = (*part.batches, *self._lost(part), *part.reply.outputs)
            return RankOutput(rank, part.reply.status, outputs, part.reply.error)

    def _lost(self, part: _RankRun) -> Iterator[Output]:
        """Yield what a dead rank wrote and could not send; a batch may come after the death."""
        seen = "".join(output.text for output in part.batches if isinstance(output, Text))
        if text := lost_text(part.log_tail, self.request.label, seen):
            yield Text("stdout", text)

    def next_event(self, timeout_s: float) -> RunEvent | None:
        """Return the next thing that happens, or ``None`` after *timeout_s*."""
        try:
            return (
                self._events.get(timeout=timeout_s) if timeout_s > 0 else self._events.get_nowait()
            )
        except queue.Empty:
            return self._late_event()

    def _late_event(self) -> RunEvent | None:
        """Return what a rank's reply brought whose last batches were given up on."""
        with self._changed:
            for rank, part in self._parts.items():
                if part.is_over:
                    self._tell_ending(rank)
        try:
            return self._events.get_nowait()
        except queue.Empty:
            return None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the cell is over everywhere; return whether it is.

        Args:
            timeout_s: Give up waiting (not the cell) after so many seconds.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self.done:
                rest = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
                if rest <= 0:
                    return False
                self._changed.wait(min(rest, 0.1))  # a straggler is given up by the clock alone
        return True

    def result(self, timeout_s: float | None = None) -> RankValues:
        """Wait for the cell and return the value of its last expression from each rank.

        Raises:
            TimeoutError: It was not over after *timeout_s*.
            CellFailed: It ended with an error on some rank.
            TransferError: A value could not be sent.
        """
        if not self.wait(timeout_s):
            raise TimeoutError(f"{self!r} after {timeout_s} s")
        self.raise_failure()
        return self.values()

    def values(self) -> RankValues:
        """Return the values that came with the replies.

        Raises:
            TransferError: One could not be sent.
        """
        if self._values is None:
            values = {}
            for rank in self.ranks:
                part = self._parts[rank]
                if part.reply is not None and part.reply.value_error:
                    raise TransferError(f"rank {rank}: {part.reply.value_error}")
                if part.reply is not None and part.reply.value is not None:
                    values[rank] = self._unpacker(part.reply.value, part.reply_buffers)
                    part.reply_buffers = []
            self._values = RankValues(values)
        return self._values

    def raise_failure(self) -> None:
        """Raise what went wrong, if anything did.

        Raises:
            CellStopped: It was stopped or timed out.
            CellFailed: It ended with an error on some rank.
        """
        outputs = self.outputs
        failed = [output for output in outputs if output.status != "ok"]
        if not failed:
            return
        summary = view.summary(outputs)
        if self.timed_out_s is not None:
            raise CellStopped(f"{summary}, after --timeout {self.timed_out_s:g} s")
        if all(output.status == "stopped" for output in failed):
            raise CellStopped(summary)
        raise CellFailed(summary, tuple(filter(self._has_failed_itself, self.ranks)))

    def _has_failed_itself(self, rank: int) -> bool:
        reply = self._parts[rank].reply
        error = None if reply is None else reply.error
        return error is not None and error.waited_for is None

    def cancel(self) -> None:
        """Stop the cell on all its ranks; those that have not begun it will not."""
        self._cancel(self)

    @property
    def calls(self) -> dict[int, tuple[CallCount, ...]]:
        """What collectives each rank called, as far as it has replied."""
        replies = ((rank, part.reply) for rank, part in self._parts.items())
        return {rank: reply.calls for rank, reply in replies if reply is not None}

    @property
    def gaps(self) -> list[str]:
        """What came and is not shown, or should have come and has not; a line for each."""
        found: dict[str, list[int]] = {}
        with self._changed:
            for rank, part in self._parts.items():
                for gap in _gaps_of(part):
                    found.setdefault(gap, []).append(rank)
            is_in_log = any(part.num_missing for part in self._parts.values())
        lines = [f"{view.name_ranks(ranks)}: {gap}." for gap, ranks in found.items()]
        where = f"`%dist log {self.request.label}` has all that was put out."
        return [*lines, where] if is_in_log else lines

    def render(self, *, has_text: bool = True) -> dict[str, str]:
        """Return what the cell put out as one mime bundle.

        Args:
            has_text: ``False`` leaves out what was printed: it has been streamed already.
        """
        return view.render(
            self.outputs,
            fold=self.fold,
            has_text=has_text,
            calls=self.calls if self.shows_calls else {},
            world_size=self.world_size,
            notes=[*self.notes, *self.gaps],
        )

    def __await__(self) -> Generator[Any, Any, RankValues]:
        return self._result_async().__await__()

    async def _result_async(self) -> RankValues:
        while not self.done:
            await asyncio.sleep(0.02)
        return self.result()


def _gaps_of(part: _RankRun) -> Iterator[str]:
    if number := part.num_missing:
        yield f"{number} batch{'es' * (number > 1)} of output did not arrive"
    if foreign := part.foreign + Counter(part.reply.refused if part.reply else {}):
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(foreign.items()))
        yield f"messages that cannot be shown: {kinds}"


def _unreadable(exc: Exception) -> CellReply:
    """Stand in for a reply that is none, so that nobody waits for it."""
    said = f"the reply of this rank cannot be read ({type(exc).__name__}: {exc})"
    return CellReply("error", 0, error=CellError("LostReply", said))


def _in_short(error: CellError | None) -> str:
    return "" if error is None else f"{error.ename}: {error.evalue}".partition("\n")[0]


def _discard_all(headers: list[Mapping[str, Any]]) -> None:
    """Delete the files of values that came with a run and were not asked for."""
    for header in headers:
        packing.discard(header)
