"""Cells that are modules, for ranks and for the processes that they spawn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbdist.sessions.run import Run
from nbdist.sessions.session import Session
from tests.sessions.driving import error, finished, ranks, statuses, values

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]
PATIENCE_S = 60.0

DATA = """# %%dist --module data
import dataclasses
@dataclasses.dataclass
class Squares:
    size: int
    def __len__(self) -> int: return self.size
    def __getitem__(self, i):
        if i >= self.size: raise IndexError(i)
        return i * i
def double(x): return 2 * x
"""


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2) as session:
        yield session


def make_module(session: Session, code: str, name: str = "data", where: str | None = None) -> Run:
    run = session.run(code, where, module=name, want_value=False)
    assert run.wait(PATIENCE_S)
    return run


def slow_values(session: Session, code: str) -> list[object]:
    return list(session.run(code).result(PATIENCE_S))


def test_spawned_workers_import_what_the_cell_defines(session: Session) -> None:
    assert statuses(make_module(session, DATA)) == ["ok", "ok"]

    finished(session, "from data import Squares\nfrom torch.utils.data import DataLoader")
    code = (
        "loader = DataLoader(Squares(4), 2, num_workers=1, multiprocessing_context='spawn')\n"
        "[batch.tolist() for batch in loader]"
    )
    assert slow_values(session, code) == [[[0, 1], [4, 9]]] * 2


def test_programs_that_a_rank_starts_import_it_too(session: Session) -> None:
    make_module(session, DATA)

    code = "import sys\nlines = !{sys.executable} -c 'import data; print(data.double(4))'"

    assert slow_values(session, f"{code}\nlines[-1]") == ["8", "8"]


def test_a_later_edit_takes_the_place_of_the_module(session: Session) -> None:
    make_module(session, DATA)
    finished(session, "from data import Squares, double\nimport data as also\nmine = double")
    before = values(session, "(double(1), Squares(2) == data.Squares(2))")

    make_module(session, DATA.replace("2 * x", "3 * x"))

    assert before == [(2, True)] * 2
    assert values(session, "(double(1), data.double(1), also.double(1))") == [(3, 3, 3)] * 2
    code = "import sys\nlines = !{sys.executable} -c 'import data; print(data.double(1))'"
    for factor in (4, 5, 6):  # of one length, within a second: not taken for what was compiled
        make_module(session, DATA.replace("2 * x", f"{factor} * x"))
        assert slow_values(session, f"{code}\nlines[-1]") == [str(factor)] * 2


def test_a_module_that_fails_leaves_the_one_before(session: Session) -> None:
    make_module(session, DATA)

    failed = make_module(session, DATA + "1 / 0\n")

    assert statuses(failed) == ["error", "error"]
    assert error(failed).frames[-1].location.endswith(":11")
    assert values(session, "(data.double(1), __import__('data') is data)") == [(2, True)] * 2


def test_the_names_of_a_module_are_its_own(session: Session) -> None:
    make_module(session, "# %%dist --module other\nvalue = 5\nhere = __name__", "other")

    assert (
        values(session, "(other.value, other.here, 'value' in globals())")
        == [(5, "other", False)] * 2
    )
    assert values(session, "__name__") == ["__main__"] * 2


@pytest.mark.parametrize("name", ["torch", "json", "sys", "nbdist"])
def test_a_module_hides_no_other(session: Session, name: str) -> None:
    failed = make_module(session, "x = 1", name)

    assert error(failed).ename == "UsageError"
    assert f"{name!r} is a module already" in error(failed).evalue
    assert values(session, f"hasattr(__import__({name!r}), 'x')") == [False] * 2


def test_a_rank_that_did_not_run_the_cell_can_import_it(session: Session) -> None:
    make_module(session, "# %%dist --module only\nvalue = 7", "only", "1")

    assert values(session, "import only\nonly.value", 0) == [7]


SPAWNING = {
    "DataLoader": "next(iter(DataLoader(Mine(), num_workers=1, multiprocessing_context='spawn')))",
    "mp.spawn": "torch.multiprocessing.spawn(work)",
    "Process": "mp.get_context('forkserver').Process(target=work, args=[0]).start()",
    "Pool": "with mp.get_context('spawn').Pool(1) as pool: pool.map(work, [1])",
    "arguments in a Pool": "with mp.get_context('spawn').Pool(1) as pool: pool.map(len, [Mine()])",
    "executor": "with ProcessPoolExecutor(1, mp.get_context('spawn')) as e: e.submit(work, 1)",
}


@pytest.mark.parametrize("way", SPAWNING)
def test_what_a_spawned_process_cannot_have_is_said_at_once(session: Session, way: str) -> None:
    finished(
        session,
        "import multiprocessing as mp\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "from torch.utils.data import DataLoader\n"
        "class Mine:\n    def __len__(self): return 1\n    def __getitem__(self, i): return i\n"
        "def work(i): return i",
    )

    failed = finished(session, SPAWNING[way], 0)

    assert error(failed).ename == "UsageError"
    assert "%%dist --module NAME" in error(failed).evalue


def test_forked_processes_have_what_cells_define(session: Session) -> None:
    code = (
        "import multiprocessing as mp\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "def work(i): return i + 1\n"
        "with mp.Pool(1) as pool, ProcessPoolExecutor(1) as executor:\n"
        "    found = pool.map(work, [1]), executor.submit(work, 2).result()\nfound"
    )

    assert slow_values(session, code) == [([2], 3)] * 2
