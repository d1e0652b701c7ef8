from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nbdist.view.lines import MAX_LINE_CHARS, LineStreamer
from nbdist.view.stream import settle
from nbdist.wire import Clear, Dropped
from tests.view.build import result, stderr, stdout


def test_every_line_says_whose_it_is() -> None:
    streamer = LineStreamer()

    assert streamer.feed(0, stdout("a\nb\n")) == "[rank0] a\n[rank0] b\n"
    assert streamer.feed(1, stderr("oops\n")) == "[rank1] stderr: oops\n"


def test_a_line_is_held_until_it_ends() -> None:
    streamer = LineStreamer()

    assert streamer.feed(0, stdout("step")) == ""
    assert streamer.feed(1, stdout("other\n")) == "[rank1] other\n"
    assert streamer.feed(0, stdout(" 0\nstep 1")) == "[rank0] step 0\n"
    assert streamer.flush() == "[rank0] step 1\n"
    assert streamer.flush() == ""


def test_unfinished_lines_are_flushed_in_rank_order() -> None:
    streamer = LineStreamer()
    streamer.feed(1, stdout("b"))
    streamer.feed(0, stderr("a"))

    assert streamer.flush() == "[rank0] stderr: a\n[rank1] b\n"


def test_stdout_and_stderr_of_a_rank_do_not_mix_in_a_line() -> None:
    streamer = LineStreamer()
    streamer.feed(0, stdout("out"))

    assert streamer.feed(0, stderr("err\n")) == "[rank0] stderr: err\n"
    assert streamer.feed(0, stdout("\n")) == "[rank0] out\n"


def test_a_progress_bar_does_not_flood() -> None:
    streamer = LineStreamer()

    lines = [streamer.feed(0, stderr(f"\r{percent:3}%")) for percent in range(101)]

    assert "".join(lines) == ""
    assert streamer.feed(0, stderr("\n")) == "[rank0] stderr: 100%\n"


def test_a_line_break_of_windows_may_come_in_two_pieces() -> None:
    streamer = LineStreamer()

    assert streamer.feed(0, stdout("a\r")) == ""
    assert streamer.feed(0, stdout("\nb\r\n")) == "[rank0] a\n[rank0] b\n"


def test_colours_are_taken_out() -> None:
    assert LineStreamer().feed(0, stdout("\x1b[31mred\x1b[0m\n")) == "[rank0] red\n"


def test_an_endless_line_is_cut() -> None:
    streamer = LineStreamer()

    assert streamer.feed(0, stdout("x" * (MAX_LINE_CHARS + 1))).endswith("x\n")
    assert streamer.flush() == ""


def test_dropped_output_is_counted() -> None:
    assert LineStreamer().feed(2, Dropped(12345)).startswith("[rank2] … 12,345 bytes")


def test_results_and_clears_are_left_to_the_final_output() -> None:
    streamer = LineStreamer()

    assert streamer.feed(0, result("1", 1)) == ""
    assert streamer.feed(0, Clear()) == ""


@given(st.lists(st.text("ab \r\b\n")))
def test_pieces_give_the_same_lines_as_the_whole(pieces: list[str]) -> None:
    streamer = LineStreamer()

    lines = "".join(streamer.feed(0, stdout(piece)) for piece in pieces) + streamer.flush()

    whole = "".join(pieces).replace("\r\n", "\n").split("\n")
    expected = [settle(line) for line in whole[:-1]]
    assert _lines(lines)[: len(expected)] == [_visible(line) for line in expected]


def _lines(streamed: str) -> list[str]:
    return [_visible(line.removeprefix("[rank0] ")) for line in streamed.split("\n")]


def _visible(line: str) -> str:
    return line.rstrip(" ")
