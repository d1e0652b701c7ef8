"""The numbers under which ranks find each other by rpc; see `test_destroying` for real ones."""

from __future__ import annotations

import pytest

from nbdist.runtime.torch_rpc import barrier_steps


@pytest.mark.parametrize("missing", range(2, 12))
def test_any_number_of_barriers_from_two_on_can_be_passed(missing: int) -> None:
    steps = barrier_steps(missing)

    assert sum(steps) == missing
    assert set(steps) <= {2, 3}
