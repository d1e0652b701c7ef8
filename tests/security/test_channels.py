"""What another user can do at the sockets of a session: nothing that its owner notices.

Not defended, and only shown to do no harm to cells without collectives: torch's TCPStore in the
store keeper, and the sockets by which gloo connects the ranks. Both take whoever comes.
"""

from __future__ import annotations

import pytest

from nbdist import wire
from tests.security.attacker_script import SOCKET_ATTACKS
from tests.security.second_user import Attacker, require_second_user
from tests.security.targets import tcp_targets, unix_targets
from tests.security.victims import Victim

pytestmark = pytest.mark.ranks
require_second_user()

TOKEN = "token-ABC"
NUM_LINES = 20
PRINT_TOKEN = f"""
import time
for _ in range({NUM_LINES}):
    print("token" + "-ABC", flush=True)
    time.sleep(0.1)"""


def all_of(victim: Victim) -> list[object]:
    channels = victim.channels()
    return [*tcp_targets(channels), *unix_targets(channels)]


def test_no_unix_socket_of_a_session_lets_another_user_in(
    attacked: Victim, other: Attacker
) -> None:
    targets = unix_targets([*attacked.channels(), *attacked.torchs()])

    assert targets != []
    assert other.run("reached", targets=targets) == []
    attacked.works()


@pytest.mark.parametrize("kind", SOCKET_ATTACKS)
def test_what_does_not_belong_on_a_channel_changes_nothing(
    attacked: Victim, other: Attacker, kind: str
) -> None:
    other.run("attack", kind=kind, targets=all_of(attacked))

    attacked.works()


@pytest.mark.parametrize("kind", SOCKET_ATTACKS)
def test_junk_on_the_sockets_of_torch_is_harmless_to_cells_without_collectives(
    attacked: Victim, other: Attacker, kind: str
) -> None:
    other.run("attack", kind=kind, targets=tcp_targets(attacked.torchs()))

    attacked.works()


def test_another_user_hears_nothing_of_what_ranks_print(attacked: Victim, other: Attacker) -> None:
    with other.begin("listen_in", targets=all_of(attacked)) as listening:
        listening.wait_until_ready()
        cell = attacked.ask("run", code=PRINT_TOKEN)
        heard = listening.result()

    assert all(text.count(TOKEN) == NUM_LINES for text in cell["printed"])
    assert TOKEN not in heard
    attacked.works()


def test_a_request_that_nobody_signed_runs_no_code(attacked: Victim, other: Attacker) -> None:
    proof = attacked.home / "proof"
    idents = [name for rank in range(2) for name in (str(rank), f"engine.{rank}", f"rank {rank}")]

    other.run(
        "forge",
        targets=all_of(attacked),
        kinds=["execute_request", "apply_request", wire.CELL_REQUEST],
        idents=idents + known_identities(attacked),
        code=f"open({str(proof)!r}, 'w').close()",
    )

    attacked.works()
    assert not proof.exists()


def known_identities(victim: Victim) -> list[str]:
    """Return the names by which ranks are reached, as if they had been guessed."""
    code = "get_ipython().kernel.ident if hasattr(get_ipython().kernel, 'ident') else ''"
    return [str(name) for name in victim.ask("run", code=code)["values"]]
