"""A rank asks: what is on the page then, what the stop button does, and what pdb shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook.driving import Cell, Notebook

pytestmark = pytest.mark.ranks

FAILING = "def inner(x):\n    y = 2 * x\n    return y / 0\ninner(21)"


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """A notebook with two ranks, whose output is shown line by line."""
    with Notebook(env={"NBDIST_LIVE": "lines"}) as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        assert notebook.run("%dist start -n 2 device=cpu").status == "ok"
        yield notebook


def shown_at_prompt(notebook: Notebook, code: str, *texts: str, answer: str) -> Cell:
    """Run a cell that asks once; all *texts* must be on the page before the answer is typed."""
    running = notebook.begin(code, answers=[])
    running.until_asked()
    for text in texts:
        running.until_shown(text)
    notebook.answer(answer)
    return running.finish()


def prompts(cell: Cell) -> list[str]:
    return [content["prompt"] for content in cell.of_kind("input_request")]


# What is on the page ------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["input('which? ')", "__import__('getpass').getpass('which? ')"])
def test_what_was_printed_before_a_question_is_on_the_page(notebook: Notebook, ask: str) -> None:
    code = f"%%dist 1\nprint('a) train')\nprint('b) eval', end=' ')\nprint({ask})"

    cell = shown_at_prompt(notebook, code, "a) train", "b) eval", answer="a")

    assert cell.status == "ok", cell


def test_what_a_child_process_wrote_before_a_question_is_on_the_page(notebook: Notebook) -> None:
    code = "%%dist 0\nimport os\n_ = os.system('echo from the child')\ninput('go on? ')"

    assert shown_at_prompt(notebook, code, "from the child", answer="y").status == "ok"


def test_what_pdb_answers_is_there_at_its_next_prompt(notebook: Notebook) -> None:
    running = notebook.begin("%%dist 1\nbatch = 17\nbreakpoint()\nafter = 1", answers=[])
    running.until_asked()

    notebook.answer("p batch")
    running.until_asked(2)
    running.until_shown("17")

    notebook.answer("c")
    assert running.finish().status == "ok"


def test_while_one_rank_asks_the_others_are_followed(notebook: Notebook) -> None:
    running = notebook.begin(
        "%%dist\nimport time\nif rank == 0:\n    input('well? ')\n"
        "else:\n    time.sleep(0.5)\n    print('rank 1 is here')",
        answers=[],
    )
    running.until_asked()

    running.until_shown("rank 1 is here")

    notebook.answer("yes")
    assert running.finish().status == "ok"


# The stop button ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        "if rank == 1: input('well? ')",
        "if rank == 1: breakpoint()\ndist.barrier()",
        "import pdb\npdb.set_trace()\ndist.barrier()",
        "dist.breakpoint(1)",
        "try: 1 / 0\nexcept ZeroDivisionError: __import__('pdb').post_mortem()",
    ],
)
def test_the_stop_button_at_a_prompt_ends_the_cell_and_keeps_all(
    notebook: Notebook, ask: str
) -> None:
    notebook.run("%%dist\nkept = rank + 10")
    running = notebook.begin(f"%%dist\n{ask}", answers=[])
    running.until_asked()

    notebook.interrupt()
    cell = running.finish(timeout_s=10)

    assert cell.status == "error"
    assert "stopped" in cell.error
    assert "--KeyboardInterrupt--" not in cell.streams
    after = notebook.run(
        "%%dist\nt = torch.ones(1)\ndist.all_reduce(t)\nprint(int(t), kept - rank)"
    )
    assert "[ranks 0, 1] 2 10" in after.streams or "2 10" in after.streams, after


def test_after_c_the_stop_button_ends_the_cell_as_ever(notebook: Notebook) -> None:
    running = notebook.begin(
        "%%dist 0\nbreakpoint()\nprint('goes on', flush=True)\nwhile True: pass", answers=["c"]
    )
    running.until_shown("goes on")

    notebook.interrupt()
    cell = running.finish(timeout_s=10)

    assert cell.status == "error"
    assert len(prompts(cell)) == 1


def test_a_stop_at_a_prompt_lets_go_of_the_frame(notebook: Notebook) -> None:
    notebook.run("%%dist\nimport weakref, gc\nrefs = []")
    running = notebook.begin(
        "%%dist\ndef f():\n    big = torch.ones(3)\n    refs.append(weakref.ref(big))\n"
        "    breakpoint()\n    return big.sum()\nf()",
        answers=[],
    )
    running.until_asked()
    notebook.interrupt()
    running.finish(timeout_s=10)

    cell = notebook.run("%%dist\n_ = gc.collect()\nprint([ref() for ref in refs])")

    assert "[None]" in cell.streams


# What pdb shows -----------------------------------------------------------------------------------


def test_a_breakpoint_in_the_last_line_stops_there(notebook: Notebook) -> None:
    cell = notebook.run("%%dist 1\nbatch = 17\nbreakpoint()", answers=["p batch", "w", "c"])

    assert cell.status == "ok", cell
    assert "-> breakpoint()" in cell.streams
    assert "[rank1] 17" in cell.streams
    assert "nbdist" not in cell.streams.replace("%dist", "")


def test_pdb_shows_the_lines_of_the_cell_and_the_frames_of_the_user(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%dist 0\ndef f():\n    number = 5\n    breakpoint()\n    return number\nf()",
        answers=["w", "l", "c"],
    )

    assert cell.status == "ok", cell
    count = cell.reply["execution_count"]
    assert f"In[{count}](5)f()" in cell.streams
    assert "-> return number" in cell.streams
    assert f"/In[{count}]" not in cell.streams
    for ours in ("agent.py", "nbdist/rank", "ipykernel", "interactiveshell"):
        assert ours not in cell.streams


@pytest.mark.parametrize("way", ["%debug", "import pdb\npdb.pm()"])
def test_the_frame_that_failed_can_be_opened_afterwards(notebook: Notebook, way: str) -> None:
    assert notebook.run(f"%%dist\n{FAILING}").status == "error"

    for _ in range(2):  # as often as one likes
        cell = notebook.run(f"%%dist 1\n{way}", answers=["p y", "u", "p rank", "q"])

        assert cell.status == "ok", cell
        assert "-> return y / 0" in cell.streams
        assert "[rank1] 42" in cell.streams
        assert "-> inner(21)" in cell.streams


def test_pdb_on_opens_the_frame_at_once(notebook: Notebook) -> None:
    notebook.run("%%dist 1\n%pdb on")

    cell = notebook.run(f"%%dist 1\n{FAILING}", answers=["p y", "q"])
    notebook.run("%%dist 1\n%pdb off")

    assert cell.status == "error"
    assert "ZeroDivisionError" in cell.error
    assert "42" in cell.streams
    assert prompts(notebook.run(f"%%dist 1\n{FAILING}", answers=["q"])) == []


def test_another_cell_lets_go_of_the_frame_that_failed(notebook: Notebook) -> None:
    notebook.run(
        "%%dist\nimport weakref\nclass Big: pass\ndef f():\n    big = Big()\n"
        "    global ref\n    ref = weakref.ref(big)\n    1 / 0\nf()"
    )
    looked = notebook.run("%%dist 0\n%debug", answers=["p big", "q"])

    gone = notebook.run("%%dist\nprint(ref())")
    nothing = notebook.run("%%dist 0\n%debug", answers=["q"])

    assert "Big object" in looked.streams
    assert "[rank0] None" in gone.streams
    assert prompts(nothing) == []
    assert "no frame is left" in nothing.streams


def test_a_plain_debug_says_how_to_get_to_the_rank(notebook: Notebook) -> None:
    notebook.run("%%dist\nif rank == 1: raise ValueError('bug')\ndist.barrier()")

    ranks = notebook.run("%debug", answers=["q"])
    notebook.run("1 / 0")
    own = notebook.run("%debug", answers=["q"])

    assert prompts(ranks) == []
    assert "failed on rank 1" in ranks.streams
    assert "%%dist 1\n%debug" in ranks.streams
    assert len(prompts(own)) == 1
