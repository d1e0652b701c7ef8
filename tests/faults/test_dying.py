"""The process of a rank ends: the others are freed at once, a fresh one takes its place."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil
import pytest

from nbdist.errors import SessionError, TransferError
from tests.faults.driving import PROMPT_S, Shared, Workshop, workshop
from tests.processes import describe, is_running, wait_for_end
from tests.sessions.driving import error, finished, pids, processes_of, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
BY_SIGKILL = "died: it was killed by SIGKILL"
NO_MEMORY_IN_C = (
    "libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; "
    "libc.malloc.argtypes = [ctypes.c_size_t]; "
    "ctypes.memset(libc.malloc(2**50) or 0, 0, 1)"
)


def dies(shop: Workshop, *ranks: int) -> None:
    """Wait until the session knows that these ranks, and no others, are dead."""
    wait_until(lambda: shop.session.dead_ranks == ranks, f"ranks {ranks} to be seen dead")


# How a rank can die ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (KILL, BY_SIGKILL),
        ("os._exit(3)", "died: it exited with code 3"),
        ("os._exit(0)", "died: it"),
        ("os.abort()", "died: it was killed by SIGABRT"),
        ("ctypes.string_at(0)", "died: it was killed by SIGSEGV"),
        (NO_MEMORY_IN_C, "died: it was killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", "died: it"),
    ],
)
def test_the_others_are_told_how_a_rank_died(shop: Workshop, code: str, how: str) -> None:
    run = shop.ends(shop.run(f"if rank == 1:\n    {code}\ndist.all_reduce(ones(2))"))

    assert statuses(run) == ["error", "dead", "error"]
    assert error(run, 1).ename == "RankDied"
    shop.blames(run, 1, how)
    shop.recovers()


@pytest.mark.parametrize("culprit", [0, 2])
def test_any_rank_may_die(shop: Workshop, culprit: int) -> None:
    run = shop.ends(shop.run(f"if rank == {culprit}: {KILL}\ntrain(ddp)"))

    shop.blames(run, culprit, BY_SIGKILL)
    shop.recovers()


# What it was in, and the others ------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "dist.all_reduce(ones(2))",
        "dist.all_reduce(ones(2), async_op=True).wait()",
        "[lambda: dist.recv(ones(4), 1), int, lambda: dist.recv(ones(4), 1)][rank]()",
        "train(ddp)",
        "train(fsdp)",
        "redistribute()",
        "dist.new_group([0, 1, 2])",
    ],
)
def test_the_others_are_within(shop: Workshop, call: str) -> None:
    run = shop.run(f"if rank == 1: time.sleep(600)\n{call}\ndist.barrier()")
    shop.wait_until_within(run, [0, 2])

    os.kill(pids(shop.session)[1], signal.SIGKILL)
    shop.ends(run)

    assert statuses(run) == ["error", "dead", "error"]
    shop.blames(run, 1, BY_SIGKILL)
    shop.recovers()


@pytest.mark.parametrize("model", ["ddp", "fsdp"])
def test_a_rank_dies_in_the_backward_of_a_layer(shop: Workshop, model: str) -> None:
    run = shop.ends(
        shop.run(
            f"if rank == 1: Bomb.explode = lambda where: where == 'backward' and {KILL}\n"
            f"train({model})\ndist.barrier()"
        )
    )

    shop.blames(run, 1, BY_SIGKILL)
    shop.recovers()


def test_a_rank_dies_in_the_middle_of_a_large_collective(shop: Workshop) -> None:
    run = shop.run("big = ones(4_000_000)\nwhile True: dist.all_reduce(big); big.fill_(1)")
    shop.wait_until_within(run, shop.all)

    os.kill(pids(shop.session)[1], signal.SIGKILL)
    shop.ends(run)

    shop.blames(run, 1, BY_SIGKILL)
    shop.recovers()


def test_a_rank_dies_while_idle(shop: Workshop) -> None:
    os.kill(pids(shop.session)[1], signal.SIGKILL)
    dies(shop, 1)

    with pytest.raises(SessionError, match=r"(?s)rank 1 was killed by SIGKILL.*%dist recover"):
        shop.run("rank")
    assert values(shop.session, "mine", "0,2") == [0, 20]
    shop.recovers()


def test_a_rank_dies_while_all_compute(shop: Workshop) -> None:
    run = shop.run("while True: pass")
    shop.wait_until_running(run)

    os.kill(pids(shop.session)[1], signal.SIGKILL)
    dies(shop, 1)
    shop.session.stop_run(run, "The cell was stopped")

    assert statuses(run) == ["stopped", "dead", "stopped"]
    shop.recovers()


@pytest.mark.parametrize("before", ["", "dist.all_reduce(ones(2)); "], ids=["none", "collective"])
def test_who_waits_for_nobody_when_a_rank_dies_ends_its_cell_well(
    shop: Workshop, before: str
) -> None:
    run = shop.run(f"{before}time.sleep(0.3 if rank == 1 else 1); rank == 1 and {KILL}")
    shop.ends(run)

    assert statuses(run) == ["ok", "dead", "ok"]
    shop.recovers()


def test_a_call_that_nobody_has_waited_for_is_told_of_when_its_peer_dies(shop: Workshop) -> None:
    wait = "work = dist.all_reduce(ones(2), async_op=True); time.sleep(1)"

    run = shop.ends(shop.run(f"if rank == 1: {KILL}\n{wait}"))

    assert statuses(run) == ["error", "dead", "error"]
    shop.blames(run, 1, BY_SIGKILL, among=(0, 2))
    shop.recovers()


def test_the_survivors_of_an_idle_death_are_told_in_their_next_collective(shop: Workshop) -> None:
    os.kill(pids(shop.session)[1], signal.SIGKILL)
    dies(shop, 1)

    run = shop.ends(shop.run("dist.all_reduce(ones(2))", "0,2"))

    assert statuses(run) == ["error", "error"]
    assert all("rank 1 died" in error(run, rank).evalue for rank in (0, 2))
    shop.recovers()


def test_workers_of_a_data_loader_end_with_their_rank(shop: Workshop) -> None:
    run = shop.run(
        "loader = DataLoader(torch.arange(10_000.), 4, num_workers=2)\n"
        f"for number, batch in enumerate(loader):\n    if rank == 1 and number == 9: {KILL}\n"
        "    dist.all_reduce(batch)"
    )
    shop.wait_until_within(run, [0, 2])
    shop.ends(run)

    shop.blames(run, 1, BY_SIGKILL)
    shop.recovers()


# Between the file of a value and the word of it.
DIES_UNTOLD = """
from nbdist.packing import ValueFolder
keep = ValueFolder.keep
def keep_and_die(folder, drafts):
    if kept := keep(folder, drafts):
        os.kill(os.getpid(), signal.SIGKILL)
    return kept
ValueFolder.keep = keep_and_die
"""


@pytest.mark.parametrize("how", ["pull", "cell"])
def test_a_rank_that_dies_before_it_tells_of_its_value_leaves_no_file(
    shop: Workshop, how: str
) -> None:
    folder = shop.session._processes.folder.shared_memory()
    before = {*folder.iterdir()}
    finished(shop.session, DIES_UNTOLD, 1)

    if how == "pull":
        with pytest.raises(TransferError, match="rank 1 was killed by SIGKILL"):
            shop.session.pull("torch.ones(10**6)", 1)
    else:
        shop.ends(shop.run("torch.ones(10**6)", 1))
    dies(shop, 1)

    wait_until(lambda: {*folder.iterdir()} <= before, "the file to be deleted")
    shop.recovers()


def test_children_of_a_dead_rank_end_with_it(shop: Workshop) -> None:
    finished(shop.session, "import subprocess; child = subprocess.Popen(['sleep', '613'])", 1)
    run = shop.run("import os; os.system('sleep 613 &')\n!sleep 613 & sleep 613", 1)
    waits = shop.run("dist.barrier()", "0,2")
    wait_until(lambda: len(sleepers(shop)) >= 4, "the children to be there")
    children = sleepers(shop)

    os.kill(pids(shop.session)[1], signal.SIGKILL)
    shop.ends(run)
    shop.ends(waits)

    assert [describe(process) for process in wait_for_end(children, PROMPT_S)] == []
    shop.recovers()


def sleepers(shop: Workshop) -> list[psutil.Process]:
    return [each for each in processes_of(shop.session) if "sleep 613" in describe(each)]


def test_two_of_three_die(shop: Workshop) -> None:
    run = shop.ends(shop.run(f"if rank > 0: {KILL}\ndist.barrier()"))

    assert statuses(run) == ["error", "dead", "dead"]
    report = shop.recovers()
    assert "no other rank was left to compare with" in report.copied


def test_one_dies_and_another_raises(shop: Workshop) -> None:
    run = shop.ends(
        shop.run(f"if rank == 1: {KILL}\nif rank == 2: raise ValueError('the bug')\ndist.barrier()")
    )

    assert statuses(run) == ["error", "dead", "error"]
    assert error(run, 2).evalue == "the bug"
    shop.recovers()


def test_a_rank_dies_twice(shop: Workshop) -> None:
    for _ in range(2):
        run = shop.ends(shop.run(f"if rank == 1: {KILL}\ntrain(ddp)"))
        shop.blames(run, 1, BY_SIGKILL)
        shop.recovers()
        shop.works()


# Not dead, but out of memory or stopped ----------------------------------------------------------


@pytest.mark.parametrize(
    ("allocate", "how"),
    [("bytearray(2**36)", "raised MemoryError"), ("torch.empty(2**34)", "raised RuntimeError")],
)
def test_memory_that_cannot_be_had_is_an_error(shop: Workshop, allocate: str, how: str) -> None:
    run = shop.ends(
        shop.run(
            "import resource\nif rank == 1:\n"
            "    old = resource.getrlimit(resource.RLIMIT_AS)\n"
            "    resource.setrlimit(resource.RLIMIT_AS, (2**35, old[1]))\n"
            f"    try: {allocate}\n"
            "    finally: resource.setrlimit(resource.RLIMIT_AS, old)\n"
            "dist.barrier()"
        )
    )

    shop.blames(run, 1, how)


@pytest.mark.parametrize("call", ["dist.all_reduce(ones(2))", "train(ddp)", "train(fsdp)"])
def test_a_rank_that_was_stopped_for_a_while_goes_on(shop: Workshop, call: str) -> None:
    frozen = pids(shop.session)[1]
    os.kill(frozen, signal.SIGSTOP)
    try:
        run = shop.run(call)
        shop.wait_until_within(run, [0, 2])
    finally:
        os.kill(frozen, signal.SIGCONT)

    assert statuses(shop.ends(run)) == ["ok"] * 3


def test_a_stopped_rank_can_be_replaced(shop: Workshop) -> None:
    os.kill(pids(shop.session)[1], signal.SIGSTOP)
    run = shop.run("dist.barrier()")
    shop.wait_until_within(run, [0, 2])

    stuck = shop.session.stop_run(run, "The cell was stopped")
    report = shop.session.restart_ranks(1)

    assert stuck == (1,)
    assert report.replaced == (1,)
    shop.equip((1,))


# Recovering --------------------------------------------------------------------------------------


def test_the_report_says_what_was_copied(shop: Workshop) -> None:
    finished(shop.session, "alike, own = torch.arange(3), rank + 7")
    run = shop.ends(shop.run(f"if rank == 1: {KILL}\ndist.barrier()"))

    report = shop.recovers()

    assert statuses(run)[1] == "dead"
    copied, left = str(report).split("not copied: ")
    assert "rank 1 replaced in " in copied
    assert "alike" in copied
    assert "ddp" in copied
    assert "own" in left
    assert "fsdp" in left
    assert values(shop.session, "alike.sum().item()") == [3, 3, 3]


def test_restarting_a_rank_that_lives(shop: Workshop) -> None:
    before = pids(shop.session)

    report = shop.session.restart_ranks(2)

    assert report.replaced == (2,)
    shop.equip((2,))
    assert pids(shop.session)[:2] == before[:2]
    assert pids(shop.session)[2] != before[2]


def test_restarting_a_rank_in_the_middle_of_a_cell(shop: Workshop) -> None:
    run = shop.run("if rank == 2: ctypes.PyDLL(None).sleep(600)\ndist.barrier()")
    shop.wait_until_within(run, [0, 1])

    report = shop.session.restart_ranks(2)

    shop.blames(shop.ends(run), 2, BY_SIGKILL)
    assert report.replaced == (2,)
    shop.equip((2,))


def test_recovering_without_need_does_nothing(shop: Workshop) -> None:
    before = pids(shop.session)

    report = shop.session.recover()

    assert report.replaced == ()
    assert pids(shop.session) == before


def test_all_but_none_may_be_restarted(shop: Workshop) -> None:
    with pytest.raises(SessionError, match="No rank would be left"):
        shop.session.restart_ranks(None)


def kill_when_spawned(shop: Workshop, spawned: int, victim: int) -> threading.Thread:
    """Kill *victim* as soon as a fresh process for rank *spawned* is there."""
    pids_of = shop.session._processes.pids
    old = pids_of[spawned]

    def wait() -> None:
        wait_until(lambda: pids_of[spawned] != old, "the fresh rank")
        os.kill(pids_of[victim], signal.SIGKILL)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("victim", [2, 0, 1])
def test_a_rank_dies_while_the_others_recover(shop: Workshop, victim: int) -> None:
    shop.ends(shop.run(f"if rank == 2: {KILL}\ndist.barrier()"))
    before = list(shop.session._processes.pids.values())

    began = time.monotonic()
    killer = kill_when_spawned(shop, 2, victim)
    with pytest.raises(SessionError):
        shop.session.recover()
    killer.join(PROMPT_S)
    wait_until(lambda: victim in shop.session.dead_ranks, "the death to be seen")
    shop.session.recover()
    took_s = time.monotonic() - began

    assert took_s < 2 * PROMPT_S  # a fork as well; waiting for the dead would take 30 s
    now = shop.session._processes.pids
    replaced = tuple(rank for rank in shop.all if now[rank] != before[rank])
    assert {2, victim} <= set(replaced)
    shop.equip(replaced)


def test_a_survivor_that_fails_after_a_death_is_settled_with_it(shop: Workshop) -> None:
    shop.ends(shop.run(f"if rank == 1: {KILL}\ndist.barrier()"))
    shop.ends(shop.run("raise ValueError('another')", 0))

    shop.recovers()


# Nobody is left ----------------------------------------------------------------------------------


def test_all_ranks_dead_is_a_restart(shared: Shared) -> None:
    shared.close()  # one session at a time
    with workshop(2) as shop:
        run = shop.ends(shop.run("os._exit(3)"))
        assert statuses(run) == ["dead", "dead"]

        with pytest.raises(SessionError, match=r"(?s)All ranks are dead.*%dist restart"):
            shop.session.recover()
        with pytest.raises(SessionError, match="%dist restart"):
            shop.run("rank")


def test_a_lone_survivor_of_two_goes_on(shared: Shared) -> None:
    shared.close()
    with workshop(2) as shop:
        left = psutil.Process(pids(shop.session)[0])
        shop.ends(shop.run(f"if rank == 1: {KILL}\ntrain(ddp)"))

        shop.recovers()
        shop.works()

        assert is_running(left)
