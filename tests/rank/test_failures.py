from __future__ import annotations

import linecache
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from nbdist.rank.failures import MAX_FRAMES, MAX_LINKS, MAX_MESSAGE, chain_of, describe, is_cell
from nbdist.wire import CellError

LABEL = "In[3]"


@pytest.fixture(autouse=True)
def no_source_is_kept() -> Iterator[None]:
    yield
    for name in [name for name in linecache.cache if is_cell(name)]:
        del linecache.cache[name]


def run_cell(source: str, label: str = LABEL, **names: Any) -> BaseException:
    """Run *source* as a cell, and return what it raised."""
    linecache.cache[label] = (len(source), None, source.splitlines(keepends=True), label)
    try:
        exec(compile(source, label, "exec"), names)
    except BaseException as exc:  # noqa: BLE001 - it is what we want
        return exc
    raise AssertionError("the cell did not raise")


def failed(source: str, **names: Any) -> CellError:
    return describe(run_cell(source, **names))


def test_the_error_has_class_message_and_the_lines_of_the_cell() -> None:
    error = failed("def f(x):\n    return 1 / x\n\nf(0)\n")

    assert (error.ename, error.evalue) == ("ZeroDivisionError", "division by zero")
    assert [(f.location, f.function, f.source, f.is_cell) for f in error.frames] == [
        ("In[3]:4", "<module>", "f(0)", True),
        ("In[3]:2", "f", "return 1 / x", True),
    ]


def test_what_called_the_cell_is_no_part_of_the_error() -> None:
    assert failed("1 / 0").frames[0].location == "In[3]:1"


def test_lines_of_a_library_are_marked() -> None:
    error = failed("import json\njson.loads('{')")

    assert error.frames[0].is_library is False
    assert all(frame.is_library for frame in error.frames[1:])
    assert "json" in error.frames[-1].location


def test_lines_of_a_file_of_the_user_are_neither_cell_nor_library(tmp_path: Any) -> None:
    path = tmp_path / "helper.py"
    path.write_text("def fail():\n    raise KeyError('k')\n")
    helper = compile(path.read_text(), str(path), "exec")

    error = failed("exec(helper)\nfail()", helper=helper)

    frame = error.frames[-1]
    assert (frame.location, frame.source) == (f"{path}:2", "raise KeyError('k')")
    assert (frame.is_cell, frame.is_library) == (False, False)


def test_raise_from_is_a_cause_and_handling_is_a_context() -> None:
    cause = failed(
        "try:\n    1 / 0\nexcept ZeroDivisionError as exc:\n    raise ValueError('v') from exc"
    )
    context = failed("try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise ValueError('v')")

    for error, link in ((cause, "cause"), (context, "context")):
        assert error.ename == "ValueError"
        assert error.link == link
        assert error.cause is not None
        assert error.cause.ename == "ZeroDivisionError"
        assert error.cause.frames[0].location == "In[3]:2"


def test_raise_from_none_hides_what_came_before() -> None:
    assert (
        failed("try:\n    1 / 0\nexcept Exception:\n    raise ValueError from None").cause is None
    )


def test_errors_that_cause_each_other_in_a_circle_are_told_once() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first

    error = describe(first)

    assert error.cause is not None
    assert error.cause.cause is None


def test_a_syntax_error_stands_at_its_line_in_the_cell() -> None:
    with pytest.raises(SyntaxError) as caught:
        compile("x = 1\nfor", LABEL, "exec")

    [frame] = describe(caught.value).frames

    assert (frame.location, frame.source, frame.is_cell) == ("In[3]:2", "for", True)


def test_a_syntax_error_that_was_raised_elsewhere_keeps_its_lines() -> None:
    error = failed("compile('for', 'other.py', 'exec')")

    assert error.frames[0].location == "In[3]:1"


def test_deep_recursion_keeps_both_ends() -> None:
    error = failed("def down(n):\n    if n == 0: raise KeyError\n    down(n - 1)\ndown(500)")

    assert len(error.frames) <= MAX_FRAMES
    assert error.frames[0].location == "In[3]:4"
    assert error.frames[-1].location == "In[3]:2"


def test_a_huge_message_is_cut_and_says_by_how_much() -> None:
    error = describe(ValueError("x" * (MAX_MESSAGE + 123)))

    assert len(error.evalue) < MAX_MESSAGE + 100
    assert "123 characters more" in error.evalue


def test_notes_stand_under_the_message() -> None:
    error = ValueError("main")
    error.add_note("and a note")

    assert describe(error).evalue == "main\nand a note"


def test_the_members_of_a_group_stand_under_it_with_their_lines() -> None:
    error = failed(
        "def check(value):\n"
        "    raise ValueError(f'bad {value}')\n"
        "members = [TypeError('one\\ntwo')]\n"
        "try:\n"
        "    check(3)\n"
        "except ValueError as exc:\n"
        "    members.append(exc)\n"
        "raise ExceptionGroup('many', members)\n"
    )

    assert error.evalue.splitlines() == [
        "many (2 sub-exceptions)",
        "  TypeError: one",
        "  two",
        "  ValueError: bad 3 (In[3]:2)",
    ]


def test_an_exception_that_cannot_say_what_it_is_does_not_raise() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    class Notes(Exception):
        __notes__: Any = 5

    assert describe(Odd()).ename == "Odd"
    assert describe(Notes("kept")).evalue == "kept"


def test_an_exception_without_a_traceback_has_no_lines() -> None:
    assert describe(ValueError("never raised")).frames == ()


def test_whom_a_rank_waited_for_is_kept() -> None:
    assert describe(RuntimeError(), waited_for=2).waited_for == 2


@pytest.mark.parametrize(
    ("filename", "is_one"), [("In[3]", True), ("run[7]", True), ("/In[3].py", False), ("", False)]
)
def test_a_cell_is_known_by_its_label(filename: str, is_one: bool) -> None:
    assert is_cell(filename) is is_one


def test_describing_keeps_no_frame_alive() -> None:
    class Big:
        pass

    references: list[weakref.ref[Big]] = []

    def note(thing: Big) -> None:
        references.append(weakref.ref(thing))

    describe(run_cell("def f():\n    b = Big(); note(b); 1 / 0\nf()", Big=Big, note=note))

    assert references[0]() is None


# What led to it -----------------------------------------------------------------------------------


def test_a_chain_that_bites_its_tail_is_told_once() -> None:
    error = failed("try:\n    1 / 0\nexcept Exception as e:\n    raise e from e")

    assert (error.ename, error.cause) == ("ZeroDivisionError", None)


def test_every_cause_and_context_is_found_once_whatever_is_shown() -> None:
    first, second, third = ValueError(1), ValueError(2), ValueError(3)
    first.__cause__, first.__context__ = second, third  # a cause hides the context
    second.__context__, third.__context__ = first, second

    assert list(chain_of(first)) == [first, second, third]


def test_of_a_chain_without_end_the_last_errors_are_told() -> None:
    error: BaseException = ValueError(0)
    for number in range(1, 5000):
        before, error = error, ValueError(number)
        error.__context__ = before

    told: CellError | None = describe(error)

    for number in range(4999, 4999 - MAX_LINKS, -1):
        assert told is not None
        assert told.evalue == str(number)
        told = told.cause
    assert told is None
