"""How much data something is, said shortly."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")


def describe_size(size_bytes: int) -> str:
    """Return *size_bytes* with at most one decimal: ``640 B``, ``1.5 kB``, ``12 MB``."""
    size, unit = float(size_bytes), 0
    while round(size) >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    number = f"{size:.1f}" if size < 9.95 and unit else f"{size:.0f}"
    return f"{number.removesuffix('.0')} {_UNITS[unit]}"
