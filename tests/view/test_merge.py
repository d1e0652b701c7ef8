from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from nbdist.view.ansi import strip_ansi
from nbdist.view.consolidate import Shown
from nbdist.view.fold import Block, fold
from nbdist.view.merge import MAX_DIFFERING_LINES, MAX_LINE_CHARS, Part, Variants, blocks_of, merge
from nbdist.view.mime import display_text
from nbdist.wire import Display, Dropped, Text
from tests.view.build import png, result, shown, stderr, stdout

FIGURES = [shown({"image/png": png(name), "text/plain": "<Figure>"}) for name in ("AAAA", "BBBB")]


def merged(*outputs: Sequence[Shown]) -> tuple[Part, ...]:
    return merge([b for b in fold(dict(enumerate(outputs))) if b.outputs])


def texts(*lines: str) -> tuple[Part, ...]:
    return merged(*[[stdout(text)] if text else [] for text in lines])


def line(*variants: tuple[tuple[int, ...], str]) -> Variants:
    return Variants("line", tuple(Block(ranks, (stdout(f"{text}\n"),)) for ranks, text in variants))


def test_ranks_that_are_all_equal_are_one_block() -> None:
    assert texts("a\n", "a\n") == (Block((0, 1), (stdout("a\n"),)),)


def test_no_ranks_are_no_parts() -> None:
    assert merge([]) == ()


def test_a_line_that_differs_stands_between_what_is_common() -> None:
    assert texts("load\nloss 2.31\nready\n", "load\nloss 2.28\nready\n") == (
        Block((0, 1), (stdout("load\n"),)),
        line(((0,), "loss 2.31"), ((1,), "loss 2.28")),
        Block((0, 1), (stdout("ready\n"),)),
    )


def test_ranks_with_the_same_variant_of_a_line_share_it() -> None:
    parts = texts("a\n1\n", "a\n2\n", "a\n1\n", "a\n2\n")

    assert parts[1] == line(((0, 2), "1"), ((1, 3), "2"))


def test_ranks_need_not_be_neighbours_of_those_they_share_lines_with() -> None:
    parts = texts("a\n1\n5\nb\n", "a\n2\n5\nb\n", "a\n1\n6\nb\n")

    assert parts[1:3] == (
        line(((0, 2), "1"), ((1,), "2")),
        line(((0, 1), "5"), ((2,), "6")),
    )


def test_numbers_are_never_normalised_away() -> None:
    parts = texts("a\nloss 0.1000000\n", "a\nloss 0.1000001\n")

    assert parts[1] == line(((0,), "loss 0.1000000"), ((1,), "loss 0.1000001"))


def test_blanks_at_the_end_of_a_line_count() -> None:
    assert len(texts("a\nb\n", "a\nb \n")) == 2


def test_one_line_of_each_rank_needs_nothing_in_common() -> None:
    assert texts("has 0\n", "has 10\n") == (line(((0,), "has 0"), ((1,), "has 10")),)


def test_one_line_of_each_rank_may_be_a_value() -> None:
    assert merged([result("[0, 1]")], [result("[1, 1]")]) == (
        line(((0,), "[0, 1]"), ((1,), "[1, 1]")),
    )


def test_ranks_of_which_most_lines_differ_stay_whole() -> None:
    parts = texts("a\n1\n2\n", "a\n3\n4\n")

    assert parts == (
        Variants(
            "whole", (Block((0,), (stdout("a\n1\n2\n"),)), Block((1,), (stdout("a\n3\n4\n"),)))
        ),
    )


def test_half_of_the_lines_may_differ() -> None:
    assert len(texts("a\n1\n2\nb\n", "a\n3\n4\nb\n")) == 4


def test_lines_that_differ_between_any_two_ranks_count() -> None:
    [part] = texts("a\n1\n2\n3\nb\n", "a\n0\n2\n3\nb\n", "a\n1\n0\n3\nb\n", "a\n1\n2\n0\nb\n")

    assert isinstance(part, Variants)
    assert part.kind == "whole"


def test_too_many_lines_that_differ_are_not_put_side_by_side() -> None:
    def some(rank: int, number: int) -> str:
        return "".join(f"{rank if i < number else 'same'}\n" for i in range(1000))

    most = texts(*(some(rank, MAX_DIFFERING_LINES) for rank in range(2)))
    more = texts(*(some(rank, MAX_DIFFERING_LINES + 1) for rank in range(2)))

    assert len(most) == MAX_DIFFERING_LINES + 1
    assert len(more) == 1


def test_very_long_lines_are_not_put_side_by_side() -> None:
    _, part = texts("a\n" + "x" * MAX_LINE_CHARS + "1\n", "a\n" + "x" * MAX_LINE_CHARS + "2\n")

    assert isinstance(part, Variants)
    assert part.kind == "whole"


def test_a_missing_line_break_at_the_end_is_no_difference() -> None:
    assert texts("a\nb", "a\nb\n") == (Block((0, 1), (stdout("a\nb\n"),)),)


def test_a_rank_that_says_more_is_named_where_it_does() -> None:
    assert texts("one\nsaved\ntwo\n", "one\ntwo\n", "one\ntwo\n") == (
        Block((0, 1, 2), (stdout("one\n"),)),
        Block((0,), (stdout("saved\n"),)),
        Block((0, 1, 2), (stdout("two\n"),)),
    )


def test_a_rank_that_stopped_early_shares_what_it_did() -> None:
    assert texts("1\n2\n3\n", "1\n2\n") == (
        Block((0, 1), (stdout("1\n2\n"),)),
        Block((0,), (stdout("3\n"),)),
    )


def test_a_rank_without_output_takes_no_part() -> None:
    assert texts("a\nb\n", "", "a\nb\nc\n") == (
        Block((0, 2), (stdout("a\nb\n"),)),
        Block((2,), (stdout("c\n"),)),
    )


def test_ranks_of_different_lengths_with_little_in_common_stay_whole() -> None:
    parts = texts("a\n1\n2\n3\n", "a\n4\n", "b\n5\n6\n7\n8\n")

    assert [type(part) for part in parts] == [Variants]
    assert [block.ranks for block in blocks_of(parts[0])] == [(0,), (1,), (2,)]


def test_ranks_of_one_length_are_compared_even_if_another_rank_is_longer() -> None:
    parts = texts("head\n1\n", "head\n2\n", "a\nb\nc\nd\ne\nf\n")

    assert parts == (
        Block((0, 1), (stdout("head\n"),)),
        line(((0,), "1"), ((1,), "2")),
        Block((2,), (stdout("a\nb\nc\nd\ne\nf\n"),)),
    )


def test_the_text_between_what_all_have_in_common_is_compared_too() -> None:
    parts = texts("a\nb\n1\nsaved\nc\n", "a\nb\n2\nc\n", "a\nb\n3\nc\n")

    assert parts == (
        Block((0, 1, 2), (stdout("a\nb\n"),)),
        Block((0,), (stdout("1\nsaved\n"),)),
        line(((1,), "2"), ((2,), "3")),
        Block((0, 1, 2), (stdout("c\n"),)),
    )


def test_stderr_is_compared_with_stderr_only() -> None:
    [part] = merged([stdout("a\n")], [stderr("a\n")])

    assert [block.outputs for block in blocks_of(part)] == [(stdout("a\n"),), (stderr("a\n"),)]


def test_stdout_stderr_and_values_are_one_stretch_of_text() -> None:
    parts = merged(
        *[(stdout("a\n"), stderr("b\n"), result(f"tensor({rank})")) for rank in range(2)]
    )

    assert parts == (
        Block((0, 1), (stdout("a\n"), stderr("b\n"))),
        line(((0,), "tensor(0)"), ((1,), "tensor(1)")),
    )


def test_a_line_of_stderr_that_differs_stays_stderr() -> None:
    [part] = merged([stderr("slow 1\n")], [stderr("slow 2\n")])

    assert [b.outputs for b in blocks_of(part)] == [(stderr("slow 1\n"),), (stderr("slow 2\n"),)]


def test_figures_that_differ_stand_side_by_side() -> None:
    text = stdout("plot\n")

    assert merged([text, FIGURES[0]], [text, FIGURES[1]], [text, FIGURES[0]]) == (
        Block((0, 1, 2), (text,)),
        Variants("object", (Block((0, 2), (FIGURES[0],)), Block((1,), (FIGURES[1],)))),
    )


def test_figures_that_are_equal_are_shown_once_among_texts_that_differ() -> None:
    parts = merged([stdout("1\n"), FIGURES[0]], [stdout("2\n"), FIGURES[0]])

    assert parts == (line(((0,), "1"), ((1,), "2")), Block((0, 1), (FIGURES[0],)))


def test_long_texts_that_differ_stand_above_the_figures() -> None:
    parts = merged(*[(stdout(f"{r}\n{r}\n{r}\n"), FIGURES[r]) for r in range(2)])

    assert [part.kind for part in parts if isinstance(part, Variants)] == ["whole", "object"]


def test_a_figure_of_one_rank_alone_is_that_ranks() -> None:
    text = stdout("a\nb\n")

    assert merged([text, FIGURES[0]], [text]) == (
        Block((0, 1), (text,)),
        Block((0,), (FIGURES[0],)),
    )


def test_gaps_of_different_sizes_are_not_common() -> None:
    parts = merged([stdout("a\nb\n"), Dropped(1)], [stdout("a\nb\n"), Dropped(2)])

    assert parts[1] == Variants("whole", (Block((0,), (Dropped(1),)), Block((1,), (Dropped(2),))))


def test_colours_go_on_in_lines_that_are_taken_apart() -> None:
    parts = texts("\x1b[31mred\nred 1\nred\n", "\x1b[31mred\nred 2\nred\n")

    first, second = (block.outputs[0] for block in blocks_of(parts[1]))
    assert first == stdout("\x1b[31mred 1\x1b[0m\n")
    assert second == stdout("\x1b[31mred 2\x1b[0m\n")


def test_a_colour_alone_is_a_difference() -> None:
    assert len(texts("a\n\x1b[31mb\x1b[0m\n", "a\n\x1b[32mb\x1b[0m\n")) == 2


LINE = st.sampled_from(["a", "b", "loss 1.0", "loss 1.00", "", "\x1b[31mred"])
OUTPUT = (
    st.lists(LINE, min_size=1, max_size=4).map(lambda lines: stdout("\n".join(lines) + "\n"))
    | st.lists(LINE, min_size=1, max_size=2).map(lambda lines: stderr("\n".join(lines) + "\n"))
    | st.sampled_from([*FIGURES, result("a\nb"), result("a\nc"), Dropped(1), Dropped(2)])
)
OUTPUTS = st.lists(st.lists(OUTPUT, max_size=4), min_size=1, max_size=5)


@given(OUTPUTS)
def test_what_every_rank_put_out_is_found_again_in_order(outputs: list[list[Shown]]) -> None:
    parts = merged(*outputs)

    for rank, own in enumerate(outputs):
        found = [
            output
            for part in parts
            for block in blocks_of(part)
            if rank in block.ranks
            for output in block.outputs
        ]
        assert _written(found) == _written(own)


@given(OUTPUTS)
def test_ranks_are_named_at_most_once_at_every_place(outputs: list[list[Shown]]) -> None:
    for part in merged(*outputs):
        ranks = [rank for block in blocks_of(part) for rank in block.ranks]
        assert len(ranks) == len(set(ranks)) or (
            isinstance(part, Variants) and part.kind == "whole"
        )


def _written(outputs: list[Shown]) -> list[object]:
    """Say what outputs hold, line by line; a value is as good as a line of stdout."""
    written: list[object] = []
    for output in outputs:
        if isinstance(output, Text):
            lines = strip_ansi(output.text).removesuffix("\n").split("\n")
            written += [(output.name, line) for line in lines]
        elif isinstance(output, Display) and "image/png" not in output.data:
            written += [("stdout", line) for line in display_text(output).split("\n")]
        else:
            written.append(repr(output))
    return written
