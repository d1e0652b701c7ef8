"""One workshop of three ranks for all cases of a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.faults.driving import Shared, Workshop


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with closing(Shared(3)) as shared:
        yield shared


@pytest.fixture
def shop(shared: Shared) -> Iterator[Workshop]:
    with shared.lent() as shop:
        yield shop
