"""Whose error it is that ends a cell; no process, no group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nbdist.rank.recovery import _is_raised_by_user


def cell(text: str) -> Callable[[], Any]:
    code = compile(text, "In[1]", "exec")
    return lambda: exec(code, {"torch": torch})


@pytest.mark.parametrize(
    ("text", "is_users"),
    [
        ("raise RuntimeError('connection refused')", True),
        ("def fail():\n    raise RuntimeError('gloo')\nfail()", True),
        ("torch.ones(2) @ torch.ones(3)", False),  # raised natively
        ("torch.nn.Linear(2, 2).load_state_dict({})", False),  # raised in torch's Python
    ],
)
def test_what_the_user_raises_is_told_from_what_a_call_raises(text: str, is_users: bool) -> None:
    with pytest.raises(RuntimeError) as caught:
        cell(text)()

    assert _is_raised_by_user(caught.value) == is_users
