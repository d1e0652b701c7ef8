from __future__ import annotations

from nbdist.view.fold import Block
from nbdist.view.merge import Variants, blocks_of
from nbdist.view.page import lay_out
from nbdist.wire import CallCount, CellError, Dropped
from tests.view.build import failed, ok, result, stderr, stdout, value_error, waited


def test_ranks_are_laid_out_in_rank_order() -> None:
    page = lay_out([ok(2, stdout("c")), ok(0, stdout("a")), ok(1, stdout("b"))])

    assert [block.ranks for part in page.parts for block in blocks_of(part)] == [(0,), (1,), (2,)]


def test_a_cell_without_output_is_empty() -> None:
    assert lay_out([ok(0), ok(1, stdout(""))]).is_empty
    assert lay_out([]).is_empty


def test_a_failure_is_something_to_show() -> None:
    assert not lay_out([failed(0, None)]).is_empty


def test_outputs_fold_even_if_only_one_rank_failed() -> None:
    page = lay_out([ok(0, stdout("a")), failed(1, value_error("bad"), stdout("a"))])

    assert [block.ranks for part in page.parts for block in blocks_of(part)] == [(0, 1)]
    assert page.fate((0, 1)) == ""


def test_the_fate_of_a_block_is_said() -> None:
    dead = CellError("RankDied", "killed")
    page = lay_out(
        [
            ok(0, stdout("a")),
            failed(1, value_error("bad"), stdout("b")),
            failed(2, dead, stdout("c"), status="dead"),
            failed(3, None, stdout("d"), status="stopped"),
            failed(4, waited(1), stdout("e")),
        ]
    )

    assert [page.fate([rank]) for rank in range(5)] == ["", "failed", "died", "", ""]


def test_unfolded_every_rank_has_its_block_and_there_is_no_table() -> None:
    page = lay_out([ok(0, result("1", 1)), ok(1, result("2", 2))], is_folded=False)

    assert page.table is None
    [part] = page.parts
    assert isinstance(part, Variants)
    assert part.kind == "whole"
    assert [block.ranks for block in part.blocks] == [(0,), (1,)]


def test_unfolded_ranks_share_no_lines() -> None:
    page = lay_out([ok(rank, stdout(f"a\nb\n{rank}\n")) for rank in range(2)], is_folded=False)

    blocks = [block for part in page.parts for block in blocks_of(part)]
    assert [block.outputs for block in blocks] == [(stdout(f"a\nb\n{r}\n"),) for r in range(2)]


def test_what_was_called_is_something_to_show() -> None:
    calls = {0: [CallCount("barrier", "0", (0,), 1, 0)]}

    assert not lay_out([ok(0)], calls=calls).is_empty
    assert lay_out([ok(0)], calls={0: []}).is_empty


def test_text_that_was_streamed_is_left_out() -> None:
    outputs = (stdout("a"), stderr("b"), result("[1]"), Dropped(3))

    [block] = lay_out([ok(0, *outputs)], has_text=False).parts

    assert block == Block((0,), (result("[1]"), Dropped(3)))
