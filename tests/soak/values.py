"""Values of 1 to 50 MB between the kernel and the ranks; some transfers are interrupted."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable

import numpy as np

from nbdist.errors import TransferError
from tests.soak.bench import QUICK_S, Bench, Kind
from tests.soak.growth import MB

NUMBER_BYTES = 4  # of a float32


def num_elements(bench: Bench) -> int:
    return int(bench.random.choice([1, 1, 2, 5, 10, 50]) * MB / NUMBER_BYTES)


def pulls(bench: Bench) -> None:
    ranks, number = bench.random.choice([bench.all, bench.some()]), num_elements(bench)
    with bench.within(QUICK_S, f"to pull {number} numbers"):
        values = bench.session.pull(f"torch.full(({number},), float(rank + 1))", ranks)
    for rank, value in zip(ranks, values, strict=True):
        if value.shape != (number,) or not bool((np.asarray(value) == rank + 1).all()):
            raise AssertionError(f"rank {rank} sent something else: {value!r}")


def pulls_what_is_pickled(bench: Bench) -> None:
    with bench.within(QUICK_S, "to pull a list"):
        values = bench.session.pull("[{'rank': rank, 'i': i} for i in range(20_000)]")
    for rank, value in enumerate(values):
        if len(value) != 20_000 or value[-1] != {"rank": rank, "i": 19_999}:
            raise AssertionError(f"rank {rank} sent something else: {value[-1]!r}")


def pushes(bench: Bench) -> None:
    ranks, number = bench.random.choice([bench.all, bench.some()]), num_elements(bench)
    value = np.full(number, 3.0, dtype="float32")
    with bench.within(QUICK_S, f"to push {number} numbers"):
        bench.session.push({"pushed": value}, ranks)
    found = bench.values("(len(pushed), float(pushed.min()), float(pushed.max()))", ranks)
    if found != [(number, 3.0, 3.0)] * len(ranks):
        raise AssertionError(f"the ranks got {found}")
    bench.values("del pushed", ranks)


def pull_fails(bench: Bench) -> None:
    culprit = bench.someone()
    try:
        with bench.within(QUICK_S, "a pull that fails"):
            bench.session.pull(f"[torch.ones(2**18), 1 / (rank - {culprit})]")
    except TransferError as exc:
        if not str(exc).startswith(f"rank {culprit}: ZeroDivisionError"):
            raise AssertionError(f"not the error of rank {culprit}: {exc}") from exc
    else:
        raise AssertionError("a pull that divides by zero has given a value")


def pull_is_interrupted(bench: Bench) -> None:
    number = num_elements(bench)
    waits = bench.random.choice(["None", "time.sleep(600)", "dist.barrier()"])
    ranks = bench.some() if waits == "dist.barrier()" else bench.all
    value = f"({waits}, torch.ones({number}))"
    interrupted(bench, lambda: bench.session.pull(value, ranks))


def push_is_interrupted(bench: Bench) -> None:
    value = np.ones(num_elements(bench), dtype="float32")
    interrupted(bench, lambda: bench.session.push({"pushed": value}))


def interrupted(bench: Bench, transfer: Callable[[], object]) -> None:
    """Press Ctrl-C some time during *transfer*, or right after it."""
    timer = threading.Timer(bench.random.random() * 0.2, _thread.interrupt_main)
    with bench.within(QUICK_S, "an interrupted transfer"):
        try:
            timer.start()
            transfer()
            while True:  # until it comes
                time.sleep(0.01)
        except KeyboardInterrupt:
            pass
    bench.is_free()


KINDS = [
    Kind(pulls, 4),
    Kind(pulls_what_is_pickled, 1),
    Kind(pushes, 4),
    Kind(pull_fails, 1),
    Kind(pull_is_interrupted, 2),
    Kind(push_is_interrupted, 1),
]
