from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nbdist.runtime.call_kinds import CallKind, CallKinds

SIZE = 2


@pytest.fixture
def kinds() -> CallKinds:
    return CallKinds(0, SIZE, ["cpu"])


def reduced(kinds: CallKinds, tensor: torch.Tensor, number: int = 0, **more: Any) -> CallKind:
    kind = kinds.of("allreduce_", {"tensors": [tensor], "reduce_op": number, **more})
    assert kind is not None
    return kind


def test_calls_that_are_alike_are_of_one_kind(kinds: CallKinds) -> None:
    first = reduced(kinds, torch.zeros(2, 3))

    assert reduced(kinds, torch.ones(2, 3)) is first


@pytest.mark.parametrize(
    ("other", "number"),
    [
        (torch.zeros(2, 3), 1),
        (torch.zeros(3, 2), 0),
        (torch.zeros(2, 3, dtype=torch.int32), 0),
        (torch.zeros(2, 3).to_sparse(), 0),
    ],
)
def test_calls_that_differ_are_told_apart(
    kinds: CallKinds, other: torch.Tensor, number: int
) -> None:
    first = reduced(kinds, torch.zeros(2, 3))

    assert reduced(kinds, other, number).signature.text != first.signature.text


def test_a_number_is_not_taken_for_that_of_another_argument(kinds: CallKinds) -> None:
    # False and 0 are equal, and are hashed alike.
    waits = reduced(kinds, torch.zeros(1), async_op=False)
    has_timeout = reduced(kinds, torch.zeros(1), timeout=0)

    assert (waits.is_async, has_timeout.is_async) == (False, True)


def test_what_torch_refuses_is_told_from_its_like_that_it_takes(kinds: CallKinds) -> None:
    def sent(tensor: torch.Tensor) -> bool:
        kind = kinds.of("send", {"tensors": [tensor], "dst": 1, "tag": 0})
        assert kind is not None
        return kind.is_doubtful

    assert sent(torch.zeros(2, 2)) is False
    assert sent(torch.zeros(2, 2).t()[:1]) is True
    assert sent(torch.zeros(1, 2)) is False


def test_what_a_compiler_traces_is_no_call(kinds: CallKinds) -> None:
    reduced(kinds, torch.zeros(2))
    with FakeTensorMode():
        fake = torch.zeros(2)

    for traced in (fake, torch.zeros(2, device="meta")):
        assert kinds.of("allreduce_", {"tensors": [traced], "reduce_op": 0}) is None


def test_no_more_than_so_many_kinds_are_kept(kinds: CallKinds, monkeypatch: Any) -> None:
    monkeypatch.setattr("nbdist.runtime.call_kinds.MAX_KINDS", 3)

    for size in range(10):
        reduced(kinds, torch.zeros(size))

    assert "1 so far" in repr(kinds)
