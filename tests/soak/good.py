"""Cells that end well."""

from __future__ import annotations

import psutil

from tests.sessions.driving import printed
from tests.soak.bench import QUICK_S, Bench, Kind


def adds_up(bench: Bench) -> None:
    run = bench.run("advance(); total = mine[:2].clone(); dist.all_reduce(total); total[0].item()")
    bench.must_have.advance(bench.all)
    total = sum(bench.must_have.mine)
    bench.expect(run, list(run.result()), [total] * len(bench.all))


def gathers(bench: Bench) -> None:
    run = bench.run(
        "names = [None] * world_size\n"
        "dist.all_gather_object(names, ('rank', rank))\n"
        "dist.broadcast(torch.ones(64) * rank, src=world_size - 1)\n"
        "dist.barrier()\n"
        "names"
    )
    expected = [("rank", rank) for rank in bench.all]
    bench.expect(run, list(run.result()), [expected] * len(bench.all))


def trains(bench: Bench) -> None:
    bench.values("train()")


def makes_a_group(bench: Bench) -> None:
    members = bench.some() if bench.random.random() < 0.5 else bench.all
    run = bench.run(
        f"group = dist.new_group({members})\n"
        "total = torch.ones(1)\n"
        f"if rank in {members}: dist.all_reduce(total, group=group)\n"
        "total.item()"
    )
    expected = [float(len(members)) if rank in members else 1.0 for rank in bench.all]
    bench.expect(run, list(run.result()), expected)
    bench.values("drop_groups()")


def makes_a_mesh(bench: Bench) -> None:
    shape = bench.random.choice(
        [(len(bench.all), 1), (1, len(bench.all)), (len(bench.all) // 2, 2)]
    )
    run = bench.run(
        f"grid = init_device_mesh('cpu', {shape}, mesh_dim_names=('a', 'b'))\n"
        "total = torch.ones(1)\n"
        "dist.all_reduce(total, group=grid['a'].get_group())\n"
        "dist.all_reduce(total, group=grid['b'].get_group())\n"
        "total.item()"
    )
    bench.expect(run, list(run.result()), [float(len(bench.all))] * len(bench.all))
    bench.values("del grid; drop_groups()")


def prints(bench: Bench) -> None:
    num_lines = bench.random.randint(100, 5000)
    run = bench.run(f"for i in range({num_lines}): print('line', i, 'of rank', rank)")
    run.raise_failure()
    for rank in bench.all:
        lines = [f"line {i} of rank {rank}" for i in range(num_lines)]
        bench.expect(run, printed(run, rank).splitlines() == lines, True)


def some_ranks_alone(bench: Bench) -> None:
    ranks = bench.some()
    run = bench.run("mine.add_(1); rank", ranks)
    for rank in ranks:
        bench.must_have.mine[rank] += 1
    bench.expect(run, list(run.result()), ranks)


def forks(bench: Bench) -> None:
    """A forked child is not the rank, however it ends."""
    ending, code = bench.random.choice(
        [("os._exit(3)", 3), ("raise ValueError('of the child')", None), ("sys.exit(4)", None)]
    )
    run = bench.run(f"advance(); fork({ending!r})")
    bench.must_have.advance(bench.all)
    if code is not None:
        bench.expect(run, list(run.result()), [code] * len(bench.all))
    else:
        run.raise_failure()


def bears_a_child(bench: Bench) -> None:
    """A child with an environment of its own stays until its rank or its session ends."""
    where = bench.someone()
    [pid] = bench.values("bear()", where)
    bench.adopt(where, psutil.Process(pid))


def two_at_once(bench: Bench) -> None:
    """Cells that are sent before the one before them is over queue up."""
    first = bench.begin("advance(); time.sleep(0.05); dist.barrier()")
    second = bench.begin("advance(); dist.barrier(); counter")
    for _ in range(2):
        bench.must_have.advance(bench.all)
    for run in (first, second):
        bench.end_of(run).raise_failure()
    bench.expect(second, list(second.values()), [bench.must_have.counter] * len(bench.all))


def asks_how_it_is(bench: Bench) -> None:
    with bench.within(QUICK_S, "to ask the ranks how they are"):
        states = bench.session.states()
    pids = [state.pid for state in states]
    bench.expect(bench.run("pass"), bench.values("os.getpid()"), pids)


KINDS = [
    Kind(adds_up, 12),
    Kind(gathers, 4),
    Kind(trains, 10),
    Kind(makes_a_group, 4),
    Kind(makes_a_mesh, 4),
    Kind(prints, 4),
    Kind(some_ranks_alone, 5),
    Kind(forks, 3),
    Kind(bears_a_child, 1),
    Kind(two_at_once, 4),
    Kind(asks_how_it_is, 2),
]
