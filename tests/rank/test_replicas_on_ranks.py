"""On real ranks: one loses all it has, gets a copy, and all train on with the same objects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbdist.sessions.session import Session
from tests.runtime.real_ranks import Facts, run_ranks
from tests.sessions.driving import finished, ranks, values

pytestmark = pytest.mark.ranks

SCRIPT = "replicas_script.py"
KINDS = ("default", "unused", "static", "views", "hook", "group")


@pytest.fixture(scope="module")
def trained() -> list[Facts]:
    return run_ranks(SCRIPT, "training", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copied_ddp_model_trains_on_bit_by_bit(trained: list[Facts], kind: str) -> None:
    """As a run in which no rank was lost, but all reducers were made anew at the same step."""
    for facts in trained:
        assert facts[kind]["replaced"] == facts[kind]["renewed"]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_an_undisturbed_run(trained: list[Facts], kind: str) -> None:
    """But for rounding: one step has the buckets of a new module, and gloo adds in their order."""
    for facts in trained:
        losses = facts[kind]["replaced"][0]
        assert losses == pytest.approx(facts[kind]["none"][0], rel=1e-4)
        assert losses[0] != losses[-1]
    assert trained[0][kind]["replaced"][1] == trained[1][kind]["replaced"][1]


def test_on_two_ranks_losses_are_bitwise_those_of_an_undisturbed_run() -> None:
    """The sum of two has one order; the one survivor is compared with nobody."""
    found = run_ranks(SCRIPT, "training", 2)

    for facts in found:
        assert [facts[kind]["replaced"] == facts[kind]["none"] for kind in KINDS] == [True] * 6
    assert "(no other rank was left to compare with)" in found[0]["report"]


def test_without_renewed_reducers_the_next_step_would_not_match() -> None:
    found = run_ranks(SCRIPT, "naive_copy", 3)

    assert all(facts["error"].startswith("CollectiveMismatch") for facts in found)


def test_a_fresh_process_takes_the_place_of_a_dead_one() -> None:
    found = run_ranks(SCRIPT, "replaced", 3)

    assert [facts["rank"] for facts in found] == [0, 2]
    for facts in found:
        assert facts["report"][0].startswith("copied from rank 0: WIDTH, model, optimizer, sched")
        assert facts["sums"] == facts["fresh"]["sums"]
        assert len(facts["losses"]) == 10
    fresh = found[0]["fresh"]
    assert fresh["source"].startswith("def train(steps):\n    losses = []")
    assert fresh["lines"] == ["x = torch.relu(layer(x))"]


@pytest.fixture(scope="module")
def mixed() -> list[Facts]:
    return run_ranks(SCRIPT, "kinds", 3)


def test_what_is_not_copied_has_a_reason(mixed: list[Facts]) -> None:
    copied, left = mixed[0]["report"]

    assert [facts["report"] for facts in mixed] == [mixed[0]["report"]] * 3
    assert copied.startswith("copied from rank 0: WIDTH, table, row, data, loader, pair, everyone")
    for reason in (
        "batch (differs between ranks)",
        "iterator (the iterator of a DataLoader cannot be copied)",
        "numbers (a generator cannot be copied)",
        "bad (it cannot be pickled: RuntimeError: nope)",
        "mesh (a DeviceMesh has to be made anew)",
        "shard (DTensor: its part on rank 1 is lost)",
        "net (FSDPModule: its part on rank 1 is lost)",
        "note (only on rank 0)",
        "touchy (ValueError: not here)",
    ):
        assert reason in left


def test_survivors_keep_what_is_theirs(mixed: list[Facts]) -> None:
    names = [facts["names"] for facts in mixed]

    assert names[0] == ["batch", "note", "shard", "table", "touchy"]
    assert names[1] == ["table"]
    assert names[2] == ["batch", "shard", "table", "touchy"]
    assert [facts["files"] for facts in mixed] == [[]] * 3


def test_a_copy_has_its_own_rank_and_the_groups_of_its_own(mixed: list[Facts]) -> None:
    assert [facts["loader"][0] for facts in mixed] == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert [facts["group"] for facts in mixed] == [3.0] * 3
    assert [facts["pair"] for facts in mixed] == [True, False, True]


# In the cells of a session ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2) as session:
        yield session


def test_cells_of_a_session_are_copied_as_they_are(session: Session) -> None:
    defined = (
        "from dataclasses import dataclass\n@dataclass\nclass Settings:\n    lr: float = 0.1\n"
        "def scaled(x):\n    return x * settings.lr\nsettings = Settings(0.5)\nx = torch.ones(3)\n"
        "settings.gpu_id = rank"
    )
    values(session, "from nbdist.rank import replicas, placed\nspace = get_ipython().user_ns")
    values(session, "base = {name: space[name] for name in list(space)}")
    finished(session, defined)
    values(session, "if rank == 1:\n    del Settings, dataclass, scaled, settings, x")
    share = (
        "import pathlib, tempfile\nfolder = pathlib.Path(tempfile.gettempdir())\n"
        "place = placed.Place(rank, device)\n"
        "replicas.share(space, {**base, 'base': base}, place, folder, is_fresh=rank == 1)"
    )

    report = values(session, share)[1]

    assert report.splitlines()[0].startswith("copied from rank 0: settings, x")
    assert "says it is on rank 0, look at it: settings.gpu_id = 0" in report
    assert (
        values(session, "scaled(x).tolist(), settings == Settings(0.5)")
        == [([0.5, 0.5, 0.5], True)] * 2
    )
    assert (
        values(session, "import inspect; inspect.getsource(scaled)")
        == ["def scaled(x):\n    return x * settings.lr\n"] * 2
    )
