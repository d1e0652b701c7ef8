"""Progress bars on a rank: the book that is kept of them, and tqdm as users use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nbdist.rank.progress import MAX_BARS, SHORT_S, Bars, rate_text
from nbdist.rank.tqdm_bars import number
from nbdist.runtime import bars as helper
from nbdist.runtime.bars import progress
from nbdist.sessions.session import Session
from nbdist.wire import Progress
from tests.sessions.driving import error, finished, printed, ranks, shown, statuses, values


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """A bar that does as the test says."""

    def __init__(self, *, is_kept: bool = True) -> None:
        self.done = 0
        self.is_over = False
        self.is_kept = is_kept
        self.num_reads = 0

    def read(self, *, is_exact: bool) -> Progress:
        self.num_reads += 1
        return Progress(-1, "epoch", self.done, 100, is_kept=self.is_kept)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bars(clock: Clock) -> Bars:
    return Bars(clock)


def sent(bars: Bars, *waiting: Any) -> list[Progress]:
    return [record for record in bars.take(waiting) if isinstance(record, Progress)]


# The book -----------------------------------------------------------------------------------------


def test_a_bar_waits_once_and_is_read_when_it_is_sent(bars: Bars) -> None:
    source = Source()

    waiting = [bars.touch(source) for source.done in range(50)]

    assert waiting[0] is not None
    assert waiting[1:] == [None] * 49
    assert [record.done for record in sent(bars, waiting[0])] == [49]


def test_a_bar_that_ends_while_it_waits_is_one_record(bars: Bars) -> None:
    source = Source()
    waiting = bars.touch(source)
    source.done, source.is_over = 100, True

    assert bars.touch(source) is None
    assert sent(bars, waiting) == [Progress(0, "epoch", 100, 100, is_over=True)]


def test_what_closes_twice_ends_once(bars: Bars) -> None:
    source = Source()
    sent(bars, bars.touch(source))
    source.is_over = True

    assert sent(bars, bars.touch(source)) == [Progress(0, "epoch", 0, 100, is_over=True)]
    assert bars.touch(source) is None


def test_a_bar_is_due_when_it_has_moved_and_some_time_has_passed(bars: Bars, clock: Clock) -> None:
    source = Source()
    sent(bars, bars.touch(source))
    clock.now += 1
    assert bars.due() == []

    source.done = 3
    assert bars.due() == []  # it was looked at just now
    clock.now += 1

    assert [record.done for record in sent(bars, *bars.due())] == [3]


def test_the_longer_a_cell_runs_the_fewer_records_it_sends(bars: Bars, clock: Clock) -> None:
    source = Source()
    sent(bars, bars.touch(source))

    records = []
    for source.done in range(36_000):
        clock.now += 0.1
        records += sent(bars, *bars.due())

    assert 3000 < len(records) < 4500


def test_a_short_bar_that_does_not_stay_is_never_sent(bars: Bars, clock: Clock) -> None:
    source = Source(is_kept=False)
    assert bars.touch(source) is None
    assert bars.due() == []

    source.is_over = True
    assert bars.touch(source) is None


def test_a_long_bar_that_does_not_stay_is_sent_until_it_is_over(bars: Bars, clock: Clock) -> None:
    source = Source(is_kept=False)
    bars.touch(source)
    clock.now += SHORT_S * 2

    assert [record.is_over for record in sent(bars, *bars.due())] == [False]
    source.is_over = True
    assert [record.is_over for record in sent(bars, bars.touch(source))] == [True]


def test_a_bar_knows_how_many_are_open_around_it(bars: Bars) -> None:
    outer, inner = Source(), Source()
    waiting = [bars.touch(outer), bars.touch(inner)]
    assert [record.depth for record in sent(bars, *waiting)] == [0, 1]

    outer.is_over = True
    bars.touch(outer)
    inner.is_over = True

    assert [record.depth for record in sent(bars, bars.touch(inner))] == [0]


def test_the_end_of_a_cell_tells_where_open_bars_are(bars: Bars) -> None:
    source = Source()
    sent(bars, bars.touch(source))
    assert bars.last() == []

    source.done = 41
    assert [record.done for record in sent(bars, *bars.last())] == [41]


def test_a_bar_that_moves_in_a_later_cell_is_a_new_one_there(bars: Bars) -> None:
    source = Source()
    sent(bars, bars.touch(source))
    bars.clear()
    assert bars.last() == []

    source.done = 4
    assert [record.done for record in sent(bars, *bars.last())] == [4]


def test_a_bar_that_is_only_closed_in_a_later_cell_is_not_seen_there(bars: Bars) -> None:
    source = Source()
    sent(bars, bars.touch(source))
    bars.clear()
    source.is_over = True

    assert bars.touch(source) is None


def test_a_bar_that_moves_and_ends_in_a_later_cell_is_seen_once(bars: Bars) -> None:
    source = Source()
    sent(bars, bars.touch(source))
    for _ in range(3):  # cells that do nothing with it
        bars.last()
        bars.clear()
    source.done, source.is_over = 5, True

    assert [record.done for record in sent(bars, bars.touch(source))] == [5]
    assert bars.touch(source) is None


def test_beyond_a_bound_bars_are_counted_only(bars: Bars) -> None:
    sources = [Source() for _ in range(MAX_BARS + 3)]
    waiting = []
    for source in sources:
        waiting.append(bars.touch(source))
        source.is_over = True
        waiting.append(bars.touch(source))

    assert len([bar for bar in waiting if bar is not None]) == MAX_BARS
    assert bars.num_refused == 3


def test_a_bar_that_raises_when_it_is_asked_harms_nobody(bars: Bars) -> None:
    class Broken(Source):
        def read(self, *, is_exact: bool) -> Progress:
            raise RuntimeError("broken")

    assert sent(bars, bars.touch(Broken())) == [Progress(0, "", 0)]


@pytest.mark.parametrize(
    ("steps", "seconds", "divisor", "said"),
    [
        (25, 2, 0, "12.5 it/s"),
        (1, 4, 0, "4.0 s/it"),
        (0, 4, 0, ""),
        (4, 0, 0, ""),
        (3_000_000, 1, 1000, "3.0 Mit/s"),
    ],
)
def test_rates(steps: float, seconds: float, divisor: int, said: str) -> None:
    assert rate_text(steps, seconds, "it", divisor) == said


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (3, 3),
        (3.0, 3),
        (0.5, 0.5),
        (np.int64(7), 7),
        (float("inf"), None),
        (float("nan"), None),
        ("3", None),
    ],
)
def test_numbers_that_json_has(value: object, found: object) -> None:
    assert number(value, None) == found
    assert type(number(value, None)) is type(found)


# nbdist.progress without a session ----------------------------------------------------------------


def test_alone_it_prints_a_line_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper.outlet, "follow", None)

    assert list(progress("abc", desc="letters")) == ["a", "b", "c"]

    assert capsys.readouterr().err.startswith("letters 3/3 · ")


def test_alone_it_prints_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper.outlet, "follow", None)
    monkeypatch.setattr(helper, "LINE_S", 0.0)

    list(progress(iter("ab")))

    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" · ")[0] for line in lines] == ["1", "2", "2"]


def test_it_is_as_long_as_what_it_loops_over() -> None:
    assert len(progress([1, 2])) == 2
    assert progress([1, 2]).total == 2
    assert progress(iter([1, 2])).total is None
    assert progress(iter([1, 2]), total=2).total == 2
    with pytest.raises(TypeError):
        len(progress(iter([1, 2])))


def test_its_arguments_stand_in_the_order_of_tqdm() -> None:
    bar = progress(iter("ab"), "letters", 2)

    assert (bar.desc, bar.total) == ("letters", 2)
    assert progress(iter("ab"), total=float("inf")).total is None


@pytest.mark.parametrize("wrong", [{"desc": 3}, {"total": "letters"}, {"total": [1]}])
def test_what_is_no_text_or_no_number_is_refused_before_the_loop(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"nbdist.progress: {next(iter(wrong))} must be"):
        progress("ab", **wrong)


# On real ranks ------------------------------------------------------------------------------------

TQDM = "from tqdm import tqdm, trange\n"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with ranks(2) as session:
        yield session


def told(session: Session, code: str) -> list[str]:
    """Return the lines of the final output of *code*."""
    return finished(session, code).render().get("text/plain", "").splitlines()


def records(session: Session, code: str, rank: int = 0) -> list[Progress]:
    return [o for o in shown(finished(session, code), rank) if isinstance(o, Progress)]


on_ranks = pytest.mark.ranks


@on_ranks
@pytest.mark.parametrize("module", ["tqdm", "tqdm.auto", "tqdm.notebook", "tqdm.autonotebook"])
def test_every_tqdm_is_one_line_and_no_text(session: Session, module: str) -> None:
    code = f"from {module} import tqdm, trange\n"
    code += "for i in tqdm(range(50), desc='epoch'): pass\nfor i in trange(5): pass"

    run = finished(session, code)

    assert run.render()["text/plain"] == "[ranks 0, 1] epoch 50/50\n[ranks 0, 1] 5/5"
    assert printed(run) == ""
    assert values(session, "import sys\n'ipywidgets' in sys.modules") == [False, False]


@on_ranks
def test_a_bar_stands_where_it_began(session: Session) -> None:
    code = TQDM + "print('a')\nfor i in trange(3): print(i)\nprint('b')"

    assert told(session, code) == [
        f"[ranks 0, 1] {line}" for line in ("a", "3/3", "0", "1", "2", "b")
    ]


@on_ranks
def test_of_nested_bars_those_that_do_not_stay_are_gone(session: Session) -> None:
    code = TQDM + "for i in trange(3, desc='epoch'):\n for j in tqdm(range(4), leave=False): pass"

    assert told(session, code) == ["[ranks 0, 1] epoch 3/3"]
    assert told(session, code.replace("False", "True")) == [
        "[ranks 0, 1] epoch 3/3",
        "[ranks 0, 1] 4/4 · 3 times",
    ]


@on_ranks
def test_an_error_tells_exactly_how_far_each_rank_came(session: Session) -> None:
    code = TQDM + "for i in trange(100, desc='epoch'):\n if i == 41 + rank: raise ValueError(i)"

    for _ in range(2):  # the bar of the first time ends in the second cell, and is not seen there
        run = finished(session, code)
        assert run.render()["text/plain"].splitlines()[-1] == (
            "[ranks 0, 1] epoch 41/100 (rank 0), 42/100 (rank 1)"
        )
        assert error(run).ename == "ValueError"


@on_ranks
def test_an_error_in_a_bar_that_somebody_holds_tells_exactly_as_well(session: Session) -> None:
    code = TQDM + "bar = tqdm(range(100)); steps = iter(bar)\nfor _ in range(18): next(steps)\n1/0"

    assert told(session, code)[-1] == "[ranks 0, 1] 17/100"


@on_ranks
def test_two_ranks_of_different_speed_are_one_line(session: Session) -> None:
    code = TQDM + "import time\nfor i in trange(20):\n time.sleep(0.01 * (1 + rank))"

    assert told(session, code) == ["[ranks 0, 1] 20/20"]


@on_ranks
def test_while_it_runs_its_records_come(session: Session) -> None:
    code = TQDM + "import time\nfor i in trange(20, desc='slow'): time.sleep(0.05)"

    found = records(session, code)

    assert len({record.done for record in found}) > 1
    assert {record.bar for record in found} == {0}
    assert [record.is_over for record in found] == [False] * (len(found) - 1) + [True]


@on_ranks
def test_a_busy_bar_costs_few_records(session: Session) -> None:
    code = TQDM + "bar = tqdm(total=3000, mininterval=0)\n"
    code += "for i in range(3000): bar.update(); bar.set_postfix(i=i)\nbar.close()"

    found = records(session, code)

    assert len(found) < 100
    assert (found[-1].done, found[-1].postfix) == (3000, "i=2999")


@on_ranks
def test_what_is_set_by_hand_is_shown(session: Session) -> None:
    code = TQDM + (
        "with tqdm(total=4, unit='file') as bar:\n"
        "    bar.set_description('load'); bar.update(1); bar.update(2)\n"
        "    bar.set_postfix(loss=0.5); tqdm.write('written')\n"
        "bar.close()"
    )

    assert told(session, code) == [
        "[ranks 0, 1] load 3/4 file · loss=0.5",
        "[ranks 0, 1] written",
    ]


@on_ranks
def test_the_numbers_of_tqdm_itself_stay_right(session: Session) -> None:
    code = TQDM + (
        "bar = tqdm(range(7)); got = list(bar); bar2 = tqdm(total=9); bar2.update(4)\n"
        "before = bar2.n; bar2.reset(total=5); bar2.update(2); bar2.close()\n"
        "(got, bar.n, bar.total, len(bar), before, bar2.n, bar2.format_dict['total'])"
    )

    assert values(session, code) == [([0, 1, 2, 3, 4, 5, 6], 7, 7, 7, 4, 2, 5)] * 2


@on_ranks
def test_sizes_are_told_with_their_prefix(session: Session) -> None:
    code = TQDM + (
        "with tqdm(total=3 * 2**20, unit='B', unit_scale=True, unit_divisor=1024) as bar:\n"
        "    bar.update(2**21)"
    )

    assert told(session, code) == ["[ranks 0, 1] 2.0/3.0 MB"]


@on_ranks
def test_a_file_of_the_user_and_a_disabled_bar_are_left_alone(session: Session) -> None:
    code = TQDM + (
        "import contextlib, io, sys\n"
        "file = io.StringIO(); list(tqdm(range(3), file=file))\n"
        "with contextlib.redirect_stderr(io.StringIO()) as other: list(tqdm(range(3)))\n"
        "list(tqdm(range(3), disable=True))\n"
        "print('3/3' in file.getvalue(), '3/3' in other.getvalue())\n"
        "list(tqdm(range(4), file=sys.stdout))\nlist(tqdm(range(5), None, 5, True, sys.stderr))\n"
        "None"
    )

    assert told(session, code) == [
        "[ranks 0, 1] True True",
        "[ranks 0, 1] 4/4",
        "[ranks 0, 1] 5/5",
    ]


@on_ranks
def test_a_bar_that_goes_on_in_the_next_cell_is_told_there(session: Session) -> None:
    assert told(session, TQDM + "bar = tqdm(total=9, desc='long'); bar.update(3)\nNone") == [
        "[ranks 0, 1] long 3/9"
    ]
    assert told(session, "bar.update(2)\nNone") == ["[ranks 0, 1] long 5/9"]
    assert told(session, "pass") == []
    assert told(session, "bar.update(4); bar.close()") == ["[ranks 0, 1] long 9/9"]
    assert told(session, "del bar") == []


@on_ranks
def test_threads_of_a_cell_may_have_bars(session: Session) -> None:
    code = TQDM + (
        "import threading\n"
        "def work(k): list(tqdm(range(k), desc=f'thread {k}'))\n"
        "for k in (3, 4):\n"
        "    thread = threading.Thread(target=work, args=(k,)); thread.start(); thread.join()"
    )

    assert told(session, code) == ["[ranks 0, 1] thread 3 3/3", "[ranks 0, 1] thread 4 4/4"]


@on_ranks
def test_a_forked_child_writes_as_plain_tqdm_does(session: Session) -> None:
    code = TQDM + (
        "import os\n"
        "for i in trange(2, desc='parent'):\n"
        "    if i == 0 and (pid := os.fork()) == 0:\n"
        "        list(tqdm(range(3), desc='child')); os._exit(0)\n"
        "    if i == 0: os.waitpid(pid, 0)"
    )

    run = finished(session, code)

    assert statuses(run) == ["ok", "ok"]
    assert "child: 100%" in printed(run)
    assert [o.done for o in shown(run, 0) if isinstance(o, Progress)][-1] == 2


@on_ranks
def test_workers_of_a_data_loader_harm_nothing(session: Session) -> None:
    code = TQDM + (
        "from torch.utils.data import DataLoader, Dataset\n"
        "class Numbers(Dataset):\n"
        "    def __len__(self): return 4\n"
        "    def __getitem__(self, i): return sum(tqdm(range(i + 1)))\n"
        "print(sum(int(b) for b in tqdm(DataLoader(Numbers(), num_workers=2), desc='loader')))"
    )

    lines = told(session, code)

    assert lines[0] == "[ranks 0, 1] loader 4/4"
    assert {line.partition("] ")[2] for line in lines[1:] if "%|" not in line} == {"10"}


@on_ranks
def test_our_own_bar_is_a_bar(session: Session) -> None:
    code = (
        "for i in nbdist.progress(range(10), desc='ours'):\n    if i == 7 and rank == 1: break\n"
        "list(nbdist.progress(iter('abc'), total=3)); None"
    )

    assert told(session, code) == [
        "[ranks 0, 1] ours 7/10 (rank 1), 10/10 (rank 0)",
        "[ranks 0, 1] 3/3",
    ]


@on_ranks
def test_a_cell_that_is_cleared_keeps_the_bar_that_runs(session: Session) -> None:
    code = TQDM + (
        "from IPython.display import clear_output\n"
        "for i in trange(3, desc='epoch'):\n    clear_output(wait=True); print(i)"
    )

    assert told(session, code) == ["[ranks 0, 1] epoch 3/3", "[ranks 0, 1] 2"]


@on_ranks
def test_endless_short_bars_are_bounded(session: Session) -> None:
    run = finished(session, TQDM + "for i in range(3000): list(tqdm(range(2)))\nprint('end')")

    lines = run.render()["text/plain"].splitlines()

    assert lines[0] == f"[ranks 0, 1] 2/2 · {MAX_BARS} times"
    assert "left out here" in lines[-1]


WITHOUT_TQDM = """
import sys
tqdms = {name: m for name, m in sys.modules.items() if name.partition(".")[0] == "tqdm"}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tqdm": raise ModuleNotFoundError(name=name)
missing = Missing()
for name in tqdms: del sys.modules[name]
"""
WITH_TQDM_AGAIN = """
    for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
        del sys.modules[name]
    sys.modules.update(tqdms)
"""


@on_ranks
def test_where_tqdm_is_missing_our_own_bar_works(session: Session) -> None:
    code = WITHOUT_TQDM + (
        "sys.meta_path.insert(0, missing)\n"
        "try: import tqdm\n"
        "except ModuleNotFoundError: list(nbdist.progress(range(3), desc='ours'))\n"
        "finally:\n    sys.meta_path.remove(missing)" + WITH_TQDM_AGAIN
    )

    assert told(session, code) == ["[ranks 0, 1] ours 3/3"]


@on_ranks
def test_a_tqdm_that_is_imported_later_is_followed_as_well(session: Session) -> None:
    code = WITHOUT_TQDM + (
        "try:\n    import tqdm; print(tqdm is tqdms['tqdm']); list(tqdm.trange(3))\n"
        "finally:" + WITH_TQDM_AGAIN
    )

    assert told(session, code) == ["[ranks 0, 1] False", "[ranks 0, 1] 3/3"]
