"""How much data something is, said shortly.

Memory and messages in powers of 1024, as torch counts memory; what goes over a link in a second in
powers of 1000, as links are rated and nccl-tests has it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def describe_size(size_bytes: int) -> str:
    """Return *size_bytes* with at most one decimal: ``640 B``, ``1.5 KiB``, ``12 MiB``."""
    return _scaled(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def describe_sizes(sizes_bytes: Collection[int]) -> str:
    """Return the least and the most of *sizes_bytes*: ``4–12 KiB``; one if they look alike."""
    low, high = describe_size(min(sizes_bytes)), describe_size(max(sizes_bytes))
    if low == high:
        return high
    number, _, unit = low.partition(" ")
    return f"{number if high.endswith(f' {unit}') else low}–{high}"


def describe_rate(bytes_per_s: float) -> str:
    """Return *bytes_per_s* with at most one decimal: ``1.5 GB/s``."""
    return _scaled(bytes_per_s, 1000, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s"))


def _scaled(amount: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while round(amount) >= base and power < len(units) - 1:
        amount, power = amount / base, power + 1
    number = f"{amount:.1f}" if amount < 9.95 and power else f"{amount:.0f}"
    return f"{number.removesuffix('.0')} {units[power]}"
