"""Where a main thread can wait for other ranks, by its stack."""

from __future__ import annotations

import pytest

from nbdist.sessions.stacks import is_native_wait, still_place
from nbdist.wire import Frame
from tests.runtime.real_ranks import run_ranks
from tests.sessions.scenes import IN_FILE, IN_GUARD, IN_LOAD, IN_WORK, cell, lib

STACKS: list[tuple[str, tuple[Frame, ...], bool]] = [
    ("nothing", (), False),
    ("a line of a cell", (cell(3, "x = f(y)"),), False),
    ("work.wait() in a cell", (cell(3, "work.wait()"),), True),
    ("waiting in a file of the user", (cell(3), IN_FILE, cell(4, "[w.wait() for w in ws]")), True),
    ("a synchronous collective", IN_WORK, True),
    ("our guard", IN_GUARD, True),
    ("our slices of a native wait", (cell(3), lib("nbdist/runtime/waiting.py", "_check")), True),
    ("backward", (cell(3), lib("torch/autograd/graph.py", "_engine_run_backward")), True),
    ("DDP's constructor", (cell(3), lib("torch/nn/parallel/distributed.py", "__init__")), True),
    (
        "a functional collective, below the dispatcher",
        (cell(3), lib("torch/distributed/_functional_collectives.py"), lib("torch/_ops.py")),
        True,
    ),
    ("an operator of torch", (cell(3, "torch.ops.my.op(x)"), lib("torch/_ops.py")), False),
    ("a layer", (cell(3), lib("torch/nn/modules/linear.py", "forward")), False),
    ("work.wait() in torch", (cell(3), lib("torch/x.py", "f", "work.wait()")), True),
    ("a thread's event", (cell(3, "e.wait()"), lib("threading.py", "wait", "w.acquire()")), False),
    ("a library's own wait", (cell(3), lib("subprocess.py", "f", "self.wait()")), False),
    ("a folder that is called distributed", (cell(3), lib("dask/distributed/x.py")), False),
]


@pytest.mark.parametrize(("stack", "is_wait"), [s[1:] for s in STACKS], ids=[s[0] for s in STACKS])
def test_a_main_thread_may_wait_natively_in(stack: tuple[Frame, ...], is_wait: bool) -> None:
    assert is_native_wait(stack) is is_wait


def test_a_wait_of_ours_that_looks_up_is_still_at_its_place() -> None:
    looking = (*IN_GUARD[:2], Frame("/src/nbdist/runtime/guard.py:650", "wait", "self.compare()"))

    assert still_place(looking) == still_place(IN_GUARD)
    assert still_place(IN_LOAD) != still_place((*IN_LOAD[:1], cell(5, "", "load_batch")))


@pytest.mark.ranks
def test_where_torch_really_waits_is_known() -> None:
    stacks = next(
        facts for facts in run_ranks("flight_script.py", "stacks", 2) if "stacks" in facts
    )

    missed = {
        name: frames[-1]
        for name, frames in stacks["stacks"].items()
        if not is_native_wait([Frame(**frame) for frame in frames])
    }
    assert len(stacks["stacks"]) == 8
    assert missed == {}
