from __future__ import annotations

import pytest

from nbdist.notebook import live
from nbdist.notebook.live import LinesView, NoView, PageView, make_view
from nbdist.wire import Text


class Clock:
    """Stands in for the module ``time``; the test moves it on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    return clock


@pytest.fixture
def cleared() -> list[str]:
    return []


def stdout(text: str) -> tuple[Text]:
    return (Text("stdout", text),)


def test_each_mode_has_its_view(cleared: list[str]) -> None:
    def clear() -> None:
        cleared.append("")

    assert isinstance(make_view("lines", clear), LinesView)
    assert isinstance(make_view("widget", clear), PageView)
    assert isinstance(make_view("off", clear), NoView)


def test_lines_are_printed_as_they_come_and_stay(capsys: pytest.CaptureFixture[str]) -> None:
    view = LinesView()
    view.take(0, stdout("one\ntw"))
    view.take(1, stdout("other\n"))
    view.tick()
    assert capsys.readouterr().out == "[rank0] one\n[rank1] other\n"

    view.take(0, stdout("o\nthree"))
    view.close()

    assert capsys.readouterr().out == "[rank0] two\n[rank0] three\n"
    assert view.shows_text


def test_off_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    view = NoView()
    view.take(0, stdout("one\n"))
    view.note("rank 1 died")
    view.tick()
    view.close()

    assert capsys.readouterr().out == ""
    assert not view.shows_text


def test_a_page_shows_nothing_of_a_short_cell(
    clock: Clock, cleared: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    view = PageView(lambda: cleared.append("clear"))
    view.take(0, stdout("one\n"))
    clock.now += live.QUIET_S - 0.01
    view.tick()
    view.close()

    assert capsys.readouterr().out == ""
    assert cleared == []


def test_a_page_shows_batches_and_clears_them_at_the_end(
    clock: Clock, cleared: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    view = PageView(lambda: cleared.append("clear"))
    clock.now += live.QUIET_S + 0.01
    view.take(0, stdout("one\n"))
    view.tick()
    view.take(1, stdout("two\n"))
    view.tick()  # too soon
    assert capsys.readouterr().out == "[rank0] one\n"

    clock.now += live.REFRESH_S + 0.01
    view.tick()
    view.close()

    assert capsys.readouterr().out == "[rank1] two\n"
    assert cleared == ["clear"]
    assert not view.shows_text


def test_a_page_takes_a_bounded_number_of_lines(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    view = PageView(lambda: None)
    clock.now += live.QUIET_S + 0.01
    for _ in range(live.MAX_LIVE_LINES // 100 + 20):
        view.take(0, stdout("x\n" * 100))
    view.tick()

    shown = capsys.readouterr().out.splitlines()

    assert len(shown) <= live.MAX_LIVE_LINES + 100
    assert "more lines" in shown[-1]


def test_a_page_says_of_a_death_at_once_even_beyond_its_bound(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    view = PageView(lambda: None)
    clock.now += live.QUIET_S + 0.01
    view.take(0, stdout("x\n" * (live.MAX_LIVE_LINES + 1)))
    view.tick()
    capsys.readouterr()
    clock.now += 1

    view.note("rank 1 was killed by SIGKILL")
    view.tick()

    assert "rank 1 was killed by SIGKILL" in capsys.readouterr().out
