"""One call as it is posted: what is called, and from which line."""

from __future__ import annotations

import site
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Literal

from nbdist.runtime.signature import Signature
from nbdist.runtime.slots import Record
from nbdist.wire import CELL_PREFIXES

LIBRARY_PREFIXES = (
    *{*site.getsitepackages(), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))},
    "<",
)
_NOT_THE_USERS = (*LIBRARY_PREFIXES, str(Path(__file__).parent))


def record_of(signature: Signature, source: str, flags: int, tag: int = 0) -> Record:
    """Return what the peers get to see of a call."""
    return Record(
        key=signature.key,
        text=signature.text,
        source=source,
        size_bytes=signature.size_bytes,
        flags=flags,
        tag=tag,
        gives=signature.gives,
        takes=signature.takes,
    )


def source_of(frame: FrameType | None) -> str:
    """Return the line of the innermost cell below *frame*; without one, that of the user's file."""
    fallback = ""
    while frame is not None:
        whose, name = _file(frame.f_code.co_filename)
        if whose == "cell":
            return f"{name}:{frame.f_lineno}"
        if whose == "user" and not fallback:
            fallback = f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return fallback


@lru_cache(maxsize=4096)
def _file(path: str) -> tuple[Literal["cell", "user", "library"], str]:
    """Say whose file this is, and what people call it."""
    if path.startswith(CELL_PREFIXES):
        return "cell", path
    if path.startswith(_NOT_THE_USERS):
        return "library", path
    return "user", Path(path).name
