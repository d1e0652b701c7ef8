from __future__ import annotations

import pytest

from nbdist.view.collectives import collectives_line, held_up
from nbdist.wire import CallCount

WORLD = (0, 1, 2, 3)
MIB = 2**20


def call(
    op: str, count: int = 1, size: int = 0, ranks: tuple[int, ...] = WORLD, group: str = "0"
) -> CallCount:
    return CallCount(op, group, ranks, count, size)


def alike(*calls: CallCount) -> dict[int, tuple[CallCount, ...]]:
    return dict.fromkeys(WORLD, calls)


def test_nothing_called_is_nothing_said() -> None:
    assert collectives_line({}) == ""
    assert collectives_line({0: (), 1: ()}) == ""


def test_what_all_ranks_did_is_said_once() -> None:
    assert collectives_line(alike(call("all_reduce", 4, 12 * MIB))) == (
        "4 × all_reduce (12 MiB) · group world"
    )


def test_operations_come_in_the_order_of_first_calls() -> None:
    calls = alike(call("broadcast", 1, 800), call("all_reduce", 2000, 2**16))

    assert collectives_line(calls) == (
        "1 × broadcast (800 B), 2,000 × all_reduce (64 KiB) · group world"
    )


def test_a_call_without_data_has_no_size() -> None:
    assert collectives_line(alike(call("barrier", 2))) == "2 × barrier · group world"


def test_a_rank_that_called_less_is_named() -> None:
    calls = {
        rank: (call("broadcast", 2, 1024), call("all_reduce", *((3, 9) if rank == 1 else (4, 12))))
        for rank in WORLD
    }

    assert collectives_line(calls) == (
        "2 × broadcast (1 KiB) · ranks 0, 2, 3: 4 × all_reduce (12 B) · "
        "rank 1: 3 × all_reduce (9 B) · group world"
    )


def test_a_rank_that_took_no_part_is_named() -> None:
    calls = {rank: (call("all_reduce", 1, 4),) if rank != 3 else () for rank in WORLD}

    assert collectives_line(calls) == (
        "ranks 0–2: 1 × all_reduce (4 B) · rank 3: no all_reduce · group world"
    )


def test_ranks_that_put_in_different_amounts_are_not_told_apart() -> None:
    calls = {rank: (call("all_gather", 1, rank * 1024),) for rank in WORLD}

    assert collectives_line(calls) == "1 × all_gather (0 B–3 KiB) · group world"


def test_a_group_is_named_by_its_ranks() -> None:
    pair = call("all_reduce", 1, 4, ranks=(0, 1), group="1")

    assert collectives_line({0: (pair,), 1: (pair,), 2: (), 3: ()}, world_size=4) == (
        "1 × all_reduce (4 B) · group of ranks 0, 1"
    )


def test_groups_that_did_the_same_are_told_together() -> None:
    pairs = [call("all_reduce", 1, 4, ranks=(r, r + 1), group=str(r)) for r in (0, 2)]
    calls = {rank: (call("barrier"), pairs[rank // 2]) for rank in WORLD}

    assert collectives_line(calls) == (
        "1 × barrier · group world; 1 × all_reduce (4 B) · groups of ranks 0, 1 | 2, 3"
    )


def test_many_groups_are_counted() -> None:
    calls = {
        rank: (call("all_reduce", 8, 4, ranks=(rank // 2 * 2, rank // 2 * 2 + 1), group="x"),)
        for rank in range(64)
    }

    assert collectives_line(calls) == "8 × all_reduce (4 B) · 32 groups of 2 ranks"


def test_groups_that_did_not_do_the_same_are_told_apart() -> None:
    calls = {
        rank: (call("all_reduce", 1 + rank // 2, 4, ranks=(rank // 2 * 2, rank // 2 * 2 + 1)),)
        for rank in WORLD
    }

    assert collectives_line(calls) == (
        "1 × all_reduce (4 B) · group of ranks 0, 1; 2 × all_reduce (4 B) · group of ranks 2, 3"
    )


def test_a_second_group_of_all_ranks_is_not_the_world() -> None:
    calls = alike(call("barrier", group="7"), call("all_reduce", 1, 4))

    assert collectives_line(calls) == (
        "1 × barrier · another group of all ranks; 1 × all_reduce (4 B) · group world"
    )


def test_the_default_group_may_have_another_name_after_it_was_made_anew() -> None:
    assert collectives_line(alike(call("barrier", group="gen2"))) == "1 × barrier · group world"


def test_ranks_the_cell_did_not_run_on_are_not_missed() -> None:
    pair = call("all_reduce", 1, 4, ranks=(0, 1), group="1")

    assert collectives_line({0: (pair,)}, world_size=4) == (
        "1 × all_reduce (4 B) · group of ranks 0, 1"
    )


def test_who_sends_is_not_said_to_have_received_nothing() -> None:
    def message(op: str) -> CallCount:
        return call(op, 2, 4 * MIB, ranks=(0, 1))

    assert collectives_line({0: (message("send"),), 1: (message("recv"),)}, world_size=4) == (
        "rank 0: 2 × send (4 MiB) · rank 1: 2 × recv (4 MiB) · group of ranks 0, 1"
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_the_order_in_which_ranks_answered_does_not_matter(order: tuple[int, ...]) -> None:
    calls = {rank: (call("all_reduce", 1 + rank // 2, 4),) for rank in order}

    assert collectives_line(calls) == (
        "ranks 0, 1: 1 × all_reduce (4 B) · ranks 2, 3: 2 × all_reduce (4 B) · group world"
    )


def in_group(ranks: tuple[int, ...], *ops: str, count: int = 1) -> list[CallCount]:
    return [call(op, count, ranks=ranks, group=str(ranks)) for op in ops]


def test_who_called_less_held_up_the_others() -> None:
    calls = {rank: in_group(WORLD, "all_reduce", count=2 - (rank == 1)) for rank in WORLD}

    assert held_up(calls, WORLD) == {1}
    assert held_up({**calls, 1: ()}, WORLD) == {1}
    assert held_up({0: calls[0], 2: calls[2]}, WORLD) == {1, 3}  # these have never answered


def test_operations_are_counted_together() -> None:
    calls = {0: in_group(WORLD, "broadcast", "barrier"), 1: in_group(WORLD, "broadcast", count=2)}

    assert held_up(calls, (0, 1)) == frozenset()


def test_a_rank_that_waits_in_another_group_held_up_nobody() -> None:
    world, pair = in_group(WORLD, "all_reduce"), in_group((1, 2), "broadcast")

    assert held_up({0: world, 1: pair, 2: (), 3: world}, WORLD) == {2}


def test_ranks_without_the_cell_held_up_nobody() -> None:
    calls = {rank: in_group(WORLD, "all_reduce") for rank in (0, 2)}

    assert held_up(calls, (0, 2)) == frozenset()


def test_messages_do_not_tell_who_is_late() -> None:
    calls = {0: in_group(WORLD, "send", count=3), 1: in_group(WORLD, "recv")}

    assert held_up(calls, WORLD) == frozenset()
