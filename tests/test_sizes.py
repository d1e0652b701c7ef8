from __future__ import annotations

import pytest

from nbdist.sizes import describe_rate, describe_size, describe_sizes


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (0, "0 B"),
        (640, "640 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10_180, "9.9 KiB"),
        (10_200, "10 KiB"),
        (64_000, "62 KiB"),
        (2**20 - 600, "1023 KiB"),
        (2**20 - 500, "1 MiB"),
        (12 * 2**20, "12 MiB"),
        (5 * 2**29, "2.5 GiB"),
        (7 * 2**50, "7168 TiB"),
    ],
)
def test_a_size_is_said_shortly(size_bytes: int, said: str) -> None:
    assert describe_size(size_bytes) == said


@pytest.mark.parametrize(
    ("sizes_bytes", "said"),
    [
        ([640], "640 B"),
        ([2048, 2050], "2 KiB"),
        ([12_288, 4096, 8192], "4–12 KiB"),
        ([640, 2048], "640 B–2 KiB"),
        ([0, 3072], "0 B–3 KiB"),
    ],
)
def test_different_sizes_are_said_as_a_range(sizes_bytes: list[int], said: str) -> None:
    assert describe_sizes(sizes_bytes) == said


@pytest.mark.parametrize(
    ("bytes_per_s", "said"),
    [(0.4, "0 B/s"), (1500.0, "1.5 kB/s"), (999_500.0, "1 MB/s"), (2.5e9, "2.5 GB/s")],
)
def test_a_rate_is_said_in_powers_of_a_thousand(bytes_per_s: float, said: str) -> None:
    assert describe_rate(bytes_per_s) == said
