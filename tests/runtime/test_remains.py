"""Backends that outlive their groups end in threads that nobody waits for."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from nbdist.runtime import torch_private
from nbdist.runtime.hooks import Hooks
from nbdist.runtime.remains import Remains
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    """A group of this process alone, which the test destroys or not."""
    store = dist.HashStore()  # type: ignore[attr-defined]  # re-exported without `as`
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def threads_that_end_backends() -> list[str]:
    """Return a list that gets the name of the thread in which the world's backend is dropped."""
    names: list[str] = []
    [backend] = torch_private.backends_of(torch_private.living_groups()[0])
    weakref.finalize(backend, lambda: names.append(threading.current_thread().name))
    return names


def test_who_destroys_a_group_that_was_cut_off_does_not_end_its_backend() -> None:
    remains = Remains()
    remains.keep_backends(Hooks())
    ended_in = threads_that_end_backends()

    dist.destroy_process_group()
    assert ended_in == []
    remains.end()

    wait_until(lambda: ended_in, "the backend to be ended")
    assert ended_in == ["nbdist-end-backend"]


def test_the_backend_of_a_group_that_is_there_is_kept() -> None:
    remains = Remains()
    remains.keep_backends(Hooks())
    remains.keep_backends(Hooks())
    ended_in = threads_that_end_backends()

    remains.end()

    assert repr(remains) == "<Remains of 1 groups, 0 of them gone>"
    assert ended_in == []
