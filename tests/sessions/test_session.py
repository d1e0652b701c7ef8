"""A session through its Python API: where a cell runs, and how values move. Real ranks."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import nbdist
from nbdist.errors import CellFailed, RankError, SessionError, TransferError
from nbdist.sessions import current
from nbdist.sessions.run import Run
from nbdist.sessions.session import Session
from nbdist.sessions.values import RankTensor, RankValues
from tests.sessions.driving import finished, ranks, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

LARGE = 64 * 2**20  # elements: 256 MiB of float32


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(3) as session:
        yield session


def shared_memory(session: Session) -> list[Path]:
    """Return the files of *session* that values have left in shared memory, or on disk."""
    folder = session._processes.folder
    loose = [path for path in folder.path.iterdir() if path.is_file() and path.suffix == ""]
    shared = [path for path in folder.shared_memory().glob("*") if path.suffix == ""]
    return [*shared, *loose]


# Where a cell runs -------------------------------------------------------------------------------


def test_ranks_may_be_named_in_every_way(session: Session) -> None:
    assert values(session, "rank", 1) == [1]
    assert values(session, "rank", "0,2") == [0, 2]
    assert values(session, "rank", "-1") == [2]
    assert values(session, "rank", "1:") == [1, 2]
    assert values(session, "rank", [2, 0]) == [0, 2]
    assert values(session, "rank", -1) == [2]


def test_a_rank_that_does_not_exist_changes_nothing(session: Session) -> None:
    finished(session, "touched = False")

    with pytest.raises(RankError, match="There are ranks 0–2"):
        session.run("touched = True", "0,3")

    assert values(session, "touched") == [False] * 3


def test_a_cell_on_some_ranks_leaves_the_others_alone(session: Session) -> None:
    finished(session, "where = 'all'")
    finished(session, "where = 'some'", "0,2")

    assert values(session, "where") == ["some", "all", "some"]


def test_the_session_says_what_it_is_in_one_line(session: Session) -> None:
    assert repr(session) == "<Session 3 ranks on 1 host, idle>"
    assert session.summary == "3 ranks on 1 host · cpu · cpu:gloo · seed 0"
    assert session.world_size == 3
    assert nbdist.session() is session


def test_a_second_session_is_refused(session: Session) -> None:
    with pytest.raises(SessionError, match="running already"):
        current.start(nproc=1, device="cpu")


def test_a_session_can_say_what_its_ranks_are_doing(session: Session, tmp_path: Path) -> None:
    run = session.run(f"open('{tmp_path}/1', 'w').close()\nwhile True: pass", 1)
    wait_until((tmp_path / "1").exists, "the cell to begin")

    states = [state.state for state in session.states()]
    session.stop_run(run, "enough")

    assert states[0] == states[2] == "idle"
    assert states[1].startswith("running run[")
    assert all(state.memory_bytes and state.memory_bytes > 2**20 for state in session.states())


# Several cells at once ---------------------------------------------------------------------------


def test_cells_that_were_sent_together_run_in_order(session: Session) -> None:
    finished(session, "seen = []")

    runs = [session.run(f"seen.append({i}); len(seen)") for i in range(5)]

    assert [list(run.result(20)) for run in runs] == [[i + 1] * 3 for i in range(5)]


def test_waiting_for_a_cell_can_be_given_up(session: Session, tmp_path: Path) -> None:
    run = session.run(
        "import pathlib, time\n"
        f"while not pathlib.Path('{tmp_path}/go').exists(): time.sleep(0.01)\nrank"
    )

    assert run.wait(0.05) is False
    assert run.done is False
    with pytest.raises(TimeoutError, match="0 of 3 done"):
        run.result(0.05)

    (tmp_path / "go").touch()
    assert list(run.result(20)) == [0, 1, 2]


def test_a_run_can_be_awaited(session: Session) -> None:
    async def both() -> list[RankValues]:
        return list(await asyncio.gather(session.run("rank"), session.run("rank * 2")))

    assert [list(found) for found in asyncio.run(both())] == [[0, 1, 2], [0, 2, 4]]


def test_a_finished_run_shows_its_output(session: Session) -> None:
    run = finished(session, "print('hello')")

    assert repr(run).endswith("on ranks 0–2, ok>")
    assert run._repr_mimebundle_()["text/plain"] == "[ranks 0–2] hello"


def test_a_run_that_nobody_holds_goes_on_and_is_forgotten(session: Session) -> None:
    forgotten = weakref.ref(session.run("unheld = rank"))

    assert values(session, "unheld") == [0, 1, 2]
    wait_until(lambda: forgotten() is None, "the run to be let go")


def test_a_cell_may_take_longer_than_half_a_minute(session: Session) -> None:
    # Where others give up. The one test that lets time pass: nothing shorter would show it.
    assert list(session.run("import time; time.sleep(31); rank").result(50)) == [0, 1, 2]


# Values ------------------------------------------------------------------------------------------


def test_a_pulled_variable_is_there_by_rank(session: Session) -> None:
    finished(session, "x = {'rank': rank, 'list': [1, 2]}")

    found = session.pull("x")

    assert found.ranks == (0, 1, 2)
    assert found[2] == {"rank": 2, "list": [1, 2]}
    assert list(session.pull("x['rank']", "1:")) == [1, 2]


def test_a_tensor_arrives_as_an_array_that_knows_its_type(session: Session) -> None:
    finished(session, "w = (torch.arange(6.).reshape(2, 3) + rank).to(torch.bfloat16)")

    [first, *_] = session.pull("w")

    assert isinstance(first, RankTensor)
    assert (first.torch_dtype, first.device, first.dtype) == ("bfloat16", "cpu", np.float32)
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert repr(session.pull("w")).startswith("rank 0: tensor (2, 3) bfloat16 cpu")


def test_a_model_s_weights_arrive_by_name(session: Session) -> None:
    finished(session, "model = torch.nn.Linear(3, 2)")

    state = session.pull("model.state_dict()", 0)[0]

    assert {name: tensor.shape for name, tensor in state.items()} == {
        "weight": (2, 3),
        "bias": (2,),
    }


def test_a_large_tensor_passes_through_shared_memory_and_leaves_nothing(session: Session) -> None:
    finished(session, f"big = torch.arange({LARGE}, dtype=torch.float32)", 0)

    big = session.pull("big", 0)[0]

    assert big.nbytes == 256 * 2**20
    assert big[:3].tolist() == [0, 1, 2]
    assert big[-1] == np.float32(LARGE - 1)
    assert shared_memory(session) == []
    finished(session, "del big", 0)


def test_what_is_larger_than_the_limit_is_refused_with_its_size(session: Session) -> None:
    with pytest.raises(TransferError, match=r"4 MiB[^$]*--yes"):
        session.pull("torch.zeros(2**20)", max_bytes=2**20)

    assert shared_memory(session) == []


def test_a_large_last_line_of_a_cell_that_nobody_asks_for_leaves_no_file(session: Session) -> None:
    before = shared_memory(session)
    run = session.run("torch.zeros(2**20)")
    run.wait(20)
    del run

    finished(session, "None")

    assert shared_memory(session) == before


@pytest.mark.parametrize(
    "expression", ["undefined", "1 /", "1 / 0", "lambda: 0", "open('/dev/null')"]
)
def test_what_cannot_be_pulled_is_an_error_that_names_the_rank(
    session: Session, expression: str
) -> None:
    with pytest.raises(TransferError, match="rank 0"):
        session.pull(expression)

    assert values(session, "rank") == [0, 1, 2]


def test_an_object_of_a_class_of_a_cell_cannot_be_pulled_but_its_parts_can(
    session: Session,
) -> None:
    finished(session, "class OnlyThere:\n    part = 4\nthing = OnlyThere()")

    with pytest.raises(TransferError):
        session.pull("thing")

    assert list(session.pull("thing.part")) == [4, 4, 4]


def test_a_pull_that_fails_on_one_rank_leaves_no_file_of_the_others(session: Session) -> None:
    before = shared_memory(session)

    with pytest.raises(TransferError, match="rank 1: ZeroDivisionError"):
        session.pull("1 / 0 if rank == 1 else torch.zeros(2**20)")

    assert shared_memory(session) == before


def test_pushed_values_are_there_on_the_named_ranks(session: Session) -> None:
    finished(session, "a = b = None")

    session.push({"a": [1, 2], "b": np.arange(3)}, "0,2")

    assert values(session, "(a, None if b is None else b.tolist())") == [
        ([1, 2], [0, 1, 2]),
        (None, None),
        ([1, 2], [0, 1, 2]),
    ]


def test_a_pulled_tensor_goes_back_as_a_tensor_of_its_own_type(session: Session) -> None:
    finished(session, "w = torch.tensor([1.5, -2.0]).to(torch.bfloat16)")

    session.push({"back": session.pull("w")[0]})

    code = "(type(back).__name__, str(back.dtype), torch.equal(back, w), back.add_(1).tolist())"
    assert values(session, code) == [("Tensor", "torch.bfloat16", True, [2.5, -1.0])] * 3


def test_a_large_array_is_pushed_to_all_ranks_through_one_file(session: Session) -> None:
    before = shared_memory(session)

    session.push({"big": np.ones(2**22, dtype=np.float32)})

    assert values(session, "float(big.sum())") == [2.0**22] * 3
    assert values(session, "big.flags.writeable") == [True] * 3
    assert shared_memory(session) == before


def test_what_cannot_be_pickled_cannot_be_pushed(session: Session) -> None:
    with Path("/dev/null").open() as file, pytest.raises(TransferError, match="cannot be sent"):
        session.push({"file": file})


def test_the_result_of_a_cell_is_the_value_of_its_last_line(session: Session) -> None:
    assert list(session.run("x = rank\nx * 10").result(20)) == [0, 10, 20]
    assert list(session.run("x = rank").result(20)) == [None, None, None]
    assert list(session.run("5;").result(20)) == [5, 5, 5]


def test_a_result_that_cannot_be_sent_fails_the_result_not_the_cell(session: Session) -> None:
    run = finished(session, "lambda: 0")

    assert statuses(run) == ["ok", "ok", "ok"]
    with pytest.raises(TransferError, match="rank 0"):
        run.result()


# Functions ---------------------------------------------------------------------------------------


def test_launch_runs_a_function_on_every_rank(session: Session) -> None:
    def work(factor: int, offset: int) -> int:
        import torch.distributed as dist

        return dist.get_rank() * factor + offset

    assert list(nbdist.launch(work, 10, 1)) == [1, 11, 21]


def test_a_function_may_carry_what_it_closes_over(session: Session) -> None:
    table = {"a": 1}

    assert list(nbdist.launch(lambda: table["a"])) == [1, 1, 1]


def test_an_error_in_a_launched_function_is_a_failed_cell(session: Session) -> None:
    def fail() -> None:
        raise ValueError("on purpose")

    with pytest.raises(CellFailed, match="on purpose"):
        nbdist.launch(fail)


def test_an_expression_that_exits_is_an_error(session: Session) -> None:
    with pytest.raises(TransferError, match="SystemExit"):
        session.pull("__import__('sys').exit(3)", 0)

    assert values(session, "rank") == [0, 1, 2]


# The end -----------------------------------------------------------------------------------------


def test_a_stopped_session_says_so(run_folder: Path) -> None:
    current.stop()
    with ranks(1) as session:
        run = session.run("import time; time.sleep(600)")

    session.stop()

    assert repr(session) == "<Session, stopped>"
    assert run.done
    assert isinstance(run, Run)
    assert statuses(run) == ["dead"]
    with pytest.raises(SessionError, match="has been stopped"):
        session.run("1")
    with pytest.raises(SessionError, match="No ranks are running"):
        nbdist.session()
    assert list(run_folder.iterdir()) == []
