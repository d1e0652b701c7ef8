"""What a rank keeps of its last cells, and how it is read again. No ranks: files alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from nbdist.errors import SessionError
from nbdist.folder import SessionFolder
from nbdist.rank.journal import Journal
from nbdist.sessions.journals import Journals, Tail, order_of
from nbdist.wire import CellError, CellReply, CellRequest, Display, Dropped, Text, output_to_json
from nbdist.wire import to_json as as_json
from tests.private_files import write_private

HELLO = Text("stdout", "hello\n")


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    return SessionFolder.create(tmp_path)


def journal_of(folder: SessionFolder, rank: int = 0, **bounds: int) -> Journal:
    return Journal(folder.journals(rank), **({"max_cell_bytes": 2**20} | bounds))


def request(number: int, ranks: tuple[int, ...] = (0,)) -> dict[str, Any]:
    cell = CellRequest(f"abc-0.{number}", "secret = 1", f"In[{number}]", number, ranks)
    return as_json(cell)


def reply(*outputs: Text | Display) -> dict[str, Any]:
    return CellReply(status="ok", num_batches=0, outputs=outputs).to_json()


def keep(journal: Journal, number: int, text: str = "", ranks: tuple[int, ...] = (0,)) -> None:
    """Keep a cell that has published *text*."""
    journal.begin(request(number, ranks))
    if text:
        journal.add([output_to_json(Text("stdout", text))])
    journal.end(reply())


def test_a_cell_comes_back_as_it_was(folder: SessionFolder) -> None:
    journal = journal_of(folder)
    journal.begin(request(3))
    journal.add([output_to_json(HELLO)])
    journal.end(reply(Display("result", {"text/plain": "7"}, scalar=7)))

    [cell] = Journals(folder).last()

    assert cell.request == CellRequest("abc-0.3", "", "In[3]", 3, (0,))
    output = Journals(folder).output_of(cell)
    assert output.status == "ok"
    assert output.outputs == (HELLO, Display("result", {"text/plain": "7"}, scalar=7))


def test_code_and_values_are_not_kept(folder: SessionFolder) -> None:
    journal = journal_of(folder)
    journal.begin(request(3))
    journal.end(reply() | {"value": {"kind": "pickle"}})

    [path] = folder.journals(0).iterdir()
    assert "secret" not in path.read_text()
    assert "pickle" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_the_newest_cell_of_a_label_is_meant(folder: SessionFolder) -> None:
    journal = journal_of(folder)
    for text in ("old\n", "new\n"):
        keep(journal, 5, text)
    keep(journal, 6)

    [cell] = Journals(folder).labelled("In[5]")

    assert cell.outputs == [Text("stdout", "new\n")]


def test_a_label_that_is_not_kept_is_answered_with_those_that_are(folder: SessionFolder) -> None:
    keep(journal_of(folder), 12)

    with pytest.raises(SessionError, match=r"In\[12\]"):
        Journals(folder).labelled("In[13]")


def test_without_any_cell_there_is_no_last(folder: SessionFolder) -> None:
    assert Journals(folder).last() == []
    with pytest.raises(SessionError, match="No cell has run yet"):
        Journals(folder).labelled("In[1]")


def test_the_last_cell_is_the_last_that_was_sent_on_all_its_ranks(folder: SessionFolder) -> None:
    both, alone = journal_of(folder, 0), journal_of(folder, 1)
    keep(both, 9, "a", (0, 1))
    keep(alone, 9, "b", (0, 1))
    keep(alone, 10, "c", (1,))

    assert [(c.rank, c.request.number) for c in Journals(folder).last()] == [(1, 10)]
    assert [c.rank for c in Journals(folder).labelled("In[9]")] == [0, 1]


def test_cells_of_a_later_kernel_come_later() -> None:
    assert sorted(["a-1.2", "a-0.10", "a-0.9"], key=order_of) == ["a-0.9", "a-0.10", "a-1.2"]


def test_a_cell_without_an_end_runs_as_long_as_its_process(folder: SessionFolder) -> None:
    folder.record_birth("rank 0", os.getpid())
    journal = journal_of(folder)
    journal.begin(request(1))
    journal.add([output_to_json(HELLO)])
    journals = Journals(folder)

    [cell] = journals.last()
    running = journals.output_of(cell)
    cell.pid = 2**22 + 1  # no process has such a number
    write_private(folder.rank_log(0), "── In[1] ──\nhello\nlast words\n")
    dead = journals.output_of(cell)

    assert (running.status, running.outputs) == ("ok", (HELLO,))
    assert dead.status == "dead"
    assert dead.outputs == (HELLO, Text("stdout", "last words\n"))
    assert isinstance(dead.error, CellError)


def test_too_much_of_one_cell_is_counted(folder: SessionFolder) -> None:
    journal = journal_of(folder, max_cell_bytes=3000)
    journal.begin(request(1))
    for _ in range(10):
        journal.add([output_to_json(Text("stdout", "x" * 1000))])
    journal.end(reply(HELLO))

    [cell] = Journals(folder).last()

    *kept, dropped = cell.outputs
    assert len(kept) == 2
    assert isinstance(dropped, Dropped)
    assert dropped.size_bytes > 8000
    assert cell.reply is not None
    assert cell.reply.outputs == (HELLO,)


def test_the_oldest_cells_go_when_there_are_too_many_bytes(folder: SessionFolder) -> None:
    journal = journal_of(folder, file_bytes=2000, max_bytes=8000)
    for number in range(1, 41):
        keep(journal, number, "x" * 500)

    numbers = [cell.request.number for cell in Journals(folder).cells(0)]

    assert numbers[0] == 40
    assert numbers == list(range(40, 40 - len(numbers), -1))
    assert 10 <= len(numbers) <= 20
    assert sum(path.stat().st_size for path in folder.journals(0).iterdir()) < 12000


def test_a_process_that_takes_the_place_of_another_goes_on_behind_it(
    folder: SessionFolder,
) -> None:
    keep(journal_of(folder), 1)
    keep(journal_of(folder), 2)

    assert [cell.request.number for cell in Journals(folder).cells(0)] == [2, 1]
    assert len(list(folder.journals(0).iterdir())) == 2


def test_a_folder_that_cannot_be_written_to_breaks_no_cell(folder: SessionFolder) -> None:
    folder.journals(0).write_text("a file in its place")
    journal = journal_of(folder)

    keep(journal, 1, "lost")
    keep(journal, 2, "lost as well")

    assert folder.journals(0).read_text() == "a file in its place"


def test_a_line_that_was_cut_off_spoils_no_other(folder: SessionFolder) -> None:
    journal = journal_of(folder)
    journal.begin(request(1))
    [path] = folder.journals(0).iterdir()
    with path.open("a") as file:
        file.write('{"outputs": [{"type": "text\n')
    journal.add([output_to_json(HELLO)])
    with path.open("a") as file:
        file.write('{"outputs": [{"type": "text')  # no line break: the process was killed here

    [cell] = Journals(folder).last()

    assert cell.outputs == [HELLO]


def test_text_that_utf8_cannot_hold_is_readable(folder: SessionFolder) -> None:
    keep(journal_of(folder), 1, "\xe9t\xe9 \udcff")

    [cell] = Journals(folder).last()

    assert cell.outputs == [Text("stdout", "\xe9t\xe9 ?")]


def test_a_tail_gives_each_entry_once_across_files(folder: SessionFolder) -> None:
    journal = journal_of(folder, file_bytes=1)  # a file for each cell
    tail = Tail(folder.journals(0))
    found = []
    for number in range(1, 4):
        journal.begin(request(number))
        found += list(tail.read())
        journal.end(reply())
    found += [*tail.read(), *tail.read()]
    tail.close()

    assert [next(iter(entry)) for entry in found] == ["cell", "reply"] * 3


def test_a_tail_waits_for_the_end_of_a_line(folder: SessionFolder) -> None:
    folder.journals(0).mkdir(parents=True)
    path = folder.journals(0) / "1.jsonl"
    tail = Tail(folder.journals(0))
    write_private(path, '{"inp')
    before = list(tail.read())
    with path.open("a") as file:
        file.write('ut": null}\n')

    assert before == []
    assert list(tail.read()) == [{"input": None}]
    tail.close()
