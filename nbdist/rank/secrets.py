"""Keep secrets of the configuration out of what a rank shows and saves.

A secret is a value that came from an environment variable with KEY, TOKEN, SECRET or PASSWORD in
its name. Its text is replaced wherever it appears: printed, shown, in an error, in a log.

A secret that comes in pieces is found as long as nothing stands between them: a text that ends as
a secret begins is held back at its end, until more comes or the cell is over.

Not covered: texts shorter than `MIN_LENGTH`, which would hide half of all output; a secret with
something between its letters, encoded, or within a picture; what code sends elsewhere or writes to
files of its own; values that are pulled, which are values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, AnyStr

from nbdist.config import from_dict, secret_texts
from nbdist.hiding import MASK

MIN_LENGTH = 6


class Secrets:
    """The texts to hide; says ``False`` where there are none, so that nothing need be looked at."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        # The longest first: it may hold a shorter one.
        self._texts = sorted((t for t in texts if len(t) >= MIN_LENGTH), key=len, reverse=True)
        self._bytes = [text.encode(errors="replace") for text in self._texts]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Secrets:
        """Return those of a configuration as plain data."""
        return cls(secret_texts(from_dict(config)))

    def __bool__(self) -> bool:
        return bool(self._texts)

    def __repr__(self) -> str:
        return f"<Secrets {len(self._texts)}>"

    def hide(self, content: Any) -> Any:
        """Return JSON data with the secrets in its texts replaced."""
        if isinstance(content, str):
            for text in self._texts:
                content = content.replace(text, MASK)
            return content
        if isinstance(content, Mapping):
            return {name: self.hide(value) for name, value in content.items()}
        if isinstance(content, list | tuple):
            return [self.hide(item) for item in content]
        return content

    def hide_bytes(self, data: bytes) -> bytes:
        """Return *data* with the secrets in it replaced."""
        for text in self._bytes:
            data = data.replace(text, MASK.encode())
        return data

    def split(self, text: str) -> tuple[str, str]:
        """Return *text* without secrets, and apart from it what one may begin with at its end."""
        hidden: str = self.hide(text)
        end = len(hidden) - _length_begun(hidden, self._texts)
        return hidden[:end], hidden[end:]

    def split_bytes(self, data: bytes) -> tuple[bytes, bytes]:
        """Do the same with bytes."""
        hidden = self.hide_bytes(data)
        end = len(hidden) - _length_begun(hidden, self._bytes)
        return hidden[:end], hidden[end:]


def _length_begun(text: AnyStr, secrets: list[AnyStr]) -> int:
    """Return how much at the end of *text* is the beginning of one of *secrets*."""
    lengths = (
        length
        for secret in secrets
        for length in range(min(len(secret) - 1, len(text)), 0, -1)
        if text.endswith(secret[:length])
    )
    return max(lengths, default=0)
