"""The recorder alone, with a real pipe and a real log, but no rank around it."""

from __future__ import annotations

import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nbdist.rank.logs import RankLog
from nbdist.rank.outputs import RankStream, Recorder, display_from, merge_text, scalar_of
from nbdist.rank.secrets import Secrets
from nbdist.wire import Clear, Display, Dropped, Output, Text
from tests.interrupting import interrupted_at
from tests.waiting import wait_until

LOG_BYTES = 10_000
SECRET = "hunter2-is-long"


@dataclass
class Rank:
    """A recorder with the ends of its pipe, and what it has published."""

    recorder: Recorder
    stdout: RankStream
    stderr: RankStream
    write_end: int
    log: Path
    batches: list[tuple[str, list[Output]]] = field(default_factory=list)
    has_threads: bool = False

    def start_threads(self) -> None:
        """Start what reads the pipe; it does so until this process ends."""
        self.recorder.start_threads()
        self.has_threads = True

    def begin(self, cell_id: str = "c1") -> None:
        self.recorder.begin(cell_id, "In[1]")

    def end(self) -> list[Output]:
        """Close the cell; return all it put out, published or not."""
        rest, num_batches = self.recorder.end()
        assert num_batches == len(self.batches)
        return merge([o for _, outputs in self.batches for o in outputs] + rest)

    def logged(self) -> str:
        return self.log.read_text()


def merge(outputs: list[Output]) -> list[Output]:
    """Join what batches have cut."""
    merged: list[Output] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if isinstance(output, Text) and isinstance(last, Text) and last.name == output.name:
            merged[-1] = Text(last.name, last.text + output.text)
        else:
            merged.append(output)
    return merged


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[Rank]:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    batches: list[tuple[str, list[Output]]] = []

    def publish(cell_id: str, outputs: list[Output]) -> None:
        batches.append((cell_id, outputs))

    log = tmp_path / "rank0.log"
    secrets = Secrets((SECRET,))
    recorder = Recorder(RankLog(log, 2**20, secrets), read_end, publish, LOG_BYTES, secrets)
    streams = RankStream(recorder, "stdout"), RankStream(recorder, "stderr")
    rank = Rank(recorder, *streams, write_end, log, batches)
    yield rank
    if not rank.has_threads:
        os.close(read_end)
        os.close(write_end)


def in_a_thread(function: Callable[[], Any]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_text_of_both_streams_stands_in_the_order_it_was_written(rank: Rank) -> None:
    rank.begin()
    print("a", file=rank.stdout)
    print("b", file=rank.stderr)
    print("c", 1, file=rank.stdout)

    assert rank.end() == [Text("stdout", "a\n"), Text("stderr", "b\n"), Text("stdout", "c 1\n")]


def test_one_text_beyond_the_bound_is_cut(rank: Rank) -> None:
    rank.begin()
    rank.stdout.write("x" * 100_000 + "\n")

    dropped, rest = rank.end()

    assert isinstance(rest, Text)
    assert dropped == Dropped(100_001 - len(rest.text))
    assert rest.text.endswith("x\n")


def test_lines_of_threads_stay_whole(rank: Rank) -> None:
    def say(who: str) -> None:
        for number in range(100):
            print(who, "line", number, file=rank.stdout)

    rank.begin()
    threads = [threading.Thread(target=say, args=(who,)) for who in ("a", "b")]
    for thread in threads:
        thread.start()
    say("main")
    for thread in threads:
        thread.join()
    rank.recorder.flush()

    [text] = rank.end()
    assert isinstance(text, Text)
    expected = [f"{who} line {number}" for who in ("main", "a", "b") for number in range(100)]
    assert sorted(text.text.splitlines()) == sorted(expected)


def test_the_beginning_of_a_line_is_shown_if_its_end_does_not_come(rank: Rank) -> None:
    rank.start_threads()
    rank.begin()
    print("loading ...", end="", file=rank.stdout)

    wait_until(lambda: rank.batches, "the beginning of the line")

    assert rank.batches == [("c1", [Text("stdout", "loading ...")])]


def test_a_line_that_has_just_begun_is_not_cut_by_a_tick(rank: Rank) -> None:
    rank.begin()
    rank.stdout.write("first")
    rank.recorder.tick()
    rank.stdout.write(" line\n")
    rank.stdout.write("second")
    rank.recorder.tick()
    in_a_thread(lambda: print("of a thread", file=rank.stdout))
    rank.stdout.write(" line\n")

    assert rank.end() == [Text("stdout", "first line\nof a thread\nsecond line\n")]


def test_what_is_shown_in_mid_line_stands_there(rank: Rank) -> None:
    rank.begin()
    print("before", end="", file=rank.stdout)
    rank.recorder.show(Clear(wait=True))
    print("after", end="", file=rank.stdout)
    os.write(rank.write_end, b"child\n")
    rank.recorder.take_pipe()
    print("end", file=rank.stdout)

    assert rank.end() == [
        Text("stdout", "before"),
        Clear(wait=True),
        Text("stdout", "afterchild\nend\n"),
    ]


def test_what_a_child_wrote_first_stands_first(rank: Rank) -> None:
    rank.begin()
    print("python", file=rank.stdout)
    os.write(rank.write_end, b"child\n")
    print("python again", file=rank.stdout)
    os.write(rank.write_end, b"child again\n")

    assert rank.end() == [Text("stdout", "python\nchild\npython again\nchild again\n")]


def test_a_line_of_python_is_not_cut_by_a_child(rank: Rank) -> None:
    rank.begin()
    rank.stdout.write("one ")
    os.write(rank.write_end, b"child\n")
    rank.stdout.write("line\n")

    assert rank.end() == [Text("stdout", "one line\nchild\n")]


def test_what_was_written_before_the_cell_is_not_its_output(rank: Rank) -> None:
    os.write(rank.write_end, b"before\n")
    rank.begin()
    print("mine", file=rank.stdout)

    assert rank.end() == [Text("stdout", "mine\n")]
    assert "before" in rank.logged()


def test_what_is_written_between_cells_goes_to_the_log_alone(rank: Rank) -> None:
    rank.begin("c1")
    rank.end()
    print("between", file=rank.stdout)
    rank.recorder.show(Display("display", {}))
    rank.begin("c2")

    assert rank.end() == []
    assert "between" in rank.logged()


def test_a_thread_of_the_cell_is_heard_and_an_older_one_is_not(rank: Rank) -> None:
    turn, done = threading.Event(), threading.Event()

    def late() -> None:
        turn.wait(10)
        print("late", file=rank.stdout)
        done.set()

    rank.begin("c1")
    in_a_thread(lambda: print("in time", file=rank.stdout))
    thread = threading.Thread(target=late)
    thread.start()
    assert rank.end() == [Text("stdout", "in time\n")]

    rank.batches.clear()
    rank.begin("c2")
    turn.set()
    assert done.wait(10)
    thread.join()

    assert rank.end() == []
    assert "late" in rank.logged()


def test_a_task_of_an_earlier_cell_is_not_heard(rank: Rank) -> None:
    def first_cell() -> contextvars.Context:
        rank.begin("c1")
        context = contextvars.copy_context()  # what a task takes along
        rank.end()
        return context

    task = contextvars.copy_context().run(first_cell)
    rank.begin("c2")
    task.run(lambda: print("late task", file=rank.stdout))

    assert rank.end() == []
    assert "late task" in rank.logged()


def test_beyond_the_bound_the_first_and_the_last_lines_are_kept(rank: Rank) -> None:
    rank.begin()
    for i in range(20_000):
        print(f"{i:05}", "x" * 93, file=rank.stdout)

    first, dropped, last = rank.end()

    assert isinstance(first, Text)
    assert isinstance(last, Text)
    assert isinstance(dropped, Dropped)
    assert first.text.startswith("00000 ")
    assert last.text.splitlines()[-1].startswith("19999 ")
    assert len(first.text) <= LOG_BYTES
    assert len(first.text) + dropped.size_bytes + len(last.text) == 20_000 * 100


def test_the_next_cell_begins_with_its_full_bound(rank: Rank) -> None:
    rank.begin("c1")
    print("x" * 50 * LOG_BYTES, file=rank.stdout)
    rank.end()
    rank.batches.clear()
    rank.begin("c2")
    print("all of it", file=rank.stdout)

    assert rank.end() == [Text("stdout", "all of it\n")]


def test_displays_count_towards_the_bound(rank: Rank) -> None:
    rank.begin()
    for i in range(100):
        rank.recorder.show(Display("display", {"text/html": f"{i}" + "x" * LOG_BYTES}))

    outputs = rank.end()

    assert any(isinstance(output, Dropped) for output in outputs)
    assert len(outputs) < 50


def test_images_count_towards_the_bound(rank: Rank) -> None:
    rank.begin()
    for _ in range(100):
        rank.recorder.show(display_from("display", {"image/png": b"\x89PNG" * LOG_BYTES}, None))

    assert any(isinstance(output, Dropped) for output in rank.end())


def test_displays_and_clears_stand_in_their_place(rank: Rank) -> None:
    shown = Display("display", {"text/plain": "d"})
    rank.begin()
    print("a", file=rank.stdout)
    rank.recorder.show(Clear(wait=True))
    rank.recorder.show(shown)
    print("b", file=rank.stdout)

    assert rank.end() == [Text("stdout", "a\n"), Clear(True), shown, Text("stdout", "b\n")]


def test_a_flush_publishes_what_is_there_as_one_batch(rank: Rank) -> None:
    rank.begin("c7")
    for i in range(10):
        print(i, file=rank.stdout)

    rank.recorder.flush()
    rank.recorder.flush()

    assert [cell_id for cell_id, _ in rank.batches] == ["c7"]
    assert rank.end() == [Text("stdout", "".join(f"{i}\n" for i in range(10)))]


def test_output_is_published_while_the_cell_goes_on(rank: Rank) -> None:
    rank.start_threads()
    rank.begin()
    print("soon", file=rank.stdout)
    wait_until(lambda: rank.batches, "the first batch")
    os.write(rank.write_end, b"from a child\n")
    wait_until(lambda: "from a child" in str(rank.batches), "what the child wrote")

    assert rank.end() == [Text("stdout", "soon\nfrom a child\n")]


def test_carriage_returns_are_kept(rank: Rank) -> None:
    rank.begin()
    rank.stdout.write("10%\r20%\r30%\n")

    assert rank.end() == [Text("stdout", "10%\r20%\r30%\n")]


def test_bytes_go_through_the_buffer(rank: Rank) -> None:
    rank.begin()
    rank.stdout.buffer.write("ü\n".encode())
    rank.stdout.buffer.write(b"\xff\n")

    assert rank.end() == [Text("stdout", "ü\n�\n")]


def test_bytes_that_a_pipe_has_cut_are_put_together(rank: Rank) -> None:
    rank.begin()
    os.write(rank.write_end, "ü".encode()[:1])
    rank.recorder.take_pipe()
    os.write(rank.write_end, "ü".encode()[1:])

    assert rank.end() == [Text("stdout", "ü")]


def test_half_a_character_of_one_cell_does_not_reach_the_next(rank: Rank) -> None:
    rank.begin("c1")
    os.write(rank.write_end, "ü".encode()[:1])
    rank.end()
    rank.batches.clear()
    rank.begin("c2")
    os.write(rank.write_end, b"a")

    assert rank.end() == [Text("stdout", "a")]


def test_a_forked_child_writes_to_its_file_descriptors(rank: Rank, tmp_path: Path) -> None:
    rank.begin()
    pid = os.fork()
    if pid == 0:
        os.dup2(rank.write_end, 1)
        print("from the fork", file=rank.stdout)
        os._exit(0)
    os.waitpid(pid, 0)

    assert rank.end() == [Text("stdout", "from the fork\n")]


def test_threads_that_print_at_once_never_mix_a_piece_of_text(rank: Rank) -> None:
    rank.begin()
    threads = [
        threading.Thread(target=lambda c=c: [rank.stdout.write(c * 9 + "\n") for _ in range(50)])
        for c in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    [text] = rank.end()

    assert isinstance(text, Text)
    assert sorted(set(text.text.split())) == ["a" * 9, "b" * 9, "c" * 9, "d" * 9]
    assert len(text.text.split()) == 200


def test_a_rank_s_stream_is_no_terminal_and_takes_only_text(rank: Rank) -> None:
    assert (rank.stdout.fileno(), rank.stderr.fileno()) == (1, 2)
    assert rank.stdout.isatty() is False
    assert rank.stdout.writable() is True
    with pytest.raises(TypeError, match="must be str, not bytes"):
        rank.stdout.write(b"bytes")  # type: ignore[arg-type]


def test_neighbouring_pieces_of_one_stream_are_joined() -> None:
    pieces: Any = [
        ("stdout", "a"),
        ("stdout", "b"),
        ("stderr", "c"),
        Clear(),
        ("stderr", "d"),
        Text("stderr", "e"),
    ]

    assert merge(merge_text(pieces)) == [
        Text("stdout", "ab"),
        Text("stderr", "c"),
        Clear(),
        Text("stderr", "de"),
    ]


def test_an_image_travels_as_text() -> None:
    display = display_from("display", {"image/png": b"\x89PNG\r\n\x1a\n"}, None)

    assert display.data["image/png"].startswith("iVBORw0K")


def test_only_one_real_number_is_a_scalar() -> None:
    import numpy as np
    import torch

    numbers = [3, 2.5, np.float32(1), np.int64(4), torch.tensor(2.0), torch.tensor(7)]
    others = [
        True,
        np.bool_(True),
        torch.tensor(True),
        1j,
        np.complex64(1),
        torch.tensor(1j),
        np.ones(1),
        torch.ones(1),
        "3",
        None,
        [1],
        torch.ones((), device="meta"),
    ]

    assert [scalar_of(number) for number in numbers] == [3, 2.5, 1, 4, 2.0, 7]
    assert [scalar_of(other) for other in others] == [None] * len(others)


def test_the_log_keeps_the_end_within_its_bound(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "log", 1000)

    for i in range(200):
        log.write(f"line {i:04}\n".encode())

    kept = (tmp_path / "log.old").read_text() + (tmp_path / "log").read_text()
    assert len(kept) <= 1100
    assert kept.endswith("line 0199\n")
    assert kept.splitlines() == [f"line {i:04}" for i in range(200 - len(kept) // 10, 200)]
    assert oct((tmp_path / "log").stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize("step", range(7))
def test_a_log_that_is_interrupted_on_its_way_to_another_file_goes_on(
    tmp_path: Path, step: int
) -> None:
    log = RankLog(tmp_path / "log", 100)

    with contextlib.suppress(KeyboardInterrupt):
        interrupted_at(step, ["_begin_anew"], lambda: log.write(b"x" * 51))
    log.write(b"after\n")
    log.close()

    assert b"after" in b"".join(path.read_bytes() for path in tmp_path.iterdir())


# Secrets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 7, len(SECRET) - 1])
def test_a_secret_that_two_batches_share_is_in_neither(rank: Rank, cut: int) -> None:
    rank.begin()

    rank.stdout.write(f"a {SECRET[:cut]}")
    rank.recorder.flush()
    rank.stdout.write(f"{SECRET[cut:]} b\n")
    rank.recorder.flush()

    texts = [output.text for _, outputs in rank.batches for output in outputs]  # type: ignore[union-attr]
    assert texts == ["a ", "*** b\n"]
    assert rank.end() == [Text("stdout", "a *** b\n")]


def test_what_only_begins_like_a_secret_comes_with_what_follows_or_at_the_end(rank: Rank) -> None:
    rank.begin()

    rank.stdout.write("hunt")
    rank.recorder.flush()
    assert rank.batches == []
    rank.stdout.write("ing h")
    rank.stderr.write("e\n")
    rank.recorder.flush()
    rank.stdout.write("hu")
    rank.recorder.flush()

    assert rank.end() == [Text("stdout", "hunting h"), Text("stderr", "e\n"), Text("stdout", "hu")]


def test_a_secret_that_is_written_to_the_file_in_parts_is_not_in_the_log(rank: Rank) -> None:
    rank.begin()

    for letter in f"a {SECRET} b":
        os.write(rank.write_end, letter.encode())
        rank.recorder.take_pipe()
    os.write(rank.write_end, b"\n")

    rank.end()
    assert "a *** b\n" in rank.logged()
