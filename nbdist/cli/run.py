"""Run a notebook for real and print every cell with its output, as a reader would see it.

    file ──▶ kernel of this Python ── outputs, as they come ──▶ terminal
                └── ranks                                  └──▶ --out FILE

Ctrl-C stops the cell first, as the stop button does; the kernel and its ranks end with it. What
survives a kernel all the same is ended by the records of its sessions.

Not shown: updates of an output that is printed already; widgets.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import nbformat
import zmq
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode

from nbdist.errors import UsageError
from nbdist.folder import runtime_root, sessions
from nbdist.launchers.start import end_session
from nbdist.view.ansi import strip_ansi

START_TIMEOUT_S = 60
STOPPED_S = 8.0  # a stopped cell may take so long to end before its kernel is killed


def run_notebook(path: Path, out: Path | None = None) -> int:
    """Run the notebook *path* in a fresh kernel of this Python, in the notebook's own folder.

    Args:
        path: Not changed.
        out: Where to keep the notebook with its new outputs; also when a cell failed.

    Returns:
        The exit code: 0, 1 if a cell failed, 128 + the signal that ended it.

    Raises:
        UsageError: There is no notebook at *path*, or *out* cannot be written.
    """
    notebook = read_notebook(path)
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"{out} cannot be written: there is no folder {out.parent}.")
    run = NotebookRun(notebook, path, Printer(sys.stdout))
    code = asyncio.run(run.run())
    if out is not None:
        nbformat.write(notebook, out)  # type: ignore[no-untyped-call]
    if run.problem:
        sys.stdout.flush()
        sys.stderr.write(f"nbdist: {run.problem}\n")
    return code


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook file.

    Raises:
        UsageError: It cannot be read, or it is no notebook.
    """
    try:
        notebook: NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}.") from exc
    except (ValueError, nbformat.ValidationError, AttributeError) as exc:
        said = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise UsageError(f"{path} is no notebook: {said:.200}") from exc
    return notebook


class Printer:
    """Writes cells to a terminal or a file; colours only to a terminal.

    Args:
        stream: Where to.

    Attributes:
        count: Number of the code cell it printed last.
    """

    def __init__(self, stream: TextIO) -> None:
        self.count = 0
        self._stream = stream
        self._has_colors = stream.isatty()
        self._is_first = True
        self._is_line_open = False

    def markdown(self, source: str) -> None:
        """Print a cell of text."""
        self._begin_cell()
        self._write(source.rstrip() + "\n")

    def code(self, count: int, source: str) -> None:
        """Print the code of a cell that runs now, as IPython would."""
        self.count = count
        self._begin_cell()
        prompt = f"In [{count}]: "
        first, *others = source.rstrip("\n").split("\n")
        rest = [f"{'...: ':>{len(prompt)}}{line}".rstrip() for line in others]
        self._write("\n".join([self._colored(prompt) + first, *rest]) + "\n")

    def output(self, output: NotebookNode) -> None:
        """Print one output of the running cell."""
        if output.output_type == "stream":
            return self._write(output.text)
        self._end_line()
        if output.output_type == "error":
            return self._write("\n".join(output.traceback) + "\n")
        text = output.data.get("text/plain", "")
        if output.output_type == "execute_result":
            separator = "\n" if "\n" in text else ""
            text = self._colored(f"Out[{output.execution_count}]: ") + separator + text
        return self._write(text + "\n" if text else "")

    def _begin_cell(self) -> None:
        self._end_line()
        self._write("" if self._is_first else "\n")
        self._is_first = False

    def _end_line(self) -> None:
        if self._is_line_open:
            self._write("\n")

    def _colored(self, prompt: str) -> str:
        return f"\x1b[32m{prompt}\x1b[0m" if self._has_colors else prompt

    def _write(self, text: str) -> None:
        if text:
            self._stream.write(text if self._has_colors else strip_ansi(text))
            self._stream.flush()
            self._is_line_open = not text.endswith("\n")


class PrintingClient(NotebookClient):
    """Runs cells and prints what they put out at the moment it comes."""

    printer: Printer

    def process_message(
        self, msg: dict[str, Any], cell: NotebookNode, cell_index: int
    ) -> NotebookNode | None:
        """Take a message of the kernel about the running cell."""
        if msg["msg_type"] == "execute_input":
            self.printer.code(msg["content"]["execution_count"], cell.source)
        output = super().process_message(msg, cell, cell_index)
        if output is not None:
            # Joined with the one before it, a stream would be printed twice.
            is_stream = output.output_type == "stream"
            self.printer.output(_stream(msg) if is_stream else output)
        return output


def _stream(msg: dict[str, Any]) -> NotebookNode:
    return NotebookNode(output_type="stream", **msg["content"])  # type: ignore[no-untyped-call]


class ThisPython(KernelSpecManager):
    """Knows one kernel: the interpreter that runs this, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002 - one for all names
        """Return this interpreter's kernel for any *kernel_name*."""
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


class NotebookRun:
    """One run of a notebook, from the start of its kernel to the end of the last rank.

    Args:
        notebook: Gets the new outputs.
        path: Of its file, for messages and as the place where it runs.
        printer: Where its cells are shown.
    """

    def __init__(self, notebook: NotebookNode, path: Path, printer: Printer) -> None:
        self.notebook = notebook
        self.path = path
        self.problem = ""
        self._printer = printer
        self._kernel = AsyncKernelManager(
            kernel_name="python3", kernel_spec_manager=ThisPython(parent=None)
        )
        if self._kernel.has_trait("transport_encryption") and zmq.has("curve"):
            self._kernel.transport_encryption = "auto"  # else new kernels warn of plain text
        self._client = PrintingClient(notebook, km=self._kernel, timeout=None)
        self._client.printer = printer
        self._signal: int | None = None
        self._is_in_cell = False
        self._is_cancelled = False
        self._is_ending = False

    def __repr__(self) -> str:
        return f"<NotebookRun {self.path}>"

    async def run(self) -> int:
        """Run all cells; return the exit code. `problem` says what went wrong, if anything did."""
        self._listen_to_signals()
        try:
            async with self._running_kernel():
                await self._run_cells()
        except CellExecutionError as exc:
            where = f"In [{self._printer.count}]"
            self.problem = f"{self.path} failed at {where}: {exc.ename}: {exc.evalue}"
        except DeadKernelError:
            self.problem = f"{self.path} failed: its kernel died."
        except RuntimeError as exc:  # jupyter_client's word for a kernel that does not come up
            self.problem = f"{self.path} was not run: {exc}"
        except asyncio.CancelledError:
            if self._signal is None:
                raise
        if self._signal is not None:
            self.problem = f"{self.path} was stopped."
            return 128 + self._signal
        return 1 if self.problem else 0

    async def _run_cells(self) -> None:
        for index, cell in enumerate(self.notebook.cells):
            if cell.cell_type == "markdown":
                self._printer.markdown(cell.source)
            elif cell.cell_type == "code":
                self._is_in_cell = True
                await self._client.async_execute_cell(cell, index)
                self._is_in_cell = False
            if self._signal is not None:
                return

    @asynccontextmanager
    async def _running_kernel(self) -> AsyncIterator[None]:
        pid = None
        try:
            env = {"NBDIST_LIVE": "lines"} | os.environ
            await self._kernel.start_kernel(cwd=str(self.path.resolve().parent), env=env)
            pid = getattr(self._kernel.provisioner, "pid", None)
            client = self._client.kc = self._kernel.client()
            client.start_channels()
            client.allow_stdin = False
            await client.wait_for_ready(timeout=START_TIMEOUT_S)
            yield
        finally:
            self._is_ending = True
            if self._client.kc is not None:
                self._client.kc.stop_channels()
            if self._kernel.has_kernel:
                # A kernel that is still in a cell would not answer a polite request.
                await self._kernel.shutdown_kernel(now=self._is_in_cell and self._is_cancelled)
            if pid is not None:
                end_sessions_of(pid)

    # Signals ----------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._hear, signum, task)

    def _hear(self, signum: int, task: asyncio.Task[Any]) -> None:
        """Stop the running cell; a second time, or where there is none, end the kernel at once."""
        if self._is_in_cell and self._signal is None:
            self._interrupting = asyncio.ensure_future(self._kernel.interrupt_kernel())
            asyncio.get_running_loop().call_later(STOPPED_S, self._cancel, task)
        else:
            self._cancel(task)
        self._signal = signum

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if not self._is_cancelled and not self._is_ending:
            self._is_cancelled = True
            task.cancel()


def end_sessions_of(kernel_pid: int) -> None:
    """End the sessions that a kernel has left: nobody is going to attach to them."""
    for folder in sessions(runtime_root()):
        if folder.description().get("kernel", {}).get("pid") == kernel_pid:
            end_session(folder)
