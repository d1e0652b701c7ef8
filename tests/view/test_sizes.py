from __future__ import annotations

import pytest

from nbdist.view.sizes import describe_size


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (0, "0 B"),
        (640, "640 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1500, "1.5 kB"),
        (9_949, "9.9 kB"),
        (9_960, "10 kB"),
        (64_000, "64 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (12_000_000, "12 MB"),
        (2_500_000_000, "2.5 GB"),
        (7 * 10**15, "7000 TB"),
    ],
)
def test_a_size_is_said_shortly(size_bytes: int, said: str) -> None:
    assert describe_size(size_bytes) == said
