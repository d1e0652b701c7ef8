from __future__ import annotations

import multiprocessing
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdist.runtime import futex, slots
from nbdist.runtime.slots import ABANDONED, ASYNC, GroupKey, Record
from nbdist.runtime.table import CHUNK_BYTES, Table
from tests.private_files import write_private
from tests.waiting import PATIENCE_S, wait_until

WORLD = GroupKey("0", (0, 1))
LONG_S = 10 * PATIENCE_S  # who sleeps as long as that was not woken


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    with Table.create(tmp_path / "table", 2) as table:
        yield table


def record(key: int = 7, text: str = "all_reduce(float32[1], sum)") -> Record:
    return Record(key, text, "In[3]:2", size_bytes=4)


def test_the_file_is_this_users_alone(table: Table) -> None:
    assert stat.S_IMODE(table.path.stat().st_mode) == 0o600


def test_another_file_is_no_table(tmp_path: Path) -> None:
    write_private(tmp_path / "other", bytes(CHUNK_BYTES))

    with pytest.raises(ValueError, match="no table"):
        Table(tmp_path / "other")


def test_a_table_may_be_closed_twice(table: Table) -> None:
    table.close()
    table.close()

    assert "closed" in repr(table)


# Posting ------------------------------------------------------------------------------------------


def test_what_one_posts_the_other_reads(table: Table) -> None:
    mine = table.slot(WORLD, 0)
    sent = Record(7, "all_to_all", "In[1]:1", 40, ASYNC, 3, gives=(1, 2), takes=(3, -1))

    seq = mine.post(0, sent)

    with Table(table.path) as other:
        theirs = other.slot(WORLD, 1)
        assert (seq, theirs.seq(0), theirs.seq(1)) == (1, 1, 0)
        assert theirs.record(0, 1) == sent
        assert theirs.peek(0, 1) == (7, ASYNC)
        assert theirs.record(0, 2) is None


def test_a_ring_forgets_the_oldest(table: Table) -> None:
    slot = table.slot(WORLD, 0)
    for key in range(slot.num_records + 1):
        slot.post(0, record(key))

    assert slot.record(0, 1) is None
    assert slot.peek(0, 1) is None
    assert slot.record(0, 2) == record(1)


def test_long_texts_are_cut(table: Table) -> None:
    slot = table.slot(WORLD, 0)
    slot.post(0, Record(1, "ä" * 500, "x" * 500))

    read = slot.record(0, 1)

    assert read is not None
    assert read.text.endswith("...")
    assert len(read.text.encode()) <= slots.TEXT_BYTES
    assert len(read.source) == slots.SOURCE_BYTES


def test_flags_are_added_later(table: Table) -> None:
    slot = table.slot(WORLD, 0)
    slot.post(0, Record(1, "x", flags=ASYNC))
    slot.flag(0, 1, ABANDONED)

    assert slot.peek(0, 1) == (1, ASYNC | ABANDONED)


def test_a_call_that_torch_refused_gives_its_number_to_the_next(table: Table) -> None:
    slot = table.slot(WORLD, 0)
    slot.post(0, record(1))
    slot.take_back(0, slot.post(0, record(2)))

    assert slot.post(0, record(3)) == 2
    assert slot.peek(0, 2) == (3, 0)
    assert slot.void_key(0, 2) == 2
    assert slot.post(0, record(4)) == 3
    assert slot.void_key(0, 3) is None


def test_everybody_sees_who_waits_for_what(table: Table) -> None:
    slot = table.slot(WORLD, 0)
    slot.post(0, record())

    with Table(table.path) as other:
        [group] = other.view()

    first, second = group.members
    assert (first.rank, first.phase, first.text, first.source) == (
        0,
        "waiting",
        "all_reduce(float32[1], sum)",
        "In[3]:2",
    )
    assert abs(first.since - time.time()) < 5
    assert (second.seq, second.phase, second.text) == (0, "idle", "")


# Slots --------------------------------------------------------------------------------------------


def test_groups_of_one_name_but_other_ranks_have_slots_of_their_own(table: Table) -> None:
    keys = [
        GroupKey("1", (0,)),
        GroupKey("1", (1,)),
        GroupKey("1", (0, 1)),
        GroupKey("1", (0, 1), incarnation=1),
        GroupKey("1", (0, 1), kind="p2p"),
    ]
    slots = [table.slot(key, 0) for key in keys]

    assert [slot.key for slot in slots] == keys
    assert len(set(map(id, slots))) == len(keys)
    assert table.slot(keys[2], 1) is slots[2]


def test_there_is_room_for_any_number_of_groups(table: Table) -> None:
    num_groups = CHUNK_BYTES // table.slot(WORLD, 0).size_bytes + 20
    for number in range(num_groups):
        table.slot(GroupKey(f"g{number}", (0, 1)), 0).post(0, record(number))

    with Table(table.path) as other:
        assert len(other.slots()) == num_groups + 1
        last = other.slot(GroupKey(f"g{num_groups - 1}", (0, 1)), 1)
        assert last.record(0, 1) == record(num_groups - 1)


def test_a_slot_that_all_members_released_is_taken_over(table: Table) -> None:
    first = table.slot(GroupKey("a", (0, 1)), 0)
    table.slot(GroupKey("a", (0, 1)), 1)
    first.post(0, record())
    first.hold(0, is_held=False)

    assert table.slot(GroupKey("b", (0, 1)), 0) is not first

    first.hold(1, is_held=False)
    third = table.slot(GroupKey("c", (0, 1)), 0)

    assert third is first
    assert (third.seq(0), third.record(0, 1)) == (0, None)
    assert [group.key.name for group in table.view()] == ["c", "b"]


def test_processes_that_come_at_once_agree_on_the_slots(table: Table) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_make_slots, args=(table.path, i)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)

    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(table.slots()) == 20
    assert all(slot.seq(0) == slot.seq(1) == 1 for slot in table.slots())


def _make_slots(path: Path, member: int) -> None:
    with Table(path) as table:
        for number in range(20):
            table.slot(GroupKey(f"g{number}", (0, 1)), member).post(member, record())


def test_large_groups_have_shorter_rings(tmp_path: Path) -> None:
    with Table.create(tmp_path / "large", 256) as table:
        slot = table.slot(GroupKey("0", tuple(range(256))), 255)
        slot.post(255, Record(1, "x", gives=tuple(range(256)), takes=tuple(range(256))))
        read = slot.record(255, 1)

    assert slot.num_records < slots.MAX_RECORDS
    assert read is not None
    assert read.gives == tuple(range(256))


# Waiting ------------------------------------------------------------------------------------------


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let nothing but a wake end a sleep; return the sleeps that were begun."""
    begun: list[float] = []
    sleep = futex.Futex.wait

    def noted(word: futex.Futex, expected: int, timeout_s: float) -> None:
        begun.append(timeout_s)
        sleep(word, expected, timeout_s)

    monkeypatch.setattr(futex.Futex, "wait", noted)
    monkeypatch.setattr(futex, "SLICE_S", LONG_S)
    return begun


def begin(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def ends(thread: threading.Thread) -> bool:
    thread.join(PATIENCE_S)
    return not thread.is_alive()


def test_a_post_wakes_who_waits(table: Table, sleeps: list[float]) -> None:
    slot = table.slot(WORLD, 0)
    word = slot.word

    def wait() -> None:
        while slot.seq(1) == 0:
            slot.wait(0, slot.word, LONG_S)

    waiter = begin(wait)
    wait_until(lambda: sleeps, "the waiter to sleep")
    slot.post(1, record())

    assert ends(waiter)
    assert slot.word != word


def test_a_wait_on_an_old_word_ends_at_once(table: Table, sleeps: list[float]) -> None:
    slot = table.slot(WORLD, 0)
    word = slot.word
    slot.post(1, record())

    waiter = begin(lambda: slot.wait(0, word, LONG_S))

    assert ends(waiter)
    assert sleeps == [LONG_S]


def test_without_the_system_call_waiting_still_works(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(futex, "_FUTEX_CALL", {})
    with Table(table.path) as other:
        slot = other.slot(WORLD, 0)
        slot.wait(0, slot.word, 1)
        slot.post(0, record())

    assert slot.seq(0) == 1


# Cancelling ---------------------------------------------------------------------------------------


def test_a_failure_concerns_the_groups_of_its_rank(table: Table) -> None:
    table.cancel("rank 1 raised ValueError: x", 1, of=1)

    found = table.cancellation([0, 1], 0)
    assert found is not None
    assert (found.reason, found.culprit, found.kind, found.of) == (
        "rank 1 raised ValueError: x",
        1,
        "failed",
        1,
    )
    assert table.cancellation([0], 0) is None


def test_a_stop_concerns_everybody(table: Table) -> None:
    table.cancel("the cell was stopped", kind="stopped")

    found = table.cancellation([0], 0)
    assert found is not None
    assert (found.culprit, found.of, found.kind) == (-1, None, "stopped")


def test_the_first_reason_is_kept_until_the_ranks_agree(table: Table) -> None:
    table.cancel("the cause", 1, of=1)
    table.cancel("a consequence", 0, of=1)
    first = table.cancellation([1], 0)
    table.agree(table.epoch)
    table.cancel("another cell", 1, of=1)
    second = table.cancellation([1], table.cut)

    assert first is not None
    assert second is not None
    assert (first.reason, second.reason) == ("the cause", "another cell")
    assert second.stamp > first.stamp
    assert table.cancellation([1], table.epoch) is None


def test_a_death_is_told_in_place_of_what_came_before(table: Table) -> None:
    table.cancel("rank 1 raised", 1, of=1)
    table.cancel("rank 1 died", 1, of=1, kind="died")
    table.cancel("rank 1 raised again", 1, of=1)

    found = table.cancellation([1], 0)
    assert found is not None
    assert found.reason == "rank 1 died"


def test_another_process_can_cancel_and_wakes_all(table: Table, sleeps: list[float]) -> None:
    slot = table.slot(WORLD, 0)

    def wait() -> None:
        while table.epoch == 0:
            slot.wait(0, slot.word, LONG_S)

    threads = [begin(wait), begin(lambda: table.wait_for_cancel(0, LONG_S))]
    wait_until(lambda: len(sleeps) == 2, "both to sleep")
    pid = os.fork()
    if pid == 0:
        with Table(table.path) as own:
            own.cancel("rank 1 died", 1, of=1, kind="died")
        os._exit(0)
    os.waitpid(pid, 0)

    assert all(map(ends, threads))


def test_waiting_for_a_cancellation_has_an_end(table: Table) -> None:
    assert not table.wait_for_cancel(0, 0.02)


# Calls to which nobody can come -------------------------------------------------------------------


def test_a_rank_is_told_which_of_its_calls_nobody_comes_to(table: Table) -> None:
    table.end_calls({1: 7}, "rank 0 has ended this cell")

    told = table.ending(1)
    assert (told.number, told.reason) == (7, "rank 0 has ended this cell")
    assert told.stamp == table.epoch
    assert table.ending(0).stamp == 0
    assert table.cancellation([0, 1], 0) is None


def test_all_are_told_alike_and_woken(table: Table, sleeps: list[float]) -> None:
    slot = table.slot(WORLD, 0)
    waiter = begin(lambda: slot.wait(0, slot.word, LONG_S))
    wait_until(lambda: sleeps, "the waiter to sleep")

    with Table(table.path) as other:
        other.end_calls({0: 3, 1: 4}, "ä" * 5000)

    assert ends(waiter)
    assert table.ending(0).stamp == table.ending(1).stamp > 0
    assert table.ending(0).reason.endswith("ä...")
