from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nbdist.errors import RankError
from nbdist.sessions.ranks import parse_ranks, split_ranks
from nbdist.view.names import name_ranks

WORLD_SIZES = st.integers(min_value=1, max_value=40)


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("0", (0,)),
        ("0,2", (0, 2)),
        ("0-2", (0, 1, 2)),
        ("0–2", (0, 1, 2)),
        ("0:3", (0, 1, 2)),
        ("1:", (1, 2, 3)),
        (":2", (0, 1)),
        (":", (0, 1, 2, 3)),
        ("4:,0", (0,)),
        ("-1", (3,)),
        ("-2:", (2, 3)),
        (":-1", (0, 1, 2)),
        ("-3:-1", (1, 2)),
        ("-1,0", (0, 3)),
        ("::2", (0, 2)),
        ("1::2", (1, 3)),
        ("0:3:2", (0, 2)),
        ("::-1", (0, 1, 2, 3)),
        ("[0,2]", (0, 2)),
        ("[0-2]", (0, 1, 2)),
        ("[all]", (0, 1, 2, 3)),
        ("all", (0, 1, 2, 3)),
        ("  0 , 2  ", (0, 2)),
        ("[ 0, 2 ]", (0, 2)),
        ("0 - 2", (0, 1, 2)),
        ("2,0,2,-2", (0, 2)),
        ("0-1,3", (0, 1, 3)),
    ],
)
def test_of_four_ranks_the_text_names(text: str, ranks: tuple[int, ...]) -> None:
    assert parse_ranks(text, 4) == ranks


@pytest.mark.parametrize("text", ["4", "-5", "0,4", "0-4", "0:5", "5:", "-5:", "999999999"])
def test_a_rank_that_does_not_exist_is_answered_with_those_there_are(text: str) -> None:
    with pytest.raises(RankError, match="There are ranks 0–3"):
        parse_ranks(text, 4)


def test_where_there_is_one_rank_the_error_says_so() -> None:
    with pytest.raises(RankError, match="There is only rank 0"):
        parse_ranks("1", 1)


@pytest.mark.parametrize("text", ["", "  ", "[]", "[ ]"])
def test_naming_no_rank_is_an_error_with_examples(text: str) -> None:
    with pytest.raises(RankError, match="Write ranks as 0 or 0,2"):
        parse_ranks(text, 4)


@pytest.mark.parametrize("text", ["2:2", "3:1", "4:", ":0"])
def test_a_selection_that_comes_out_empty_is_an_error(text: str) -> None:
    with pytest.raises(RankError, match="names no rank at all"):
        parse_ranks(text, 4)


@pytest.mark.parametrize(
    "text",
    [
        *[
            "x",
            "0x1",
            "1.0",
            "1e3",
            "+1",
            "--1",
            "0-",
            "0,",
            ",0",
            "0,,1",
            "0 1",
            "0;1",
            "[0",
            "0]",
        ],
        *["[[0]]", "0:1:2:3", "all all", "rank 0", "None", "__import__('os')", "٣", "1" * 5000],
    ],
)
def test_what_is_no_rank_list_is_an_error_with_examples(text: str) -> None:
    with pytest.raises(RankError, match="Write ranks as 0 or 0,2"):
        parse_ranks(text, 4)


def test_a_range_that_runs_backwards_is_answered_with_the_right_one() -> None:
    with pytest.raises(RankError, match="Write 0-2"):
        parse_ranks("2-0", 4)


def test_a_step_of_zero_is_an_error() -> None:
    with pytest.raises(RankError, match="step 0"):
        parse_ranks("::0", 4)


def test_mesh_coordinates_are_answered_as_such() -> None:
    with pytest.raises(RankError, match="mesh coordinates"):
        parse_ranks("dp=0", 4)


@pytest.mark.parametrize(
    ("line", "ranks", "rest"),
    [
        ("", None, ""),
        ("0", "0", ""),
        ("0,2 -o x", "0,2", "-o x"),
        ("0, 2 -o x", "0, 2", "-o x"),
        ("0 , 2 -o x", "0 , 2", "-o x"),
        ("-1 --timeout 3", "-1", "--timeout 3"),
        ("-2: -a", "-2:", "-a"),
        ("-1,0 -a", "-1,0", "-a"),
        (":2 -a", ":2", "-a"),
        ("::2", "::2", ""),
        ("all --no-fold", "all", "--no-fold"),
        ("[0,2] -o x", "[0,2]", "-o x"),
        ("[0, 2]-o x", "[0, 2]", "-o x"),
        ("  1:  ", "1:", ""),
        ("-o x", None, "-o x"),
        ("-t 0,1", None, "-t 0,1"),
        ("--timeout 3", None, "--timeout 3"),
        ("-o x 0", None, "-o x 0"),
        ("allreduce", None, "allreduce"),
        ("help", None, "help"),
        # Slips are taken off too, so that the error is about ranks and not about flags.
        ("0;2 -o x", "0;2", "-o x"),
        ("[0,2 -o x", "[0,2", "-o x"),
        ("0, -o x", "0,", "-o x"),
        # Room for mesh coordinates.
        ("dp=0 -o x", "dp=0", "-o x"),
        ("dp=0,tp=1", "dp=0,tp=1", ""),
    ],
)
def test_ranks_are_taken_off_the_front_of_a_line(line: str, ranks: str | None, rest: str) -> None:
    assert split_ranks(line) == (ranks, rest)


@given(st.data())
def test_ranks_as_they_are_named_read_back(data: st.DataObject) -> None:
    world_size = data.draw(WORLD_SIZES)
    ranks = data.draw(st.sets(st.integers(0, world_size - 1), min_size=1))
    text = name_ranks(ranks).partition(" ")[2]
    assume("…" not in text)

    assert parse_ranks(text, world_size) == tuple(sorted(ranks))


@given(st.text(alphabet="0123456789,:-–[] al=x") | st.text(), WORLD_SIZES)
def test_any_text_gives_ranks_that_exist_or_an_error_of_ours(text: str, world_size: int) -> None:
    ranks: tuple[int, ...] = (0,)

    with suppress(RankError):
        ranks = parse_ranks(text, world_size)

    assert ranks == tuple(sorted(set(ranks)))
    assert set(range(world_size)) >= set(ranks) > set()


@given(
    start=st.none() | st.integers(-9, 9),
    stop=st.none() | st.integers(-9, 9),
    step=st.sampled_from([None, 1, 2, 3, -1, -2]),
)
def test_a_slice_within_bounds_means_what_it_means_in_python(
    start: int | None, stop: int | None, step: int | None
) -> None:
    text = ":".join("" if part is None else str(part) for part in (start, stop, step))
    expected = tuple(sorted(range(9)[start:stop:step]))

    if expected:
        assert parse_ranks(text, 9) == expected
    else:
        with pytest.raises(RankError):
            parse_ranks(text, 9)


@given(st.text(alphabet="0123456789,:-[] al=xo"))
def test_splitting_a_line_loses_nothing_but_blanks(line: str) -> None:
    ranks, rest = split_ranks(line)

    assert ((ranks or "") + rest).replace(" ", "") == line.replace(" ", "")
