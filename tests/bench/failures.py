"""What a failure costs, and what it costs to be ready for one; no peer has the like.

Times within a cell are taken on the ranks, which share a clock.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from tests.bench.results import Reading

if TYPE_CHECKING:
    from tests.bench.measures import Visit

NUM_TIMES = 5

# Guard on and off in turns, so that what changes on the machine hits both.
GUARD = """\
import time
def reduce_async(x):
    dist.all_reduce(x, async_op=True).wait()
def per_call(mode, reduce, x, n):
    nbdist.guard(mode)
    dist.barrier()
    begin = time.perf_counter()
    for _ in range(n):
        reduce(x)
    return (time.perf_counter() - begin) / n
for name, reduce, size, n in (
    ("small", dist.all_reduce, 1, 300),
    ("async", reduce_async, 1, 300),
    ("large", dist.all_reduce, 25 * 2**18, 4),
):
    x = torch.ones(size)
    for mode in ("on", "off"):
        per_call(mode, reduce, x, n // 2)
    for _ in range(7):
        x.fill_(1)
        times = {mode: per_call(mode, reduce, x, n) for mode in ("off", "on")}
        if rank == 0:
            print(f"{name}:{times['off']!r}:{times['on']!r}:")
nbdist.guard("on")"""

FREED = """\
import time
try:
    if rank == 1:
        print(f"raised:{time.time()!r}:")
        raise ValueError
    dist.barrier()
except nbdist.PeerFailed:
    print(f"freed:{time.time()!r}:")
    raise"""

HOPELESS = """\
import time
if rank == 1:
    print(f"left:{time.time()!r}:")
else:
    try:
        dist.all_reduce(torch.ones(1))
    except nbdist.CollectiveError:
        print(f"told:{time.time()!r}:")
        raise"""

STUCK = """\
import time
if rank == 1:
    print("re" + "ady", flush=True)
    time.sleep(600)
dist.all_reduce(torch.ones(1), async_op=True).wait()"""

ASK = "input('go on? ')"

DIE = "import os\nif rank == 1: os.kill(os.getpid(), 9)"


def guard(visit: Visit) -> list[Reading]:
    shown = visit.on_ranks(GUARD).everything
    found = re.findall(r"(small|async|large):([\d.e-]+):([\d.e-]+):", shown)
    pairs = [(name, float(off), float(on)) for name, off, on in found]
    added = {
        kind: [on - off for name, off, on in pairs if name == kind] for kind in ("small", "async")
    }
    large = [on / off for name, off, on in pairs if name == "large"]
    return [
        visit.reading("guard_small", added["small"]),
        visit.reading("guard_async", added["async"]),
        visit.reading("guard_large", large),
    ]


def freed(visit: Visit) -> list[Reading]:
    def once() -> float:
        text = visit.kernel.run(visit.peer.cell(FREED)).everything
        [raised] = set(re.findall(r"raised:([\d.]+):", text))
        return max(map(float, re.findall(r"freed:([\d.]+):", text))) - float(raised)

    return [visit.reading("freed", [once() for _ in range(NUM_TIMES)])]


def hopeless(visit: Visit) -> list[Reading]:
    """Let all but one wait for one that has ended its cell."""

    def once() -> float:
        text = visit.kernel.run(visit.peer.cell(HOPELESS)).everything
        [left] = set(re.findall(r"left:([\d.]+):", text))
        return max(map(float, re.findall(r"told:([\d.]+):", text))) - float(left)

    return [visit.reading("hopeless", [once() for _ in range(NUM_TIMES)])]


def stopped(visit: Visit) -> list[Reading]:
    """Press the stop button a second into a cell: in a native call, and at a prompt."""

    def once(code: str) -> float:
        pressed = threading.Timer(1.0, visit.kernel.interrupt)
        pressed.start()
        return visit.kernel.run(visit.peer.cell(code), can_ask=True).duration_s - 1.0

    return [
        visit.reading("stopped", [once(STUCK) for _ in range(NUM_TIMES)]),
        visit.reading("stopped_prompt", [once(ASK) for _ in range(NUM_TIMES)]),
    ]


def recovered(visit: Visit) -> list[Reading]:
    def once() -> float:
        visit.kernel.run(visit.peer.cell(DIE))
        seconds = visit.kernel.check("%dist recover").duration_s
        visit.on_ranks("dist.barrier()")
        return seconds

    return [visit.reading("recovered", [once() for _ in range(NUM_TIMES)])]
