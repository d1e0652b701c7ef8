"""What keeps a failure from costing state, as one rank has it: guard, lifeline and rescue together.

    join                   before the first group is made
    a cell fails ──▶ conclude ──▶ those who wait for this rank are freed and told why
    SIGINT does nothing ──▶ cut_off ──▶ the native call ends
    before the next cell ──▶ settle ──▶ all ranks agree, and make their groups anew where need be

The parts know nothing of cells; this knows nothing of messages. Uses no process group to agree:
those may be what is broken.
"""

from __future__ import annotations

import gc
import opcode
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nbdist.errors import CollectiveAborted, CollectiveError, CollectiveMismatch, PeerFailed
from nbdist.rank.failures import message_of
from nbdist.rank.interrupts import has_interrupt, is_hidden
from nbdist.runtime import torch_private
from nbdist.runtime.flight import flight_calls, forget_flight
from nbdist.runtime.guard import Guard, Mode
from nbdist.runtime.guard_mode import set_current
from nbdist.runtime.lifeline import Lifeline
from nbdist.runtime.rescue import Rescue
from nbdist.runtime.session_group import SessionGroup
from nbdist.runtime.table import Table
from nbdist.wire import AgentSpec, GroupCall

TIDY_EVERY = 16  # agreements
_RAISE = opcode.opmap["RAISE_VARARGS"]
_BELOW = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))  # torch and nbdist


@dataclass(frozen=True)
class Conclusion:
    """How a cell ended, as far as other ranks have to do with it.

    Attributes:
        failure: What to show; ``None`` when it went well.
        waited_for: The rank whose failure this one's is only a consequence of.
        is_stopped: It ended because someone stopped it, here or on another rank.
    """

    failure: BaseException | None
    waited_for: int | None = None
    is_stopped: bool = False


class Recovery:
    """Guard, lifeline and rescue of this rank."""

    def __init__(
        self,
        guard: Guard,
        lifeline: Lifeline,
        spec: AgentSpec,
        rank: int,
        store_address: tuple[str, int],
    ) -> None:
        self.guard = guard
        self.lifeline = lifeline
        self._spec = spec
        self._rank = rank
        self._address = store_address
        self._timeout = timedelta(seconds=spec.config["timeout_s"])
        # Of its own: an abort cuts the store that the groups use.
        self._meeting_store = lifeline.meeting_store(*store_address, self._timeout)
        self._support = torch_private.probe()
        self._group = SessionGroup(_say, lambda: self._address, self._timeout)
        self._aborted_before: str | None = None
        self._is_half_built = False
        self._is_unsettled = False
        self._ended_at = 0  # when the latest cell was over here, as the table's stamps count

    @classmethod
    def for_rank(
        cls, spec: AgentSpec, rank: int, store_address: tuple[str, int], table: Path
    ) -> Recovery:
        """Return what *rank* needs, nothing of it at work yet."""
        guard = Guard(Table(table), rank, mode=mode_of(spec))
        return cls(guard, Lifeline(), spec, rank, store_address)

    def __repr__(self) -> str:
        return f"<Recovery {self.guard!r} {self.lifeline!r}>"

    @property
    def limits(self) -> list[str]:
        """What this torch does not allow; empty for one that has all names that are needed."""
        support = self._support
        lacking = [
            text
            for is_there, text in (
                (support.guard, "collectives are not checked before they run"),
                (support.abort, "a rank that is stuck in a native collective cannot be freed"),
                (support.rebuild, "process groups cannot be made anew in place"),
                (support.reset, "DDP and FSDP2 modules cannot be reset after a failed step"),
                (support.share, "a script cannot make and destroy a process group of its own"),
            )
            if not is_there
        ]
        if not lacking:
            return []
        return [*lacking, f"torch {support.version} lacks {', '.join(support.missing)}"]

    @property
    def unguarded_calls(self) -> tuple[GroupCall, ...]:
        """Where this rank stands in its groups, as torch knows; empty while the guard knows."""
        return flight_calls(self._rank) if self.guard.mode == "off" else ()

    def join(self, device: torch.device, generation: int, meeting: str | None) -> None:
        """Join the process groups: make the world's at the start, or take a dead rank's place."""
        if self._support.guard:
            self.guard.install()
            set_current(self.guard)
        if self._support.abort and self._support.rebuild:
            self.lifeline.install(generation=generation)
            Rescue(self.guard, self.lifeline).start()
        os.register_at_fork(after_in_child=self._leave)
        store = self._open_store()
        if meeting is None:
            self._make_world(torch_private.prefix_store(f"gen{generation}", store), device)
            dist.all_reduce(torch.ones(1, device=device))
            self.guard.take_counts()
            self._share_group()
            return
        agreed = self.guard.resync(self._meeting_store, meeting, is_broken=True, is_fresh=True)
        self.lifeline.join(
            lambda store: self._make_world(store, device),
            store,
            generation,
            rank=self._rank,
            world_size=self._spec.world_size,
            group_count=agreed.group_count,
        )
        self.guard.rebuilt()
        self._share_group()

    def _share_group(self) -> None:
        if self._support.share:
            self._group.install()

    def _leave(self) -> None:
        """In a process that this rank has forked: it is none, and says nothing to the others."""
        self.guard.set_mode("off")
        self.lifeline.leave()
        self._group.leave()

    def _make_world(self, store: Any, device: torch.device) -> None:
        dist.init_process_group(
            self._spec.backend,
            store=store,
            rank=self._rank,
            world_size=self._spec.world_size,
            timeout=self._timeout,
            device_id=None if device.type == "cpu" else device,
        )
        torch_private.call_by_backend(torch_private.living_groups()[0])

    def _open_store(self) -> Any:
        return self.lifeline.open_store(*self._address, self._timeout)

    # Around a cell ----------------------------------------------------------------------------

    def begin(self, cell_id: str) -> None:
        """Say that a cell begins."""
        self.guard.begin_cell(cell_id)
        self._group.put_back()  # a thread may have destroyed it since the last cell
        self._aborted_before = self.lifeline.aborted
        met = self.guard.cancellation()
        # Not what fails meanwhile: another rank may have been quicker to begin, and to fail.
        self._is_unsettled = met is not None and met.stamp < self._ended_at
        self.guard.take_counts()

    def conclude(self, failure: BaseException | None, *, was_told_to_stop: bool) -> Conclusion:
        """Say that the cell is over; where it failed, free the ranks that wait for this one.

        Args:
            failure: What the cell raised.
            was_told_to_stop: This rank was told to stop it.
        """
        try:
            return self._conclude(failure, was_told_to_stop)
        except Exception as exc:  # noqa: BLE001 - a signal handler of the user's raises anywhere
            # A DataLoader's does, for each worker that has died. Half told, nobody would be freed.
            return self._conclude(failure or exc, was_told_to_stop)
        finally:
            self.guard.end_cell(has_group=not self._group.put_back())
            self._ended_at = time.monotonic_ns()
            self.guard.trace.end_cell()

    def _conclude(self, failure: BaseException | None, was_told_to_stop: bool) -> Conclusion:
        was_cut_off = self.lifeline.aborted is not None and self._aborted_before is None
        if failure is None and was_cut_off and not self._is_unharmed():
            try:
                self.lifeline.raise_if_aborted()
            except CollectiveAborted as exc:
                failure = exc
        if failure is None:
            return Conclusion(None)
        is_users = _is_raised_by_user(failure)
        if not is_users and (was_cut_off or torch_private.is_lost_connection(failure)):
            failure = self.guard.explain(failure)
        peer = failure if isinstance(failure, PeerFailed) else None
        if peer is not None and self._is_unsettled:
            return Conclusion(_not_settled(peer))
        freed_by_stop = was_told_to_stop and (was_cut_off or isinstance(failure, CollectiveError))
        is_interrupt = was_told_to_stop and has_interrupt(failure)
        if freed_by_stop or is_interrupt or (peer and peer.kind == "stopped"):
            self.guard.cancel(f"rank {self._rank} was stopped", kind="stopped")
            # What a native call says when it is cut off is no news, and never alike twice.
            if not is_interrupt or isinstance(failure, KeyboardInterrupt) or is_hidden(failure):
                words = failure.args if isinstance(failure, KeyboardInterrupt) else ()
                failure = KeyboardInterrupt(*words).with_traceback(failure.__traceback__)
            return Conclusion(failure, is_stopped=True)
        if peer is not None and peer.culprit not in (-1, self._rank):
            self.guard.cancel(_first_line(peer), peer.culprit, kind=peer.kind)
            return Conclusion(failure, waited_for=peer.culprit)
        if isinstance(failure, CollectiveMismatch):  # so that the others show both calls as well
            self.guard.cancel(message_of(failure), kind="mismatch")
            return Conclusion(failure)
        name = type(failure).__name__
        said = _first_line(failure)
        self.guard.cancel(f"rank {self._rank} raised {name}{f': {said}' if said else ''}")
        if is_out_of_memory(failure):
            self._free_memory(failure)
        return Conclusion(failure)

    def _is_unharmed(self) -> bool:
        """Whether a cell that came to its end waited for none of the calls that were cut off.

        A death cuts all groups off, also those of a rank that only computes.
        """
        met = self.guard.cancellation()
        if met is None or met.kind != "died" or met.of is None:
            return False
        return self.lifeline.tells_who_waits and not self.guard.has_unmatched(met.of)

    def _free_memory(self, failure: BaseException) -> None:
        """Empty torch's cache, and add to *failure* how much memory there was."""
        gc.collect()
        if not torch.cuda.is_initialized():
            return
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        failure.add_note(
            "torch's cache was emptied: "
            f"{free / 2**30:.2f} of {total / 2**30:.2f} GiB are free now."
        )

    def cut_off(self, reason: str) -> None:
        """End whatever native call the main thread waits in; any thread may call."""
        self.lifeline.abort(reason, generation=self.lifeline.generation)

    def _has_received_from_any(self) -> bool:
        """Whether a `recv` without a source may still be open: it would take the next message.

        Such calls are not counted, as nobody knows which message they meet.
        """
        slots = [slot for slot in self.guard.table.slots() if not slot.is_free]
        return any(
            slot.takes_from_any(slot.key.ranks.index(self._rank))
            for slot in slots
            if slot.key.kind == "group" and self._rank in slot.key.ranks
        )

    def settle(
        self,
        generation: int,
        meeting: str,
        *,
        must_rebuild: bool,
        store_address: Sequence[Any] | None = None,
    ) -> None:
        """Agree with all other ranks to go on; called on all of them, between two cells.

        Args:
            generation: Of the groups, where they have to be made anew; never used before.
            meeting: Names this agreement, alike on all ranks and never used before.
            must_rebuild: Make the groups anew in any case: a fresh rank is to join them.
            store_address: Of the store that took the place of one that ended, if one did.

        Raises:
            PeerFailed: One of the ranks has died meanwhile.
            CollectiveTimeout: One of them did not come.
            RebuildError: Likewise, while the groups were made.
        """
        is_broken = must_rebuild or self.lifeline.aborted is not None
        is_broken |= self._move_to(store_address)
        # Unguarded, nobody has counted which native calls are still under way.
        is_broken |= self._is_half_built or self.guard.mode == "off"
        is_broken |= self._has_received_from_any()
        outcome = self.guard.resync(self._meeting_store, meeting, is_broken=is_broken)
        if outcome.needs_rebuild:
            self._rebuild(generation)
        else:
            self.lifeline.reset_modules()
        if self._rank == 0 and generation % TIDY_EVERY == 0:
            self._meeting_store.tidy(self.lifeline.generation, generation)

    def _rebuild(self, generation: int) -> None:
        self._is_half_built = True  # an interrupt may leave it so
        self.lifeline.rebuild(self._open_store(), generation)
        self._is_half_built = False
        self.guard.rebuilt()
        forget_flight()

    def _move_to(self, store_address: Sequence[Any] | None) -> bool:
        """Use the store at this address from now on; return whether it is another one."""
        if store_address is None or tuple(store_address) == self._address:
            return False
        host, port = store_address
        self._address = (host, port)
        self._meeting_store = self.lifeline.meeting_store(host, port, self._timeout)
        os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
        return True


def mode_of(spec: AgentSpec) -> Mode:
    """Return the guard's mode that the configuration asks for."""
    mode: Any = spec.config["guard"]
    if mode != "auto":
        return mode  # type: ignore[no-any-return]
    return "on" if spec.device == "cpu" else "trace"


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether memory could not be had: Python's, the CPU allocator's or CUDA's error."""
    if isinstance(failure, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(failure, RuntimeError) and "can't allocate memory" in str(failure)


def _not_settled(failure: PeerFailed) -> PeerFailed:
    """Return the error of a cell that met what had failed before it."""
    first = _first_line(failure)
    told = PeerFailed(
        f"{first}; that was in an earlier cell, and the ranks have not agreed to go on since.\n"
        "They do as soon as none is dead and none is busy with an earlier cell: `%dist status` "
        "shows that, `%dist recover` replaces dead ranks.\n"
        "All variables are kept; cells without collectives run meanwhile.",
        failure.culprit,
        failure.kind,
    )
    return told.with_traceback(failure.__traceback__)


def _is_raised_by_user(failure: BaseException) -> bool:
    """Whether a ``raise`` outside of torch and nbdist made *failure*, and no native call."""
    step = failure.__traceback__
    if step is None:
        return False
    while step.tb_next is not None:
        step = step.tb_next
    code = step.tb_frame.f_code
    is_raise = code.co_code[step.tb_lasti] == _RAISE
    return is_raise and not code.co_filename.startswith(_BELOW)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - under the cell, as its own output


def _first_line(failure: BaseException) -> str:
    return message_of(failure).partition("\n")[0]
