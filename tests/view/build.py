"""Short ways to write down what ranks put out."""

from __future__ import annotations

import re
from typing import Any

from nbdist.wire import CellError, Display, Frame, Output, RankOutput, Status, Text

# What JupyterLab's sanitiser keeps of inline styles; it knows no var(), rgba() or inherit.
SAFE_VALUE = re.compile(r"#[0-9a-f]{6}([0-9a-f]{2})?|-?[\d.]+(px|%)?|[a-z-]+")
# Those that are kept with some values only; it does not know overflow-wrap:anywhere, for one.
SAFE_WORDS = {
    "overflow-wrap": {"normal", "break-word"},
    "white-space": {"normal", "pre", "pre-wrap"},
    "display": {"inline-block"},
}

PNG = "iVBORw0KGgoA"  # how an image begins

TORCH = "/venv/lib/python3.11/site-packages/torch/nn/modules/"


def ok(rank: int, *outputs: Output) -> RankOutput:
    return RankOutput(rank, "ok", outputs)


def failed(
    rank: int, error: CellError | None, *outputs: Output, status: Status = "error"
) -> RankOutput:
    return RankOutput(rank, status, outputs, error)


def stdout(text: str) -> Text:
    return Text("stdout", text)


def stderr(text: str) -> Text:
    return Text("stderr", text)


def result(plain: str, scalar: float | None = None) -> Display:
    return Display("result", {"text/plain": plain}, scalar=scalar)


def png(name: str) -> str:
    """Return what passes for an image; *name*, four letters of base64, tells it from others."""
    return f"{PNG}{name}"


def shown(data: dict[str, Any], display_id: str | None = None) -> Display:
    return Display("display", data, display_id=display_id)


def update(plain: str, display_id: str) -> Display:
    return Display("update", {"text/plain": plain}, display_id=display_id)


def in_cell(line: int, source: str = "", function: str = "<module>", cell: int = 3) -> Frame:
    return Frame(f"In[{cell}]:{line}", function, source, is_cell=True)


def in_torch(line: int, source: str = "", function: str = "forward") -> Frame:
    return Frame(f"{TORCH}linear.py:{line}", function, source, is_library=True)


def value_error(message: str) -> CellError:
    frames = (in_cell(9, "train()"), in_cell(4, "raise ValueError(message)", "step"))
    return CellError("ValueError", message, frames)


def waited(rank: int, line: int = 6) -> CellError:
    frame = in_cell(line, "nbdist.all_reduce(loss)")
    return CellError("PeerFailed", f"rank {rank} raised", (frame,), waited_for=rank)


def lost_rules(html: str) -> list[str]:
    """Return the rules of inline styles in *html* that the sanitiser would take away."""
    rules = {rule for style in re.findall('style="([^"]*)"', html) for rule in style.split(";")}
    return sorted(rule for rule in rules if not _is_kept(*rule.split(":", 1)))


def _is_kept(name: str, value: str = "") -> bool:
    values = value.split()
    is_known = bool(values) and all(map(SAFE_VALUE.fullmatch, values))
    return is_known and set(values) <= SAFE_WORDS.get(name, set(values))
