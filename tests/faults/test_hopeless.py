"""A call to which nobody can come any more ends by itself, and says so; nothing is lost.

Which facts make it certain stands in tests/sessions/test_certainty.py; programs in which somebody
comes late, in test_late.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbdist.sessions.run import Run
from nbdist.sessions.session import RankSpec
from nbdist.view.hang import Diagnosis
from tests.faults.driving import Shared, Workshop, workshop
from tests.faults.test_stopping import guard_in
from tests.sessions.driving import error, ranks, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

MODES = ["on", "trace"]
ENDED_S = 25.0  # a hang does not end at all; on a quiet machine it is half a second


@pytest.fixture(params=MODES)
def guarded(shop: Workshop, request: pytest.FixtureRequest) -> Iterator[Workshop]:
    with guard_in(shop, request.param):
        yield shop


def awaited(shop: Workshop, code: str, where: RankSpec = None) -> Run:
    """Run *code* to its end as a cell does that the prompt waits for."""
    run = shop.run(code, where)
    with shop.session.awaited(run):
        return shop.ends(run, ENDED_S)


def said(run: Run, rank: int) -> str:
    """Return the first line of the error that ended a call of *rank*."""
    found = error(run, rank)
    assert found.ename == "CollectiveError", found
    assert found.waited_for is None
    return found.evalue.partition("\n")[0]


CALLS = {
    "all_reduce": "dist.all_reduce(ones(2))",
    "barrier": "dist.barrier()",
    "all_gather_object": "dist.all_gather_object([None] * 3, rank)",
    "async": "dist.all_reduce(ones(2), async_op=True).wait()",
    "fsdp": "fsdp(x).sum().backward()",
    "functional": "import torch.distributed._functional_collectives as f\n"
    "    f.wait_tensor(f.all_reduce(ones(2), 'sum', dist.group.WORLD))",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_that_one_rank_has_left_out(guarded: Workshop, call: str) -> None:
    run = awaited(guarded, f"if rank != 1:\n    {call}")

    assert statuses(run) == ["error", "ok", "error"]
    assert "ranks 0, 2 wait in " in said(run, 0)
    assert said(run, 0).endswith("; rank 1 has ended this cell")
    assert said(run, 2) == said(run, 0)


def test_a_backward_pass_that_one_rank_has_left_out(guarded: Workshop) -> None:
    run = awaited(guarded, "loss = ddp(x).sum()\nif rank != 1: loss.backward()")

    assert "ranks 0, 2 wait in all_reduce #" in said(run, 0)
    assert said(run, 0).endswith("; rank 1 has ended this cell")
    assert said(run, 2) == said(run, 0)


def test_a_step_that_one_rank_has_left_out(guarded: Workshop) -> None:
    """Buffers or buckets come from rank 0 first: natively it is stuck, as others may not be."""
    run = awaited(guarded, "if rank != 1: ddp(x).sum().backward()")

    assert statuses(run) == ["error", "ok", "error"]
    assert "rank 1 has ended this cell" in said(run, 0)
    assert error(run, 2).ename in ("CollectiveError", "PeerFailed")


def test_a_rank_that_has_returned_early(guarded: Workshop) -> None:
    run = awaited(
        guarded,
        "def steps():\n    for step in range(5):\n"
        "        if rank == 2 and step == 3: return\n        dist.all_reduce(ones(2))\nsteps()",
    )

    assert statuses(run) == ["error", "error", "ok"]
    assert "; rank 2 has ended this cell" in said(run, 0)


def test_a_cell_of_some_ranks_that_needs_all(guarded: Workshop) -> None:
    run = awaited(guarded, "dist.all_reduce(ones(2))", "0,1")

    assert statuses(run) == ["error", "error"]
    assert said(run, 1).endswith("; rank 2 was not given this cell")
    assert "`%%dist all`" in error(run, 1).evalue


def test_a_group_of_which_one_rank_has_ended(guarded: Workshop) -> None:
    run = awaited(guarded, "if rank == 1: dist.all_reduce(ones(1), group=pair)")

    assert statuses(run) == ["ok", "error", "ok"]
    assert "rank 1 waits in all_reduce #" in said(run, 1)
    assert "; rank 0 has ended this cell" in said(run, 1)


@pytest.mark.parametrize("call", ["recv", "irecv(...).wait", "send"])
def test_a_message_without_the_other_end(guarded: Workshop, call: str) -> None:
    code = "dist.irecv(ones(2), 1).wait()" if "irecv" in call else f"dist.{call}(ones(2), 1)"

    run = awaited(guarded, f"if rank == 0: {code}")

    preposition = "to" if call == "send" else "from"
    assert f"rank 0 waits in {call.partition('(')[0].lstrip('i')} {preposition} rank 1" in (
        said(run, 0)
    )


# Circles ------------------------------------------------------------------------------------------


def test_two_ranks_that_both_send_first(guarded: Workshop) -> None:
    run = awaited(guarded, "if rank < 2: dist.send(ones(2), 1 - rank)\ndist.barrier()")

    assert said(run, 0) == said(run, 1)
    assert "; ranks 0, 1 wait for each other" in said(run, 0)
    assert error(run, 2).ename in ("PeerFailed", "CollectiveError")


MAKE = "groups = [dist.new_group([0, 1, 2]) for _ in range(3)]\n"


def test_two_groups_in_crossed_order(guarded: Workshop) -> None:
    run = awaited(
        guarded,
        f"{MAKE}a, b = (groups[0], groups[1]) if rank else (groups[1], groups[0])\n"
        "dist.all_reduce(ones(1), group=a)\ndist.all_reduce(ones(1), group=b)",
    )

    assert statuses(run) == ["error"] * 3
    assert "ranks 0–2 wait for each other" in said(run, 0)
    assert "the same order" in error(run, 0).evalue


def test_three_ranks_in_a_circle_of_messages(guarded: Workshop) -> None:
    run = awaited(guarded, "dist.recv(ones(1), (rank + 1) % 3)\ndist.send(ones(1), (rank - 1) % 3)")

    assert [said(run, rank) for rank in range(3)] == [said(run, 0)] * 3
    assert "ranks 0–2 wait for each other" in said(run, 0)


def test_a_backward_pass_and_a_receive_that_wait_for_each_other(guarded: Workshop) -> None:
    run = awaited(
        guarded, "loss = ddp(x).sum()\nloss.backward() if rank else dist.recv(ones(1), 1)"
    )

    assert "rank 0 waits in recv from rank 1" in said(run, 0)
    assert error(run, 2).ename in ("CollectiveError", "PeerFailed")


# What the program sees ----------------------------------------------------------------------------


def test_the_error_is_one_that_programs_catch_as_torchs(guarded: Workshop) -> None:
    code = (
        "seen = None\ntry:\n    if rank: dist.all_reduce(ones(2))\n"
        "except RuntimeError as exc: seen = type(exc).__name__"
    )

    awaited(guarded, code)

    assert values(guarded.session, "seen") == [None, "CollectiveError", "CollectiveError"]


def test_a_rank_that_catches_it_may_go_wrong_again(guarded: Workshop) -> None:
    code = (
        "told = []\nfor _ in range(3 if rank else 0):\n"
        "    try: dist.all_reduce(ones(2))\n"
        "    except nbdist.errors.CollectiveError as exc: told.append(str(exc).partition(' #')[0])"
    )
    run = guarded.run(code, None)
    with guarded.session.awaited(run):
        guarded.ends(run, ENDED_S)

    [_, first, second] = values(guarded.session, "told")
    assert first[0] == second[0] == "ranks 1, 2 wait in all_reduce"


def test_a_thread_that_ends_without_a_call_leaves_no_doubt(guarded: Workshop) -> None:
    run = awaited(
        guarded,
        "import threading\nif rank == 0: threading.Thread(target=time.sleep, args=[1]).start()\n"
        "else: dist.all_reduce(ones(2))",
    )

    assert "; rank 0 has ended this cell" in said(run, 1)


# Other sessions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [2, 4])
def test_with_other_numbers_of_ranks(shared: Shared, num: int) -> None:
    shared.close()  # one session at a time
    with workshop(num) as shop:
        run = awaited(shop, "if rank: dist.all_reduce(ones(2))")

        assert statuses(run) == ["ok", *["error"] * (num - 1)]
        shop.works()


def test_where_it_is_not_wanted_the_call_waits(shared: Shared) -> None:
    shared.close()  # one session at a time
    with ranks(2, hang={"certain": "warn", "after_s": 0.5}) as session:
        run = session.run("if rank: dist.barrier()")
        with session.awaited(run):
            wait_until(lambda: isinstance(run.hang, Diagnosis), "the card")
            assert not run.wait(2)
        hang = run.hang
        session.stop_run(run, "The cell was stopped")

    assert isinstance(hang, Diagnosis)
    assert "rank 1 waits in barrier" in hang.headline
