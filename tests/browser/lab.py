"""A real JupyterLab on a free port of this machine, and a headless Chromium in front of it.

    with Lab(folder) as lab:
        page = lab.notebook("t.ipynb", ["%load_ext nbdist", "%dist start -n 4"])
        page.run(0)
    assert lab.leftovers == []

Nothing is shared with the user's Jupyter, and nothing leaves the machine: what a page asks of
another host is refused and listed in `Lab.refused`. Every process below the server carries a mark
in its environment; `Lab.close` ends those that outlive the server, and lists them.

Not covered: what a server extension or a kernel sends by itself.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from playwright.sync_api import BrowserContext, Route, sync_playwright

from tests.browser.page import NotebookPage
from tests.ports import free_port
from tests.processes import describe, end, processes_marked, wait_for_end
from tests.waiting import wait_until

MARK = "NBDIST_TEST_LAB"
START_S = 60.0
STOP_S = 15.0
GRACE_S = 5.0
WINDOW = {"width": 1100, "height": 800}

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]

# What would ask other hosts, open dialogs, or take cells out of the page.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "extensionmanager-extension/plugin": {"enabled": False},
    "docmanager-extension/plugin": {"autosave": False},
    "notebook-extension/tracker": {
        "windowingMode": "none",  # cells out of sight would leave the page otherwise
        "scrollPastEnd": False,
        "kernelShutdown": False,
    },
}


def chromium() -> str | None:
    """Return the path of Chromium on this machine, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Lab:
    """A running JupyterLab with one browser window; ends at `close`.

    Args:
        folder: An empty folder for notebooks, settings and all else that the two keep.
        executable: The browser.
        is_dark: Start with JupyterLab's dark theme.
        scale: Pixels of a picture for each of the page.
    """

    def __init__(
        self, folder: Path, executable: str, *, is_dark: bool = False, scale: float = 1.5
    ) -> None:
        self.folder = folder / "notebooks"
        self.folder.mkdir(parents=True)
        self.refused: list[str] = []
        self.complaints: list[str] = []
        self.leftovers: list[str] = []
        self._home = folder
        self._executable = executable
        self._scale = scale
        self._mark = uuid.uuid4().hex
        self._token = secrets.token_hex(16)
        self._write_settings("JupyterLab Dark" if is_dark else "JupyterLab Light")
        self._start_server()
        try:
            self._start_browser()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lab {self.url} {'ended' if self._server.poll() is not None else 'running'}>"

    def notebook(
        self,
        name: str,
        cells: Sequence[str] | None = None,
        *,
        has_kernel: bool = True,
        kernel: str = "python3",
    ) -> NotebookPage:
        """Open a notebook in a new tab.

        Args:
            name: Its file.
            cells: Write it first, with these code cells.
            has_kernel: Start its kernel; else say "No Kernel" when asked for one.
            kernel: Which, if it is written.
        """
        if cells is not None:
            self.write(name, cells, kernel=kernel)
        return NotebookPage(self, name, has_kernel=has_kernel)

    def add_kernel(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Make a kernel known that is started with *argv*."""
        path = self._home / "data" / "kernels" / name / "kernel.json"
        path.parent.mkdir(parents=True)
        spec = {"argv": list(argv), "env": dict(env), "display_name": name, "language": "python"}
        path.write_text(json.dumps(spec))

    def write(self, name: str, cells: Sequence[str], *, kernel: str = "python3") -> Path:
        """Write a notebook of code cells."""
        spec = {"name": kernel, "display_name": kernel, "language": "python"}
        empty: dict[str, Any] = {
            "cell_type": "code",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
        }
        notebook = {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {"kernelspec": spec},
            "cells": [{**empty, "id": f"c{i}", "source": text} for i, text in enumerate(cells)],
        }
        path = self.folder / name
        path.write_text(json.dumps(notebook))
        return path

    def address(self, name: str) -> str:
        """Return the address under which notebook *name* opens."""
        return f"{self.url}doc/tree/{name}?token={self._token}&reset"

    def ask(self, path: str, method: str = "GET") -> Any:
        """Ask the server's REST interface."""
        request = urllib.request.Request(
            f"{self.url}{path}", method=method, headers={"Authorization": f"token {self._token}"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def log(self) -> str:
        """Return the end of what the server and the kernels wrote."""
        return (self._home / "server.log").read_text(errors="replace")[-4000:]

    def processes(self) -> list[psutil.Process]:
        """Return the processes that live and came from this server."""
        return processes_marked(MARK, self._mark)

    def close(self) -> None:
        """End browser, kernels and server; twice does nothing more."""
        if self._server.poll() is not None:
            return
        self._stop_browser()
        self._stop_server()
        alive = wait_for_end(self.processes(), GRACE_S)
        self.leftovers = [describe(process) for process in alive]
        for process in alive:
            end(process)

    # The server -------------------------------------------------------------------------------

    def _write_settings(self, theme: str) -> None:
        themes = {"theme": theme, "adaptive-theme": False}
        for name, values in {**SETTINGS, "apputils-extension/themes": themes}.items():
            path = self._home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))

    def _environment(self) -> dict[str, str]:
        ours = {
            MARK: self._mark,
            "HOME": "home",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        }
        folders = {
            name: value if name == MARK else str(self._home / value) for name, value in ours.items()
        }
        inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**inherited, **folders, "PATH": path}

    def _start_server(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.root_dir": self.folder,
            "ServerApp.terminals_enabled": False,
            "IdentityProvider.token": self._token,
            "LabApp.news_url": None,
            "LabApp.extension_manager": "readonly",
            "LabApp.expose_app_in_browser": True,
        }
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
        log = self._home / "server.log"
        with log.open("wb") as output:
            self._server = subprocess.Popen(
                [*command, *(f"--{name}={value}" for name, value in options.items())],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers, f"JupyterLab; see {log}", timeout_s=START_S)

    def _answers(self) -> bool:
        assert self._server.poll() is None, self.log()
        try:
            self.ask("api/status")
        except OSError:
            return False
        return True

    def _stop_server(self) -> None:
        for kernel in self.ask("api/kernels"):
            self.ask(f"api/kernels/{kernel['id']}", "DELETE")
        self._server.terminate()
        try:
            self._server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    # The browser ------------------------------------------------------------------------------

    def _start_browser(self) -> None:
        self._playwright = sync_playwright().start()
        self.browser = self._playwright.chromium.launch(
            executable_path=self._executable,
            args=CHROMIUM_OPTIONS,
            env={**os.environ, "HOME": str(self._home / "home"), MARK: self._mark},
        )
        self.context: BrowserContext = self.browser.new_context(
            viewport=WINDOW,  # type: ignore[arg-type]  # a TypedDict of playwright
            device_scale_factor=self._scale,
        )
        self.context.set_default_timeout(30_000)
        self.context.route("**/*", self._gate)

    def _gate(self, route: Route) -> None:
        if route.request.url.startswith((self.url, "data:", "blob:")):
            route.continue_()
        else:
            self.refused.append(route.request.url)
            route.abort()

    def _stop_browser(self) -> None:
        for name, stop in (("context", "close"), ("browser", "close"), ("_playwright", "stop")):
            if opened := getattr(self, name, None):
                getattr(opened, stop)()
