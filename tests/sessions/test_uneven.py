"""What is said when some rank of a group has called less than the others in a cell."""

from __future__ import annotations

from typing import Any

from nbdist.sessions.uneven import uneven_ends
from nbdist.wire import GroupCall
from tests.sessions.scenes import call, message

ALL = (0, 1, 2)
NEXT = "The next collective of that group would meet the wrong one: call it on"
AGREE = "or `%dist recover` makes the ranks agree again."


def counts(*seqs: int, **more: Any) -> list[GroupCall]:
    return [call(r, seq, "issued", **{"ranks": ALL, **more}) for r, seq in enumerate(seqs)]


def test_equal_counts_are_no_reason_to_warn() -> None:
    assert uneven_ends(counts(7, 7, 7), ALL) is None


def test_no_collectives_are_no_reason_to_warn() -> None:
    assert uneven_ends([], ALL) is None


def test_a_rank_that_ran_one_collective_fewer_is_named_with_the_call() -> None:
    assert uneven_ends(counts(7, 6, 7), ALL) == (
        "rank 1 ran one collective fewer than ranks 0, 2 in group world: it has not called "
        f"all_reduce(float32[10], sum) (In[12]:7). {NEXT} rank 1, {AGREE}"
    )


def test_ranks_that_ran_several_fewer_are_told_of_the_last() -> None:
    assert uneven_ends(counts(4, 4, 7), ALL) == (
        "ranks 0, 1 ran 3 collectives fewer than rank 2 in group world: the last one that they "
        f"have not called is all_reduce(float32[10], sum) (In[12]:7). {NEXT} ranks 0, 1, {AGREE}"
    )


def test_different_lags_are_told_one_by_one() -> None:
    text = uneven_ends(counts(5, 6, 7), ALL)

    assert text is not None
    assert "rank 1 ran one collective fewer than rank 2" in text
    assert "rank 0 ran 2 collectives fewer than rank 2" in text
    assert f"{NEXT} ranks 0, 1, {AGREE}" in text


def test_a_rank_that_never_used_the_group_has_run_none() -> None:
    text = uneven_ends(counts(1, 1), ALL)

    assert text is not None
    assert text.startswith("rank 2 ran one collective fewer than ranks 0, 1")


def test_a_group_with_members_outside_of_the_cell_is_not_looked_at() -> None:
    assert uneven_ends(counts(7, 6, 7), (0, 1)) is None


def test_every_uneven_group_has_its_line() -> None:
    calls = [*counts(7, 6, 7, group="a"), *counts(3, 3, 3, group="b"), *counts(1, 2, 2, group="c")]

    text = uneven_ends(calls, ALL)

    assert text is not None
    assert [line.partition(":")[0] for line in text.split("\n")] == [
        "rank 1 ran one collective fewer than ranks 0, 2 in group a",
        "rank 0 ran one collective fewer than ranks 1, 2 in group c",
    ]


def test_a_message_that_nobody_received_is_named() -> None:
    calls = [message(0, "send", 0, 1, 2), message(1, "recv", 0, 1, 1)]

    assert uneven_ends(calls, ALL) == (
        "rank 0 sent one message that rank 1 has not received, in group world: "
        "send(float32[3]) (In[12]:5). The next message between them would meet the wrong one: "
        f"receive on rank 1, {AGREE}"
    )


def test_a_receipt_that_nobody_sent_to_is_named() -> None:
    text = uneven_ends([message(1, "recv", 0, 1, 2)], ALL)

    assert text is not None
    assert text.startswith("rank 1 began to receive 2 messages that rank 0 has not sent")
    assert f"send on rank 0, {AGREE}" in text
