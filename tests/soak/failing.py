"""Cells that raise, alone or while others wait; what they changed before stays."""

from __future__ import annotations

from collections.abc import Sequence

from tests.soak.bench import Bench, Kind

RAISE = "raise ValueError('the bug')"


def begun(bench: Bench, culprits: Sequence[int], then: str, otherwise: str = "pass") -> str:
    """Return a cell that changes everything, then does *then* on *culprits*."""
    bench.must_have.advance(bench.all)
    return f"advance()\nif rank in {list(culprits)}:\n    {then}\nelse:\n    {otherwise}"


def peers(bench: Bench, culprits: Sequence[int]) -> dict[int, str]:
    """Expect a ValueError of the culprits, and that all others were freed."""
    return {rank: "ValueError" if rank in culprits else "PeerFailed" for rank in bench.all}


def raises_alone(bench: Bench) -> None:
    culprits = bench.some()
    bench.fails(bench.begin(begun(bench, culprits, RAISE)), dict.fromkeys(culprits, "ValueError"))


def raises_everywhere(bench: Bench) -> None:
    run = bench.begin(begun(bench, bench.all, RAISE))
    bench.fails(run, dict.fromkeys(bench.all, "ValueError"))


def raises_while_others_wait(bench: Bench) -> None:
    culprits = bench.some()
    call = bench.random.choice(
        [
            "dist.all_reduce(torch.ones(4))",
            "dist.all_reduce(torch.ones(4), async_op=True).wait()",
            "dist.barrier()",
            "dist.all_gather_object([None] * world_size, rank)",
            "dist.broadcast(torch.ones(1000), src=0); dist.barrier()",
        ]
    )
    run = bench.begin(begun(bench, culprits, RAISE, call))
    bench.fails(run, peers(bench, culprits))


def raises_in_a_training_step(bench: Bench) -> None:
    """No weight has changed: the others were in the backward or before the step."""
    culprits, model = bench.some(), bench.random.choice(["ddp", "sharded"])
    run = bench.begin(begun(bench, culprits, RAISE, f"step({model}); dist.barrier()"))
    bench.end_of(run)
    bench.expect(run, {o.status for o in run.outputs}, {"error"})


def raises_from_itself(bench: Bench) -> None:
    """An error may be its own cause, also over a corner."""
    cause = bench.random.choice(
        [
            "raise e from e",
            "f = KeyError(1); f.__cause__ = e; e.__cause__ = f; raise e",
            "f = KeyError(1); f.__context__ = e; e.__context__ = f; raise e",
        ]
    )
    culprits = bench.random.choice([bench.all, bench.some()])
    bench.must_have.advance(bench.all)
    run = bench.begin(
        "advance()\n"
        f"if rank in {culprits}:\n"
        "    try:\n"
        "        raise ValueError('the bug')\n"
        "    except ValueError as error:\n"
        "        e = error\n"
        f"    {cause}"
    )
    bench.fails(run, dict.fromkeys(culprits, "ValueError"))


def makes_groups_on_some_ranks(bench: Bench) -> None:
    """The next cells make groups again: the ranks have to agree on how many there were."""
    culprits = bench.some()
    making = bench.random.choice(
        [
            "grid = init_device_mesh('cpu', (world_size, 1))",
            "grid = init_device_mesh('cpu', (1, world_size))",
            "group = dist.new_group(list(range(world_size)))",
            "groups = [dist.new_group([r]) for r in range(world_size)]",
        ]
    )
    run = bench.end_of(bench.begin(begun(bench, culprits, RAISE, making)))
    bench.expect(run, {o.status for o in run.outputs if o.rank in culprits}, {"error"})
    makes_groups_that_work(bench)


def makes_groups_that_work(bench: Bench) -> None:
    run = bench.run(
        "group = dist.new_group(list(range(world_size)))\n"
        "grid = init_device_mesh('cpu', (world_size, 1))\n"
        "total = torch.ones(1)\n"
        "dist.all_reduce(total, group=group)\n"
        "total.item()"
    )
    bench.expect(run, list(run.result()), [float(len(bench.all))] * len(bench.all))
    bench.values("del grid, group; drop_groups()")


def calls_differ(bench: Bench) -> None:
    culprits = bench.some()
    other = bench.random.choice(
        ["dist.barrier()", "dist.all_reduce(torch.ones(5))", "dist.broadcast(torch.ones(4), src=0)"]
    )
    run = bench.begin(begun(bench, culprits, other, "dist.all_reduce(torch.ones(4))"))
    bench.fails(run, dict.fromkeys(bench.all, "CollectiveMismatch"))


def exits(bench: Bench) -> None:
    culprits = bench.some()
    run = bench.end_of(bench.begin(begun(bench, culprits, "sys.exit(1)", "dist.barrier()")))
    bench.expect(run, {o.status for o in run.outputs}, {"error"})


KINDS = [
    Kind(raises_alone, 6),
    Kind(raises_everywhere, 3),
    Kind(raises_while_others_wait, 10),
    Kind(raises_in_a_training_step, 5),
    Kind(raises_from_itself, 3),
    Kind(makes_groups_on_some_ranks, 3),
    Kind(calls_differ, 3),
    Kind(exits, 2),
]
