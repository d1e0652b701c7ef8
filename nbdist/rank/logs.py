"""The log of one rank: everything it ever wrote, kept within a bound."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from nbdist import private
from nbdist.rank.secrets import Secrets


class RankLog:
    """Appends bytes to a file; beyond half of *max_bytes* the file becomes ``NAME.old``.

    So at least the last half of *max_bytes* is always there. Written through at once, but for what
    a secret may begin with: what a rank printed before it was killed is in the file. Any thread may
    write.
    """

    def __init__(self, path: Path, max_bytes: int, secrets: Secrets | None = None) -> None:
        self.path = path
        self._secrets = secrets
        self._held = b""  # what a secret may begin with
        self._max_bytes = max_bytes // 2
        self._lock = threading.Lock()
        self._fd = private.append_file(self.path)
        self._size_bytes = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file; to be called once."""
        os.close(self._fd)

    def write(self, data: bytes) -> None:
        """Append *data*; a full disk loses the data, not the cell."""
        with self._lock:
            if self._secrets:
                data, self._held = self._secrets.split_bytes(self._held + data)
            try:
                self._size_bytes += os.write(self._fd, data)
                if self._size_bytes > self._max_bytes:
                    self._begin_anew()
            except OSError:
                return

    def _begin_anew(self) -> None:
        """Go on in a fresh file; the one there is becomes the old one.

        The stop button may end this anywhere: there is a file to write to at any time.
        """
        with contextlib.suppress(FileNotFoundError):  # it was ended behind this step before
            self.path.rename(f"{self.path}.old")
        full, self._fd = self._fd, private.append_file(self.path)
        self._size_bytes = 0
        os.close(full)
