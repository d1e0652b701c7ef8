from __future__ import annotations

from nbdist.view.consolidate import consolidate, describe_dropped
from nbdist.wire import Area, Clear, Display, Dropped, Output
from tests.view.build import result, shown, stderr, stdout, update


def test_the_parts_of_a_print_become_one_text() -> None:
    parts = [stdout("step"), stdout(" "), stdout("0"), stdout("\n"), stdout("step 1\n")]

    assert consolidate(parts) == (stdout("step 0\nstep 1\n"),)


def test_stdout_and_stderr_stay_in_their_places() -> None:
    outputs = (stdout("a\n"), stderr("b\n"), stdout("c\n"))

    assert consolidate(outputs) == outputs


def test_a_progress_bar_is_settled_over_its_pieces() -> None:
    assert consolidate([stderr("\r 0%"), stderr("\r50%"), stderr("\r99%\n")]) == (stderr("99%\n"),)


def test_what_settles_to_nothing_does_not_split_a_text() -> None:
    outputs = [stdout("a\n"), stderr("\r50%\r   \r"), stdout("b\n")]

    assert consolidate(outputs) == (stdout("a\nb\n"),)


def test_empty_text_is_nothing() -> None:
    assert consolidate([stdout(""), stderr("")]) == ()


def test_clear_forgets_all_before_it() -> None:
    assert consolidate([stdout("old"), Clear(), stdout("new")]) == (stdout("new"),)


def test_a_waiting_clear_acts_when_the_next_output_comes() -> None:
    assert consolidate([stdout("old"), Clear(wait=True), stdout("new")]) == (stdout("new"),)


def test_a_waiting_clear_with_nothing_after_it_clears_nothing() -> None:
    assert consolidate([stdout("old"), Clear(wait=True)]) == (stdout("old"),)


def test_a_waiting_clear_acts_once() -> None:
    outputs: list[Output] = [stdout("old"), Clear(wait=True), stdout("a"), stdout("b")]

    assert consolidate(outputs) == (stdout("ab"),)


def test_a_clear_in_an_output_widget_takes_what_came_there() -> None:
    outputs: list[Output] = [
        stdout("before\n"),
        *(Area(1), stdout("step 0\n"), shown({"text/plain": "0"}, "bar"), Area(0)),
        stdout("between\n"),
        *(Area(1), Clear(area=1), stdout("step 1\n"), Area(0)),
        update("1", "bar"),
        stdout("after\n"),
    ]

    assert consolidate(outputs) == (stdout("before\nbetween\nstep 1\nafter\n"),)


def test_a_waiting_clear_in_an_output_widget_waits_for_output_there() -> None:
    outputs: list[Output] = [Area(1), stdout("a"), Clear(wait=True, area=1), Area(0), stdout("b")]

    assert consolidate(outputs) == (stdout("ab"),)
    assert consolidate([*outputs, Area(1), stdout("c")]) == (stdout("bc"),)


def test_a_clear_of_the_cell_takes_what_its_output_widgets_have() -> None:
    outputs: list[Output] = [Area(1), stdout("a"), Area(0), Clear(), stdout("b")]

    assert consolidate(outputs) == (stdout("b"),)


def test_an_update_replaces_its_displays_in_place() -> None:
    outputs: list[Output] = [
        shown({"text/plain": "0"}, "bar"),
        stdout("between\n"),
        shown({"text/plain": "0"}, "bar"),
        update("1", "bar"),
    ]

    one = shown({"text/plain": "1"})
    assert consolidate(outputs) == (one, stdout("between\n"), one)


def test_an_update_without_a_display_vanishes() -> None:
    assert consolidate([update("1", "bar"), stdout("a")]) == (stdout("a"),)


def test_a_display_that_was_cleared_cannot_be_updated() -> None:
    outputs: list[Output] = [
        shown({"text/plain": "0"}, "bar"),
        Clear(),
        stdout("a"),
        update("1", "bar"),
    ]

    assert consolidate(outputs) == (stdout("a"),)


def test_an_updated_result_stays_a_result() -> None:
    first = Display("result", {"text/plain": "0"}, display_id="x")

    assert consolidate([first, update("1", "x")]) == (result("1"),)


def test_dropped_bytes_add_up() -> None:
    assert consolidate([Dropped(5), Dropped(7), stdout("a")]) == (Dropped(12), stdout("a"))


def test_the_count_of_dropped_bytes_outlives_a_clear() -> None:
    outputs: list[Output] = [stdout("a"), Dropped(5), Clear(), stdout("b")]

    assert consolidate(outputs) == (Dropped(5), stdout("b"))


def test_dropped_bytes_are_said_in_full() -> None:
    said = describe_dropped(Dropped(1234567))

    assert said == "… 1,234,567 bytes of output are left out here …"
