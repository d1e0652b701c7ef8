"""Processes end or are stopped; others take their place, and the ranks that live lose nothing."""

from __future__ import annotations

import threading

import psutil

from nbdist.errors import SessionError, TransferError
from tests.soak.bench import QUICK_S, Bench, Kind
from tests.soak.footprint import folder_of, pids_of_ranks
from tests.soak.growth import MB
from tests.soak.stopped import READY
from tests.waiting import wait_until


def doomed(bench: Bench) -> list[int]:
    """Draw who dies: never all, and none of those that are to live on."""
    most = min(len(bench.mortal), len(bench.all) - 1)
    return sorted(bench.random.sample(bench.mortal, bench.random.randint(1, most)))


def dies_idle(bench: Bench) -> None:
    bench.kill(doomed(bench))
    bench.recover()


def dies_in_a_call(bench: Bench) -> None:
    dying = doomed(bench)
    call = bench.random.choice(
        [
            "dist.barrier()",
            "dist.all_reduce(torch.ones(4), async_op=True).wait()",
            "step(ddp)",
            "step(sharded)",
            "dist.new_group(list(range(world_size)))",
        ]
    )
    run = bench.begin(
        f"advance()\n{READY}\nif rank in {dying}: time.sleep(600)\n{call}; dist.barrier()"
    )
    bench.waits_for(run, "ready")
    bench.must_have.advance(bench.all)
    bench.kill(dying)
    bench.end_of(run)
    expected = ["dead" if rank in dying else "error" for rank in bench.all]
    bench.expect(run, [output.status for output in run.outputs], expected)
    bench.recover()
    bench.values("drop_groups()")


def dies_by_itself(bench: Bench) -> None:
    dying = doomed(bench)
    ending = bench.random.choice(["os._exit(3)", "os.abort()", "os.kill(os.getpid(), 9)"])
    run = bench.run(f"advance()\ndist.barrier()\nif rank in {dying}: {ending}\ndist.barrier()")
    bench.must_have.advance(bench.all)
    bench.expect(run, {o.rank for o in run.outputs if o.status == "dead"}, set(dying))
    bench.knows_dead(dying)
    bench.recover()


def dies_while_its_value_is_pulled(bench: Bench) -> None:
    """The error names who died, and no file of a half-sent value stays."""
    [victim] = bench.random.sample(bench.mortal, 1)
    process = psutil.Process(pids_of_ranks(bench.session)[victim])
    timer = threading.Timer(bench.random.random() * 0.1, process.kill)
    timer.start()
    try:
        with bench.within(QUICK_S, "to pull from a rank that dies"):
            bench.session.pull(f"torch.ones({50 * MB // 4})")
    except (TransferError, SessionError) as exc:
        if f"rank {victim} was killed by SIGKILL" not in str(exc):
            raise AssertionError(f"another one is named than rank {victim}: {exc}") from exc
    timer.join()
    bench.knows_dead([victim])
    bench.recover()


def restarts(bench: Bench) -> None:
    chosen = doomed(bench)
    with bench.within(QUICK_S, f"to restart ranks {chosen}"):
        report = bench.session.restart_ranks(chosen)
    if set(report.replaced) != set(chosen):
        raise AssertionError(f"{report.replaced} were replaced, not {chosen}")
    bench.equip(sorted(chosen))


def recovers_twice_at_once(bench: Bench) -> None:
    """Both may do it, or one is told to wait: afterwards the session is whole."""
    dying = doomed(bench)
    bench.kill(dying)
    refusals: list[Exception] = []

    def recover() -> None:
        try:
            bench.session.recover()
        except SessionError as exc:
            refusals.append(exc)

    threads = [threading.Thread(target=recover, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    with bench.within(2 * QUICK_S, "two recoveries at once"):
        for thread in threads:
            thread.join()
    if len(refusals) == len(threads):
        raise AssertionError(f"neither of two recoveries at once went through: {refusals}")
    bench.equip(sorted(dying))


def helper_of(bench: Bench, role: str) -> psutil.Process:
    """Return the latest process of *role*, once it has taken the place of the one before."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        process = folder_of(bench.session).process(role)
        if process is not None and process.is_alive:
            found.append(psutil.Process(process.pid))
        return bool(found)

    wait_until(is_there, f"a living {role}")
    return found[0]


def loses_its_controller(bench: Bench) -> None:
    """The cell is over for the notebook, and goes on on the ranks; the next cell works."""
    run = bench.begin(f"advance()\n{READY}\ntime.sleep(0.3)")
    bench.waits_for(run, "ready")
    bench.must_have.advance(bench.all)
    helper_of(bench, "controller").kill()
    bench.end_of(run)
    bench.expect(run, [output.status for output in run.outputs], ["stopped"] * len(bench.all))


def loses_its_controller_between_cells(bench: Bench) -> None:
    helper_of(bench, "controller").kill()
    wait_until(lambda: bench.session.trouble is not None, "the death to be noticed")


def loses_its_store(bench: Bench) -> None:
    """While a group is made, or not."""
    run = bench.begin(f"advance()\n{READY}\ndist.new_group(list(range(world_size)))")
    bench.waits_for(run, "ready")
    bench.must_have.advance(bench.all)
    helper_of(bench, "store").kill()
    bench.end_of(run)
    bench.values("drop_groups()")


def finds_its_store_stopped(bench: Bench) -> None:
    helper_of(bench, "store").suspend()
    run = bench.run("advance()\nif rank == 0: raise ValueError('of rank 0')\ndist.barrier()")
    bench.must_have.advance(bench.all)
    bench.expect(run, {output.status for output in run.outputs}, {"error"})


KINDS = [
    Kind(loses_its_controller, 0.15),
    Kind(loses_its_controller_between_cells, 0.1),
    Kind(loses_its_store, 0.2),
    Kind(finds_its_store_stopped, 0.2),
    Kind(dies_idle, 0.7),
    Kind(dies_in_a_call, 0.9),
    Kind(dies_by_itself, 0.5),
    Kind(dies_while_its_value_is_pulled, 0.3),
    Kind(restarts, 0.6),
    Kind(recovers_twice_at_once, 0.2),
]
