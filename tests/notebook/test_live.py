from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest

from nbdist.notebook.live import LinesView, NoView, make_view
from nbdist.notebook.live_widget import WidgetView
from nbdist.wire import Text


def stdout(text: str) -> tuple[Text]:
    return (Text("stdout", text),)


def test_each_mode_has_its_view() -> None:
    assert isinstance(make_view("lines", (0,), "In[1]"), LinesView)
    assert isinstance(make_view("widget", (0,), "In[1]"), WidgetView)
    assert type(make_view("off", (0,), "In[1]")) is NoView


def test_lines_stand_in_where_anywidget_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def import_(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "anywidget":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "nbdist.notebook.widget", raising=False)
    monkeypatch.setattr(builtins, "__import__", import_)

    assert isinstance(make_view("widget", (0,), "In[1]"), LinesView)


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


def test_lines_say_a_warning_once_and_again_when_it_changes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = LinesView()
    for text in ("rank 1 waits", "rank 1 waits", None, "rank 1 waits", "rank 2 waits"):
        view.warn(text)

    assert capsys.readouterr().out == "rank 1 waits\nrank 1 waits\nrank 2 waits\n"


def test_lines_leave_states_to_the_final_output(capsys: pytest.CaptureFixture[str]) -> None:
    view = LinesView()
    view.state(0, "failed", "ValueError")
    view.state(1, "running", "In[1]:2")
    view.progress(1, 3, 10)
    view.note("rank 0 was killed")
    view.close()

    assert capsys.readouterr().out == ""


def test_off_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    view = NoView()
    view.take(0, stdout("one\n"))
    view.note("rank 1 died")
    view.warn("rank 0 waits")
    view.tick()
    view.close()

    assert capsys.readouterr().out == ""
    assert not view.shows_text
