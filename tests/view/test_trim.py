"""A page stays within what a browser can hold."""

from __future__ import annotations

from nbdist.view.fold import Block
from nbdist.view.merge import Variants, blocks_of
from nbdist.view.trim import trim
from nbdist.wire import Display, Dropped, Text

LINES = "".join(f"line {i}\n" for i in range(10_000))


def test_short_blocks_are_left_alone() -> None:
    block = Block((0,), (Text("stdout", "hello\n"),))

    assert trim([block]) == (block,)


def test_the_first_and_the_last_lines_stay_and_the_cut_is_counted() -> None:
    block = Block((0,), (Text("stdout", LINES),))

    [trimmed] = trim([block], max_chars=20_000)

    assert isinstance(trimmed, Block)
    head, cut, tail = trimmed.outputs
    assert isinstance(head, Text)
    assert isinstance(cut, Dropped)
    assert isinstance(tail, Text)
    assert head.text.startswith("line 0\n")
    assert head.text.endswith("\n")
    assert tail.text.startswith("line ")
    assert tail.text.endswith("line 9999\n")
    assert len(head.text) + cut.size_bytes + len(tail.text) == len(LINES)
    assert len(head.text) + len(tail.text) <= 20_000


def test_displays_within_the_cut_stay() -> None:
    picture = Display("display", {"text/plain": "<Figure>"})
    block = Block((0,), (Text("stdout", LINES), picture, Text("stderr", LINES)))

    [trimmed] = trim([block], max_chars=20_000)

    assert isinstance(trimmed, Block)
    assert picture in trimmed.outputs
    texts = [output for output in trimmed.outputs if isinstance(output, Text)]
    cuts = [output for output in trimmed.outputs if isinstance(output, Dropped)]
    assert texts[0].name == "stdout"
    assert texts[-1].text.endswith("line 9999\n")
    num_kept = sum(len(text.text) for text in texts)
    assert num_kept + sum(cut.size_bytes for cut in cuts) == 2 * len(LINES)


def test_what_short_blocks_leave_over_is_for_the_long_ones() -> None:
    blocks = [Block((rank,), (Text("stdout", "x\n"),)) for rank in range(99)]
    long = Block((99,), (Text("stdout", LINES),))

    trimmed = trim([Variants("whole", (*blocks, long))], max_chars=len(LINES) + 1000)

    assert trimmed == (Variants("whole", (*blocks, long)),)


def test_long_blocks_share_what_there_is() -> None:
    blocks = tuple(Block((rank,), (Text("stdout", LINES),)) for rank in range(2))

    [part] = trim([Variants("whole", blocks)], max_chars=len(LINES))

    for block in blocks_of(part):
        num_kept = sum(len(text.text) for text in block.outputs if isinstance(text, Text))
        assert 0.4 * len(LINES) < num_kept <= 0.5 * len(LINES)


def test_one_line_without_end_is_cut_too() -> None:
    block = Block((0,), (Text("stdout", "x" * 100_000),))

    [trimmed] = trim([block], max_chars=20_000)

    assert isinstance(trimmed, Block)
    assert sum(len(o.text) for o in trimmed.outputs if isinstance(o, Text)) == 20_000
