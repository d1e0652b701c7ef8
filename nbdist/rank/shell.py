"""IPython as a rank runs it: the same shell as in a notebook, with our outputs and our errors.

ipykernel's display machinery sends a message per output; here every output goes to the `Recorder`.
IPython's own traceback is never rendered (the first one takes a second); the exception is kept.
"""

from __future__ import annotations

import contextlib
import pdb
import sys
from typing import Any

from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from traitlets import Instance, Type

from nbdist.definitions import name_for_text
from nbdist.errors import NbdistError, PeerFailed
from nbdist.rank.outputs import Recorder, display_from, scalar_of


class CellCompiler(CachingCompiler):
    """Names the code of a cell ``In[12]``: tracebacks and ``inspect`` say where it stands."""

    label = "cell"

    def get_code_name(self, _raw_code: str, transformed_code: str, _number: int) -> str:
        """Return the label of the running cell, made unique where another source had it before."""
        return name_for_text(self.label, transformed_code)


class RankDisplayPublisher(DisplayPublisher):
    """Hands displays to the recorder."""

    recorder = Instance(Recorder)

    def publish(  # type: ignore[override]
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_: Any,
    ) -> None:
        """Show *data*, or update the displays of the same id."""
        display_id = (transient or {}).get("display_id")
        kind = "update" if update else "display"
        self.recorder.show(display_from(kind, data, metadata, display_id))  # type: ignore[arg-type]

    def clear_output(self, wait: bool = False) -> None:
        """Forget the cell's output so far."""
        self.recorder.clear(wait=wait)


class RankDisplayHook(DisplayHook):
    """Hands the value of a cell's last expression to the recorder."""

    recorder = Instance(Recorder)
    value: Any = None
    keeps_values = True
    """Whether `Out` gets them; one that goes to the notebook would stay here as well."""

    def __call__(self, result: Any = None) -> None:
        """Show *result*, unless it is ``None`` or the line ends with a semicolon."""
        self.value = result
        if self.exec_result is not None:  # IPython leaves this out after a semicolon
            self.exec_result.result = result
        try:
            super().__call__(result)  # type: ignore[no-untyped-call]  # IPython's
        finally:
            self.value = None

    def update_user_ns(self, result: Any) -> None:
        """Set ``_`` and ``Out``, where they are to have it."""
        if self.keeps_values:
            super().update_user_ns(result)  # type: ignore[no-untyped-call]  # IPython's

    def write_output_prompt(self) -> None:
        """No prompt: the notebook shows its own."""

    def write_format_data(
        self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None
    ) -> None:
        """Record the value, with its number where it is one."""
        scalar = scalar_of(self.value)
        self.recorder.show(display_from("result", format_dict, md_dict, scalar=scalar))

    def finish_displayhook(self) -> None:
        """Nothing is left to do."""


class RankShell(ZMQInteractiveShell):
    """The interactive shell of a rank."""

    compiler_class = Type(CellCompiler)
    last_exception: BaseException | None = None

    def init_prompts(self) -> None:
        """Leave ``sys.ps1`` alone: where it is set, libraries refuse to start process groups."""

    def showtraceback(self, exc_tuple: Any = None, *_: Any, **__: Any) -> None:
        """Keep the exception; the notebook shows it. After ``%pdb on``, open its frame."""
        self._keep_exception(exc_tuple)
        failure = self.last_exception
        # An interrupt is to end the cell, and who has only waited for another did nothing wrong.
        if isinstance(failure, Exception) and not isinstance(failure, PeerFailed):
            self.debugger()

    def showsyntaxerror(self, *_: Any, **__: Any) -> None:
        """Keep the exception; the notebook shows it."""
        self._keep_exception()

    def _keep_exception(self, exc_tuple: Any = None) -> None:
        with contextlib.suppress(ValueError):  # there is none
            self.last_exception = self._get_exc_info(exc_tuple)[1]  # type: ignore[no-untyped-call]  # IPython's

    def debugger(self, force: bool = False) -> None:
        """Open pdb in the frame that failed last, for ``%debug`` and after ``%pdb on``.

        Args:
            force: Open it whatever ``%pdb`` says.
        """
        trace = getattr(sys, "last_traceback", None)
        if not (force or self.call_pdb):
            return
        if trace is None:
            print("Nothing has failed on this rank since its last cell: no frame is left to open.")  # noqa: T201
        else:
            pdb.post_mortem(trace)

    def payloadpage_page(self, strg: Any, *_: Any, **__: Any) -> None:
        """Show what IPython would page: ``x?``, ``%prun``; a notebook shows it below the cell."""
        self.display_pub.publish(strg if isinstance(strg, dict) else {"text/plain": strg})

    def set_next_input(self, text: str, replace: bool = False) -> None:  # noqa: ARG002 - IPython's
        """Show what ``%load`` and ``%recall`` would put into a cell."""
        self.display_pub.publish({"text/plain": text})

    def _format_exception_for_storage(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}  # IPython's history would render each traceback once more

    def ask_exit(self) -> None:
        """Refuse: a rank does not end because a cell says ``exit``."""
        refuse_exit()

    def set_parent(self, parent: Any, *_: Any) -> None:
        """Note whose message is being handled; our outputs know their cell by themselves."""
        self._rank_parent = parent

    def get_parent(self) -> Any:
        """Return the message being handled."""
        return getattr(self, "_rank_parent", {})

    def record_to(self, recorder: Recorder) -> None:
        """Send all output of this shell to *recorder*."""
        display_pub: Any = RankDisplayPublisher
        displayhook: Any = RankDisplayHook
        self.display_pub = display_pub(parent=self, shell=self, recorder=recorder)
        self.displayhook = displayhook(
            parent=self, shell=self, cache_size=self.cache_size, recorder=recorder
        )
        self.display_trap.hook = self.displayhook


def refuse_exit(*_: object) -> None:
    """Stand in for ``exit`` and ``quit`` in the ranks' namespace.

    Raises:
        NbdistError: Always.
    """
    raise NbdistError(
        "exit() does not end the ranks.\n"
        "`%dist stop` in a cell of its own ends the session; `return` and `raise` leave code."
    )
