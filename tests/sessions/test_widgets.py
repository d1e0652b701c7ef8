"""Widgets and other messages that a cell makes a rank send beside its output. Real ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbdist.sessions.session import Session
from tests.sessions.driving import finished, printed, ranks, shown, statuses
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

CHANGING_WIDGET = """
import ipywidgets
bar = ipywidgets.IntProgress(max=50)
display(bar)
for i in range(50):
    bar.value = i
    print("line", i, flush=True)
"""
LINES = "".join(f"line {i}\n" for i in range(50))
NOT_LIVE = "Widgets of ranks are not live: they are shown as text."
FOREIGN = """
kernel = get_ipython().kernel
for text in ("one", "two"):
    kernel.send_response(kernel.iopub_socket, "invented", {"text": text})
print("after")
"""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2) as session:
        yield session


def test_a_widget_that_changes_costs_no_line(
    session: Session, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        run = finished(session, CHANGING_WIDGET)

        assert statuses(run) == ["ok", "ok"]
        assert [printed(run, rank) for rank in run.ranks] == [LINES] * 2
    for number in range(5):
        assert printed(finished(session, f"print({number})"), 1) == f"{number}\n"
    assert capfd.readouterr().err == ""
    assert session.trouble is None


def test_a_widget_is_shown_once_as_text_with_a_note(session: Session) -> None:
    text = finished(session, "import ipywidgets\nipywidgets.IntSlider()").render()["text/plain"]

    assert text == f"[ranks 0, 1] IntSlider(value=0)\n{NOT_LIVE}"


def test_a_widget_sends_nothing_to_the_notebook(session: Session) -> None:
    run = finished(session, "import ipywidgets\nslider = ipywidgets.IntSlider()\nslider.value = 3")

    assert shown(run) == ()
    assert run.render() == {}


def test_what_is_no_output_is_counted_and_named(session: Session) -> None:
    run = finished(session, FOREIGN)

    wait_until(lambda: run.gaps, "what came beside the reply")
    assert run.render()["text/plain"] == (
        "[ranks 0, 1] after\nranks 0, 1: messages that cannot be shown: 2 invented."
    )
