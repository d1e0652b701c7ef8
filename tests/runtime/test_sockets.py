"""A pair of gloo that waits for a peer that has given up is let go. Real gloo, in one process."""

from __future__ import annotations

import contextlib
import threading
from datetime import timedelta
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore, ProcessGroupGloo, Store

from nbdist.runtime.sockets import all_sockets, answer_listeners, new_sockets

CONNECT_S = 40.0  # gloo's own limit, longer than this test takes
SOON_S = 20.0


class HalfStore(Store):
    """A store for a member that says where it is, and then goes no further until told to fail."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self.has_published = threading.Event()
        self.gives_up = threading.Event()

    def set(self, key: str, value: Any) -> None:
        self._store.set(key, value)
        self.has_published.set()

    def wait(self, *_: object) -> None:
        self.gives_up.wait()
        raise RuntimeError("gives up")

    def get(self, key: str) -> bytes:
        self.wait(key)
        raise AssertionError("a wait has ended well")


def connect(store: Store, rank: int) -> threading.Thread:
    """Have member *rank* of two connect, in a thread of its own."""

    def make() -> None:
        with contextlib.suppress(RuntimeError):  # what comes of it is nothing to this test
            ProcessGroupGloo(store, rank, 2, timedelta(seconds=CONNECT_S))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    return thread


def wait_for_a_listener(store: Store, rank: int) -> None:
    store.wait([f"0/{rank}"], timedelta(seconds=SOON_S))


def test_a_pair_that_waits_for_a_peer_that_has_given_up_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    num_stuck = 0
    for _ in range(20):  # which of the two is to wait for the other is drawn with their ports
        store = HashStore()
        before = all_sockets()
        member = connect(store, 0)
        wait_for_a_listener(store, 0)
        half = HalfStore(store)
        peer = connect(half, 1)
        assert half.has_published.wait(SOON_S)
        member.join(0.5)
        num_stuck += member.is_alive()

        answer_listeners(new_sockets(before), 8)

        member.join(SOON_S)
        assert not member.is_alive()
        half.gives_up.set()
        peer.join(SOON_S)
        if num_stuck == 2:
            return
    assert num_stuck, "no pair has ever waited: this test shows nothing"
