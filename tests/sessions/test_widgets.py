"""Widgets and other messages that a cell makes a rank send beside its output. Real ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbdist.sessions.session import Session
from tests.sessions.driving import finished, printed, ranks, shown, statuses

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
SENT_BY_HAND = """
kernel = get_ipython().kernel
def send(kind, **content):
    kernel.send_response(kernel.iopub_socket, kind, content)
print("before")
send("stream", name="stdout", text="a stream\\n")
send("error", ename="E", evalue="v", traceback=["a traceback"])
send("display_data", data={"text/plain": "shown"}, metadata={}, transient={"display_id": "d"})
send("update_display_data", data={"text/plain": "updated"}, transient={"display_id": "d"})
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

    assert run.render()["text/plain"] == (
        "[ranks 0, 1] after\nranks 0, 1: messages that cannot be shown: 2 invented."
    )


def test_what_is_sent_past_the_display_machinery_is_output_all_the_same(session: Session) -> None:
    run = finished(session, SENT_BY_HAND)

    assert run.render()["text/plain"].splitlines() == [
        "[ranks 0, 1] before",
        "[ranks 0, 1] a stream",
        "[ranks 0, 1] stderr: a traceback",
        "[ranks 0, 1] updated",
        "[ranks 0, 1] after",
    ]


def test_a_comm_of_the_old_kind_sends_nothing_either(session: Session) -> None:
    code = "from ipykernel.comm import Comm\nComm(target_name='a', show_warning=False).send({})"

    assert finished(session, code).render() == {}


OUTPUT_WIDGET = """
from IPython.display import clear_output
area, inner = ipywidgets.Output(), ipywidgets.Output()
print("before")
with area:
    print("step 0")
    with inner:
        print("kept")
    clear_output()
    print("step 1")
print("after")
area.clear_output(wait=True)
with area:
    print("step 2")
"""


def test_an_output_widget_clears_its_own_output_alone(session: Session) -> None:
    run = finished(session, f"import ipywidgets\n{OUTPUT_WIDGET}")

    assert run.render()["text/plain"].splitlines() == [
        f"[ranks 0, 1] {line}" for line in ("before", "kept", "after", "step 2")
    ]


def test_a_cell_that_ends_within_an_output_widget_takes_nothing_from_the_next(
    session: Session,
) -> None:
    finished(session, "import ipywidgets\narea = ipywidgets.Output()\n_ = area.__enter__()")

    run = finished(session, "clear_output()\nprint('one')\nclear_output()\nprint('two')")

    assert run.render()["text/plain"] == "[ranks 0, 1] two"
