"""Files as sessions write them: for their owner alone."""

from __future__ import annotations

from pathlib import Path


def write_private(path: Path, content: str | bytes) -> None:
    """Make the file *path*, or write it anew, with mode 0600."""
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
