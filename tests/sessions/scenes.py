"""Ranks at many places and their calls, as the monitor sees them; short enough for tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from nbdist.sessions.diagnosis import RankSight
from nbdist.wire import Frame, GroupCall, Snapshot

NOW = 1_000_000.0
AFTER_S = 10.0
LABEL = "In[12]"
SITE = "/venv/lib/python3.11/site-packages"
REDUCE = "all_reduce(float32[10], sum)"

Phase = Literal["waiting", "issued", "idle"]


def cell(line: int, source: str = "", function: str = "<module>") -> Frame:
    return Frame(f"{LABEL}:{line}", function, source, is_cell=True)


def lib(path: str, function: str = "f", source: str = "") -> Frame:
    return Frame(f"{SITE}/{path}:33", function, source, is_library=True)


IN_LOAD = (cell(9, "train()"), cell(4, "batch = next(it)", "load_batch"))
IN_WORK = (
    cell(7, "w.wait()"),
    lib("torch/distributed/distributed_c10d.py", "all_reduce", "work.wait()"),
)
IN_GUARD = (
    cell(7, "dist.all_reduce(x)"),
    lib("torch/_ops.py", "__call__"),
    Frame("/src/nbdist/runtime/table.py:441", "wait", "self._word.wait(word, timeout_s)"),
)

IN_FILE = Frame("/home/me/project/data.py:33", "read", "line = file.readline()")
IN_SLEEP = (cell(9, "slow()"), cell(3, "time.sleep(60)", "slow"))
IN_INPUT = (
    cell(2, 'name = input("who? ")'),
    Frame("/usr/lib/python3.11/threading.py:327", "wait", "waiter.acquire()", is_library=True),
)
IN_RECV = (
    cell(5, "dist.recv(x)"),
    lib("torch/distributed/c10d_logger.py", "wrapper"),
    lib("torch/distributed/distributed_c10d.py", "recv", "work.wait()"),
)
IN_NEW_GROUP = (
    cell(2, "dist.new_group([0, 1])"),
    lib("torch/distributed/c10d_logger.py", "wrapper"),
    lib("torch/distributed/distributed_c10d.py", "new_group"),
    lib("torch/distributed/distributed_c10d.py", "_new_process_group_helper"),
)


def at(rank: int, *stack: Frame, label: str | None = LABEL, **more: Any) -> RankSight:
    """Return a rank that runs the cell and answers."""
    return RankSight(rank, snapshot=Snapshot(rank, 4000 + rank, label, stack=stack), **more)


def loading(*ranks: int) -> list[RankSight]:
    return [at(rank, *IN_LOAD) for rank in ranks]


def guarded(*ranks: int) -> list[RankSight]:
    return [at(rank, *IN_GUARD) for rank in ranks]


def native(*ranks: int) -> list[RankSight]:
    return [at(rank, *IN_WORK) for rank in ranks]


def call(
    rank: int,
    seq: int,
    phase: Phase,
    *,
    group: str = "0",
    ranks: Sequence[int] = (0, 1, 2, 3),
    text: str = REDUCE,
    source: str = "In[12]:7",
    age: float = 12.0,
    kind: Literal["group", "p2p"] = "group",
    issued: int | None = None,
) -> GroupCall:
    reached = issued if issued is not None else seq - (phase == "waiting")
    return GroupCall(rank, group, tuple(ranks), kind, seq, reached, phase, NOW - age, text, source)


def calls_of(
    callers: Iterable[int], seq: int, phase: Phase = "waiting", **more: Any
) -> list[GroupCall]:
    return [call(rank, seq, phase, **more) for rank in callers]


def message(rank: int, op: str, sender: int, receiver: int, seq: int = 1, **more: Any) -> GroupCall:
    more = {"text": f"{op}(float32[3])", "source": "In[12]:5", **more}
    phase = more.pop("phase", "waiting")
    return call(rank, seq, phase, ranks=(sender, receiver), kind="p2p", **more)


def gone_by(rank: int, seq: int = 40, **more: Any) -> GroupCall:
    """Return the position of a rank whose last call is long over."""
    return call(rank, seq, "issued", **{"source": "In[12]:6", "age": 30.0, **more})
