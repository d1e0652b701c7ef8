from __future__ import annotations

import threading
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from nbdist.notebook.busy import kept_busy
from tests.notebook.driving import WIDGET_MIME, Notebook, Status

CELL = {"header": {"msg_id": "cell"}}
OF_A_PAGE = {"header": {"msg_id": "of a page"}}


class Kernel:
    """Stands in for ipykernel's kernel: keeps what it says, and about which message."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def get_parent(self, channel: str) -> Any:
        return {"shell": CELL, "control": OF_A_PAGE}[channel]

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        self.said.append((status, (parent or self.get_parent(channel))["header"]["msg_id"]))

    def answer(self) -> None:
        """Answer a message of a page, in a thread of its own."""
        thread = threading.Thread(target=self._answer)
        thread.start()
        thread.join()

    def _answer(self) -> None:
        self._publish_status("busy", "control")
        self._publish_status("idle", "control")


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def test_each_idle_of_a_page_is_followed_by_busy_for_the_cell(kernel: Kernel) -> None:
    with kept_busy(SimpleNamespace(kernel=kernel)):
        kernel.answer()
        kernel.answer()

    assert kernel.said == [("busy", "of a page"), ("idle", "of a page"), ("busy", "cell")] * 2


def test_the_idle_of_the_cell_itself_is_the_last_word(kernel: Kernel) -> None:
    with kept_busy(SimpleNamespace(kernel=kernel)):
        late = kernel._publish_status  # a thread that is about to say idle when the cell ends
    kernel._publish_status("idle", "shell")
    late("idle", "control")

    assert kernel.said == [("idle", "cell"), ("idle", "of a page")]


def test_a_cell_that_fails_leaves_the_kernel_as_it_was(kernel: Kernel) -> None:
    with pytest.raises(ValueError, match="x"), kept_busy(SimpleNamespace(kernel=kernel)):
        raise ValueError("x")
    kernel.answer()

    assert kernel.said == [("busy", "of a page"), ("idle", "of a page")]


def test_a_terminal_and_another_thread_need_nothing(kernel: Kernel) -> None:
    with kept_busy(SimpleNamespace()):
        pass

    def run() -> None:
        with kept_busy(SimpleNamespace(kernel=kernel)):
            kernel._publish_status("idle", "control")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert kernel.said == [("idle", "of a page")]


@pytest.mark.ranks
def test_a_page_that_talks_to_a_running_cell_leaves_the_kernel_busy() -> None:
    """Real kernel and ranks; the page's half of the live view is played here."""
    with Notebook(env={"NBDIST_LIVE": "widget"}) as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        assert notebook.run("%dist start -n 2 device=cpu").status == "ok"
        subshell = notebook.open_subshell()
        running = notebook.begin("%%dist\nwhile True: pass", page=True)
        running.until_shown(WIDGET_MIME)

        hellos = [
            notebook.say_to_widget(running.widget, {"kind": "hello", "page": str(number)}, subshell)
            for number in range(5)
        ]
        running.until_said(lambda said: sum(is_idle_about(hellos, one) for one in said) == 5)
        running.until_said(lambda said: said[-1].state == "busy")
        notebook.interrupt()
        cell = running.finish()

    assert cell.status == "error"
    [*statuses, last] = [one for one in notebook.statuses if one.at >= running.began]
    assert (last.state, last.about) == ("idle", running.message_id)
    for said, then in pairwise(statuses):
        if is_idle_about(hellos, said):
            assert (then.state, then.about) == ("busy", running.message_id)
    assert not any(one.state == "idle" and one.about == running.message_id for one in statuses)


def is_idle_about(messages: list[str], said: Status) -> bool:
    return said.state == "idle" and said.about in messages
