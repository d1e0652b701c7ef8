"""Who waits, and for whom: a case is a few ranks, where they stand, and the line that says it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import pytest

from nbdist.sessions.diagnosis import RankSight, diagnose
from nbdist.view.hang import Diagnosis, hang_text
from nbdist.wire import Frame, GroupCall, Snapshot
from tests.sessions.scenes import (
    AFTER_S,
    IN_FILE,
    IN_GUARD,
    IN_INPUT,
    IN_LOAD,
    IN_NEW_GROUP,
    IN_RECV,
    IN_SLEEP,
    LABEL,
    NOW,
    REDUCE,
    at,
    call,
    calls_of,
    cell,
    gone_by,
    guarded,
    lib,
    loading,
    message,
    native,
)


def look(sights: Iterable[RankSight], calls: Iterable[GroupCall]) -> Diagnosis | None:
    return diagnose(LABEL, list(sights), list(calls), NOW, AFTER_S)


def found(sights: Iterable[RankSight], calls: Iterable[GroupCall]) -> Diagnosis:
    diagnosis = look(sights, calls)
    assert diagnosis is not None
    return diagnosis


@dataclass(frozen=True)
class Case:
    name: str
    sights: Sequence[RankSight]
    calls: Sequence[GroupCall] = field(default=())
    headline: str | None = None


ABSENT = [RankSight(rank, "absent") for rank in (1, 2, 3)]
THREE_WAIT = calls_of((0, 2, 3), 41)
WAITERS = guarded(0, 2, 3)
THREE = "ranks 0, 2, 3 wait in all_reduce #41 (In[12]:7)"
NATIVE_THREE = [*calls_of((0, 2, 3), 41, "issued"), gone_by(1)]


def instead(name: str, sight: RankSight, headline: str) -> Case:
    """Return the case that three ranks wait in the guard for rank 1, seen as *sight*."""
    return Case(name, [*WAITERS, sight], [*THREE_WAIT, gone_by(1)], f"{THREE}; {headline}")


# Nothing to worry about ------------------------------------------------------------------------

CALM = [
    Case("nobody runs anything", [RankSight(rank, "ended") for rank in range(4)]),
    Case("long Python work with nobody waiting", loading(0, 1, 2, 3)),
    Case("long Python work after a collective", loading(0, 1), calls_of((0, 1), 3, "issued")),
    Case("a wait shorter than the limit", [*WAITERS, *loading(1)], calls_of((0, 2, 3), 41, age=9)),
    Case("a clock ahead of ours", [*WAITERS, *loading(1)], calls_of((0, 2, 3), 41, age=-500)),
    Case("a rank silent for a moment", [RankSight(0, silent_s=2), *loading(1)]),
    Case("a stopped rank that has ended the cell", [*loading(0), RankSight(1, "ended", "stopped")]),
    Case("a silent rank that was not given the cell", [RankSight(0, "absent", silent_s=99)]),
    Case("a dead rank nobody waits for", [*loading(0), RankSight(1, process="dead")]),
    Case(
        "issued before the others, but computing",
        loading(0, 1),
        [call(0, 41, "issued", ranks=(0, 1)), gone_by(1, ranks=(0, 1))],
    ),
    Case(
        "waiting natively, and everybody has come",
        native(0, 1),
        calls_of((0, 1), 41, "issued", ranks=(0, 1)),
    ),
    Case(
        "waiting natively for a moment, in a call issued long ago",
        [replace(native(0)[0], still_s=1.0), *loading(1)],
        [call(0, 41, "issued", ranks=(0, 1)), gone_by(1, ranks=(0, 1))],
    ),
    Case(
        "the root of a broadcast has gone on while others come later",
        loading(0, 1, 2, 3),
        [
            call(0, 5, "issued", text="broadcast(float32[1], root 0)"),
            *calls_of((1, 2, 3), 4, "idle"),
        ],
    ),
    Case(
        "a record of a group that is being waited in by a dead process",
        [RankSight(0, process="dead"), *loading(1)],
        [call(0, 41, "waiting", ranks=(0, 1)), gone_by(1, ranks=(0, 1))],
    ),
    Case(
        "another cell waits, on ranks that were not given this one",
        [*loading(0), RankSight(1, "absent", snapshot=Snapshot(1, 9, "In[11]"))],
        [call(1, 3, "waiting", ranks=(1, 2))],
    ),
    Case(
        "long in a rendezvous, but nobody looked for how long",
        [
            at(
                0,
                cell(2, "dist.new_group()"),
                lib("torch/distributed/distributed_c10d.py", "new_group"),
            ),
            *loading(1),
        ],
    ),
    Case(
        "in a message that the guard let pass",
        [at(0, *IN_RECV, still_s=60.0), *loading(1)],
        [
            message(0, "recv", 1, 0, phase="issued"),
            message(1, "send", 1, 0, phase="issued"),
        ],
    ),
    Case(
        "all ranks in a rendezvous",
        [
            at(r, cell(2), lib("torch/distributed/distributed_c10d.py", "new_group"), still_s=60.0)
            for r in (0, 1)
        ],
    ),
]


@pytest.mark.parametrize("case", CALM, ids=lambda case: case.name)
def test_there_is_no_reason_to_worry(case: Case) -> None:
    assert look(case.sights, case.calls) is None


# One rank does something else ------------------------------------------------------------------

INSTEAD = [
    instead("is in a function", at(1, *IN_LOAD), "rank 1 is in load_batch() at In[12]:4"),
    instead("is at a line of the cell", at(1, cell(8, "f()")), "rank 1 is at In[12]:8"),
    instead("is in a comprehension", at(1, cell(8, "f()", "<listcomp>")), "rank 1 is at In[12]:8"),
    instead(
        "is in a file of the user",
        at(1, cell(4), IN_FILE),
        "rank 1 is in read() at data.py:33 (In[12]:4)",
    ),
    instead(
        "is in a library",
        at(1, *IN_LOAD, lib("torch/utils/data/dataloader.py", "_next_data")),
        "rank 1 is in load_batch() at In[12]:4",
    ),
    instead("sleeps", at(1, *IN_SLEEP), "rank 1 sleeps in time.sleep at In[12]:3"),
    instead("asks the user", at(1, *IN_INPUT), "rank 1 waits in input() at In[12]:2"),
    instead(
        "asks the user, and our own frames are there",
        at(
            1, cell(2, "ask()"), Frame("/src/nbdist/rank/inputs.py:52", "_ask", "", is_library=True)
        ),
        "rank 1 waits in input() at In[12]:2",
    ),
    instead("awaits", at(1), "rank 1 awaits something in In[12]"),
    instead("waits in an unguarded recv", at(1, *IN_RECV), "rank 1 waits in recv (In[12]:5)"),
    instead("has ended", RankSight(1, "ended"), "rank 1 has ended the cell"),
    instead(
        "has raised",
        RankSight(1, "ended", how="raised ValueError: bad\nmore"),
        "rank 1 raised ValueError: bad",
    ),
    instead("was not given the cell", RankSight(1, "absent"), "rank 1 was not given the cell"),
    instead(
        "is dead",
        RankSight(1, process="dead", how="was killed by SIGKILL"),
        "rank 1 is dead (was killed by SIGKILL)",
    ),
    instead("is dead for no known reason", RankSight(1, process="dead"), "rank 1 is dead"),
    instead(
        "is stopped",
        RankSight(1, process="stopped", pid=4711),
        "rank 1 is stopped (SIGSTOP); kill -CONT 4711 lets it go on",
    ),
    instead(
        "is stopped, pid from its snapshot",
        at(1, *IN_LOAD, process="stopped"),
        "rank 1 is stopped (SIGSTOP); kill -CONT 4001 lets it go on",
    ),
    instead(
        "is stopped, pid unknown",
        RankSight(1, process="stopped"),
        "rank 1 is stopped (SIGSTOP); kill -CONT PID lets it go on",
    ),
    instead(
        "does not answer",
        RankSight(1, silent_s=12),
        "rank 1 does not answer: busy in a C call since 12 s",
    ),
    instead(
        "has not begun", at(1, label=None), "rank 1 has not begun the cell, or is just ending it"
    ),
]


@pytest.mark.parametrize("case", INSTEAD, ids=lambda case: case.name)
def test_three_ranks_wait_and_one(case: Case) -> None:
    assert found(case.sights, case.calls).headline == case.headline


# Who waits for whom ----------------------------------------------------------------------------

PAIR = (0, 1)

WAITS = [
    Case(
        "one rank of two, natively",
        [*native(0), *loading(1)],
        [call(0, 41, "issued", ranks=PAIR), gone_by(1, ranks=PAIR)],
        "rank 0 waits in all_reduce #41 (In[12]:7); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "natively, with the source line from the stack",
        [*native(0), *loading(1)],
        [call(0, 41, "issued", ranks=PAIR, source=""), gone_by(1, ranks=PAIR)],
        "rank 0 waits in all_reduce #41 (In[12]:7); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "natively, for a rank that never used the group",
        [*native(0), *loading(1)],
        [call(0, 1, "issued", ranks=PAIR)],
        "rank 0 waits in all_reduce #1 (In[12]:7); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "natively, for one that has come and died since",
        [*native(0), RankSight(1, process="dead")],
        calls_of(PAIR, 41, "issued", ranks=PAIR),
        "rank 0 waits in all_reduce #41 (In[12]:7); rank 1 is dead",
    ),
    Case(
        "natively, for one that gave the call up",
        [*native(0), *loading(1)],
        [call(0, 41, "issued", ranks=PAIR), call(1, 41, "idle", ranks=PAIR, issued=40)],
        "rank 0 waits in all_reduce #41 (In[12]:7); "
        "rank 1 gave up all_reduce #41 and is in load_batch() at In[12]:4",
    ),
    Case(
        "natively, for one that gave the call up and died",
        [*native(0), RankSight(1, process="dead")],
        [call(0, 41, "issued", ranks=PAIR), call(1, 41, "idle", ranks=PAIR, issued=40)],
        "rank 0 waits in all_reduce #41 (In[12]:7); rank 1 is dead",
    ),
    Case(
        "for one that has ended the cell, though a thread of it still waits",
        [*guarded(0), at(1, label=None, part="ended")],
        [
            call(0, 41, "waiting", ranks=PAIR),
            gone_by(1, ranks=PAIR),
            call(1, 2, "waiting", ranks=(1, 2), group="5"),
        ],
        "rank 0 waits in all_reduce #41 (In[12]:7); rank 1 has ended the cell",
    ),
    Case(
        "for one that runs another cell, and waits there",
        [*guarded(0), at(1, *IN_GUARD, label="In[11]", part="absent"), *loading(2)],
        [
            call(0, 41, "waiting", ranks=PAIR),
            gone_by(1, ranks=PAIR),
            call(1, 2, "waiting", ranks=(1, 2), group="5", source="In[11]:3"),
        ],
        "rank 0 waits in all_reduce #41 (In[12]:7); "
        "rank 1 waits in all_reduce #2 of group 5 (In[11]:3); "
        "rank 2 is in load_batch() at In[12]:4",
    ),
    Case(
        "in the call that was issued last of two",
        [*native(0), *loading(1)],
        [
            call(0, 3, "issued", ranks=PAIR, group="a", age=90),
            call(0, 7, "issued", ranks=PAIR, group="b", age=80),
            gone_by(1, 6, ranks=PAIR, group="b"),
        ],
        "rank 0 waits in all_reduce #7 of group b (In[12]:7); "
        "rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "on a GPU, where the value is asked for",
        [at(0, cell(8, "print(loss.item())")), *loading(1)],
        [call(0, 2, "issued", ranks=PAIR, text="all_reduce(float32[] on cuda, sum)")],
        "rank 0 waits in all_reduce #2 (In[12]:7); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "at two places",
        [*guarded(0, 2), *loading(1, 3)],
        [call(0, 41, "waiting"), call(2, 41, "waiting", source="In[12]:9"), gone_by(1)],
        "rank 0 waits in all_reduce #41 (In[12]:7); rank 2 waits in all_reduce #41 (In[12]:9); "
        "ranks 1, 3 are in load_batch() at In[12]:4",
    ),
    Case(
        "in another group than the world",
        [*guarded(2), *loading(3)],
        [call(2, 3, "waiting", group="5", ranks=(2, 3))],
        "rank 2 waits in all_reduce #3 of group 5 (In[12]:7); "
        "rank 3 is in load_batch() at In[12]:4",
    ),
    Case(
        "in many groups at one line",
        [*guarded(*range(0, 8, 2)), *loading(*range(1, 8, 2))],
        [call(r, 3, "waiting", group=f"{r}", ranks=(r, r + 1)) for r in range(0, 8, 2)],
        "ranks 0, 2, 4, 6 wait in all_reduce #3 of 4 groups (In[12]:7); "
        "ranks 1, 3, 5, 7 are in load_batch() at In[12]:4",
    ),
    Case(
        "behind one another, down to the cause",
        [*guarded(0, 1), *loading(2)],
        [
            call(0, 5, "waiting", group="a", ranks=(0, 1)),
            call(1, 8, "waiting", group="b", ranks=(1, 2), source="In[12]:9", age=0.5),
        ],
        "rank 0 waits in all_reduce #5 of group a (In[12]:7); "
        "rank 1 waits in all_reduce #8 of group b (In[12]:9); "
        "rank 2 is in load_batch() at In[12]:4",
    ),
    Case(
        "a call behind the others",
        [*guarded(0, 1), *loading(2)],
        [
            call(0, 41, "waiting", ranks=(0, 1, 2)),
            call(1, 40, "waiting", ranks=(0, 1, 2), source="In[12]:6"),
            gone_by(2, 39, ranks=(0, 1, 2)),
        ],
        "rank 0 waits in all_reduce #41 (In[12]:7); rank 1 waits in all_reduce #40 (In[12]:6); "
        "rank 2 is in load_batch() at In[12]:4",
    ),
    Case(
        "for the root alone",
        [*guarded(1, 2), *loading(0, 3)],
        [*calls_of((1, 2), 3, text="broadcast(float32[1], root 0)"), gone_by(0, 2)],
        "ranks 1, 2 wait in broadcast #3 (In[12]:7); rank 0 is in load_batch() at In[12]:4",
    ),
    Case(
        "for the root, which is a rank of the group",
        [*guarded(4), *loading(6)],
        [call(4, 3, "waiting", group="5", ranks=(4, 6), text="reduce(float32[1], sum, root 1)")],
        "rank 4 waits in reduce #3 of group 5 (In[12]:7); rank 6 is in load_batch() at In[12]:4",
    ),
    Case(
        "as the root that nobody has joined",
        [*guarded(0), *loading(1, 2, 3)],
        [call(0, 3, "waiting", text="broadcast(float32[1], root 0)")],
        "rank 0 waits in broadcast #3 (In[12]:7); ranks 1–3 are in load_batch() at In[12]:4",
    ),
    Case(
        "natively in a broadcast whose root has gone on",
        [*loading(0), *native(1), *loading(2)],
        [
            call(rank, 3, "issued", ranks=(0, 1, 2), text="broadcast(float32[1], root 0)")
            for rank in (0, 1)
        ],
        "rank 1 waits in broadcast #3 (In[12]:7); rank 2 is in load_batch() at In[12]:4",
    ),
    Case(
        "in recv",
        [*guarded(0), *loading(1)],
        [message(0, "recv", 1, 0)],
        "rank 0 waits in recv from rank 1 (In[12]:5); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "in recv, with messages of other tags on the way",
        [*guarded(0), *loading(1)],
        [message(0, "recv", 1, 0, 1), message(1, "send", 1, 0, 5, phase="issued")],
        "rank 0 waits in recv from rank 1 (In[12]:5); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "in send",
        [*guarded(0), RankSight(1, "ended")],
        [message(0, "send", 0, 1)],
        "rank 0 waits in send to rank 1 (In[12]:5); rank 1 has ended the cell",
    ),
    Case(
        "natively, for a message",
        [at(0, cell(5, "dist.irecv(x, 1).wait()")), *loading(1)],
        [message(0, "recv", 1, 0, 2, phase="issued"), message(1, "send", 1, 0, 1, phase="issued")],
        "rank 0 waits in recv from rank 1 (In[12]:5); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "as a pipeline behind its first stage",
        [*guarded(*range(1, 64)), *loading(0)],
        [message(r, "recv", r - 1, r) for r in range(1, 64)],
        "ranks 1–63 wait in recv (In[12]:5); rank 0 is in load_batch() at In[12]:4",
    ),
    Case(
        "in a rendezvous",
        [at(0, *IN_NEW_GROUP, still_s=15.0), *loading(1)],
        (),
        "rank 0 waits in new_group (In[12]:2); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "in a message that nobody recorded",
        [at(0, *IN_RECV, still_s=15.0), RankSight(1, "ended")],
        (),
        "rank 0 waits in recv (In[12]:5); rank 1 has ended the cell",
    ),
    Case(
        "of a cell for one rank, in the world",
        [*guarded(0), *ABSENT],
        [call(0, 1, "waiting")],
        "rank 0 waits in all_reduce #1 (In[12]:7); ranks 1–3 were not given the cell",
    ),
    Case(
        "though it does not answer itself",
        [RankSight(0, silent_s=2), *loading(1)],
        [call(0, 41, "waiting", ranks=PAIR)],
        "rank 0 waits in all_reduce #41 (In[12]:7); rank 1 is in load_batch() at In[12]:4",
    ),
    Case(
        "in a group that was made anew under its old name",
        [*guarded(0), *loading(1)],
        [
            call(0, 2, "waiting", ranks=PAIR),
            call(1, 1, "issued", ranks=PAIR, age=20),
            call(1, 99, "issued", ranks=PAIR, age=500),
        ],
        "rank 0 waits in all_reduce #2 (In[12]:7); rank 1 is in load_batch() at In[12]:4",
    ),
]


@pytest.mark.parametrize("case", WAITS, ids=lambda case: case.name)
def test_a_rank_waits(case: Case) -> None:
    assert found(case.sights, case.calls).headline == case.headline


# Circles ---------------------------------------------------------------------------------------

CIRCLES = [
    Case(
        "two groups in different order",
        guarded(0, 1),
        [
            call(0, 3, "waiting", group="a", ranks=PAIR, source="In[12]:4"),
            call(0, 1, "issued", group="b", ranks=PAIR, age=60),
            call(1, 2, "waiting", group="b", ranks=PAIR, source="In[12]:5"),
            call(1, 2, "issued", group="a", ranks=PAIR, age=60),
        ],
        "rank 0 waits in all_reduce #3 of group a (In[12]:4); "
        "rank 1 waits in all_reduce #2 of group b (In[12]:5); ranks 0, 1 wait for each other",
    ),
    Case(
        "three groups in a ring",
        guarded(0, 1, 2),
        [
            call(r, 1, "waiting", group=f"g{r}", ranks=(r, (r + 1) % 3), source=f"In[12]:{r}")
            for r in range(3)
        ],
        "rank 0 waits in all_reduce #1 of group g0 (In[12]:0); "
        "rank 1 waits in all_reduce #1 of group g1 (In[12]:1); "
        "rank 2 waits in all_reduce #1 of group g2 (In[12]:2); ranks 0–2 wait for each other",
    ),
    Case(
        "both receive first",
        guarded(0, 1),
        [message(0, "recv", 1, 0), message(1, "recv", 0, 1)],
        "ranks 0, 1 wait in recv (In[12]:5); ranks 0, 1 wait for each other",
    ),
    Case(
        "a ring of 64 that all send first",
        guarded(*range(64)),
        [message(r, "send", r, (r + 1) % 64) for r in range(64)],
        "ranks 0–63 wait in send (In[12]:5); ranks 0–63 wait for each other",
    ),
    Case(
        "a collective here, a message there",
        guarded(0, 1),
        [call(0, 3, "waiting", ranks=PAIR), message(1, "recv", 0, 1)],
        "rank 0 waits in all_reduce #3 (In[12]:7); rank 1 waits in recv from rank 0 (In[12]:5); "
        "ranks 0, 1 wait for each other",
    ),
    Case(
        "a circle that others only wait for",
        guarded(0, 1, 2),
        [
            message(0, "recv", 1, 0),
            message(1, "recv", 0, 1),
            call(2, 9, "waiting", ranks=(0, 1, 2)),
        ],
        "ranks 0, 1 wait in recv (In[12]:5); rank 2 waits in all_reduce #9 (In[12]:7); "
        "ranks 0, 1 wait for each other",
    ),
    Case(
        "a circle, and a rank besides that is computing",
        [*guarded(0, 1), *loading(2)],
        [
            call(0, 3, "waiting", group="a", ranks=(0, 1, 2)),
            call(1, 2, "waiting", group="b", ranks=PAIR, source="In[12]:5"),
        ],
        "rank 0 waits in all_reduce #3 of group a (In[12]:7); "
        "rank 1 waits in all_reduce #2 of group b (In[12]:5); ranks 0, 1 wait for each other; "
        "rank 2 is in load_batch() at In[12]:4",
    ),
    Case(
        "different collectives with the guard off",
        native(0, 1, 2),
        [
            *calls_of((0, 2), 2, "issued", ranks=(0, 1, 2)),
            call(1, 2, "issued", ranks=(0, 1, 2), text="all_gather(float32[5])"),
        ],
        "ranks 0, 2 wait in all_reduce #2 (In[12]:7); rank 1 waits in all_gather #2 (In[12]:7); "
        "ranks 0–2 call different things as #2 of group world",
    ),
    Case(
        "another collective that its root could leave",
        [*loading(0), *native(1)],
        [
            call(0, 5, "idle", ranks=PAIR, text="broadcast(float32[5])"),
            call(1, 5, "issued", ranks=PAIR),
        ],
        "rank 1 waits in all_reduce #5 (In[12]:7); "
        "rank 0 called broadcast as #5 and is in load_batch() at In[12]:4",
    ),
    Case(
        "a guess is no circle",
        [at(0, *IN_RECV, still_s=15.0), *guarded(1)],
        [call(1, 3, "waiting", ranks=PAIR)],
        "rank 0 waits in recv (In[12]:5); rank 1 waits in all_reduce #3 (In[12]:7)",
    ),
]


@pytest.mark.parametrize("case", CIRCLES, ids=lambda case: case.name)
def test_ranks_wait_for_each_other(case: Case) -> None:
    assert found(case.sights, case.calls).headline == case.headline


# Trouble without anybody waiting ---------------------------------------------------------------

TROUBLE = [
    Case(
        "a rank does not answer",
        [*loading(0), RankSight(1, silent_s=12.4)],
        (),
        "rank 1 does not answer: busy in a C call since 12 s",
    ),
    Case(
        "ranks do not answer",
        [RankSight(0, silent_s=11), RankSight(1, silent_s=300)],
        (),
        "ranks 0, 1 do not answer: busy in a C call since 5 min",
    ),
    Case(
        "a rank is stopped",
        [*loading(0), RankSight(1, process="stopped", pid=77)],
        (),
        "rank 1 is stopped (SIGSTOP); kill -CONT 77 lets it go on",
    ),
    Case(
        "ranks are stopped",
        [RankSight(rank, process="stopped", pid=70 + rank) for rank in (0, 1)],
        (),
        "ranks 0, 1 are stopped (SIGSTOP); kill -CONT 70 71 lets them go on",
    ),
]


@pytest.mark.parametrize("case", TROUBLE, ids=lambda case: case.name)
def test_it_is_said_at_once_that(case: Case) -> None:
    assert found(case.sights, case.calls).headline == case.headline


# What is in a diagnosis ------------------------------------------------------------------------


def test_causes_come_in_the_order_of_what_has_to_be_done() -> None:
    sights = [*guarded(0), *loading(1), RankSight(2, "ended"), RankSight(3, process="dead")]

    diagnosis = found(sights, [call(0, 41, "waiting")])

    assert [culprit.kind for culprit in diagnosis.culprits] == ["dead", "ended", "working"]


def test_what_has_nothing_to_do_with_the_wait_is_left_out() -> None:
    sights = [*guarded(0, 2), *loading(1, 3)]
    calls = [
        call(0, 5, "waiting", group="a", ranks=(0, 1)),
        call(2, 5, "waiting", group="b", ranks=(2, 3), age=0.1),
    ]

    diagnosis = found(sights, calls)

    assert [wait.ranks for wait in diagnosis.waits] == [(0,)]
    assert [culprit.ranks for culprit in diagnosis.culprits] == [(1,)]


def test_a_wait_says_how_long_and_for_whom() -> None:
    wait = found([*WAITERS, *loading(1)], [call(0, 41, "waiting", age=25), *THREE_WAIT[1:]]).waits[
        0
    ]

    assert (wait.since_s, wait.missing, wait.text) == (25, (1,), REDUCE)


def test_a_late_wait_in_an_early_call_counts_from_its_beginning() -> None:
    sights = [replace(native(0)[0], still_s=11.0), *loading(1)]

    wait = found(sights, [call(0, 41, "issued", ranks=PAIR, age=500)]).waits[0]

    assert wait.since_s == 11.0


def test_a_rank_with_two_threads_that_wait_is_named_with_both() -> None:
    calls = [call(0, 5, "waiting", group=name, ranks=PAIR, source=name) for name in ("a", "b")]

    diagnosis = found([*guarded(0), *loading(1)], calls)

    assert [wait.groups for wait in diagnosis.waits] == [("a",), ("b",)]


def test_sixty_four_ranks_with_one_late_are_two_lines() -> None:
    sights = [*guarded(*range(63)), *loading(63)]
    calls = [call(rank, 41, "waiting", ranks=range(64)) for rank in range(63)]

    diagnosis = found(sights, calls)

    assert diagnosis.headline == (
        "ranks 0–62 wait in all_reduce #41 (In[12]:7); rank 63 is in load_batch() at In[12]:4"
    )
    assert len(diagnosis.lines) == 2


def test_sixty_four_ranks_at_sixty_four_places_stay_short() -> None:
    ranks = tuple(range(64))
    sights = [at(rank, cell(rank, f"step_{rank}()")) for rank in ranks]
    calls = [call(r, 41, "waiting", ranks=ranks, source=f"In[12]:{r}") for r in ranks[::2]]

    diagnosis = found(sights, calls)

    assert len(diagnosis.headline) < 300
    assert len(hang_text(diagnosis).splitlines()) < 25


def test_a_cell_that_ends_badly_elsewhere_says_who_runs_it() -> None:
    diagnosis = found([*guarded(0), *ABSENT], [call(0, 1, "waiting")])

    assert diagnosis.ranks == (0,)
    assert diagnosis.advice[0] == (
        "In[12] runs on rank 0 only; ranks 1–3 will never come: stop it and run it with "
        "`%%dist all`."
    )
