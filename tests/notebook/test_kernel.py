"""What a person at a notebook gets: a real kernel, real ranks, a front end made of messages."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.notebook.driving import Notebook
from tests.processes import processes_marked, wait_for_end
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    """A notebook with two ranks that all tests of this file share."""
    with Notebook() as notebook:
        start_ranks(notebook)
        yield notebook


@pytest.fixture
def own_notebook(run_folder: Path) -> Iterator[Notebook]:
    """A notebook with two ranks for one test alone."""
    with Notebook() as notebook:
        start_ranks(notebook)
        yield notebook


def start_ranks(notebook: Notebook, overrides: str = "") -> None:
    assert notebook.run("%load_ext nbdist").status == "ok"
    started = notebook.run(f"%dist start -n 2 device=cpu {overrides}")
    if started.status != "ok":
        pytest.fail(f"the ranks did not start:\n{started.error}")


def ranks_of(notebook: Notebook) -> list[psutil.Process]:
    pids = notebook.value(
        "__import__('nbdist').session().pull('__import__(\"os\").getpid()').stack().tolist()"
    )
    return [psutil.Process(pid) for pid in pids]


# Starting ----------------------------------------------------------------------------------------


def test_a_start_prints_one_line_that_is_the_same_each_time(own_notebook: Notebook) -> None:
    own_notebook.run("%dist stop")

    started = own_notebook.run("%dist start -n 2 device=cpu")

    assert started.kinds == ["stream"]
    assert started.streams == "2 ranks on 1 host · cpu · cpu:gloo · seed 0\n"


def test_the_kernel_never_imports_torch(notebook: Notebook) -> None:
    notebook.run("%%dist -o x\ntorch.ones(3) * rank")
    notebook.run("repr(x)")

    assert notebook.value("'torch' in __import__('sys').modules") is False


def test_the_extension_may_be_loaded_twice(notebook: Notebook) -> None:
    again = notebook.run("%load_ext nbdist")

    assert again.status == "ok"
    assert "already loaded" in again.streams
    assert notebook.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"


def test_starting_again_with_the_same_configuration_does_nothing(notebook: Notebook) -> None:
    before = ranks_of(notebook)

    again = notebook.run("%dist start -n 2 device=cpu")

    assert again.streams == "already running: 2 ranks on 1 host · cpu · cpu:gloo · seed 0\n"
    assert ranks_of(notebook) == before


def test_starting_again_with_another_configuration_names_restart(notebook: Notebook) -> None:
    again = notebook.run("%dist start -n 3 device=cpu")

    assert again.status == "error"
    assert "%dist restart" in again.error
    assert notebook.run("%%dist\nrank").status == "ok"


def test_the_namespace_of_the_notebook_is_left_alone(own_notebook: Notebook) -> None:
    names = "sorted(n for n in globals() if not n.startswith('_'))"
    before = own_notebook.value(names)

    own_notebook.run("%%dist\nx = rank\nprint(x)\nx")
    own_notebook.run("%dist status")
    own_notebook.run("%dist restart")

    assert own_notebook.value(names) == before


# Cells -------------------------------------------------------------------------------------------


def test_a_cell_leaves_one_display_with_html_and_text(notebook: Notebook) -> None:
    cell = notebook.run("%%dist\nprint('one')\ndisplay('two')\nrank * 0")

    assert cell.kinds == ["display_data"]
    [content] = cell.of_kind("display_data")
    assert set(content["data"]) == {"text/html", "text/plain"}
    assert content["data"]["text/plain"] == "[ranks 0, 1] one\n[ranks 0, 1] 'two'\n[ranks 0, 1] 0"


def test_a_cell_that_says_nothing_shows_nothing(notebook: Notebook) -> None:
    assert notebook.run("%%dist\nx = 1").kinds == []


def test_a_failing_cell_shows_its_output_and_one_short_error(notebook: Notebook) -> None:
    cell = notebook.run("%%dist\nprint('before')\n1 / rank")

    assert cell.status == "error"
    assert cell.kinds == ["display_data", "error"]
    assert "ZeroDivisionError" in cell.display
    assert "[rank1] before" in cell.display or "[ranks 0, 1] before" in cell.display
    [error] = cell.of_kind("error")
    assert error["ename"] == "CellFailed"
    assert len(error["traceback"]) == 1
    assert "ZeroDivisionError" in error["evalue"]


def test_the_cell_after_an_error_runs(notebook: Notebook) -> None:
    notebook.run("%%dist\nkept = 7\nraise ValueError('x')")

    assert notebook.run("%%dist\nkept").display == "[ranks 0, 1] 7"


def test_a_syntax_error_is_shown_once_and_nothing_is_sent(notebook: Notebook) -> None:
    notebook.run("%%dist\nreached = False")

    cell = notebook.run("%%dist\nreached = True\nfor")

    assert cell.status == "error"
    assert cell.kinds == ["error"]
    assert cell.error.startswith("SyntaxError")
    assert notebook.run("%%dist\nreached").display == "[ranks 0, 1] False"


def test_a_rank_that_does_not_exist_is_answered_with_those_there_are(notebook: Notebook) -> None:
    cell = notebook.run("%%dist 5\nrank")

    assert cell.kinds == ["error"]
    assert cell.error.startswith("RankError")
    assert "There are ranks 0–1" in cell.error or "ranks 0, 1" in cell.error


def test_an_unknown_flag_and_an_unknown_verb_are_usage_errors(notebook: Notebook) -> None:
    flag = notebook.run("%%dist --nonsense\nran = True")
    verb = notebook.run("%dist strat")

    assert flag.error.startswith("UsageError")
    assert "Nothing has run" in flag.error
    assert verb.error.startswith("UsageError")
    assert "'start'" in verb.error
    assert notebook.run("%%dist\n'ran' in globals()").display == "[ranks 0, 1] False"


def test_old_habits_work(own_notebook: Notebook) -> None:
    assert own_notebook.run("%dist_shutdown").streams == "ranks 0, 1 stopped\n"
    started = own_notebook.run("%dist_init -n 2 device=cpu")

    assert started.streams == "2 ranks on 1 host · cpu · cpu:gloo · seed 0\n"
    assert "rank" in own_notebook.run("%dist_status").streams
    assert own_notebook.run("%%distributed\nrank * 0").display == "[ranks 0, 1] 0"
    assert own_notebook.run("%%rank[1]\nrank").display == "[rank1] 1"
    assert own_notebook.run("%%rank 0\nrank").display == "[rank0] 0"


def test_the_values_of_the_last_line_arrive_under_a_name(notebook: Notebook) -> None:
    cell = notebook.run("%%dist -o squares\n[rank ** 2, torch.ones(2) * rank]")

    assert cell.status == "ok"
    assert notebook.value("[squares[0][0], squares[1][0]]") == [0, 1]
    assert notebook.value("squares[1][1].tolist()") == [1.0, 1.0]


def test_functions_classes_and_instances_of_the_notebook_are_pushed(notebook: Notebook) -> None:
    notebook.run("class Scale:\n    def __init__(self, by): self.by = by")
    notebook.run("double = Scale(2)\ndef apply(f, x):\n    return x * f.by / world_size")

    assert notebook.run("%dist push double apply").status == "ok"

    code = "(apply(double, 5), isinstance(double, Scale))"
    assert notebook.run(f"%%dist\n{code}").display == "[ranks 0, 1] (5.0, True)"
    failed = notebook.run("%%dist\napply(None, 5)")
    assert "    return x * f.by / world_size" in failed.display
    assert "ipykernel" not in failed.display


def test_values_are_pulled_and_pushed_by_verbs(notebook: Notebook) -> None:
    notebook.run("a, b = 3, [1, 2]")
    assert notebook.run("%dist push a b").status == "ok"
    assert notebook.run("%%dist\n(a, b)").display == "[ranks 0, 1] (3, [1, 2])"

    notebook.run("%%dist\nc = rank + a")
    pulled = notebook.run("%dist pull c -o mine -r 1")

    assert pulled.status == "ok"
    assert notebook.value("list(mine.items())") == [(1, 4)]


def test_a_cell_that_is_not_waited_for_gives_a_run(notebook: Notebook) -> None:
    first = notebook.run("%%dist -a\nimport time; time.sleep(0.2); rank")

    assert first.kinds == ["execute_result"]
    assert "<Run In[" in first.of_kind("execute_result")[0]["data"]["text/plain"]
    assert notebook.run("first = _").status == "ok"
    notebook.run("%%dist -a\nrank * 10")
    notebook.run("second = _")
    assert notebook.value("list(second.result())") == [0, 10]
    assert notebook.value("list(first.result())") == [0, 1]
    assert notebook.run("list(await first)").status == "ok"


def test_a_cell_that_takes_too_long_is_stopped(notebook: Notebook) -> None:
    cell = notebook.run("%%dist --timeout 0.5\nwhile True: pass")

    assert cell.status == "error"
    assert cell.error.startswith("CellStopped: stopped on ranks 0, 1, after --timeout 0.5 s")
    assert notebook.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"


def test_a_cell_may_run_here_as_well(notebook: Notebook) -> None:
    cell = notebook.run("%%dist --local\nlocal_too = 5")

    assert cell.status == "ok"
    assert notebook.value("local_too") == 5
    assert notebook.run("%%dist\nlocal_too").display == "[ranks 0, 1] 5"
    notebook.run("del local_too")


def test_ranks_of_a_cell_may_ask_the_user(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%dist\nname = input('who? ') if rank == 1 else None\nname", answers=["Ada"]
    )

    assert cell.status == "ok"
    assert [content["prompt"] for content in cell.of_kind("input_request")] == ["[rank1] who? "]
    assert "[rank1] 'Ada'" in cell.display


def test_where_nobody_can_be_asked_input_is_an_error(notebook: Notebook) -> None:
    cell = notebook.run("%%dist 0\ninput()")

    assert cell.status == "error"
    assert "EOFError" in cell.error


def test_the_lines_of_a_cell_are_numbered_as_on_the_page(notebook: Notebook) -> None:
    cell = notebook.run("%%dist\nx = 1\n1 / 0")

    count = cell.reply["execution_count"]
    assert f"In[{count}]:3" in cell.error


def test_live_lines_are_labelled_and_not_told_again() -> None:
    with Notebook(env={"NBDIST_LIVE": "lines"}) as notebook:
        start_ranks(notebook)
        cell = notebook.run("%%dist\nprint('hello')\nprint('world')\nrank * 0")

    assert sorted(cell.streams.splitlines()) == [
        "[rank0] hello",
        "[rank0] world",
        "[rank1] hello",
        "[rank1] world",
    ]
    assert cell.display == "[ranks 0, 1] 0"


def test_a_page_sees_the_lines_of_a_long_cell_while_it_runs(
    notebook: Notebook, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    running = notebook.begin(
        "%%dist 0\nimport pathlib, time\n"
        "print('working')\n"
        f"while not pathlib.Path('{gate}').exists(): time.sleep(0.01)",
        page=True,
    )
    running.until_shown("working")
    gate.touch()
    cell = running.finish()

    assert cell.kinds[-2:] == ["clear_output", "display_data"]
    live, final = (content["data"] for content in cell.of_kind("display_data"))
    assert "application/vnd.jupyter.widget-view+json" in live
    assert final["text/plain"] == "[rank0] working"


FAILS_WHILE_THE_OTHER_RUNS = """%%dist
import pathlib, time
if rank == 0: raise ValueError("early")
while not pathlib.Path({gate!r}).exists(): time.sleep(0.01)
print("went on")"""


@pytest.mark.parametrize("live", ["widget", "lines"])
def test_why_a_rank_failed_is_shown_while_the_others_go_on(
    notebook: Notebook, tmp_path: Path, live: str
) -> None:
    gate = tmp_path / "gate"
    notebook.run(f"import os; os.environ['NBDIST_LIVE'] = {live!r}")
    running = notebook.begin(FAILS_WHILE_THE_OTHER_RUNS.format(gate=str(gate)))

    running.until_shown('raise ValueError(\\"early\\")')
    gate.touch()
    cell = running.finish()
    notebook.run("del os.environ['NBDIST_LIVE']")

    final = cell.of_kind("display_data")[-1]["data"]["text/plain"]
    assert final.startswith("[rank0] ValueError: early")


def test_a_cell_leaves_nothing_that_is_not_alike_twice(notebook: Notebook) -> None:
    cells = [notebook.run("%%dist\nimport time\ntime.sleep(0.01)\nprint(1)") for _ in range(2)]

    assert cells[0].outputs == cells[1].outputs


def test_a_figure_of_a_rank_is_an_image_in_the_final_output(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%dist 0\nimport matplotlib.pyplot as plt\n_ = plt.plot([1, 2])\nplt.show()"
    )

    assert cell.status == "ok"
    [content] = cell.of_kind("display_data")
    assert "data:image/png;base64," in content["data"]["text/html"]


def test_updates_and_clears_of_a_rank_are_carried_out(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%dist 0\nfrom IPython.display import clear_output\nprint('gone')\nclear_output()\n"
        "handle = display('first', display_id=True)\nhandle.update('second')\nprint('stays')"
    )

    assert cell.display == "[rank0] 'second'\n[rank0] stays"


def test_the_first_cell_after_a_start_is_not_lost(own_notebook: Notebook) -> None:
    own_notebook.run("%dist stop")

    started = own_notebook.begin("%dist start -n 2 device=cpu")
    first = own_notebook.begin("%%dist\nprint('the first')")

    assert started.finish().status == "ok"
    assert first.finish().display == "[ranks 0, 1] the first"


def test_the_same_cell_gives_the_same_bytes(notebook: Notebook) -> None:
    code = "%%dist\nprint('p', rank)\ntorch.manual_seed(0); torch.rand(2)"

    first, second = notebook.run(code), notebook.run(code)

    assert first.of_kind("display_data")[0]["data"] == second.of_kind("display_data")[0]["data"]


def test_a_reply_is_not_overtaken_by_its_output(notebook: Notebook) -> None:
    for turn in range(30):
        cell = notebook.run(
            f"%%dist\nprint('x' * 100 + '{turn}', flush=True)\nimport os; os.write(1, b'y')\n{turn}"
        )

        assert cell.display.count("x" * 100) == 1
        assert cell.display.endswith(str(turn))


def test_an_empty_cell_is_no_error(notebook: Notebook) -> None:
    assert notebook.run("%%dist\n").status in ("ok", "error")
    assert notebook.run("%%dist\n# a remark").status == "ok"
    assert notebook.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"


def test_no_ranks_no_cell() -> None:
    with Notebook() as notebook:
        notebook.run("%load_ext nbdist")
        cell = notebook.run("%%dist\n1")

        assert cell.error.startswith("SessionError: No ranks are running")
        assert "%dist start" in notebook.run("%dist").streams


def test_a_rank_that_dies_ends_the_cell_and_the_next_one_says_so(own_notebook: Notebook) -> None:
    cell = own_notebook.run("%%dist\nkept = 1\nif rank: import os; os._exit(3)")

    assert cell.status == "error"
    assert "rank 1" in cell.error
    assert "exited with code 3" in cell.display
    assert "exited with code 3" in own_notebook.run("%%dist\n1").error
    assert own_notebook.run("%%dist 0\nkept").display == "[rank0] 1"
    assert "dead" in own_notebook.run("%dist status").streams


# The stop button ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(600)",
        "import asyncio; await asyncio.sleep(600)",
        "!sleep 600",
        "while True: print('x')",
        "input()",
    ],
)
def test_the_stop_button_ends_a_cell_and_the_next_one_works(
    notebook: Notebook, tmp_path: Path, code: str
) -> None:
    pids = ranks_of(notebook)
    running = notebook.begin(
        f"%%dist\nopen(f'{tmp_path}/{{rank}}', 'w').close()\n{code}", answers=[]
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to reach the cell")

    notebook.interrupt()
    cell = running.finish(timeout_s=10)

    assert cell.status == "error"
    assert cell.error.startswith("CellStopped")
    assert notebook.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"
    assert ranks_of(notebook) == pids


def test_a_stop_soon_after_the_send_is_not_lost(notebook: Notebook, tmp_path: Path) -> None:
    # Earlier than the ranks begin is out of reach: ipykernel loses a cell that is interrupted
    # before its code has the floor.
    pids = ranks_of(notebook)
    for turn in range(20):
        folder = tmp_path / str(turn)
        folder.mkdir()
        running = notebook.begin(
            f"%%dist\nopen(f'{folder}/{{rank}}', 'w').close()\nwhile True: pass"
        )
        wait_until(partial(any_file_in, folder), "a rank to begin")
        time.sleep(0.0005 * turn)  # another moment each time

        notebook.interrupt()
        cell = running.finish(timeout_s=10)

        assert cell.error.startswith("CellStopped")
    assert notebook.run("%%dist\nrank * 0").display == "[ranks 0, 1] 0"
    assert ranks_of(notebook) == pids


def any_file_in(folder: Path) -> bool:
    return any(folder.iterdir())


def test_a_stopped_pull_leaves_a_working_notebook(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run(
        "%%dist\nimport pathlib, time\ndef slow():\n"
        f"    pathlib.Path(f'{tmp_path}/{{rank}}').touch()\n    time.sleep(600)"
    )
    running = notebook.begin("%dist pull slow() -o never")
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to reach the function")

    notebook.interrupt()
    cell = running.finish(timeout_s=10)

    assert cell.status == "error"
    assert notebook.run("%%dist\nrank * 0", timeout_s=10).display == "[ranks 0, 1] 0"


def test_a_start_can_be_stopped_and_leaves_nothing() -> None:
    with Notebook() as notebook:
        notebook.run("%load_ext nbdist")
        running = notebook.begin("%dist start -n 2 device=cpu")
        wait_until(lambda: len(notebook.processes()) > 2, "the first processes of the start")

        notebook.interrupt()
        cell = running.finish(timeout_s=20)

        assert cell.status == "error"
        wait_until(lambda: len(notebook.processes()) == 1, "all but the kernel to be gone")
        start_ranks(notebook)


# The end -----------------------------------------------------------------------------------------


def test_stop_ends_every_process_but_the_kernel(own_notebook: Notebook, run_folder: Path) -> None:
    stopped = own_notebook.run("%dist stop")

    assert stopped.streams == "ranks 0, 1 stopped\n"
    assert [p.pid for p in own_notebook.processes()] == [own_notebook.pid]
    assert list(run_folder.iterdir()) == []


def test_a_restart_of_the_kernel_leaves_nothing_behind(
    own_notebook: Notebook, run_folder: Path
) -> None:
    before = own_notebook.processes()

    own_notebook.restart()

    assert wait_for_end(before, timeout_s=15) == []
    wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")
    assert own_notebook.run("1 + 1").status == "ok"


def test_closing_the_kernel_leaves_nothing_behind(own_notebook: Notebook, run_folder: Path) -> None:
    before = own_notebook.processes()

    own_notebook.close()

    assert wait_for_end(before, timeout_s=15) == []
    wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")


def test_a_killed_kernel_leaves_nothing_behind_after_its_lease(run_folder: Path) -> None:
    with Notebook() as notebook:
        start_ranks(notebook, "lease_s=0.3")
        before = notebook.processes()

        os.kill(notebook.pid, signal.SIGKILL)

        assert wait_for_end(before, timeout_s=15) == []
        wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")


def test_a_kernel_that_is_killed_in_a_cell_leaves_nothing_behind_after_its_lease(
    run_folder: Path, tmp_path: Path
) -> None:
    with Notebook() as notebook:
        start_ranks(notebook, "lease_s=0.3")
        notebook.begin(f"%%dist\nopen(f'{tmp_path}/{{rank}}', 'w').close()\nwhile True: pass")
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to be busy")
        before = notebook.processes()

        os.kill(notebook.pid, signal.SIGKILL)

        assert wait_for_end(before, timeout_s=15) == []
        wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")


@pytest.mark.parametrize(
    "code",
    [
        "%%dist\nopen('{path}', 'w').close()\nimport ctypes; ctypes.PyDLL(None).sleep(600)",
        "open('{path}', 'w').close()\n"
        "while True:\n    try:\n        while True: pass\n    except KeyboardInterrupt: pass",
    ],
    ids=["ranks in a C call", "a loop that takes no interrupt"],
)
def test_a_restart_of_a_busy_kernel_ends_its_ranks(
    own_notebook: Notebook, run_folder: Path, tmp_path: Path, code: str
) -> None:
    own_notebook.begin(code.format(path=tmp_path / "begun"))
    wait_until((tmp_path / "begun").exists, "the cell to begin")
    before = own_notebook.processes()

    own_notebook.restart()

    assert wait_for_end(before, timeout_s=15) == []
    wait_until(lambda: not list(run_folder.iterdir()), "the session folder to be gone")


# What others can see -----------------------------------------------------------------------------


def test_every_socket_of_the_session_is_on_loopback(notebook: Notebook) -> None:
    session_id = notebook.value("__import__('nbdist').session().session_id")
    processes = processes_marked("NBDIST_SESSION", session_id)

    inodes = {inode for process in processes for inode in sockets_of(process.pid)}
    listening = [address for address, inode in listeners() if inode in inodes]

    assert len(processes) >= 4
    assert listening
    assert set(listening) == {"127.0.0.1"}


def sockets_of(pid: int) -> set[str]:
    """Return the inodes of the sockets that process *pid* holds."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def listeners() -> list[tuple[str, str]]:
    """Return (address, inode) of every TCP socket of this machine that listens."""
    found = []
    for family, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        table = Path(f"/proc/net/{name}")
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            words = line.split()
            address, inode = words[1].partition(":")[0], words[9]
            if words[3] == "0A":
                # groups of four bytes, each group in the order of this machine
                groups = [
                    bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)
                ]
                found.append((socket.inet_ntop(family, b"".join(groups)), inode))
    return found


def test_nothing_is_written_to_the_home_of_the_user(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    places = {"HOME": str(home), "IPYTHONDIR": str(home / ".ipython")}
    with Notebook(env=places) as notebook:
        before = files_below(home)
        start_ranks(notebook)
        notebook.run("%%dist\nprint(rank)\nimport os; os.system('true')\n1 / 0")
        notebook.run("%dist pull rank")
        notebook.run("%dist stop")
        after = files_below(home)

    assert after - before == set()


def files_below(folder: Path) -> set[str]:
    """Return all files below *folder*, but for IPython's own history of what was typed."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if "history.sqlite" not in name}
