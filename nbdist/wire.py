"""All that crosses the border between a notebook and its ranks, as frozen data.

    session ── CellRequest ──▶ rank          one signed ipyparallel message per rank (shell channel)
    session ◀── OutputBatch ── rank          while the cell runs (iopub)
    session ◀── CellReply ──── rank          when it is over (shell channel)
    session ──▶ AgentSpec ──▶ agent          once, as a file in the session folder

Both sides import this module, so it imports nothing but the standard library. A type here is turned
into JSON by `to_json` and back by its own ``from_json``.
"""

from __future__ import annotations

import dataclasses
import math
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

CELL_REQUEST = "nbdist_cell"
CELL_REPLY = "nbdist_cell_reply"
OUTPUT_BATCH = "nbdist_output"
VALUE_REQUEST = "nbdist_value"
VALUE_REPLY = "nbdist_value_reply"
INTERRUPT_REQUEST = "nbdist_interrupt"
SNAPSHOT_REQUEST = "nbdist_snapshot"
TRACE_REQUEST = "nbdist_trace"
NAME_REQUEST = "nbdist_name"
PROSPECT_REQUEST = "nbdist_prospect"
RECOVER_REQUEST = "nbdist_recover"
RECOVER_REPLY = "nbdist_recover_reply"
INPUT_REQUEST = "nbdist_input"
INPUT_REPLY = "nbdist_input_reply"

CELL_PREFIXES = ("In[", "run[")  # of the labels of cells, which are their file names
STACK_SIGNAL = signal.SIGRTMIN + 11  # a rank that gets it writes down where it is

Status = Literal["ok", "error", "stopped", "dead"]


# What a rank puts out -------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Characters written to stdout or stderr, in the order they were written."""

    name: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True)
class Display:
    """Something shown: by ``display(...)``, by an update of it, or as the value of the cell.

    Attributes:
        kind: ``display``, ``update`` (replaces the displays with the same ``display_id``) or
            ``result`` (the last expression of the cell).
        data: Mime bundle; binary data (images) as base64 text, as in a notebook file.
        metadata: As in a notebook file.
        display_id: Name under which updates find it, or ``None``.
        scalar: The value itself where it is one real number, else ``None``.
    """

    kind: Literal["display", "update", "result"]
    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    display_id: str | None = None
    scalar: float | int | None = None


@dataclass(frozen=True)
class Area:
    """What comes from here on is that of an output widget, by its number; of the cell itself: 0."""

    number: int


@dataclass(frozen=True)
class Clear:
    """``clear_output``: forget all output so far, or only when the next output comes (``wait``).

    Within an output widget (``area``) only what came there is forgotten.
    """

    wait: bool = False
    area: int = 0


@dataclass(frozen=True)
class Dropped:
    """Output beyond ``log_bytes`` of one cell, which was counted and thrown away."""

    size_bytes: int


@dataclass(frozen=True)
class Progress:
    """How far a progress bar is; it replaces what came before of the same bar.

    Attributes:
        bar: Its number among those of the cell on this rank.
        text: What it counts, in the user's words.
        done: Steps done.
        total: Of so many; ``None`` where nobody knows.
        unit: What a step is called.
        divisor: 1000 or 1024 where numbers are told as kilo, mega, ...; else 0.
        postfix: What the user has put behind it: ``loss=0.31``.
        depth: Number of open bars that began before it.
        seconds: For how long it has run.
        rate: How fast: ``12.5 it/s``.
        is_over: It was closed.
        is_kept: It stays when it is over.
    """

    bar: int
    text: str
    done: float
    total: float | None = None
    unit: str = "it"
    divisor: int = 0
    postfix: str = ""
    depth: int = 0
    seconds: float = 0.0
    rate: str = ""
    is_over: bool = False
    is_kept: bool = True


Output = Text | Display | Area | Clear | Dropped | Progress

_OUTPUTS: dict[str, Callable[..., Output]] = {
    "text": Text,
    "display": Display,
    "area": Area,
    "clear": Clear,
    "dropped": Dropped,
    "progress": Progress,
}
_OUTPUT_NAMES = {kind: name for name, kind in _OUTPUTS.items()}


def output_to_json(output: Output) -> dict[str, Any]:
    """Turn one output into a JSON object whose ``type`` says which it is."""
    fields = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    if isinstance(fields.get("scalar"), float) and not math.isfinite(fields["scalar"]):
        fields["scalar"] = str(fields["scalar"])  # JSON has no NaN
    return {"type": _OUTPUT_NAMES[type(output)], **fields}


def output_from_json(content: Mapping[str, Any]) -> Output:
    """Turn what `output_to_json` made back into an output."""
    fields = {name: value for name, value in content.items() if name != "type"}
    if isinstance(fields.get("scalar"), str):
        fields["scalar"] = float(fields["scalar"])
    return _OUTPUTS[content["type"]](**fields)


# How a cell can fail --------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One line of a traceback.

    Attributes:
        location: ``In[12]:7`` for a line of a cell, else ``path/to/file.py:33``.
        function: Name of the function, or ``<module>``.
        source: The line of code without its indentation; empty where it is not known.
        is_cell: The line stands in a cell.
        is_library: The line stands in an installed package or the standard library.
    """

    location: str
    function: str
    source: str
    is_cell: bool = False
    is_library: bool = False


@dataclass(frozen=True)
class CellError:
    """An exception as it ended a cell on one rank.

    Attributes:
        ename: Name of its class.
        evalue: Its message.
        frames: From the cell's line down to where it was raised.
        cause: The exception before it, if there was one.
        link: How *cause* led here: ``cause`` (``raise ... from``) or ``context`` (while handling).
        waited_for: The rank whose failure freed this one, where it only waited for that rank.
    """

    ename: str
    evalue: str
    frames: tuple[Frame, ...] = ()
    cause: CellError | None = None
    link: Literal["cause", "context"] = "cause"
    waited_for: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CellError:
        """Turn a JSON object made by `to_json` back into an error."""
        fields = dict(content)
        fields["frames"] = tuple(Frame(**frame) for frame in fields["frames"])
        if fields["cause"] is not None:
            fields["cause"] = cls.from_json(fields["cause"])
        return cls(**fields)


@dataclass(frozen=True)
class RankOutput:
    """What one rank made of one cell: all that the view needs to show it.

    Attributes:
        rank: Its rank in the world.
        status: ``ok``, ``error``, ``stopped`` or ``dead``.
        outputs: In the order they were made.
        error: What ended the cell here, for every status but ``ok``.
    """

    rank: int
    status: Status
    outputs: tuple[Output, ...] = ()
    error: CellError | None = None


# Where the ranks stand ------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupCall:
    """Where one rank stands in one process group, or in its messages to one other rank.

    Attributes:
        rank: Which, in the world.
        group: torch's name of the group.
        ranks: Those of the group, in the world and in the group's order; sender and receiver, where
            it is about messages.
        kind: ``group``, or ``p2p`` for messages from the first to the second of *ranks*.
        seq: Number of the rank's latest call, from 1 on; 0 before the first.
        issued: How many of its calls have reached the native group.
        phase: ``waiting`` for its peers in the guard, ``issued`` to the native group (which may be
            over by now), or ``idle``: it gave the call up.
        since: Begin of the phase, in seconds since the epoch.
        text: The latest call: ``all_reduce(float32[10], sum)``.
        source: Where it was called: ``In[12]:7``.
    """

    rank: int
    group: str
    ranks: tuple[int, ...]
    kind: Literal["group", "p2p"]
    seq: int
    issued: int
    phase: Literal["waiting", "issued", "idle"]
    since: float
    text: str
    source: str

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GroupCall:
        """Turn a JSON object made by `to_json` back into a call."""
        return cls(**{**content, "ranks": tuple(content["ranks"])})


@dataclass(frozen=True)
class Snapshot:
    """What one rank is doing, as its control thread says while the main thread is busy.

    Attributes:
        rank: Which.
        pid: Its process.
        label: The running cell: ``In[12]``; ``None`` when it runs none.
        cell_id: Its id.
        seconds: For how long it has run.
        outside: What keeps the main thread while no cell runs; empty where it waits for messages.
        stack: The main thread, from the cell's line down to where it is now; empty when idle.
        calls: Where it stands in each of its groups, as far as the guard is off and only torch's
            flight recorder knows it. With the guard on the shared table says so for all ranks.
        gpu_bytes: CUDA memory that torch has allocated; ``None`` without CUDA.
    """

    rank: int
    pid: int
    label: str | None = None
    cell_id: str | None = None
    seconds: float = 0.0
    outside: str = ""
    stack: tuple[Frame, ...] = ()
    calls: tuple[GroupCall, ...] = ()
    gpu_bytes: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Snapshot:
        """Turn a JSON object made by `to_json` back into a snapshot."""
        fields = dict(content)
        fields["stack"] = tuple(Frame(**frame) for frame in fields["stack"])
        fields["calls"] = tuple(map(GroupCall.from_json, fields["calls"]))
        return cls(**fields)


@dataclass(frozen=True)
class BlockedCall:
    """What the main thread of a rank waits in.

    Attributes:
        number: Of the call, as its rank counts them; never used twice by one process.
        call: Where the rank stands in its group.
        missing: Ranks that have not come and that it cannot end without; empty where nobody can
            say so.
        timeout_s: After how long it ends by itself; ``None`` for never.
        used_ns: CPU time of its process, where it waits for those that are missing only if nothing
            moves there: it may be computing, or a native call be on its way without them.
    """

    number: int
    call: GroupCall
    missing: tuple[int, ...]
    timeout_s: float | None
    used_ns: int | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BlockedCall:
        """Turn a JSON object made by `to_json` back into a call."""
        call, missing = GroupCall.from_json(content["call"]), tuple(content["missing"])
        return cls(**{**content, "call": call, "missing": missing})


@dataclass(frozen=True)
class Prospect:
    """Whether a rank may still come to a call, as its control thread says.

    Attributes:
        rank: Which.
        cell_id: Of the cell it runs; ``None`` where it runs none.
        is_idle: Its main thread waits for messages.
        blocked: What its main thread waits in, where that is a call of known ranks.
        callers: What else may call something: threads, tasks, timers, rpc.
        has_alarm: A signal may end what it waits in.
    """

    rank: int
    cell_id: str | None = None
    is_idle: bool = False
    blocked: BlockedCall | None = None
    callers: tuple[str, ...] = ()
    has_alarm: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Prospect:
        """Turn a JSON object made by `to_json` back into a prospect."""
        blocked = None if content["blocked"] is None else BlockedCall.from_json(content["blocked"])
        return cls(**{**content, "blocked": blocked, "callers": tuple(content["callers"])})


@dataclass(frozen=True)
class CallCount:
    """How often one operation was called in one group by one rank, and with how much data.

    Attributes:
        op: Name of the operation: ``all_reduce``.
        group: torch's name of the group.
        ranks: Those of the group, in the world.
        count: Number of calls.
        size_bytes: Size of the tensors that this rank put in, all calls together.
    """

    op: str
    group: str
    ranks: tuple[int, ...]
    count: int
    size_bytes: int

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CallCount:
        """Turn a JSON object made by `to_json` back into a count."""
        return cls(**{**content, "ranks": tuple(content["ranks"])})


# What was called, and when --------------------------------------------------------------------


@dataclass(frozen=True)
class CallSite:
    """What is alike in all calls that one line makes.

    Attributes:
        op: Name of the operation: ``all_reduce``.
        text: The call for people: ``all_reduce(float32[10], sum)``.
        source: Where it was called: ``In[12]:7``.
        group: torch's name of the group.
        ranks: Those of the group, in the world; sender and receiver, where it is a message, and
            the receiver alone where it takes from anybody.
        kind: ``group``, or ``p2p`` for a message.
        incarnation: How many groups of these ranks were made before this one; names come again.
        size_bytes: Size of the tensors that this rank puts in.
        is_async: The call returns before it is over.
    """

    op: str
    text: str
    source: str
    group: str
    ranks: tuple[int, ...]
    kind: Literal["group", "p2p"] = "group"
    incarnation: int = 0
    size_bytes: int = 0
    is_async: bool = False

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CallSite:
        """Turn a JSON object made by `to_json` back into a site."""
        return cls(**{**content, "ranks": tuple(content["ranks"])})


class TracedCall(NamedTuple):
    """One call of one rank. A tuple, since there may be a million of them.

    Times are seconds on the monotonic clock that all processes of a host share; 0 for what has not
    happened.

    Attributes:
        site: What was called, and where.
        cell_id: In which cell; empty between cells.
        seq: Its number in its group, or among the messages between two ranks; 0 where none is
            known.
        began: The rank came to it.
        waited_s: How long the guard then held it back.
        returned: The native call returned, or the call failed.
        wait_began: The rank began to wait for it (``work.wait()``, which a synchronous call does).
        wait_ended: That returned.
        done: The data had arrived, where somebody was told so (DDP's reducer).
        is_failed: It ended with an error.
    """

    site: CallSite
    cell_id: str
    seq: int
    began: float
    waited_s: float = 0.0
    returned: float = 0.0
    wait_began: float = 0.0
    wait_ended: float = 0.0
    done: float = 0.0
    is_failed: bool = False


@dataclass(frozen=True)
class TracedCell:
    """One cell on one rank.

    Attributes:
        cell_id: Names the cell on all ranks.
        label: ``In[12]``.
        began: On the clock of `TracedCall`.
        ended: Likewise; 0 while it runs.
        num_calls: How many collectives and messages it called.
    """

    cell_id: str
    label: str
    began: float
    ended: float
    num_calls: int


@dataclass(frozen=True)
class RankTrace:
    """What one rank has called.

    Attributes:
        rank: Which.
        mode: The guard's; nothing is recorded while it is ``off``.
        now: When this was told, on the clock of `TracedCall`.
        cells: Those that were asked for, in the order they ran.
        calls: Theirs, in the order they were made.
        known: Labels of the latest cells that called any, asked for or not.
    """

    rank: int
    mode: str
    now: float
    cells: tuple[TracedCell, ...] = ()
    calls: tuple[TracedCall, ...] = ()
    known: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Turn the trace into a JSON object, in which each site stands once."""
        places: dict[int, int] = {}
        sites: list[dict[str, Any]] = []
        calls = []
        for site, *rest in self.calls:
            place = places.setdefault(id(site), len(places))
            if place == len(sites):
                sites.append(dataclasses.asdict(site))
            calls.append([place, *rest])
        return {
            "rank": self.rank,
            "mode": self.mode,
            "now": self.now,
            "cells": [dataclasses.asdict(cell) for cell in self.cells],
            "sites": sites,
            "calls": calls,
            "known": list(self.known),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RankTrace:
        """Turn what `to_json` made back into a trace."""
        sites = [CallSite.from_json(site) for site in content["sites"]]
        return cls(
            rank=content["rank"],
            mode=content["mode"],
            now=content["now"],
            cells=tuple(TracedCell(**cell) for cell in content["cells"]),
            calls=tuple(TracedCall(sites[place], *rest) for place, *rest in content["calls"]),
            known=tuple(content["known"]),
        )


# Messages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellRequest:
    """Run this code.

    Attributes:
        cell_id: Names this run in every later message about it.
        code: The cell as typed, IPython syntax allowed.
        label: How tracebacks name the cell: ``In[12]``.
        number: The notebook's execution count, or ``None`` where there is no notebook.
        ranks: All ranks the cell runs on, in ascending order.
        want_value: Send the last expression back as a value (``-o``).
        max_value_bytes: Largest value sent back without ``--yes``.
        module: The module that the cell is to be; ``None`` for a plain one.
    """

    cell_id: str
    code: str
    label: str
    number: int | None
    ranks: tuple[int, ...]
    want_value: bool = False
    max_value_bytes: int = 2**30
    module: str | None = None


@dataclass(frozen=True)
class CellReply:
    """How a cell ended on one rank.

    Attributes:
        status: ``ok``, ``error`` or ``stopped``.
        num_batches: How many output batches the rank published before this reply; they travel on
            another socket, so the cell is over when all of them have arrived as well.
        outputs: What had not been published yet.
        error: What ended it, for every status but ``ok``.
        value: Header of the last expression's value (its bytes travel as buffers), if wanted.
        value_error: Why that value could not be sent.
        seconds: How long the code ran.
        calls: The collectives it called, in the order of first calls.
        refused: How many messages it sent to a front end that nobody can show, by their kind.
    """

    status: Status
    num_batches: int
    outputs: tuple[Output, ...] = ()
    error: CellError | None = None
    value: Mapping[str, Any] | None = None
    value_error: str | None = None
    seconds: float = 0.0
    calls: tuple[CallCount, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Turn the reply into a JSON object."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        content["outputs"] = [output_to_json(output) for output in self.outputs]
        content["error"] = None if self.error is None else dataclasses.asdict(self.error)
        content["calls"] = [dataclasses.asdict(call) for call in self.calls]
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CellReply:
        """Turn what `to_json` made back into a reply."""
        fields = dict(content)
        fields["outputs"] = tuple(output_from_json(output) for output in fields["outputs"])
        if fields["error"] is not None:
            fields["error"] = CellError.from_json(fields["error"])
        fields["calls"] = tuple(map(CallCount.from_json, fields["calls"]))
        return cls(**fields)


@dataclass(frozen=True)
class AgentSpec:
    """What the agent of one host is to do; it reads this from the session folder.

    Attributes:
        session_id: Names the session.
        world_size: Number of ranks on all hosts together.
        first_rank: Rank of this host's local rank 0.
        nproc: Number of ranks on this host.
        device: ``cuda`` or ``cpu``.
        gpus: Device index of each local rank; empty on CPU.
        backend: torch's name of the backend, say ``cpu:gloo,cuda:nccl``.
        threads: Threads of one rank.
        config: The resolved configuration as plain data.
        engine_file: Path of the connection file that the controller writes for its engines.
        kernel_pid: The process that starts the session; while it has not connected, its death
            ends the agent.
        kernel_started: Its start time, as in `nbdist.processes.ProcessId`.
    """

    session_id: str
    world_size: int
    first_rank: int
    nproc: int
    device: Literal["cuda", "cpu"]
    gpus: tuple[int, ...]
    backend: str
    threads: int
    config: Mapping[str, Any]
    engine_file: str
    kernel_pid: int
    kernel_started: int


def encodable(data: Any) -> Any:
    """Return JSON data with every text as UTF-8 can hold it: a lone surrogate becomes ``?``."""
    if isinstance(data, str):
        return data if data.isascii() else data.encode(errors="replace").decode()
    if isinstance(data, Mapping):
        return {encodable(key): encodable(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [encodable(item) for item in data]
    return data


def log_heading(label: str) -> str:
    """Return the line that stands in a rank's log where a cell begins."""
    return f"── {label} ──\n"


LOG_END_LENGTH = 8000


def end_of_log(log: str) -> str:
    """Return the last `LOG_END_LENGTH` characters of *log*, below the heading of their cell."""
    end = log[-LOG_END_LENGTH:]
    headings = re.findall(r"^── .+ ──\n", log[:-LOG_END_LENGTH], re.MULTILINE)
    has_heading = re.search(r"^── .+ ──$", end, re.MULTILINE)
    return end if has_heading or not headings else headings[-1] + end


def lost_text(log_tail: str, label: str, seen: str) -> str:
    """Return what a dead rank wrote in its last cell and could not send any more.

    Args:
        log_tail: As `end_of_log` returns it.
        label: The cell's label.
        seen: The cell's text that did arrive.
    """
    _, heading, written = log_tail.rpartition(log_heading(label))
    if not heading and not seen:
        return ""  # it never began: the log tells of earlier cells
    known = seen[-200:]
    at = written.rfind(known) if known else 0
    return written[at + len(known) :] if at >= 0 else written


def to_json(data: Any) -> dict[str, Any]:
    """Turn a frozen message into a JSON object, nested messages included."""
    return dataclasses.asdict(data)
