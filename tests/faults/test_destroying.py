"""A script makes and destroys its process group, and the session has its own afterwards.

The workshop's objects (DDP, FSDP2, meshes, sub-groups) work on after each case: see `driving`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from nbdist.errors import SessionError
from nbdist.sessions.session import Session
from tests.faults.driving import PROMPT_S, Shared, Workshop
from tests.sessions.driving import error, finished, printed, ranks, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

DESTROY = "dist.destroy_process_group()"
WHO = {"all": "True", "some": "rank > 0", "one": "rank == 1"}
JOINED = "init_process_group: joined nbdist's group of 3 ranks, cpu:gloo\n"
BACK = "destroy_process_group: nbdist's group of 3 ranks is back for the next cell\n"
SCRIPT = """
def main():
    dist.init_process_group("gloo")
    t = torch.ones(1) * dist.get_rank()
    dist.all_reduce(t)
    group = dist.new_group([0, 1, 2])
    dist.all_reduce(t, group=group)
    dist.destroy_process_group()
    return t.item()
"""


# Joining ------------------------------------------------------------------------------------------


def test_a_script_joins_the_group_that_is_there(shop: Workshop) -> None:
    run = shop.ends(shop.run('dist.init_process_group("gloo")\ndist.get_world_size()'))

    assert statuses(run) == ["ok"] * 3
    assert [printed(run, rank) for rank in range(3)] == [JOINED] * 3


def test_joining_waits_for_nobody(shop: Workshop) -> None:
    run = shop.ends(shop.run("dist.init_process_group(); dist.is_initialized()", [1]))

    assert list(run.result()) == [True]


def test_what_a_script_asks_for_and_does_not_get_is_named(shop: Workshop) -> None:
    asked = "init_method='tcp://127.0.0.1:29501', device_id=torch.device('cpu')"

    run = shop.ends(shop.run(f"dist.init_process_group('gloo', {asked})"))

    assert printed(run) == JOINED.replace("\n", "; not used: init_method, device_id\n")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("world_size=8", "world_size is 8, but nbdist's group has 3 ranks"),
        ("rank=7 - rank, world_size=3", "rank is 6, but this is rank 1"),
        ("'nccl'", "backend is 'nccl', but nbdist's group has cpu:gloo"),
        ("init_method='tcp://h:1?rank=5&world_size=3'", "rank is 5, but this is rank 1"),
    ],
)
@pytest.mark.parametrize("before", ["", DESTROY + "; "], ids=["up", "destroyed"])
def test_what_contradicts_the_group_is_refused_on_each_rank(
    shop: Workshop, before: str, asked: str, said: str
) -> None:
    run = shop.ends(shop.run(f"{before}dist.init_process_group({asked})"))

    assert [error(run, rank).ename for rank in range(3)] == ["ValueError"] * 3
    assert said in error(run, 1).evalue


ASK_TIMEOUT = (
    "from nbdist.runtime.hooks import hooks\n"
    "native = hooks.in_use(dist.group.WORLD)\n"
    "native._get_backend(torch.device('cpu')).options._timeout.total_seconds()"
)
SET_TIMEOUT = "import datetime\ndist.init_process_group(timeout=datetime.timedelta(seconds=77))"


def test_a_timeout_holds_until_the_group_is_destroyed_also_after_a_rebuild(shop: Workshop) -> None:
    [before, *_] = values(shop.session, ASK_TIMEOUT)

    shop.ends(shop.run(SET_TIMEOUT)).raise_failure()
    assert values(shop.session, ASK_TIMEOUT) == [77.0] * 3
    shop.ends(shop.run("if rank == 0: raise ValueError('the bug')\nw = dist.barrier()"))
    assert values(shop.session, ASK_TIMEOUT) == [77.0] * 3
    shop.ends(shop.run(DESTROY)).raise_failure()

    assert values(shop.session, ASK_TIMEOUT) == [before] * 3


@pytest.mark.parametrize("how", ["recover", "restart"])
def test_a_timeout_holds_on_a_fresh_rank_as_well(shop: Workshop, how: str) -> None:
    [before, *_] = values(shop.session, ASK_TIMEOUT)
    shop.ends(shop.run(SET_TIMEOUT)).raise_failure()

    if how == "recover":
        shop.ends(shop.run("if rank == 1: os._exit(3)"))
        shop.recovers()
    else:
        shop.session.restart_ranks([1])
        shop.equip((1,))

    assert values(shop.session, ASK_TIMEOUT) == [77.0] * 3
    shop.ends(shop.run(DESTROY)).raise_failure()
    assert values(shop.session, ASK_TIMEOUT) == [before] * 3


def test_the_backend_is_called_what_scripts_compare_with(shop: Workshop) -> None:
    code = "g = dist.new_group([0, 1, 2])\ndist.monitored_barrier(g)\ndist.monitored_barrier()\n"

    assert (
        values(shop.session, f"{code}[dist.get_backend(), dist.get_backend(g)]")
        == [["gloo", "gloo"]] * 3
    )


# Destroying ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", WHO)
def test_who_has_destroyed_the_group_has_it_again_in_the_next_cell(
    shop: Workshop, who: str
) -> None:
    run = shop.ends(shop.run(f"if {WHO[who]}: {DESTROY}; assert not dist.is_initialized()"))

    assert statuses(run) == ["ok"] * 3
    assert printed(run, 1) == BACK
    assert printed(run, 0) == (BACK if who == "all" else "")


AGAIN = {
    "init_process_group": "dist.init_process_group('gloo')",
    "setup": "nbdist.setup()",
    "mesh": "from torch.distributed.device_mesh import init_device_mesh\n"
    "m = init_device_mesh('cpu', (3,)); dist.all_reduce(torch.ones(1), group=m.get_group())",
}


@pytest.mark.parametrize("how", AGAIN)
@pytest.mark.parametrize("who", WHO)
def test_after_a_destroy_the_group_can_be_joined_at_once(
    shop: Workshop, how: str, who: str
) -> None:
    code = f"if {WHO[who]}: {DESTROY}\n{AGAIN[how]}\nt = torch.ones(1); dist.all_reduce(t)"
    began = time.monotonic()

    run = shop.ends(shop.run(f"{code}\nt.item()"))

    assert list(run.result()) == [3.0] * 3
    assert time.monotonic() - began < PROMPT_S


def test_a_script_runs_three_times_in_one_cell_and_in_three(shop: Workshop) -> None:
    run = shop.ends(shop.run(f"{SCRIPT}\n[main(), main(), main()]"))
    assert list(run.result()) == [[9.0] * 3] * 3
    assert printed(run) == JOINED * 3 + BACK

    for _ in range(3):
        assert list(shop.ends(shop.run(f"{SCRIPT}\nmain()")).result()) == [9.0] * 3


RPC = """
from torch.distributed import rpc
options = rpc.TensorPipeRpcBackendOptions(init_method="ADDRESS", _transports=["uv"])
rpc.init_rpc(f"w{rank}", rank=rank, world_size=3, rpc_backend_options=options)
found = rpc.rpc_sync(f"w{(rank + 1) % 3}", torch.add, args=(torch.ones(1), rank))
rpc.shutdown()
found.item()
"""


def test_rpc_finds_its_peers_after_a_destroy_at_the_sessions_store(shop: Workshop) -> None:
    for _ in range(2):
        assert values(shop.session, DESTROY + RPC.replace("ADDRESS", "env://")) == [1.0, 2.0, 3.0]


def test_rpc_hosts_a_store_of_its_own_where_it_names_one(shop: Workshop) -> None:
    [port] = values(shop.session, "nbdist.free_port()", [0])

    code = RPC.replace("ADDRESS", f"tcp://127.0.0.1:{port}")

    assert values(shop.session, code) == [1.0, 2.0, 3.0]


def test_another_master_port_is_the_scripts_own(shop: Workshop) -> None:
    [port] = values(shop.session, "nbdist.free_port()", [0])
    here = f"before = os.environ['MASTER_PORT']; os.environ['MASTER_PORT'] = '{port}'"
    code = RPC.replace("ADDRESS", "env://")

    assert values(shop.session, f"{here}{code}") == [1.0, 2.0, 3.0]
    values(shop.session, "os.environ['MASTER_PORT'] = before")


def test_a_fresh_rank_finds_the_others_by_rpc(shop: Workshop) -> None:
    code = RPC.replace("ADDRESS", "env://")
    assert values(shop.session, code) == [1.0, 2.0, 3.0]
    shop.ends(shop.run("if rank == 1: os._exit(3)"))

    shop.recovers()

    assert values(shop.session, code) == [1.0, 2.0, 3.0]


OWN_WORLD = """
import os, sys, torch, torch.distributed as dist
def work(rank):
    dist.init_process_group("gloo", rank=rank, world_size=2)
    t = torch.ones(1) * (rank + 1)
    dist.all_reduce(t)
    dist.destroy_process_group()
    os._exit(int(t.item()))
"""


def test_processes_that_a_rank_starts_make_their_own_group(shop: Workshop) -> None:
    run_script = (
        "import subprocess\n"
        f"script = {OWN_WORLD!r} + 'work(int(sys.argv[1]))'\n"
        "env = dict(os.environ, MASTER_PORT=str(nbdist.free_port()))\n"
        "args = [sys.executable, '-c', script]\n"
        "started = [subprocess.Popen([*args, str(i)], env=env) for i in range(2)]\n"
        "[one.wait(30) for one in started]"
    )

    assert values(shop.session, f"import sys\n{run_script}") == [[3, 3]] * 3


def test_processes_that_a_rank_forks_make_their_own_group(shop: Workshop) -> None:
    fork = (
        f"import multiprocessing as mp\n{OWN_WORLD}\n"
        "before = os.environ['MASTER_PORT']\n"
        "os.environ['MASTER_PORT'] = str(nbdist.free_port())\n"
        "started = [mp.Process(target=work, args=(i,)) for i in range(2)]\n"
        "[one.start() for one in started]\n"
        "[one.join(30) for one in started]\n"
        "os.environ['MASTER_PORT'] = before\n"
        "[one.exitcode for one in started]"
    )

    assert values(shop.session, fork) == [[3, 3]] * 3


def test_the_group_comes_back_without_the_help_of_ranks_in_another_cell(shop: Workshop) -> None:
    busy = shop.session.run("wait_for_file('/no/such/file')", [0])
    try:
        run = shop.ends(shop.run(DESTROY, [1, 2]))
        assert statuses(run) == ["ok"] * 2
        assert values(shop.session, "dist.is_initialized()", [1, 2]) == [True, True]
    finally:
        shop.session.stop_run(busy, "The cell was stopped")


def test_a_sub_group_that_is_destroyed_is_gone(shop: Workshop) -> None:
    shop.ends(shop.run("g = dist.new_group([0, 1, 2])\ndist.destroy_process_group(g)"))

    run = shop.ends(shop.run("dist.get_backend(g)"))

    assert [error(run, rank).ename for rank in range(3)] == ["ValueError"] * 3


def test_a_group_made_after_a_destroy_is_told_from_that_before(shop: Workshop) -> None:
    make = "dist.new_group([0, 1, 2])"
    use = "t = torch.ones(1); dist.all_reduce(t, group={})"

    shop.ends(shop.run(f"old = {make}\n{use.format('old')}\n{DESTROY}")).raise_failure()
    shop.ends(shop.run(f"new = {make}\n{use.format('new')}")).raise_failure()

    both = f"{use.format('old')}\n{use.format('new')}\n[t.item(), old.group_name != new.group_name]"
    assert values(shop.session, both) == [[3.0, True]] * 3


# What a script leaves behind ----------------------------------------------------------------------

LEAVES = """
import gc, weakref
made = []

def script(keep=None):
    dist.init_process_group("gloo")
    groups = [dist.new_group([0, 1, 2]) for _ in range(3)]
    made.extend(weakref.ref(group) for group in groups)
    for group in groups:
        dist.all_reduce(torch.ones(1), group=group)
    if keep is not None:
        keep.append(groups[0])
    dist.destroy_process_group()

def living():
    return sum(group() is not None for group in made)

def used():
    return len(os.listdir("/proc/self/task")) + len(os.listdir("/proc/self/fd"))
"""
A_GROUP = 8  # threads and files of one, about


def test_groups_that_nobody_holds_end_with_the_world(shop: Workshop) -> None:
    shop.ends(shop.run(LEAVES)).raise_failure()
    before = max(values(shop.session, "used()"))

    for _ in range(3):
        shop.ends(shop.run("script()\nscript()")).raise_failure()

    assert values(shop.session, "living()") == [0] * 3
    few = before + 2 * A_GROUP  # of 18 that were made
    wait_until(lambda: max(values(shop.session, "used()")) < few, "threads and files to be gone")


def test_a_group_that_somebody_holds_works_on_until_it_is_let_go(shop: Workshop) -> None:
    use = "t = torch.ones(1); dist.all_reduce(t, group=kept[0]); t.item()"
    shop.ends(shop.run(f"{LEAVES}\nkept = []\nscript(kept)")).raise_failure()

    for again in ("script()", "if rank == 0: raise ValueError('the bug')\ndist.barrier()", "1"):
        assert values(shop.session, use) == [3.0] * 3
        shop.ends(shop.run(again))
    assert values(shop.session, "living()") == [1] * 3
    shop.ends(shop.run("kept.clear()\nscript()")).raise_failure()

    assert values(shop.session, "living()") == [0] * 3


HOLDERS = {
    "mesh": (
        "held = init_device_mesh('cpu', (1, 3), mesh_dim_names=('a', 'b'))",
        "functional.all_reduce(ones(2), 'sum', (held, 1)).sum().item() / 2",
    ),
    "part of a mesh": (
        "held = init_device_mesh('cpu', (1, 3), mesh_dim_names=('a', 'b'))['b']",
        "DTensor.from_local(ones(1), held, [Shard(0)]).full_tensor().sum().item()",
    ),
    "model": (
        "held = DistributedDataParallel(nn.Linear(3, 1), process_group=dist.new_group())",
        "held.zero_grad(); held(ones(1, 3)).sum().backward(); held.module.weight.grad.sum().item()",
    ),
}


@pytest.mark.parametrize(("make", "use"), HOLDERS.values(), ids=HOLDERS.keys())
def test_what_an_earlier_cell_holds_a_group_by_works_on(
    shop: Workshop, make: str, use: str
) -> None:
    shop.ends(shop.run(make)).raise_failure()

    shop.ends(shop.run(f"import gc; {DESTROY}; _ = gc.collect()")).raise_failure()

    assert values(shop.session, use) == [3.0] * 3
    shop.ends(shop.run("if rank == 0: raise ValueError('the bug')\ndist.barrier()"))
    assert values(shop.session, use) == [3.0] * 3


@pytest.mark.parametrize("who", WHO)
def test_groups_that_are_named_by_their_ranks_are_told_apart(shop: Workshop, who: str) -> None:
    """Torch makes such a name of the number of groups that live on a rank."""
    make = "dist.new_group([0, 1, 2], use_local_synchronization=True)"
    use = "t = torch.ones(1); dist.all_reduce(t, group={}); t.item()"
    shop.ends(shop.run(f"first, held = {make}, {make}\nif {WHO[who]}: del first\n{DESTROY}"))

    assert values(shop.session, f"another = {make}\n{use.format('another')}") == [3.0] * 3
    assert values(shop.session, use.format("held")) == [3.0] * 3


def test_splitting_a_group_of_cpu_ranks_says_what_to_do(shop: Workshop) -> None:
    run = shop.ends(shop.run("dist.split_group(split_ranks=[[0, 1], [2]])"))

    for rank in range(3):
        assert error(run, rank).ename == "RuntimeError"
        assert "torch splits groups of GPUs alone" in error(run, rank).evalue
        assert "`dist.new_group`" in error(run, rank).evalue


def test_groups_that_were_cut_off_are_ended_where_nobody_waits(shop: Workshop) -> None:
    """Rank 1 never comes, so that the native halves on the others may be stuck until a timeout."""
    shop.ends(shop.run(f"{LEAVES}\nkept = []\nscript(kept)")).raise_failure()
    leave = "dist.all_reduce(torch.ones(1000), group=kept[0], async_op=True)"
    shop.ends(shop.run(f"if rank == 1: raise ValueError('the bug')\n{leave}.wait()"))

    run = shop.ends(shop.run(f"w = None if rank == 1 else {leave}\nkept.clear()\n{DESTROY}"))

    assert statuses(run) == ["ok"] * 3
    shop.ends(shop.run("del w\nscript()")).raise_failure()


# Who waits for one that has none ------------------------------------------------------------------

WAITS = {
    "all_reduce": "dist.all_reduce(torch.ones(1))",
    "async": "dist.all_reduce(torch.ones(1), async_op=True).wait()",
    "recv": "dist.recv(torch.ones(1), 1)",
}
HOW = "has destroyed its process groups (dist.destroy_process_group())"


@pytest.mark.parametrize("call", WAITS.values(), ids=WAITS.keys())
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_waits_for_a_rank_that_has_destroyed_its_group_is_freed(
    shop: Workshop, call: str, when: str
) -> None:
    late, early = ("time.sleep(1); ", "") if when == "after" else ("", "time.sleep(1); ")

    run = shop.ends(shop.run(f"if rank == 1: {early}{DESTROY}\nelse: {late}{call}"))

    assert statuses(run) == ["error", "ok", "error"]
    assert [f"rank 1 {HOW}" in error(run, rank).evalue for rank in (0, 2)] == [True, True]


# Beside a failure ---------------------------------------------------------------------------------


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_destroy_beside_a_failure(shop: Workshop, who: str, when: str) -> None:
    gone = f"if {WHO[who]}: {DESTROY}\n"
    fails = "if rank == 0: raise ValueError('the bug')\n"
    if when == "before":
        shop.ends(shop.run(gone)).raise_failure()
        run = shop.ends(shop.run(f"{fails}dist.barrier()"))
        shop.blames(run, 0, "raised ValueError: the bug")
    elif when == "during":
        run = shop.ends(shop.run(f"{gone}{fails}dist.barrier()"))
        assert set(statuses(run)) == {"error"}
    else:
        run = shop.ends(shop.run(f"{fails}dist.barrier()"))
        shop.ends(shop.run(gone)).raise_failure()


@pytest.mark.parametrize("who", WHO)
def test_a_destroy_beside_a_stop(shop: Workshop, who: str) -> None:
    run = shop.run(f"if {WHO[who]}: {DESTROY}\nprint('sleeps', flush=True); time.sleep(60)")
    wait_until(lambda: all("sleeps" in printed(run, rank) for rank in range(3)), "all to sleep")

    shop.stops(run)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_destroy_beside_a_death(shop: Workshop, who: str, when: str) -> None:
    gone = f"if {WHO[who]}: {DESTROY}\n"
    dies = "if rank == 2: os._exit(3)\n"
    if when == "before":
        shop.ends(shop.run(gone)).raise_failure()
    shop.ends(shop.run((gone if when == "during" else "") + dies + "time.sleep(0.1)"))
    if when == "after":
        shop.ends(shop.run(gone, [0, 1])).raise_failure()
    began = time.monotonic()

    shop.recovers()

    assert time.monotonic() - began < 2 * PROMPT_S


@pytest.mark.parametrize("who", WHO)
def test_recover_after_a_destroy(shop: Workshop, who: str) -> None:
    shop.ends(shop.run(f"if {WHO[who]}: {DESTROY}")).raise_failure()

    shop.recovers()


@pytest.mark.parametrize("who", WHO)
def test_ranks_that_are_restarted_after_a_destroy_join_the_others(shop: Workshop, who: str) -> None:
    shop.ends(shop.run(f"if {WHO[who]}: {DESTROY}")).raise_failure()

    shop.session.restart_ranks([1])

    shop.equip((1,))


# Where there is no group --------------------------------------------------------------------------

LOSE = "dist.distributed_c10d._world.pg_map.clear(); dist.distributed_c10d._update_default_pg(None)"


@pytest.fixture
def loser(shared: Shared) -> Iterator[Session]:
    """A session whose rank 1 has lost its groups, by a way that nobody can take back."""
    shared.close()  # one session at a time
    with ranks(2) as session:
        finished(session, f"keepsake = dist.group.WORLD\nif rank == 1: {LOSE}")
        yield session


def test_a_recovery_without_a_group_says_at_once_which_rank_has_none(loser: Session) -> None:
    began = time.monotonic()

    with pytest.raises(SessionError, match="process groups of rank 1 are gone"):
        loser.recover()

    assert time.monotonic() - began < PROMPT_S


def test_a_restart_of_a_rank_beside_one_without_a_group_says_so(loser: Session) -> None:
    began = time.monotonic()

    with pytest.raises(SessionError, match="process groups of rank 1 are gone"):
        loser.restart_ranks([0])

    assert time.monotonic() - began < 2 * PROMPT_S


def test_a_rank_without_a_group_is_made_anew(loser: Session) -> None:
    loser.restart_ranks([1])

    assert values(loser, "t = torch.ones(1); dist.all_reduce(t); t.item()") == [2.0, 2.0]
