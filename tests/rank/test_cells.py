"""Cells on real ranks: what they find, how they end, and that a rank outlives all of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from nbdist import processes
from nbdist.errors import CellFailed
from nbdist.sessions.session import Session
from tests.sessions.driving import error, finished, pids, printed, ranks, statuses, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2) as session:
        yield session


@pytest.fixture(autouse=True)
def every_rank_outlives_the_test(session: Session) -> Iterator[None]:
    before = pids(session)
    yield
    assert pids(session) == before
    assert values(session, "rank") == [0, 1]


# What a cell finds -------------------------------------------------------------------------------


def test_every_rank_has_the_names_it_needs(session: Session) -> None:
    code = (
        "(rank, local_rank, world_size, str(device), dist.get_rank(), cfg.nproc, nbdist.__name__)"
    )

    assert values(session, code) == [
        (0, 0, 2, "cpu", 0, 2, "nbdist"),
        (1, 1, 2, "cpu", 1, 2, "nbdist"),
    ]


def test_the_environment_is_that_of_torchrun(session: Session) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")

    found = values(session, f"import os; [os.environ[name] for name in {names}]")

    assert found == [["0", "0", "2", "2", "0", "127.0.0.1"], ["1", "1", "2", "2", "0", "127.0.0.1"]]
    assert all(int(port) > 0 for port in values(session, "os.environ['MASTER_PORT']"))


def test_no_variable_is_missing_that_torchs_own_agent_sets(session: Session) -> None:
    source = inspect.getsource(LocalElasticAgent._start_workers)
    names = sorted(set(re.findall(r'"([A-Z_]+)":', source)))

    assert "TORCHELASTIC_RUN_ID" in names
    assert values(session, f"import os; [n for n in {names} if n not in os.environ]") == [[], []]


def test_libraries_take_a_rank_for_a_worker_of_torchrun(session: Session) -> None:
    code = "import sys; (dist.is_torchelastic_launched(), hasattr(sys, 'ps1'), sys.argv)"

    assert values(session, code) == [(True, False, [""])] * 2
    assert (
        values(session, "nbdist.runtime.environment.current_environment().source") == ["nbdist"] * 2
    )


def test_a_script_without_arguments_parses_none(session: Session) -> None:
    code = "import argparse; parser = argparse.ArgumentParser(); parser.add_argument('--lr')\n"

    assert values(session, code + "vars(parser.parse_args())") == [{"lr": None}] * 2


def test_processes_are_listed_by_what_they_are(session: Session) -> None:
    marked = processes.marked(session._processes.folder.session_id)

    titles = sorted(Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0") for pid in marked)

    assert titles == [
        "nbdist agent",
        *["nbdist controller"] * 2,  # its heart monitor is a fork of it
        "nbdist minder 0",
        "nbdist minder 1",
        "nbdist rank 0",
        "nbdist rank 1",
        "nbdist store",
    ]


def test_collectives_of_torch_and_of_nbdist_work(session: Session) -> None:
    code = "t = torch.ones(3) * rank; dist.all_reduce(t); (t.tolist(), nbdist.all_reduce(rank + 1))"

    assert values(session, code) == [([1.0, 1.0, 1.0], 3)] * 2


def test_a_cell_may_await(session: Session) -> None:
    code = "import asyncio\nasync def double(x):\n    await asyncio.sleep(0)\n    return 2 * x\n"

    assert values(session, code + "await double(rank)") == [0, 2]
    assert values(session, "x = await double(rank)\nx + 1") == [1, 3]


def test_variables_stay_from_cell_to_cell(session: Session) -> None:
    finished(session, "kept = [rank]")

    assert values(session, "kept.append(9); kept") == [[0, 9], [1, 9]]


def test_ipython_syntax_works(session: Session) -> None:
    assert values(session, "lines = !echo one; echo two\nlist(lines)") == [["one", "two"]] * 2
    assert "per loop" in printed(finished(session, "%timeit -n 1 -r 1 pass"))
    assert "in a cell of bash" in printed(finished(session, "%%bash\necho in a cell of bash"))


def test_one_thread_of_a_rank_is_set_for_each_share_of_the_cores(session: Session) -> None:
    assert values(session, "torch.get_num_threads()") == [session._processes.plan.threads] * 2


# How a cell ends ---------------------------------------------------------------------------------


def test_an_exception_names_class_message_and_line(session: Session) -> None:
    run = finished(session, "def divide(x):\n    return 1 / x\n\ndivide(rank)", 0)

    failure = error(run)
    assert statuses(run) == ["error"]
    assert (failure.ename, failure.evalue) == ("ZeroDivisionError", "division by zero")
    assert [(f.location.partition(":")[2], f.source) for f in failure.frames] == [
        ("4", "divide(rank)"),
        ("2", "return 1 / x"),
    ]
    with pytest.raises(CellFailed, match="ZeroDivisionError"):
        run.result()


def test_a_syntax_error_stands_at_its_line(session: Session) -> None:
    failure = error(finished(session, "x = 1\nfor"))

    assert failure.ename == "SyntaxError"
    assert failure.frames[0].location.endswith(":2")


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise StopIteration(4)", "StopIteration"),
        ("class Mine(BaseException): pass\nraise Mine", "Mine"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("import asyncio; await asyncio.sleep(0); raise asyncio.CancelledError", "CancelledError"),
        ("import asyncio; await asyncio.sleep(0); raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import asyncio; await asyncio.sleep(0); raise SystemExit", "SystemExit"),
        ("def down(): down()\ndown()", "RecursionError"),
        ("raise ExceptionGroup('two', [ValueError('a'), TypeError('b')])", "ExceptionGroup"),
    ],
)
def test_whatever_is_raised_is_shown_as_an_error(session: Session, code: str, name: str) -> None:
    run = finished(session, code)

    assert statuses(run) == ["error", "error"]
    assert error(run).ename == name


@pytest.mark.parametrize("word", ["exit()", "quit()", "exit(0)"])
def test_exit_is_an_error_that_names_stop(session: Session, word: str) -> None:
    assert "%dist stop" in error(finished(session, word)).evalue


def test_an_exception_that_cannot_be_printed_is_shown_all_the_same(session: Session) -> None:
    code = "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd"

    assert error(finished(session, code)).ename == "Odd"


def test_a_value_that_cannot_be_printed_is_an_error(session: Session) -> None:
    code = "class Odd:\n    def __repr__(self): raise ValueError('no repr')\nOdd()"

    assert statuses(finished(session, code))  # IPython decides whether it is an error


def test_the_tensors_of_an_error_are_free_once_the_next_cell_begins(session: Session) -> None:
    fail = "def hold():\n    big = torch.ones(1000)\n    refs.append(weakref.ref(big))\n    1 / 0\n"
    finished(session, "import weakref; refs = []")
    finished(session, fail + "hold()")

    assert values(session, "refs[0]() is None") == [True, True]


CYCLES = {
    "its own cause": "try: 1 / 0\nexcept Exception as e: raise e from e",
    "two that led to each other": (
        "a, b = ValueError('a'), TypeError('b')\na.__context__, b.__context__ = b, a\nraise a"
    ),
    "the cause of its cause": "a, b = ValueError(), TypeError()\nb.__cause__ = a\nraise a from b",
}


@pytest.mark.parametrize("code", CYCLES.values(), ids=CYCLES.keys())
def test_an_error_that_led_to_itself_costs_nothing(session: Session, code: str) -> None:
    finished(session, "kept = [rank]")

    run = finished(session, code)

    assert statuses(run) == ["error", "error"]
    assert values(session, "nbdist.all_reduce(1), kept") == [(2, [0]), (2, [1])]


def test_an_error_that_led_to_itself_may_answer_the_stop_button(session: Session) -> None:
    finished(session, "kept = [rank]")
    run = session.run(
        "import time\nprint('waits', flush=True)\n"
        "try: time.sleep(60)\nexcept BaseException: e = ValueError(); raise e from e"
    )
    for rank in run.ranks:
        wait_until(partial(printed, run, rank), f"rank {rank} to sleep")

    stuck = session.stop_run(run, "The cell was stopped")

    assert stuck == ()
    assert statuses(run) == ["stopped", "stopped"]
    assert values(session, "nbdist.all_reduce(1), kept") == [(2, [0]), (2, [1])]


def test_an_error_that_cannot_be_changed_costs_nothing(session: Session) -> None:
    frozen = (
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Cold(Exception): n: int"
    )
    finished(session, f"{frozen}\ndef fail(): raise Cold(3)")

    # Not out of the cell's own line: to add that to its traceback changes it, too.
    assert statuses(finished(session, "fail()")) == ["error", "error"]
    assert values(session, "nbdist.all_reduce(1)") == [2, 2]


def test_cells_that_wait_behind_an_error_still_run(session: Session) -> None:
    failing = session.run("1 / 0")
    second = session.run("'second'")
    third = session.run("'third'")

    assert list(third.result(30)) == ["third", "third"]
    assert list(second.result(30)) == ["second", "second"]
    assert failing.has_failed


# Code that must be found again -------------------------------------------------------------------


def test_the_source_of_a_function_is_known(session: Session) -> None:
    finished(session, "def f(x):\n    # a remark\n    return x")

    source = values(session, "import inspect; inspect.getsource(f)")

    assert source == ["def f(x):\n    # a remark\n    return x\n"] * 2


def test_two_cells_of_one_label_keep_their_own_sources(session: Session) -> None:
    session.run("def f():\n    return 'first'", number=5).result(30)
    session.run("def g():\n    return 'second'", number=5).result(30)

    sources = values(session, "import inspect; inspect.getsource(f) + inspect.getsource(g)")

    assert "first" in sources[0]
    assert "second" in sources[0]


def test_objects_of_a_class_of_a_cell_pass_between_ranks(session: Session) -> None:
    finished(session, "class Point:\n    def __init__(self, x): self.x = x")

    assert values(session, "[p.x for p in nbdist.all_gather_objects(Point(rank))]") == [[0, 1]] * 2


def test_a_data_set_of_a_cell_reaches_the_workers_of_a_loader(session: Session) -> None:
    finished(
        session,
        "class Squares(torch.utils.data.Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return i * i\n",
    )

    code = "[b.tolist() for b in torch.utils.data.DataLoader(Squares(), 2, num_workers=2)]"

    assert values(session, code) == [[[0, 1], [4, 9]]] * 2


def test_a_function_of_a_cell_runs_in_a_forked_process(session: Session) -> None:
    code = (
        "import multiprocessing\n"
        "def work(q): q.put(rank + 10)\n"
        "q = multiprocessing.Queue()\n"
        "p = multiprocessing.Process(target=work, args=(q,)); p.start()\n"
        "answer = q.get(timeout=20); p.join(); (answer, p.exitcode)"
    )

    assert values(session, code) == [(10, 0), (11, 0)]
