from __future__ import annotations

import math

import pytest

from nbdist.rank.failures import message_of
from nbdist.rank.suggestions import suggestion


def failure(code: str) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the code raises
        exec(code, {"math": math, "_hidden": 1})
    return caught.value


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        ("prnt(1)", "print"),
        ("def f(alpha):\n    return alpa\nf(1)", "alpha"),
        ("math.sqr", "sqrt"),
        ("[].revers()", "reverse"),
        ("_hiden", "_hidden"),
    ],
)
def test_a_wrong_name_is_answered_with_the_one_that_is_near(code: str, meant: str) -> None:
    assert suggestion(failure(code)) == f"Did you mean: {meant!r}?"


@pytest.mark.parametrize(
    "code",
    [
        "qqqqq",
        "1 / 0",
        "hidden",
        "raise NameError('by hand')",
        "raise AttributeError('by hand')",
        "class A:\n    def __dir__(self):\n        raise ValueError\nA().foo",
    ],
)
def test_where_nothing_is_near_or_known_nothing_is_said(code: str) -> None:
    assert suggestion(failure(code)) == ""


def test_the_suggestion_is_part_of_the_message() -> None:
    assert message_of(failure("prnt(1)")) == ("name 'prnt' is not defined. Did you mean: 'print'?")
