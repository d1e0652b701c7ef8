"""What code on a rank sends to a front end past the display machinery: handled here, or counted.

    session.send(iopub, "stream" | "display_data" | …) ──▶ Recorder, in the order it was sent
    a widget's comm ──▶ nowhere; another kind ──▶ counted, and named in the cell's reply

A page can talk to widgets of its own kernel alone, so what those of a rank would send only costs
time: the notebook shows such a widget as its text. One thing is listened to: that an output widget
takes the cell's output from here to there. Its output stays where it came, and is cleared alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import comm
from comm.base_comm import BaseComm

from nbdist.rank.outputs import Recorder, display_from

_CAPTURED = "msg_id"  # of an output widget: of which message it shows the output, or empty
OURS = ("nbdist_", "status")  # ipykernel says busy and idle for messages that are none of ours


class UnheardComm(BaseComm):
    """A comm that sends nothing, as in Python without Jupyter."""

    def __init__(self, recorder: Recorder, **named: Any) -> None:
        self._recorder = recorder
        super().__init__(**named)

    def publish_msg(
        self,
        msg_type: str,  # noqa: ARG002 - part of the interface
        data: dict[str, Any] | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        """Send nothing; note where an output widget takes over, and where it ends."""
        state = (data or {}).get("state")
        message = state.get(_CAPTURED) if isinstance(state, Mapping) else None
        if message is not None:
            (self._recorder.enter if message else self._recorder.leave)(self.comm_id)


def install(recorder: Recorder, kernel: Any) -> None:
    """Let *recorder* take what is sent on *kernel*'s iopub channel and is no message of ours."""
    comm.create_comm = functools.partial(UnheardComm, recorder)
    send = kernel.session.send

    @functools.wraps(send)
    def filtered(
        stream: Any, msg_or_type: Any, content: Any = None, *args: Any, **named: Any
    ) -> Any:
        if stream is kernel.iopub_socket:
            kind, said = _parts(msg_or_type, content)
            if not kind.startswith(OURS):
                return take(recorder, kind, said)
        return send(stream, msg_or_type, content, *args, **named)

    kernel.session.send = filtered


def _parts(msg_or_type: Any, content: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(msg_or_type, str):
        return msg_or_type, content or {}
    return msg_or_type["header"]["msg_type"], msg_or_type["content"]


def take(recorder: Recorder, kind: str, content: Mapping[str, Any]) -> None:
    """Put what a message shows among the output of the cell; count it if it shows nothing."""
    if kind == "stream":
        recorder.write(content["name"], content["text"])
    elif kind == "error":
        recorder.write("stderr", "\n".join(content["traceback"]) + "\n")
    elif kind == "clear_output":
        recorder.clear(wait=content.get("wait", False))
    elif kind in ("display_data", "update_display_data", "execute_result"):
        display_id = content.get("transient", {}).get("display_id")
        as_ours = "update" if kind == "update_display_data" else "display"
        recorder.show(display_from(as_ours, content["data"], content.get("metadata"), display_id))  # type: ignore[arg-type]
    elif not kind.startswith("comm_"):
        recorder.refuse(kind)
