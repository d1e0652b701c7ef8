"""The exact text of typical cells: it is what ``pytest --nbval`` compares."""

from __future__ import annotations

from nbdist.view.page import lay_out
from nbdist.view.text import render_text
from nbdist.wire import CallCount, CellError, Dropped, RankOutput
from tests.view.build import (
    failed,
    in_cell,
    in_torch,
    ok,
    png,
    result,
    shown,
    stderr,
    stdout,
    value_error,
    waited,
)


def text_of(*ranks: RankOutput) -> str:
    return render_text(lay_out(ranks))


def test_all_ranks_equal() -> None:
    ranks = [ok(rank, stdout("epoch 0\nepoch 1\n")) for rank in range(4)]

    assert text_of(*ranks) == "[ranks 0–3] epoch 0\n[ranks 0–3] epoch 1"


def test_all_ranks_differ() -> None:
    ranks = [ok(rank, stdout(f"has {rank * 10}\n")) for rank in range(3)]

    assert text_of(*ranks) == "[rank0] has 0\n[rank1] has 10\n[rank2] has 20"


def test_a_single_rank() -> None:
    assert text_of(ok(0, stdout("hello\n"))) == "[rank0] hello"


def test_only_one_rank_put_something_out() -> None:
    assert text_of(ok(0), ok(1, stdout("hello\n")), ok(2)) == "[rank1] hello"


def test_ranks_that_fall_into_two_groups() -> None:
    ranks = [ok(rank, stdout("even\n" if rank % 2 == 0 else "odd\n")) for rank in range(4)]

    assert text_of(*ranks) == "[ranks 0, 2] even\n[ranks 1, 3] odd"


def test_stderr_stands_in_its_place_and_is_marked() -> None:
    outputs = (stdout("a\n"), stderr("careful\n"), stdout("b\n"))

    assert text_of(ok(0, *outputs)) == "[rank0] a\n[rank0] stderr: careful\n[rank0] b"


def test_a_text_without_line_break_does_not_swallow_the_next() -> None:
    assert text_of(ok(0, stdout("a"), result("41 + 1"))) == "[rank0] a\n[rank0] 41 + 1"


def test_several_lines_of_a_value_stay_aligned() -> None:
    assert text_of(ok(0, result("tensor([[1, 2],\n        [3, 4]])"))) == (
        "[rank0] tensor([[1, 2],\n[rank0]         [3, 4]])"
    )


def test_colours_are_taken_out() -> None:
    assert text_of(ok(0, stdout("\x1b[31mred\x1b[0m\n"), result("\x1b[1m1\x1b[0m"))) == (
        "[rank0] red\n[rank0] 1"
    )


def test_a_figure_is_named() -> None:
    figure = shown({"image/png": png("AAAA"), "text/plain": "<Figure size 640x480 with 1 Axes>"})

    assert text_of(ok(0, figure)) == "[rank0] <Figure size 640x480 with 1 Axes>"


def test_dropped_output_is_counted() -> None:
    assert text_of(ok(0, stdout("a\n"), Dropped(1000))) == (
        "[rank0] a\n[rank0] … 1,000 bytes of output are left out here …"
    )


def test_scalars_that_differ_become_a_table() -> None:
    ranks = [ok(rank, stdout("evaluating\n"), result(str(rank), rank)) for rank in range(11)]

    assert text_of(*ranks).startswith(
        "[ranks 0–10] evaluating\n[rank0]   0\n[rank1]   1\n[rank2]   2\n"
    )
    assert text_of(*ranks).endswith(
        "\n[rank10] 10\nmin       0 (rank 0)\nmean      5\nmax      10 (rank 10)"
    )


def test_scalars_stand_with_their_decimal_points_below_one_another() -> None:
    ranks = [ok(rank, result(text, float(text))) for rank, text in enumerate(("-1.5", "22.25"))]

    assert text_of(*ranks).startswith("[rank0] -1.5\n[rank1] 22.25\n")
    assert text_of(ok(0, result("1.5", 1.5)), *ranks[1:]).startswith("[rank0]  1.5\n")


def test_a_line_that_differs_stands_in_its_place() -> None:
    ranks = [ok(rank, stdout(f"epoch 0\nloss {2 + rank}.5\nsaved\n")) for rank in range(3)]

    assert text_of(*ranks) == (
        "[ranks 0–2] epoch 0\n"
        "[rank0] loss 2.5\n"
        "[rank1] loss 3.5\n"
        "[rank2] loss 4.5\n"
        "[ranks 0–2] saved"
    )


def test_what_one_rank_alone_says_stands_in_its_place() -> None:
    ranks = [ok(rank, stdout("a\n" + "saved\n" * (rank == 0) + "b\n")) for rank in range(3)]

    assert text_of(*ranks) == "[ranks 0–2] a\n[rank0] saved\n[ranks 0–2] b"


def test_figures_of_several_ranks_are_named() -> None:
    ranks = [
        ok(r, shown({"image/png": png(f"AA{r}A"), "text/plain": f"<Figure {r}>"})) for r in (0, 1)
    ]

    assert text_of(*ranks) == "[rank0] <Figure 0>\n[rank1] <Figure 1>"


def test_collectives_are_the_last_line() -> None:
    calls = {0: [CallCount("all_reduce", "0", (0,), 2, 400)]}

    page = lay_out([failed(0, value_error("bad"))], calls=calls)

    assert render_text(page).endswith("\n2 × all_reduce (400 B) · group world")


def test_scalars_that_are_equal_are_shown_once() -> None:
    assert text_of(*[ok(rank, result("0.5", 0.5)) for rank in range(3)]) == "[ranks 0–2] 0.5"


def test_one_rank_failed_and_the_others_waited() -> None:
    ranks = [
        failed(rank, value_error("bad batch") if rank == 1 else waited(1), stdout("step 1\n"))
        for rank in range(4)
    ]

    assert text_of(*ranks) == (
        "[rank1] ValueError: bad batch\n"
        "[rank1]   In[3]:9  in <module>\n"
        "[rank1]       train()\n"
        "[rank1]   In[3]:4  in step\n"
        "[rank1]       raise ValueError(message)\n"
        "ranks 0, 2, 3 waited for rank 1 (In[3]:6)\n"
        "[ranks 0–3] step 1"
    )


def test_a_rank_that_failed_comes_before_those_that_went_on() -> None:
    lines = "".join(f"step {i} of {{0}}\n" * (i + 1) for i in range(3))
    ranks = [ok(rank, stdout(lines.format(rank) + "more\n" * rank)) for rank in (0, 1)]
    ranks.append(failed(2, CellError("ValueError", "bad"), stdout("begins\n")))

    text = text_of(*ranks)

    assert text.startswith("[rank2] ValueError: bad\n[rank2] begins\n[rank0] step 0")


def test_a_stop_comes_last() -> None:
    stop = failed(0, CellError("KeyboardInterrupt", ""), stdout("step 1\n"), status="stopped")

    assert text_of(stop) == "[rank0] step 1\n[rank0] stopped"


def test_all_ranks_failed_with_messages_of_their_own() -> None:
    ranks = [
        failed(rank, CellError("KeyError", f"{rank}", (in_cell(1, "d[rank]"),))) for rank in (0, 1)
    ]

    assert text_of(*ranks) == (
        "[rank0] KeyError: 0\n"
        "[rank1] KeyError: 1\n"
        "[ranks 0, 1]   In[3]:1  in <module>\n"
        "[ranks 0, 1]       d[rank]"
    )


def test_a_failure_deep_in_a_library() -> None:
    frames = (in_cell(2, "model(x)"), in_torch(1), in_torch(2), in_torch(3, "return F.linear(x)"))

    assert text_of(failed(0, CellError("RuntimeError", "shapes differ", frames))) == (
        "[rank0] RuntimeError: shapes differ\n"
        "[rank0]   In[3]:2  in <module>\n"
        "[rank0]       model(x)\n"
        "[rank0]   … 2 frames in torch …\n"
        "[rank0]   torch/nn/modules/linear.py:3  in forward\n"
        "[rank0]       return F.linear(x)"
    )


def test_a_message_of_several_lines_is_labelled_throughout() -> None:
    error = CellError("RuntimeError", "one\ntwo", cause=CellError("OSError", "three\nfour"))

    assert text_of(failed(0, error)) == (
        "[rank0] RuntimeError: one\n[rank0] two\n[rank0]   caused by OSError: three\n[rank0]   four"
    )


def test_stopped() -> None:
    error = CellError("KeyboardInterrupt", "", (in_cell(2, "time.sleep(60)"),))
    ranks = [failed(rank, error, stdout("working\n"), status="stopped") for rank in range(4)]

    assert text_of(*ranks) == (
        "[ranks 0–3] working\n"
        "[ranks 0–3] stopped\n"
        "[ranks 0–3]   In[3]:2  in <module>\n"
        "[ranks 0–3]       time.sleep(60)"
    )


def test_died() -> None:
    dead = failed(2, CellError("RankDied", "killed by SIGKILL"), status="dead")

    assert text_of(failed(0, waited(2)), dead) == (
        "[rank2] died: killed by SIGKILL\nrank 0 waited for rank 2 (In[3]:6)"
    )


def test_the_last_lines_of_the_dead_are_labelled() -> None:
    error = CellError("RankDied", "killed by SIGKILL")

    assert text_of(failed(2, error, stdout("step 1\nstep 2\n"), status="dead")) == (
        "[rank2] died: killed by SIGKILL\n"
        "[rank2]   its last lines:\n"
        "[rank2]       step 1\n"
        "[rank2]       step 2\n"
        "[rank2] step 1\n"
        "[rank2] step 2"
    )


def test_failed_without_a_word() -> None:
    assert text_of(failed(0, None)) == "[rank0] failed"
