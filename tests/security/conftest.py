"""A second user, and the two whom he attacks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.second_user import Attacker, attacker
from tests.security.victims import Account, Victim, ordinary_account, own_account, victim


@pytest.fixture(scope="session")
def other() -> Attacker:
    """Another user of this machine."""
    found = attacker()
    assert isinstance(found, Attacker), found
    return found


@pytest.fixture(scope="session", params=["the one who runs the tests", "an ordinary user"])
def account(request: pytest.FixtureRequest, other: Attacker) -> Account:
    """Whom he attacks."""
    if request.param == "the one who runs the tests":
        return own_account()
    found = ordinary_account()
    if isinstance(found, str):
        pytest.skip(found)
    return found


class Lent:
    """One session for many attacks; one that leaves it broken costs the next a start."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._victim: Victim | None = None

    def take(self) -> Victim:
        victim, self._victim = self._victim, None
        if victim is None:
            victim = Victim(self._account)
            victim.start()
        return victim

    def bring(self, victim: Victim) -> None:
        self._victim = victim

    def close(self) -> None:
        if self._victim is not None:
            self._victim.close()


@pytest.fixture(scope="session")
def lent(account: Account) -> Iterator[Lent]:
    lent = Lent(account)
    yield lent
    lent.close()


@pytest.fixture
def attacked(lent: Lent) -> Iterator[Victim]:
    """A session that a test attacks, and that has to work at its end as if nothing had happened."""
    one = lent.take()
    yield one
    if one.is_known_to_work:
        lent.bring(one)
    else:
        one.drop()


@pytest.fixture
def idle_kernel(account: Account) -> Iterator[Victim]:
    """A kernel process that has no session yet."""
    with victim(account) as one:
        yield one
