from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nbdist.view.hang import (
    MAX_LINES,
    MAX_NAMED,
    MAX_SOURCE_CHARS,
    Culprit,
    CulpritKind,
    Diagnosis,
    Wait,
    certain_text,
    duration,
    hang_headline,
    hang_text,
    short_name,
)

STOP = "The stop button ends the cell on every rank within a second and keeps all variables."
STOP_OTHERS = "The stop button frees all other ranks; every variable is kept."
LOADING = Culprit((1,), "working", "is in load_batch() at In[12]:4", "batch = next(it)")


def wait(*ranks: int, **more: Any) -> Wait:
    plain = Wait(
        ranks=ranks,
        kind="group",
        op="all_reduce",
        seq=41,
        groups=("world",),
        text="all_reduce(float32[10], sum)",
        where="In[12]:7",
        since_s=12.3,
        missing=(1,),
    )
    return replace(plain, **more)


def hang(*culprits: Culprit, waits: tuple[Wait, ...] = (wait(0, 2, 3),)) -> Diagnosis:
    return Diagnosis("In[12]", (0, 1, 2, 3), waits, culprits)


def test_the_card_as_text() -> None:
    assert hang_text(hang(LOADING)) == (
        "ranks 0, 2, 3 wait in all_reduce #41 (In[12]:7); "
        "rank 1 is in load_batch() at In[12]:4\n"
        "  ranks 0, 2, 3 have waited 12 s for rank 1 in all_reduce(float32[10], sum) "
        "(#41 of group world) at In[12]:7\n"
        "  rank 1 is in load_batch() at In[12]:4: batch = next(it)\n"
        "  If rank 1 will get there, let it run.\n"
        f"  {STOP}"
    )


def test_what_is_no_diagnosis_is_its_own_text_and_headline() -> None:
    assert hang_headline(hang(LOADING)) == hang(LOADING).headline
    assert hang_headline("the monitor has failed") == "the monitor has failed"
    assert hang_text("the monitor has failed") == "the monitor has failed"
    assert hang_headline(None) is None


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({}, "rank 0 waits in all_reduce #41 (In[12]:7)"),
        ({"where": ""}, "rank 0 waits in all_reduce #41"),
        ({"groups": ("dp",)}, "rank 0 waits in all_reduce #41 of group dp (In[12]:7)"),
        ({"groups": ("a", "b")}, "rank 0 waits in all_reduce #41 of 2 groups (In[12]:7)"),
        ({"kind": "p2p", "op": "recv", "seq": 0}, "rank 0 waits in recv from rank 1 (In[12]:7)"),
        ({"kind": "p2p", "op": "send", "seq": 0}, "rank 0 waits in send to rank 1 (In[12]:7)"),
        (
            {"kind": "p2p", "op": "recv", "seq": 0, "missing": (1, 2), "groups": ("5",)},
            "rank 0 waits in recv (In[12]:7)",
        ),
        (
            {"kind": "native", "op": "new_group", "seq": 0, "groups": ()},
            "rank 0 waits in new_group (In[12]:7)",
        ),
    ],
)
def test_a_wait_in_one_line(more: dict[str, Any], line: str) -> None:
    assert wait(0, **more).summary() == line


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            {"kind": "p2p", "op": "recv", "seq": 0, "text": "recv(float32[3])"},
            "has waited 12 s for rank 1 in recv(float32[3]) at In[12]:7",
        ),
        (
            {"kind": "native", "op": "new_group", "seq": 0, "text": "", "missing": ()},
            "has waited 12 s in new_group at In[12]:7",
        ),
    ],
)
def test_a_wait_in_full(more: dict[str, Any], line: str) -> None:
    assert wait(0, **more).details() == line


@pytest.mark.parametrize(
    ("text", "many"),
    [
        ("is at In[12]:4", "ranks 0, 1 are at In[12]:4"),
        ("has ended the cell", "ranks 0, 1 have ended the cell"),
        ("was not given the cell", "ranks 0, 1 were not given the cell"),
        ("does not answer", "ranks 0, 1 do not answer"),
        ("sleeps in time.sleep", "ranks 0, 1 sleep in time.sleep"),
        ("waits in input()", "ranks 0, 1 wait in input()"),
        ("awaits something", "ranks 0, 1 await something"),
        ("raised ValueError: is bad", "ranks 0, 1 raised ValueError: is bad"),
    ],
)
def test_several_ranks_do_what_one_does(text: str, many: str) -> None:
    assert Culprit((0,), "working", text).summary() == f"rank 0 {text}"
    assert Culprit((0, 1), "working", text).summary() == many


def test_many_stopped_ranks_name_the_first_processes() -> None:
    ranks = tuple(range(64))

    line = Culprit(ranks, "stopped", "is stopped (SIGSTOP)", pids=ranks).summary()

    assert line == (
        "ranks 0–63 are stopped (SIGSTOP); kill -CONT 0 1 2 3 4 5 6 7 … lets them go on"
    )


def test_too_many_places_are_counted() -> None:
    waits = tuple(wait(rank, where=f"In[12]:{rank}") for rank in range(20))
    culprits = [Culprit((rank,), "working", f"is at In[1]:{rank}") for rank in range(20, 40)]

    diagnosis = hang(*culprits, waits=waits)

    assert diagnosis.headline.count(";") == 2 * MAX_NAMED + 1
    assert "others wait at 17 places" in diagnosis.headline
    assert diagnosis.headline.endswith("others do 17 other things")
    assert len(diagnosis.lines) == 2 * MAX_LINES + 2
    assert diagnosis.lines[MAX_LINES] == "others wait at 12 places"


def test_a_long_line_of_code_is_cut() -> None:
    line = Culprit((0,), "working", "is at In[12]:4", "x" * 500).details()

    assert len(line) < MAX_SOURCE_CHARS + 30
    assert line.endswith("x…")


@pytest.mark.parametrize(
    ("culprit", "advice"),
    [
        (
            Culprit((1,), "silent", "does not answer"),
            "If that call never returns, `%dist restart --ranks 1` puts a fresh process in the "
            "place of rank 1; the others keep all they have.",
        ),
        (
            Culprit((1, 3), "silent", "does not answer"),
            "If that call never returns, `%dist restart --ranks 1,3` puts a fresh process in the "
            "place of ranks 1, 3; the others keep all they have.",
        ),
        (
            Culprit((1,), "dead", "is dead"),
            "`%dist recover` puts a fresh process in the place of rank 1; "
            "the others keep all they have.",
        ),
        (Culprit((1,), "input", "waits in input()"), "Answer the prompt of rank 1."),
        (
            Culprit((0, 1), "deadlock", "waits for each other"),
            "None of them can go on: every rank has to call the collectives of these groups in "
            "the same order.",
        ),
        (
            Culprit((1,), "ended", "has ended the cell"),
            "rank 1 will not come any more: the ranks of a group have to call the same "
            "collectives.",
        ),
    ],
)
def test_what_to_do_next(culprit: Culprit, advice: str) -> None:
    assert hang(culprit).advice[0] == advice


def test_messages_in_a_circle_have_another_way_out() -> None:
    culprit = Culprit((0, 1), "deadlock", "waits for each other")

    advice = hang(culprit, waits=(wait(0, 1, kind="p2p", op="recv"),)).advice

    assert "`batch_isend_irecv`" in advice[0]


def test_nobody_is_told_to_wait_in_vain() -> None:
    advice = hang(Culprit((3,), "dead", "is dead"), LOADING).advice

    assert not any("let it run" in line for line in advice)


@pytest.mark.parametrize("kind", ["silent", "stopped"])
def test_the_stop_button_is_no_promise_for_a_rank_that_cannot_hear_it(kind: CulpritKind) -> None:
    assert hang(LOADING).advice[-1] == STOP
    assert hang(Culprit((1,), kind, "is deaf")).advice[-1] == STOP_OTHERS


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "1 s"), (0, "1 s"), (12.4, "12 s"), (119, "119 s"), (300, "5 min"), (9000, "2 h")],
)
def test_times_are_whole(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_long_list_of_ranks_is_counted() -> None:
    assert short_name([2, 0]) == "ranks 0, 2"
    assert short_name(range(512)) == "ranks 0–511"
    assert short_name([n * n for n in range(20)]) == "20 ranks (0, 1, 4, 9, …)"


# The error ----------------------------------------------------------------------------------------

NOBODY = (
    "Nobody can come any more, so the wait was ended. All variables are kept; the next cell works "
    "with the same groups."
)
WARN = "`hang.certain=warn` lets such calls wait."
SEND = wait(0, 1, kind="p2p", op="send", seq=0, missing=(0, 1))
CERTAIN = {
    "ended": (
        hang(Culprit((1, 2, 3), "ended", "has ended this cell"), waits=(wait(0),)),
        "rank 0 waits in all_reduce #41 at In[12]:7; ranks 1–3 have ended this cell",
        "Every rank of a group has to call the same collectives.",
    ),
    "absent": (
        replace(
            hang(Culprit((2, 3), "absent", "was not given this cell"), waits=(wait(0, 1),)),
            ranks=(0, 1),
        ),
        "ranks 0, 1 wait in all_reduce #41 at In[12]:7; ranks 2, 3 were not given this cell",
        "In[12] was given to ranks 0, 1 only: run it with `%%dist all`, or use a group of these "
        "ranks.",
    ),
    "message": (
        hang(
            Culprit((1,), "ended", "has ended this cell"),
            waits=(wait(0, kind="p2p", op="recv", where=""),),
        ),
        "rank 0 waits in recv from rank 1; rank 1 has ended this cell",
        "Each receive needs a send on the other rank, and each send a receive.",
    ),
    "circle": (
        hang(Culprit((0, 1), "deadlock", "waits for each other"), waits=(SEND,)),
        "ranks 0, 1 wait in send at In[12]:7; ranks 0, 1 wait for each other",
        "None of them can go on: let one side receive while the other sends, or use `isend`, "
        "`irecv` or `batch_isend_irecv`.",
    ),
}


@pytest.mark.parametrize(("found", "said", "advice"), CERTAIN.values(), ids=CERTAIN.keys())
def test_the_error_says_what_where_and_what_to_do(found: Diagnosis, said: str, advice: str) -> None:
    assert certain_text(found) == f"{said}\n{NOBODY}\n{advice} {WARN}"


def test_the_error_of_waits_at_many_places_counts_them() -> None:
    places = tuple(wait(n, where=f"In[12]:{n}") for n in range(MAX_NAMED + 2))

    text = certain_text(hang(Culprit((9,), "ended", "has ended this cell"), waits=places))

    assert "; others wait at 2 places; rank 9 has ended this cell\n" in text
