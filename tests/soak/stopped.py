"""Cells that are stopped, in Python or in a call, on all ranks or on some."""

from __future__ import annotations

from tests.soak.bench import Bench, Kind

READY = "print('re' + 'ady', flush=True)"


def stops_in(bench: Bench, code: str, ready: str = READY) -> None:
    """Stop a cell that changes everything, says that it is *ready*, and does *code*."""
    run = bench.begin(f"advance()\n{ready}\n{code}")
    bench.waits_for(run, "ready")
    bench.must_have.advance(bench.all)
    if bench.random.random() < 0.5:
        run.wait(bench.random.random() * 0.1)
    bench.stops(run)


def computes(bench: Bench) -> None:
    code = bench.random.choice(["while True: pass", "time.sleep(600)", "!echo ready; sleep 600"])
    # An interrupt in the middle of a terminal's making leaves a pipe of ptyprocess open.
    stops_in(bench, code, "pass" if code.startswith("!") else READY)


def some_wait_in_a_collective(bench: Bench) -> None:
    absent = bench.some()
    call = bench.random.choice(
        [
            "dist.all_reduce(torch.ones(4))",
            "dist.all_reduce(torch.ones(100_000), async_op=True).wait()",
            "dist.barrier()",
            "dist.recv(torch.ones(4), src=min(absent))",
        ]
    )
    stops_in(
        bench, f"absent = {absent}\nif rank in absent: time.sleep(600)\n{call}; time.sleep(600)"
    )


def some_make_a_group(bench: Bench) -> None:
    """Those who connect wait in the store or within gloo for those who do not come."""
    making = bench.random.choice(
        ["dist.new_group(list(range(world_size)))", "init_device_mesh('cpu', (world_size, 1))"]
    )
    absent = bench.some()
    stops_in(bench, f"if rank in {absent}: time.sleep(600)\n{making}; time.sleep(600)")
    bench.values("drop_groups()")


def all_call_collectives(bench: Bench) -> None:
    stops_in(bench, "while True: dist.all_reduce(torch.ones(1000))")


def all_train(bench: Bench) -> None:
    """Forward and backward again and again; no weight changes."""
    model = bench.random.choice(["ddp", "sharded"])
    stops_in(bench, f"while True: step({model}, lr=0.0)")


KINDS = [
    Kind(computes, 4),
    Kind(some_wait_in_a_collective, 6),
    Kind(some_make_a_group, 2),
    Kind(all_call_collectives, 4),
    Kind(all_train, 3),
]
