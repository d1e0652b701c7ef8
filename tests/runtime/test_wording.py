from __future__ import annotations

from pathlib import Path

from nbdist.runtime.slots import GroupKey, Record
from nbdist.runtime.table import Table
from nbdist.runtime.wording import mismatch_text


def test_a_mismatch_of_amounts_names_the_ranks_that_do_not_fit(tmp_path: Path) -> None:
    with Table.create(tmp_path / "table", 2) as table:
        slot = table.slot(GroupKey("0", (0, 1)), 0)
        slot.post(0, Record(1, "all_to_all_single(float32[4])", gives=(1, 3), takes=(1, 1)))
        slot.post(1, Record(1, "all_to_all_single(float32[3])", gives=(1, 2), takes=(2, 2)))

        text = mismatch_text(slot, 1, "0")

    assert "rank 0 gives rank 1 3 elements, rank 1 takes 2 from it" in text
    assert "rank 1 gives" not in text
