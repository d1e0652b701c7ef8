from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbdist.notebook import live_widget
from nbdist.notebook.live import REFRESH_S
from nbdist.notebook.live_widget import QUIET_S, WidgetView
from nbdist.wire import CellError, Clear, Display, Dropped, RankOutput, Text

Batch = dict[str, Any]


class Clock:
    """Stands in for the module ``time``; the test moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Page:
    """Stands in for the page: keeps what it is sent, says what the test wants."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.cleared: list[bool] = []
        self.num_shown = 0

    def show(
        self, label: str, ranks: tuple[int, ...], on_message: Callable[[dict[str, Any]], None]
    ) -> Page:
        self.num_shown += 1
        self.say = on_message
        return self

    def send(self, batch: Batch) -> None:
        self.batches.append(json.loads(json.dumps(batch)))

    def clear(self, wait: bool = False) -> None:
        self.cleared.append(wait)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live_widget, "time", clock)
    return clock


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def view(clock: Clock, page: Page) -> WidgetView:
    return WidgetView((0, 1, 2, 3), "In[1]", page.show, page.clear)


@pytest.fixture
def shown(view: WidgetView, clock: Clock, page: Page) -> WidgetView:
    """A view that is on the page, with an empty first batch behind it."""
    clock.now += QUIET_S + 0.01
    view.tick()
    page.batches.clear()
    clock.now += REFRESH_S + 0.01
    return view


@pytest.fixture
def presses() -> Iterator[list[int]]:
    """The interrupts that arrive."""
    presses: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: presses.append(number))
    yield presses
    signal.signal(signal.SIGINT, before)


def print_on(view: WidgetView, rank: int, text: str) -> None:
    view.take(rank, (Text("stdout", text),))


def test_a_short_cell_shows_nothing_and_clears_nothing(
    view: WidgetView, clock: Clock, page: Page
) -> None:
    print_on(view, 0, "one\n")
    clock.now += QUIET_S - 0.01
    view.tick()
    view.close()

    assert (page.num_shown, page.batches, page.cleared) == (0, [], [])
    assert not view.shows_text


def test_the_first_batch_has_all_that_came_before(
    view: WidgetView, clock: Clock, page: Page
) -> None:
    print_on(view, 0, "one\n")
    print_on(view, 1, "two\n")
    view.state(1, "done")
    clock.now += QUIET_S + 0.01
    view.tick()

    [batch] = page.batches
    assert page.num_shown == 1
    assert batch == {
        "kind": "batch",
        "number": 1,
        "seconds": 0.5,
        "states": [[1, {"state": "done", "where": ""}]],
        "pieces": [[0, "stdout", "one\n"], [1, "stdout", "two\n"]],
    }


def test_a_quiet_cell_shows_its_ranks_too(view: WidgetView, clock: Clock, page: Page) -> None:
    clock.now += QUIET_S + 0.01
    view.tick()

    assert page.num_shown == 1


def test_batches_come_ten_times_a_second_and_only_with_news(
    shown: WidgetView, clock: Clock, page: Page
) -> None:
    for _ in range(100):
        print_on(shown, 0, "x\n")
        shown.tick()
        clock.now += 0.01
    assert 9 <= len(page.batches) <= 11

    clock.now += REFRESH_S + 0.01
    shown.tick()
    num_batches = len(page.batches)
    for _ in range(50):
        clock.now += REFRESH_S + 0.01
        shown.tick()
    assert len(page.batches) == num_batches


def test_only_what_changed_is_sent(shown: WidgetView, clock: Clock, page: Page) -> None:
    shown.progress(2, 1, 10, "epoch")
    shown.state(2, "waiting", "In[1]:4")
    shown.tick()
    clock.now += REFRESH_S + 0.01
    shown.progress(2, 2, 10, "epoch")
    shown.state(2, "waiting", "In[1]:4")
    shown.tick()

    assert page.batches[0]["states"] == [
        [2, {"done": 1, "total": 10, "text": "epoch", "state": "waiting", "where": "In[1]:4"}]
    ]
    assert page.batches[1]["states"] == [[2, {"done": 2}]]


def test_what_is_no_text_is_told_in_short(shown: WidgetView, page: Page) -> None:
    shown.take(
        0,
        (
            Display("display", {"image/png": "…", "text/plain": "<Figure>"}),
            Display("update", {"text/plain": "not again"}, display_id="1"),
            Clear(wait=True),
            Clear(area=1),  # of an output widget: other lines stay
            Dropped(1234),
        ),
    )
    shown.tick()

    assert page.batches[0]["pieces"] == [
        [0, "note", "<Figure>"],
        [0, "clear", "wait"],
        [0, "note", "… 1,234 bytes of output are left out here …"],
    ]


def test_a_warning_is_sent_when_it_changes(shown: WidgetView, clock: Clock, page: Page) -> None:
    for text in ("waits", "waits", "waits longer", None):
        shown.warn(text)
        shown.tick()
        clock.now += REFRESH_S + 0.01

    assert [batch["warning"] for batch in page.batches] == ["waits", "waits longer", None]


def test_what_failed_is_sent_when_more_is_known(
    shown: WidgetView, clock: Clock, page: Page
) -> None:
    failures = [RankOutput(1, "error", (), CellError("ValueError", "bad"))]
    for more in ([], [RankOutput(2, "error", (), CellError("ValueError", "bad"))]):
        failures += more
        shown.failed(failures)
        shown.tick()
        clock.now += REFRESH_S + 0.01

    assert [batch["failures"] for batch in page.batches] == [
        "[rank1] ValueError: bad",
        "[ranks 1, 2] ValueError: bad",
    ]
    page.say({"kind": "resend"})
    shown.tick()
    assert page.batches[-1]["failures"] == "[ranks 1, 2] ValueError: bad"


def test_a_flood_between_two_batches_is_cut_and_counted(shown: WidgetView, page: Page) -> None:
    for _ in range(1000):
        print_on(shown, 0, "x" * 99 + "\n" * 10)
    shown.tick()

    [batch] = page.batches
    [[rank, num_lost]] = batch["lost"]
    [[_, _, text]] = batch["pieces"]
    assert rank == 0
    assert num_lost + text.count("\n") == 10_000
    assert len(json.dumps(batch)) < 2**19


def test_notes_are_bounded(shown: WidgetView, page: Page) -> None:
    for number in range(1000):
        shown.note(f"note {number}")
    shown.tick()

    assert len(page.batches[0]["notes"]) == live_widget.MAX_NOTES


def test_a_page_that_missed_a_batch_gets_everything(
    shown: WidgetView, clock: Clock, page: Page
) -> None:
    print_on(shown, 0, "one\n")
    shown.state(0, "waiting", "all_reduce #1")
    shown.warn("waits")
    shown.tick()
    clock.now += REFRESH_S + 0.01
    page.batches.clear()

    page.say({"kind": "resend"})
    shown.tick()

    [batch] = page.batches
    assert batch["is_whole"]
    assert not batch["is_over"]
    assert batch["pieces"] == [[0, "stdout", "one\n"]]
    assert batch["states"][0] == [0, {"state": "waiting", "where": "all_reduce #1"}]
    assert batch["warning"] == "waits"


def test_the_final_output_takes_its_place(shown: WidgetView, page: Page) -> None:
    shown.close()

    assert page.cleared == [True]


def test_where_nothing_follows_it_goes_at_once(shown: WidgetView, page: Page) -> None:
    shown.close(is_replaced=False)

    assert page.cleared == [False]


def test_a_page_that_came_late_learns_how_the_cell_ended(shown: WidgetView, page: Page) -> None:
    page.say({"kind": "hello", "page": "a"})
    print_on(shown, 0, "one\n")
    shown.tick()
    shown.state(0, "failed")
    shown.close()
    page.batches.clear()

    page.say({"kind": "hello", "page": "a"})  # was on its way when the cell ended
    assert page.batches == []
    page.say({"kind": "hello", "page": "after a reload"})

    [batch] = page.batches
    assert batch["is_over"]
    assert batch["pieces"] == [[0, "stdout", "one\n"]]
    assert batch["states"][0] == [0, {"state": "failed", "where": ""}]


def test_the_stop_button_is_for_pages_that_can_reach_us(
    shown: WidgetView, clock: Clock, page: Page
) -> None:
    print_on(shown, 0, "one\n")
    shown.tick()
    assert "can_stop" not in page.batches[-1]

    page.say({"kind": "hello", "page": "a"})
    clock.now += REFRESH_S + 0.01
    shown.tick()

    assert page.batches[-1]["can_stop"]


def test_the_stop_button_interrupts_and_never_after_the_cell(
    shown: WidgetView, page: Page, presses: list[int]
) -> None:
    def press() -> None:
        thread = threading.Thread(target=page.say, args=({"kind": "stop"},))
        thread.start()
        thread.join()

    press()
    assert presses == [signal.SIGINT]

    shown.close()
    press()
    assert presses == [signal.SIGINT]


def test_a_cell_outside_the_main_thread_has_no_stop_button(
    clock: Clock, page: Page, presses: list[int]
) -> None:
    views: list[WidgetView] = []
    thread = threading.Thread(
        target=lambda: views.append(WidgetView((0,), "In[1]", page.show, page.clear))
    )
    thread.start()
    thread.join()
    [view] = views
    clock.now += QUIET_S + 0.01
    view.tick()

    page.say({"kind": "hello", "page": "a"})
    page.say({"kind": "stop"})
    clock.now += REFRESH_S + 0.01
    view.tick()

    assert presses == []
    assert "can_stop" not in page.batches[-1]


def test_before_a_question_all_there_is_is_shown_however_short_the_cell(
    view: WidgetView, page: Page
) -> None:
    print_on(view, 0, "a) train b) eval")
    view.state(0, "asking", "waits for your answer")
    view.show_all()
    print_on(view, 0, "more")
    view.show_all()

    assert page.num_shown == 1
    assert "a) train b) eval" in str(page.batches[0])
    assert "'asking'" in str(page.batches[0])
    assert "more" in str(page.batches[1])
