from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

import nbdist
from nbdist import cli
from nbdist.cli import lab, run, sessions
from nbdist.errors import UsageError
from nbdist.folder import SessionFolder, boot_id
from tests.private_files import write_private
from tests.processes import wait_for_end

NBDIST = [sys.executable, "-m", "nbdist"]


def call(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*NBDIST, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, **options)


def code(source: str, *tags: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": "code", "source": source, "metadata": {"tags": tags}}
    return cell | {"execution_count": None, "outputs": []}


def markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def write_notebook(path: Path, *cells: dict[str, Any]) -> Path:
    content = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": cells}
    path.write_text(json.dumps(content))
    return path


@contextmanager
def running(*words: str | Path, until: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command; yield when its output has had the text *until*."""
    command = [*NBDIST, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            assert process.stdout is not None
            assert any(until in line for line in process.stdout), f"it ended without {until!r}"
            yield process
        finally:
            process.kill()


# The command itself ---------------------------------------------------------------------------


def test_version_imports_neither_torch_nor_ipyparallel() -> None:
    code = (
        "import sys; from nbdist.cli import main; main(['version']);"
        "print(sorted({'torch', 'ipyparallel', 'IPython', 'omegaconf'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_version_names_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["nbdist", nbdist.__version__]
    assert [name for name, _ in lines] == ["nbdist", "torch", "ipyparallel", "python"]


def test_a_package_that_is_missing_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "VERSIONS_SHOWN", ("no-such-package",))

    assert cli.main(["version"]) == 0
    assert "no-such-package not installed" in capsys.readouterr().out


def test_the_console_script_is_the_module() -> None:
    script = Path(sys.executable).with_name("nbdist")

    by_script = subprocess.run([script, "version"], capture_output=True, text=True, check=True)

    assert by_script.stdout == call("version").stdout


def test_without_a_command_the_usage_is_shown() -> None:
    done = call()

    assert done.returncode == 2
    assert "usage: nbdist" in done.stderr


def test_an_error_is_one_message_without_traceback() -> None:
    done = call("config", "sede=3")

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("nbdist: ")
    assert "seed" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_lab_takes_arguments_for_jupyterlab(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["ps", "--", "--port=1"])

    assert "only `nbdist lab`" in capsys.readouterr().err


# config ---------------------------------------------------------------------------------------


def test_config_shows_what_overrides_made_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "-c", "cpu", "seed=7", "params.lr=3e-4"]) == 0

    shown = capsys.readouterr().out
    assert "device: cpu\n" in shown
    assert "seed: 7\n" in shown
    assert "lr: 0.0003\n" in shown


def test_config_masks_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "hunter2")

    assert cli.main(["config", "params.token=${oc.env:HUB_TOKEN}"]) == 0

    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert "***" in shown


# lab ------------------------------------------------------------------------------------------


def test_lab_runs_the_jupyterlab_of_this_python(tmp_path: Path) -> None:
    command = lab.lab_command(tmp_path, ["--port=9"], is_root=False, has_browser=True)

    assert command[:4] == [sys.executable, "-P", "-m", "jupyterlab"]
    assert f"--ServerApp.root_dir={tmp_path}" in command
    assert command[-1] == "--port=9"
    assert not {"--allow-root", "--no-browser"} & set(command)


def test_lab_adds_what_root_and_a_machine_without_screen_need(tmp_path: Path) -> None:
    command = lab.lab_command(tmp_path, [], is_root=True, has_browser=False)

    assert {"--allow-root", "--no-browser"} <= set(command)


def test_without_a_screen_no_browser_is_looked_for() -> None:
    assert not lab.finds_browser({"DISPLAY": ""})


def test_lab_needs_a_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no folder"):
        lab.open_lab(tmp_path / "nowhere", [])


def test_lab_prints_its_address_and_ends_with_a_signal(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    options: dict[str, Any] = {"stderr": subprocess.STDOUT, "env": environment}

    with running("lab", tmp_path, "--", "--port=0", until="/lab?token=", **options) as server:
        server.send_signal(signal.SIGTERM)

        assert server.wait(20) == 0


# run: what a reader sees ----------------------------------------------------------------------


def printed(*outputs: dict[str, Any]) -> str:
    stream = io.StringIO()
    printer = run.Printer(stream)
    printer.code(3, "a = 1\nif a:\n\n    a")
    for output in outputs:
        printer.output(nbformat.from_dict(output))  # type: ignore[no-untyped-call]
    printer.markdown("# End")
    return stream.getvalue()


def test_code_is_printed_with_ipython_prompts() -> None:
    assert printed() == "In [3]: a = 1\n   ...: if a:\n   ...:\n   ...:     a\n\n# End\n"


def test_streams_are_printed_as_they_come() -> None:
    parts = [
        {"output_type": "stream", "name": "stdout", "text": "one "},
        {"output_type": "stream", "name": "stderr", "text": "two"},
    ]

    assert printed(*parts).endswith("    a\none two\n\n# End\n")


def test_a_result_on_several_lines_begins_on_its_own() -> None:
    result = {
        "output_type": "execute_result",
        "execution_count": 3,
        "metadata": {},
        "data": {"text/plain": "[1,\n 2]", "text/html": "<b>"},
    }

    assert "Out[3]: \n[1,\n 2]\n" in printed(result)


def test_an_output_without_text_prints_nothing() -> None:
    output = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "AA"}}

    assert printed(output) == printed()


def test_colors_are_for_terminals_only() -> None:
    error = {"output_type": "error", "ename": "E", "evalue": "", "traceback": ["\x1b[31mE\x1b[0m"]}

    assert "\x1b" not in printed(error)


# run: real kernels ----------------------------------------------------------------------------


def test_a_notebook_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        run.read_notebook(tmp_path / "missing.ipynb")


@pytest.mark.parametrize("text", ["", "# readme", "[]", '{"a": 1}', '{"nbformat": 4}'])
def test_a_file_that_is_no_notebook_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(text)

    with pytest.raises(UsageError, match=r"x\.ipynb is no notebook"):
        run.read_notebook(path)


def test_a_place_for_the_result_that_does_not_exist_is_found_before_the_run(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "x.ipynb", code("print('ran')"))

    with pytest.raises(UsageError, match="there is no folder"):
        run.run_notebook(path, tmp_path / "nowhere" / "out.ipynb")


def test_run_prints_cells_with_their_outputs(tmp_path: Path) -> None:
    question = f"[sys.executable, os.getcwd()] == {[sys.executable, str(tmp_path)]}"
    path = write_notebook(
        tmp_path / "x.ipynb",
        markdown("# Title"),
        code("import os, sys\nprint(os.environ['NBDIST_LIVE'])"),
        code(question),
    )

    done = call("run", path, "--out", tmp_path / "out.ipynb")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == (
        "# Title\n\n"
        "In [1]: import os, sys\n   ...: print(os.environ['NBDIST_LIVE'])\nlines\n\n"
        f"In [2]: {question}\nOut[2]: True\n"
    )
    kept = run.read_notebook(tmp_path / "out.ipynb")
    assert kept.cells[1].outputs[0].text == "lines\n"


def test_run_ends_at_the_first_cell_that_fails(tmp_path: Path) -> None:
    path = write_notebook(
        tmp_path / "x.ipynb",
        code("1/0", "raises-exception"),
        code("undefined"),
        code("print('never')"),
    )

    done = call("run", path, "--out", tmp_path / "out.ipynb")

    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout
    assert "never" not in done.stdout
    assert "failed at In [2]: NameError: name 'undefined' is not defined" in done.stderr
    assert "Traceback" not in done.stderr
    kept = run.read_notebook(tmp_path / "out.ipynb")
    assert kept.cells[1].outputs[0].ename == "NameError"


def test_a_kernel_that_dies_fails_the_notebook(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "x.ipynb", code("import os\nos._exit(3)"))

    done = call("run", path)

    assert done.returncode == 1
    assert "its kernel died" in done.stderr


@pytest.mark.ranks
def test_ctrl_c_stops_the_cell_and_leaves_nothing(tmp_path: Path, run_folder: Path) -> None:
    path = write_notebook(
        tmp_path / "x.ipynb",
        code("%load_ext nbdist\n%dist start -n 2"),
        code("%%dist\nprint('begun', flush=True)\nwhile True: pass"),
        code("print('never')"),
    )

    with running("run", path, until="] begun", stderr=subprocess.PIPE) as process:
        born = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        out, problem = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "CellStopped" in out
    assert "never" not in out
    assert problem == f"nbdist: {path} was stopped.\n"
    assert not list(run_folder.iterdir())
    assert wait_for_end(born, 5) == []


@pytest.mark.ranks
def test_ranks_whose_kernel_died_are_gone_when_run_returns(
    tmp_path: Path, run_folder: Path
) -> None:
    path = write_notebook(
        tmp_path / "x.ipynb",
        code("%load_ext nbdist\n%dist start -n 1"),
        code("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"),
    )

    done = call("run", path)

    assert done.returncode == 1
    assert not list(run_folder.iterdir())


# ps and stop: deciding ------------------------------------------------------------------------

ALL = ["controller", "agent", "store", "rank 0", "rank 1"]


@pytest.mark.parametrize(
    ("is_kernel_alive", "born", "alive", "state"),
    [
        (True, ALL, ALL, "alive"),
        (True, [], [], "starting"),
        (True, ["controller"], ["controller"], "starting"),
        (True, ALL[:4], ALL[:4], "starting"),
        (True, ALL, ["controller", "rank 0"], "left behind"),
        (True, ALL[:2], [], "left behind"),
        (True, ALL, ["controller", "agent", "store", "rank 0"], "alive"),
        (False, ALL, ALL, "left behind"),
        (False, [], [], "left behind"),
    ],
)
def test_a_session_is_alive_while_its_kernel_and_its_agent_are(
    is_kernel_alive: bool, born: list[str], alive: list[str], state: str
) -> None:
    judged = sessions.judge(
        is_kernel_alive=is_kernel_alive, roles_born=born, roles_alive=alive, nproc=2
    )

    assert judged == state


@pytest.mark.parametrize("is_kernel_alive", [True, False])
def test_a_session_that_its_agent_keeps_for_another_kernel_waits(is_kernel_alive: bool) -> None:
    # True: the pid of the killed kernel, before the agent has seen its end or after it was reused
    facts: dict[str, Any] = {"is_kernel_alive": is_kernel_alive, "roles_born": ALL, "nproc": 2}

    waits = sessions.judge(**facts, roles_alive=ALL, has_lease=True)
    is_past = sessions.judge(**facts, roles_alive=["controller"], has_lease=True)

    assert waits == "waiting for attach"
    assert is_past == "left behind"


def test_how_long_a_session_waits_yet_is_shown() -> None:
    record = sessions.SessionRecord("ab12", 4, "waiting for attach", 7, "/work", 0.0)

    shown = [
        sessions.format_table([replace(record, left_s=left_s)]).splitlines()[1]
        for left_s in (480.0, 59.0, -1.0)
    ]

    assert "waiting for attach, 8 min left" in shown[0]
    assert "waiting for attach, 59 s left" in shown[1]
    assert "waiting for attach, 0 s left" in shown[2]


def test_a_process_that_got_the_number_later_is_another() -> None:
    born = psutil.Process().create_time()

    assert sessions.was_running(os.getpid(), time.time())
    assert not sessions.was_running(os.getpid(), born - 10)


def test_a_folder_that_never_got_a_description_can_be_shown(run_folder: Path) -> None:
    folder = SessionFolder.create(run_folder)

    table = sessions.session_table(run_folder)

    assert table.splitlines()[1].split() == [folder.session_id, "–", "left", "behind", *"–––"]


def test_no_sessions_are_said_in_words(run_folder: Path) -> None:
    assert sessions.session_table(run_folder) == "No sessions."


def test_stop_wants_to_be_told_which(run_folder: Path) -> None:
    with pytest.raises(UsageError, match="--all"):
        sessions.choose(run_folder, [], is_all=False)


def test_a_wrong_id_is_answered_with_the_right_one_and_ends_none(run_folder: Path) -> None:
    folder = SessionFolder.create(run_folder)

    with pytest.raises(UsageError, match=folder.session_id):
        sessions.choose(run_folder, [folder.session_id, folder.session_id[:-1]], is_all=False)

    assert folder.path.exists()


def test_a_session_named_twice_is_ended_once(run_folder: Path) -> None:
    folder = SessionFolder.create(run_folder)

    chosen = sessions.choose(run_folder, [folder.session_id] * 2, is_all=False)

    assert [one.session_id for one in chosen] == [folder.session_id]


def test_a_process_that_nbdist_did_not_write_down_is_never_ended(run_folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        folder = SessionFolder.create(run_folder)
        # Its number, with the start time of a process that had the number before.
        entry = {"role": "rank 0", "pid": bystander.pid, "started": 1, "boot": boot_id()}
        write_private(folder.path / "processes.jsonl", json.dumps(entry) + "\n")

        said = sessions.stop(folder)

        assert "nothing of it was running" in said
        assert bystander.poll() is None
        assert not folder.path.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("processes.jsonl", b'{"role": "rank 0"}\n}\n\xff'), ("session.json", b'{"kernel":5}')],
)
def test_a_damaged_record_hides_no_other_session(
    run_folder: Path, name: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, whole = (SessionFolder.create(run_folder) for _ in range(2))
    write_private(damaged.path / name, content)

    table = sessions.session_table(run_folder)
    said = sessions.stop(damaged)

    assert damaged.session_id in table
    assert whole.session_id in table
    assert [message for message in caplog.messages if name in message] == caplog.messages
    assert "its files are removed" in said
    assert not damaged.path.exists()


# ps and stop: real sessions -------------------------------------------------------------------


def recorded(root: Path) -> dict[str, psutil.Process]:
    (path,) = root.iterdir()
    return {role: psutil.Process(who.pid) for role, who in SessionFolder(path).processes()}


@contextmanager
def session_of_another_process(root: Path) -> Iterator[subprocess.Popen[str]]:
    code = "import nbdist; nbdist.start(nproc=2, device='cpu'); print('up', flush=True); input()"
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "up\n"
            yield owner
        finally:
            owner.kill()


@pytest.mark.ranks
def test_ps_lists_a_session_and_stop_ends_it_but_not_its_kernel(run_folder: Path) -> None:
    with session_of_another_process(run_folder) as owner:
        processes = recorded(run_folder)
        shown = call("ps").stdout.splitlines()
        session_id = next(run_folder.iterdir()).name

        done = call("stop", session_id)

        assert shown[0].split() == ["id", "ranks", "state", "kernel", "since", "folder"]
        assert shown[1].split()[:4] == [session_id, "2", "alive", str(owner.pid)]
        assert shown[1].endswith(str(run_folder))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{session_id}: stopped, 5 processes ended")
        assert wait_for_end(processes.values(), 1) == []
        assert owner.poll() is None
        assert call("ps").stdout == "No sessions.\n"


@pytest.mark.ranks
def test_stop_ends_what_is_left_when_the_agent_is_dead(run_folder: Path) -> None:
    with session_of_another_process(run_folder) as owner:
        processes = recorded(run_folder)
        owner.send_signal(signal.SIGSTOP)  # or it would clear up by itself
        processes["agent"].kill()
        wait_for_end([processes["agent"]], 5)

        state = call("ps").stdout.splitlines()[1]
        done = call("stop", "--all")

        assert "left behind" in state
        assert "controller" in done.stdout
        assert wait_for_end(processes.values(), 1) == []
        assert not list(run_folder.iterdir())


@pytest.mark.ranks
def test_stop_ends_a_session_whose_records_are_lost(run_folder: Path) -> None:
    with session_of_another_process(run_folder):
        processes = recorded(run_folder)
        [folder] = run_folder.iterdir()
        for name in ("processes.jsonl", "session.json"):
            write_private(folder / name, b'{"kernel": 5}\n\xff{"role"')

        shown = call("ps")
        done = call("stop", folder.name)

        assert folder.name in shown.stdout
        assert shown.stderr.count("is passed over") == 2
        assert str(folder / "session.json") in shown.stderr
        assert done.returncode == 0, done.stderr
        assert all(f"pid {process.pid}" in done.stdout for process in processes.values())
        assert wait_for_end(processes.values(), 1) == []
        assert not list(run_folder.iterdir())


@pytest.mark.ranks
def test_a_session_whose_records_are_lost_ends_whole_by_itself(run_folder: Path) -> None:
    with session_of_another_process(run_folder) as owner:
        processes = recorded(run_folder)
        [folder] = run_folder.iterdir()
        write_private(folder / "processes.jsonl", b'{"kernel": 5}\n\xff{"role"')

        owner.communicate("go on\n", timeout=30)

        assert owner.returncode == 0
        assert wait_for_end(processes.values(), 5) == []
        assert not list(run_folder.iterdir())


def test_the_processes_of_a_session_are_named_shortly() -> None:
    roles = ["rank 10", "agent", "rank 1", "rank 0", "controller", "rank 2"]

    assert sessions.name_roles(roles) == "agent, controller, ranks 0–2, 10"
    assert sessions.name_roles(["pid 7"]) == "pid 7"
