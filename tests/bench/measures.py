"""One function for each thing measured, with the rows it fills and their budgets.

A measure takes a `Visit`, in which a peer's ranks have done their first all_reduce, and returns
readings. Those of one visit run in the order of `MEASURES`: `memory` before those that leave
something behind, `stop` last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from tests.bench import failures
from tests.bench.kernel import CellRun, Kernel
from tests.bench.machine import pss_bytes
from tests.bench.peers import Peer
from tests.bench.results import Budget, Reading, Row
from tests.processes import processes_marked, wait_for_end

MARK = "NBDIST_BENCH_VISIT"
NUM_WARM_UP = 5
NUM_LINES = 2000
STOP_TIMEOUT_S = 30.0

# The needle is put together on the rank, so that no echo of the code is taken for output.
TICK = 'import time; print("ti" + "ck", flush=True); time.sleep({pause_s})'
LINES = """\
import os
rank_ = int(os.environ.get("RANK", 0))
for i in range({num_lines}):
    print("step", i, "rank", rank_, "loss", 1 / (i + 1 + rank_))"""
PIDS = 'import os; print(f"pid:{os.getpid()}:")'
TENSOR = "import torch; x = torch.ones(64 * 2**20)"
ARRAY = 'import numpy; x = numpy.ones(64 * 2**20, "float32")'


@dataclass(frozen=True)
class Visit:
    """A peer with its ranks up, and a plain kernel beside it.

    Attributes:
        peer: Who is measured.
        num_ranks: With how many ranks.
        kernel: The peer's kernel.
        plain: A kernel without any ranks; it runs the like in turns, so that drift hits both.
        mark: Value of `MARK` in the environment of all processes of the peer, not of *plain*.
        start_s: From the first cell of the start to the line after the first all_reduce.
        num_cells: How often a short cell is repeated.
    """

    peer: Peer
    num_ranks: int
    kernel: Kernel
    plain: Kernel
    mark: str
    start_s: float
    num_cells: int

    def on_ranks(self, code: str) -> CellRun:
        return self.kernel.check(self.peer.cell(code))

    def reading(self, row: str, values: Sequence[float], plain: Sequence[float] = ()) -> Reading:
        return Reading(row, self.peer.name, self.num_ranks, tuple(values), tuple(plain))


@dataclass(frozen=True)
class Measure:
    """Something to measure.

    Attributes:
        run: Takes the readings.
        rows: What its readings, and those derived from them, are shown as.
        only_ranks: Numbers of ranks it is taken at; all when empty.
    """

    run: Callable[[Visit], list[Reading]]
    rows: tuple[Row, ...]
    only_ranks: tuple[int, ...] = ()


def start(visit: Visit) -> list[Reading]:
    return [visit.reading("start", [visit.start_s])]


def empty_cell(visit: Visit) -> list[Reading]:
    def once() -> tuple[float, float]:
        plain_s = visit.plain.run("pass").duration_s
        return visit.kernel.run(visit.peer.cell("pass")).duration_s, plain_s

    pairs = [once() for _ in range(NUM_WARM_UP + visit.num_cells)][NUM_WARM_UP:]
    return [visit.reading("empty", [ours for ours, _ in pairs], [plain for _, plain in pairs])]


def first_line(visit: Visit) -> list[Reading]:
    return [ticks(visit, "first_line", num_ticks=max(5, visit.num_cells // 3), pause_s=0.2)]


def first_line_in_widget(visit: Visit) -> list[Reading]:
    # A cell must run for more than half a second before a widget is shown at all.
    return [ticks(visit, "first_line_widget", num_ticks=5, pause_s=1.2)]


def ticks(visit: Visit, row: str, *, num_ticks: int, pause_s: float) -> Reading:
    """Time the first line of cells that go on for *pause_s* after it."""
    tick = TICK.format(pause_s=pause_s)

    def once() -> tuple[float, float]:
        plain_s = visit.plain.check(tick).first_s("tick")
        return visit.on_ranks(tick).first_s("tick"), plain_s

    pairs = [once() for _ in range(num_ticks)]
    return visit.reading(row, [ours for ours, _ in pairs], [plain for _, plain in pairs])


def memory(visit: Visit) -> list[Reading]:
    ranks = rank_pids(visit)
    everything = [process.pid for process in processes_marked(MARK, visit.mark)]
    return [
        visit.reading("memory", [pss_bytes(everything)]),
        visit.reading("memory_rank", [pss_bytes(ranks) / len(ranks)]),
    ]


def rank_pids(visit: Visit) -> list[int]:
    pids = sorted(set(map(int, re.findall(r"pid:(\d+):", visit.on_ranks(PIDS).everything))))
    if len(pids) != visit.num_ranks:
        raise LookupError(f"{visit.num_ranks} ranks, but these process ids: {pids}")
    return pids


def lines(visit: Visit) -> list[Reading]:
    code = LINES.format(num_lines=NUM_LINES)
    pairs = [(visit.on_ranks(code), visit.plain.check(code)) for _ in range(3)]
    for ours, _ in pairs:
        for rank in range(visit.num_ranks):
            ours.first_s(f"step {NUM_LINES - 1} rank {rank} loss")
    text, plain_text = (size_of_lines(n) for n in (visit.num_ranks, 1))
    return [
        visit.reading(
            "lines", *zip(*((o.duration_s, p.duration_s) for o, p in pairs), strict=True)
        ),
        visit.reading(
            "lines_size",
            [ours.size_bytes / text for ours, _ in pairs],
            [plain.size_bytes / plain_text for _, plain in pairs],
        ),
    ]


def size_of_lines(num_ranks: int) -> int:
    """Return how many characters *num_ranks* ranks print in `LINES`."""
    return sum(
        len(f"step {i} rank {rank} loss {1 / (i + 1 + rank)}\n")
        for rank in range(num_ranks)
        for i in range(NUM_LINES)
    )


def pull(visit: Visit) -> list[Reading]:
    if visit.peer.pull is None:
        return []
    visit.on_ranks(TENSOR)
    visit.plain.check(ARRAY)

    def once(pull: str) -> tuple[float, float]:
        plain_s = visit.plain.check("y = x.copy()").duration_s
        return visit.kernel.check(pull).duration_s, plain_s

    # The first one imports what it needs.
    pairs = [once(visit.peer.pull) for _ in range(4)][1:]
    visit.on_ranks("del x")
    return [visit.reading("pull", [ours for ours, _ in pairs], [plain for _, plain in pairs])]


def stop(visit: Visit) -> list[Reading]:
    ranks = [psutil.Process(pid) for pid in rank_pids(visit)]
    begin = time.perf_counter()
    if visit.peer.stop is None:
        visit.kernel.close()
    else:
        visit.kernel.check(visit.peer.stop)
    if alive := wait_for_end(ranks, STOP_TIMEOUT_S):
        raise TimeoutError(f"{len(alive)} ranks live {STOP_TIMEOUT_S:.0f} s after the stop")
    return [visit.reading("stop", [time.perf_counter() - begin])]


MEGA = 1e-6
MILLI = 1e3

MEASURES = {
    "start": Measure(
        start,
        (
            Row(
                "start",
                "start to the first all_reduce",
                "s",
                budgets=(Budget(0.55, "torchrun", 4), Budget(0.40, "torchrun", 8)),
            ),
        ),
    ),
    "empty": Measure(
        empty_cell,
        (
            Row(
                "empty",
                "an empty cell",
                "ms",
                MILLI,
                budgets=(
                    Budget(2.5, "plain", 2),
                    Budget(3.0, "plain", 4),
                    Budget(4.5, "plain", 8),
                    Budget(0.75, "%%px"),
                ),
            ),
        ),
    ),
    "first_line": Measure(
        first_line,
        (Row("first_line", "first line of output", "ms", MILLI, budgets=(Budget(4.0, "plain"),)),),
    ),
    "first_line_widget": Measure(
        first_line_in_widget,
        (
            Row(
                "first_line_widget",
                "first line in the live view",
                "ms",
                MILLI,
                budgets=(Budget(550.0),),
            ),
        ),
    ),
    "memory": Measure(
        memory,
        (
            Row("memory", "memory of all processes, idle (PSS)", "MB", MEGA),
            Row("memory_rank", "memory of a rank, idle (PSS)", "MB", MEGA),
            Row(
                "memory_extra",
                "each rank beyond the fewest adds (PSS)",
                "MB",
                MEGA,
                budgets=(Budget(40.0),),
            ),
        ),
    ),
    "lines": Measure(
        lines,
        (
            Row("lines", "2,000 lines a rank", "s", budgets=(Budget(1.0, "%%px"),)),
            Row("lines_size", "bytes to the front end for them", "× text", budgets=(Budget(3.2),)),
        ),
        only_ranks=(4,),
    ),
    "pull": Measure(
        pull,
        (
            Row(
                "pull",
                "256 MiB from one rank (plain: numpy's copy)",
                "s",
                budgets=(Budget(2.0, "plain"),),
            ),
        ),
        only_ranks=(2,),
    ),
    "guard": Measure(
        failures.guard,
        (
            Row(
                "guard_small",
                "the guard adds to a 1-element all_reduce",
                "ms",
                MILLI,
                (Budget(0.25),),
            ),
            Row(
                "guard_async",
                "the guard adds to an asynchronous one and its wait",
                "ms",
                MILLI,
                (Budget(0.25),),
            ),
            Row("guard_large", "25 MB all_reduce, guarded", "× unguarded", budgets=(Budget(1.03),)),
        ),
    ),
    "freed": Measure(
        failures.freed,
        (
            Row(
                "freed",
                "a rank raises until the last waiting one is free",
                "ms",
                MILLI,
                (Budget(100.0),),
            ),
        ),
    ),
    "hopeless": Measure(
        failures.hopeless,
        (
            Row(
                "hopeless",
                "a rank leaves a collective out until all that wait for it are told",
                "ms",
                MILLI,
                (Budget(1000.0),),
            ),
        ),
    ),
    "stopped": Measure(
        failures.stopped,
        (
            Row("stopped", "stop button until the prompt is back", "ms", MILLI, (Budget(1000.0),)),
            Row("stopped_prompt", "the same while a rank asks", "ms", MILLI, (Budget(1000.0),)),
        ),
    ),
    "recovered": Measure(
        failures.recovered,
        (Row("recovered", "a dead rank until all groups are whole", "s", budgets=(Budget(1.0),)),),
    ),
    "stop": Measure(stop, (Row("stop", "stop until no rank lives", "s"),)),
}


def rows() -> list[Row]:
    """All rows in the order of the table."""
    return [row for measure in MEASURES.values() for row in measure.rows]


def is_taken(key: str, peer: Peer, num_ranks: int) -> bool:
    """Whether the measure *key* is for *peer* and for *num_ranks*."""
    only_ranks = MEASURES[key].only_ranks
    return key in peer.measures and (not only_ranks or num_ranks in only_ranks)
