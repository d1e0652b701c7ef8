"""One notebook in one tab of the browser, used as a person does: with mouse and keyboard.

JupyterLab's own objects are only read, for what the page does not show reliably: whether the kernel
is busy, which cells run, and what a save would write. Cells count from 0.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import ConsoleMessage, Error, Locator, Page

if TYPE_CHECKING:
    from tests.browser.lab import Lab

PATIENCE_S = 60.0
STUCK_S = 2.0  # a kernel that is busy when the page comes says nothing for so long
LOOK_MS = 50

PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
BUTTON = f"{PANEL} .jp-NotebookPanel-toolbar [data-jp-item-name='{{}}'] :is(jp-button, button)"
ACCEPT = ".jp-Dialog .jp-mod-accept"

STATE = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  if (!panel?.sessionContext || !panel.content?.model) return null;
  const kernel = panel.sessionContext.session?.kernel;
  return {
    isReady: panel.sessionContext.isReady && panel.context.isReady,
    isSaved: !panel.context.model.dirty,
    status: kernel?.status,
    connection: kernel?.connectionStatus,
    kernel: kernel?.id,
    isRunning: panel.content.widgets.map(
      cell => cell.promptNode?.textContent.includes('*') ?? false),
  };
}"""
OUTPUTS = """number => window.jupyterapp.shell.currentWidget.content.widgets[number]
  .model.outputs.toJSON()"""

State = dict[str, Any]


class NotebookPage:
    """A notebook that is open in the browser.

    Args:
        lab: Where it is open.
        name: Its file.
        has_kernel: It is to have one.
    """

    def __init__(self, lab: Lab, name: str, *, has_kernel: bool = True) -> None:
        self.lab = lab
        self.name = name
        self.tab: Page = lab.context.new_page()
        self.tab.on("console", self._on_console)
        self.tab.on("pageerror", lambda error: lab.complaints.append(f"{name}: {error}"))
        self.tab.goto(lab.address(name))
        if has_kernel:
            self._wait_until_open()
        else:
            self.tab.locator(".jp-Dialog button", has_text="No Kernel").click()
            self.cell(0).wait_for()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.lab.complaints.append(f"{self.name}: {message.text}")

    def _wait_until_open(self) -> None:
        begin = time.monotonic()

        def is_open(state: State) -> bool:
            # A kernel that runs a cell does not answer; its status stays unknown until it does.
            is_stuck = state["status"] == "unknown" and time.monotonic() - begin > STUCK_S
            is_connected = state["isReady"] and state["connection"] == "connected"
            return is_connected and (state["status"] in ("idle", "busy") or is_stuck)

        self.wait_for(is_open, "the notebook to open")
        self.cell(0).wait_for()

    # Waiting ----------------------------------------------------------------------------------

    def state(self) -> State | None:
        """Return what JupyterLab says of the notebook, if it is there."""
        try:
            found: State | None = self.tab.evaluate(STATE)
        except Error as error:
            if "context was destroyed" not in str(error):
                raise
            return None  # JupyterLab is on its way to another address
        return found

    def wait_for(
        self, condition: Callable[[State], bool], what: str, *, timeout_s: float = PATIENCE_S
    ) -> None:
        """Return when *condition* holds; a dialog on the way is accepted.

        Raises:
            TimeoutError: It never did; the message says *what* was waited for.
        """
        deadline = time.monotonic() + timeout_s
        while (state := self.state()) is None or not condition(state):
            if (accept := self.tab.locator(ACCEPT)).count():
                accept.first.click()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:.0f} s for {what}: {state}")
            self.tab.wait_for_timeout(LOOK_MS)

    def wait_until_idle(self, *, timeout_s: float = PATIENCE_S) -> None:
        """Return when no cell runs and the kernel is idle."""
        self.wait_for(
            lambda state: state["status"] == "idle" and not any(state["isRunning"]),
            "the kernel to be idle",
            timeout_s=timeout_s,
        )

    def wait_for_text(self, number: int, pattern: str, *, timeout_s: float = PATIENCE_S) -> str:
        """Return the text of cell *number*'s output as soon as it matches *pattern*."""
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, text := self.text(number)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"cell {number} never showed {pattern!r}, but: {text}")
            self.tab.wait_for_timeout(LOOK_MS)
        return text

    # Cells ------------------------------------------------------------------------------------

    def cell(self, number: int) -> Locator:
        """Return cell *number*."""
        return self.tab.locator(f"{PANEL} .jp-Notebook .jp-Cell").nth(number)

    def begin(self, number: int) -> None:
        """Click cell *number* and run it with Ctrl+Enter; do not wait for its end."""
        prompt = self.cell(number).locator(".jp-InputPrompt").first
        prompt.scroll_into_view_if_needed()
        prompt.click()
        self.tab.keyboard.press("Control+Enter")
        self.wait_for(
            lambda state: state["isRunning"][number] or state["status"] == "idle",
            f"cell {number} to be sent",
        )

    def run(self, number: int, *, timeout_s: float = PATIENCE_S) -> str:
        """Run cell *number* to its end and return the text of its output."""
        self.begin(number)
        self.wait_until_idle(timeout_s=timeout_s)
        return self.text(number)

    def write_cell(self, number: int, source: str) -> None:
        """Replace the source of cell *number*."""
        self.cell(number).locator(".cm-content").click()
        self.tab.keyboard.press("Control+A")
        self.tab.keyboard.insert_text(source)
        self.tab.keyboard.press("Escape")

    def area(self, number: int) -> Locator:
        """Return the output area of cell *number*."""
        return self.cell(number).locator(".jp-Cell-outputArea").first

    def text(self, number: int) -> str:
        """Return what one can read below cell *number*."""
        area = self.cell(number).locator(".jp-Cell-outputArea")
        return area.first.inner_text().strip() if area.count() else ""

    def outputs(self, number: int) -> list[dict[str, Any]]:
        """Return the outputs of cell *number* as a save would write them."""
        found: list[dict[str, Any]] = self.tab.evaluate(OUTPUTS, number)
        return found

    # The whole notebook -----------------------------------------------------------------------

    def press_stop(self) -> None:
        """Press ■ in the notebook's toolbar; returns when the server has told the kernel."""
        with self.tab.expect_response("**/interrupt*"):
            self._press("interrupt")

    def stop_cell(self, number: int, button: str) -> None:
        """Stop the running cell *number* by a *button*, ``toolbar`` or ``view``; wait for it."""
        if button == "toolbar":
            self.press_stop()
        else:
            self.cell(number).locator(".nbdist-live").get_by_role("button", name="Stop").click()
        self.wait_until_idle(timeout_s=20)

    def _press(self, item: str) -> None:
        self.tab.locator(BUTTON.format(item)).first.click()

    def restart(self) -> None:
        """Restart the kernel with the toolbar's button, and confirm."""
        self._press("restart")
        self.tab.locator(ACCEPT).first.click()
        self.tab.locator(ACCEPT).wait_for(state="detached")
        self.wait_until_idle()

    def reload(self) -> None:
        """Reload the page; the kernel goes on."""
        self.tab.once("dialog", lambda dialog: dialog.accept())
        self.tab.reload()
        self._wait_until_open()

    def save(self) -> dict[str, Any]:
        """Save with Ctrl+S and return what the file holds."""
        self.tab.keyboard.press("Control+S")
        self.wait_for(lambda state: bool(state["isSaved"]), "the notebook to be saved")
        saved: dict[str, Any] = json.loads((self.lab.folder / self.name).read_text())
        return saved

    def use_theme(self, theme: str) -> None:
        """Switch to JupyterLab's ``Light`` or ``Dark`` theme."""
        self.tab.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})",
            f"JupyterLab {theme}",
        )
        name = f"JupyterLab {theme}"
        self.tab.locator(f"body[data-jp-theme-name='{name}']").wait_for(state="attached")
        self.tab.locator("#jupyterlab-splash").wait_for(state="detached")

    def close(self) -> None:
        """End the kernel and close the tab; twice does nothing more."""
        if self.tab.is_closed():
            return
        if (state := self.state()) is not None and state["kernel"]:
            self.lab.ask(f"api/kernels/{state['kernel']}", "DELETE")
        self.tab.close()

    def screenshot(self, path: Path, number: int | None = None) -> None:
        """Write a picture of the page, or of cell *number* alone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if number is None:
            self.tab.screenshot(path=path)
        else:
            self.cell(number).screenshot(path=path)
