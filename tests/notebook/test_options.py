from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.errors import NbdistError, UsageError
from nbdist.notebook.options import CellOptions, cell_options, start_options, verb_parser

PLAIN = CellOptions(None, None, noblock=False, timeout_s=None, local=False, fold=True, yes=False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {}),
        ("0,2", {"ranks": "0,2"}),
        ("-1", {"ranks": "-1"}),
        ("-2:", {"ranks": "-2:"}),
        ("[0, 2] -o x", {"ranks": "[0, 2]", "out": "x"}),
        ("-t -1", {"ranks": "-1"}),
        ("--targets -2:", {"ranks": "-2:"}),
        ("--targets=0-2", {"ranks": "0-2"}),
        ("-o loss", {"out": "loss"}),
        ("-a", {"noblock": True}),
        ("--noblock", {"noblock": True}),
        ("--timeout 2.5", {"timeout_s": 2.5}),
        ("--local --no-fold --yes", {"local": True, "fold": False, "yes": True}),
    ],
)
def test_the_first_line_of_a_cell_is_read(line: str, expected: dict[str, Any]) -> None:
    options = cell_options(line)

    assert {name: getattr(options, name) for name in expected} == expected
    assert {n for n in vars(PLAIN) if getattr(options, n) != getattr(PLAIN, n)} == set(expected)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--nonsense", "--nonsense"),
        ("-x", "-x"),
        ("--targ 0", "--targ"),
        ("-o 1x", "'1x' is not the name"),
        ("-o", "expected one argument"),
        ("--timeout soon", "'soon' is not a number"),
        ("--timeout -1", "timeout"),
        ("--timeout 0", "'0' is not a number of seconds above 0"),
        ("--timeout nan", "'nan' is not a number"),
        ("0 -t 1", "named twice"),
        ("-a -o x", "-a returns a Run"),
        ("-a --timeout 3", "-a returns a Run"),
        ("-o 'x", "quotation"),
        ("-o loss 0,1", "unrecognized arguments: 0,1"),
    ],
)
def test_what_it_does_not_know_is_a_usage_error_and_nothing_has_run(line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        cell_options(line)

    message = str(caught.value)
    assert words in message
    assert "Usage: %%dist [RANKS]" in message
    assert "Nothing has run" in message


@given(st.text(max_size=30))
def test_no_line_whatever_raises_anything_but_an_error_of_ours(line: str) -> None:
    with suppress(NbdistError):
        cell_options(line)


def test_verbs_take_ranks_where_they_are_wanted() -> None:
    parser = verb_parser("pull", ranks=True)

    assert parser.read("-r 0,2").ranks == "0,2"
    assert parser.read("-r -1").ranks == "-1"
    assert parser.read("--targets 1").ranks == "1"
    assert parser.read("").ranks is None


def test_a_verb_that_takes_nothing_says_so() -> None:
    with pytest.raises(UsageError, match=r"Usage: %dist stop"):
        verb_parser("stop").read("now")


# How ranks are to be started ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "overrides"),
    [
        ("", ()),
        ("4", ("nproc=4",)),
        ("-n 4", ("nproc=4",)),
        ("seed=7 4 params.lr=3", ("seed=7", "params.lr=3", "nproc=4")),
        ("-n 2 device=cpu -c f.yaml params.lr=3", ("device=cpu", "params.lr=3", "nproc=2")),
        ("-g 0,1 device=cuda", ("device=cuda", "gpus=[0,1]")),
        ("--num-processes 2 --gpu-ids 3,4", ("nproc=2", "gpus=[3,4]")),
    ],
)
def test_numbers_flags_and_overrides_may_stand_in_any_order(
    line: str, overrides: tuple[str, ...]
) -> None:
    assert start_options("start", line).overrides == overrides


@pytest.mark.parametrize("line", ["4 -n 2", "4 5", "seed", "--foo 1", "4x"])
def test_a_start_that_cannot_be_read_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="Usage: %dist start"):
        start_options("start", line)


def test_a_missing_word_is_answered_with_the_usage() -> None:
    parser = verb_parser("push")
    parser.add_argument("names", nargs="+", metavar="NAME")

    with pytest.raises(UsageError, match=r"Usage: %dist push NAME \[NAME ...\]"):
        parser.read("")
