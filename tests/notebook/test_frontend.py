from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nbdist.notebook.frontend import kind_of, live_mode

TERMINAL = SimpleNamespace()


def kernel_shell(metadata: dict[str, Any] | None) -> Any:
    parent = None if metadata is None else {"metadata": metadata}
    return SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda channel: parent))


PAGE = kernel_shell({"cellId": "abc", "trusted": True})
VS_CODE = kernel_shell({"cellId": "vscode-notebook-cell:/home/me/a.ipynb#W0sZmlsZQ=="})
HEADLESS = kernel_shell({})


@pytest.fixture(autouse=True)
def nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBDIST_LIVE", raising=False)


def test_a_page_sends_the_id_of_the_cell() -> None:
    assert kind_of(PAGE) == "page"
    assert kind_of(VS_CODE) == "page"
    assert kind_of(HEADLESS) == "headless"
    assert kind_of(kernel_shell(None)) == "headless"
    assert kind_of(TERMINAL) == "terminal"


def test_auto_is_what_the_front_end_can_show() -> None:
    assert [live_mode("auto", shell) for shell in (PAGE, HEADLESS, TERMINAL)] == [
        "widget",
        "off",
        "lines",
    ]


def test_vs_code_gets_lines_unless_its_user_knows_better() -> None:
    assert live_mode("auto", VS_CODE) == "lines"
    assert live_mode("widget", VS_CODE) == "widget"


def test_a_choice_holds_for_every_front_end() -> None:
    assert [live_mode("lines", shell) for shell in (PAGE, HEADLESS, TERMINAL)] == ["lines"] * 3


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBDIST_LIVE", "off")
    assert live_mode("lines", PAGE) == "off"

    monkeypatch.setenv("NBDIST_LIVE", "auto")
    assert live_mode("lines", PAGE) == "widget"


def test_what_the_environment_says_wrongly_is_as_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBDIST_LIVE", "nonsense")

    assert live_mode("off", TERMINAL) == "lines"
