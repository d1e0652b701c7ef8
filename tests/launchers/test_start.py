"""Starts that succeed, starts that fail, and what either leaves behind: nothing.

Real processes. A session of another process is started by ``start_script.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbdist.errors import LaunchError, SessionError
from nbdist.folder import SessionFolder
from nbdist.sessions import current
from tests.launchers.unsharing import needs_unshare
from tests.processes import describe, processes_marked, wait_for_end
from tests.sessions.driving import ranks, values
from tests.waiting import wait_until

pytestmark = pytest.mark.ranks

SCRIPT = Path(__file__).parent / "start_script.py"
MARK = "NBDIST_TEST_START"


@pytest.fixture(autouse=True)
def nothing_is_left(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Every process that a test starts must be gone soon after it, every file as well."""
    mark = f"{os.getpid()}-{abs(hash(request.node.nodeid))}"
    monkeypatch.setenv(MARK, mark)
    seen: set[Path] = set()  # other sessions of this user come and go meanwhile
    make = SessionFolder.make_shared_memory
    monkeypatch.setattr(SessionFolder, "make_shared_memory", lambda self: noted(make, self, seen))
    yield
    left = [p for p in processes_marked(MARK, mark) if p.pid != os.getpid()]
    assert [describe(process) for process in wait_for_end(left, 10)] == []
    wait_until(lambda: not list(run_folder.iterdir()), "the session folders to be gone")
    assert [path for path in seen if path.exists()] == []


def noted(make: Callable[[SessionFolder], None], folder: SessionFolder, seen: set[Path]) -> None:
    make(folder)
    seen.add(folder.shared_memory())


def start_elsewhere(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*prefix, sys.executable, str(SCRIPT), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=take_signals,
    )


def take_signals() -> None:
    """Undo what nohup or a shell's ``&`` has set for us: the tests send these signals."""
    for signum in (signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, signal.SIG_DFL)


def facts_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    found: dict[str, Any] = json.loads(line)
    return found


def close(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


# Starts that succeed -----------------------------------------------------------------------------


def test_two_sessions_with_one_configuration_are_alike_to_the_bit() -> None:
    code = (
        "import random, numpy as np\n"
        "(torch.rand(3).tolist(), torch.randn(9).sum().item(), np.random.rand(3).tolist(), "
        "random.random())"
    )
    found = []
    for _ in range(2):
        with ranks(2) as session:
            found.append((session.summary, values(session, code)))

    assert found[0] == found[1]
    assert found[0][0] == "2 ranks on 1 host · cpu · cpu:gloo · seed 0"
    assert found[0][1][0] == found[0][1][1]


def test_ranks_may_have_seeds_of_their_own() -> None:
    with ranks(2, seed=5, seed_per_rank="offset") as session:
        first, second = values(session, "(torch.initial_seed(), torch.rand(1).item())")

    assert (first[0], second[0]) == (5, 6)
    assert first[1] != second[1]


def test_the_environment_of_the_configuration_is_there_before_torch_is() -> None:
    with ranks(1, env={"NBDIST_TEST_COLOUR": "green"}, params={"lr": 0.5}) as session:
        assert values(session, "import os; (os.environ['NBDIST_TEST_COLOUR'], cfg.params.lr)") == [
            ("green", 0.5)
        ]


def test_a_single_rank_can_do_all_a_group_can() -> None:
    with ranks(1) as session:
        assert values(session, "(nbdist.all_reduce(3), nbdist.all_gather_objects('x'))") == [
            (3, ["x"])
        ]


def test_sessions_of_two_processes_never_meet() -> None:
    processes = [start_elsewhere("2") for _ in range(2)]
    try:
        found = [facts_of(process) for process in processes]
    finally:
        for process in processes:
            close(process)

    ports = {port for facts in found for port, _ in facts["values"]}
    assert [[value for _, value in facts["values"]] for facts in found] == [[1, 1], [1, 1]]
    assert len(ports) == 2
    assert len({facts["session_id"] for facts in found}) == 2


def test_a_script_that_starts_ranks_never_imports_torch() -> None:
    process = start_elsewhere("1")
    try:
        assert facts_of(process)["has_torch"] is False
    finally:
        close(process)


def test_a_script_that_ends_without_a_stop_leaves_nothing() -> None:
    process = start_elsewhere("2", "leave")

    assert facts_of(process)["error"] is None
    close(process)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_script_that_is_told_to_end_leaves_nothing(signum: int) -> None:
    process = start_elsewhere("2", "stay")
    assert facts_of(process)["error"] is None

    process.send_signal(signum)

    assert process.wait(20) == -signum
    close(process)


@pytest.mark.parametrize("lease", ["lease_s=0", "lease_s=0.3"])
def test_a_script_that_crashes_leaves_nothing_after_its_lease(lease: str) -> None:
    process = start_elsewhere("2", "crash", lease)

    assert facts_of(process)["error"] is None
    close(process)


def test_a_script_that_is_killed_leaves_nothing_after_its_lease() -> None:
    process = start_elsewhere("2", "stay", "lease_s=0.3")
    assert facts_of(process)["error"] is None

    process.kill()

    assert process.wait(20) == -signal.SIGKILL
    close(process)


# Starts that fail --------------------------------------------------------------------------------


def poison(folder: Path, code: str) -> str:
    """Make every Python process that has *folder* on its path run *code* first."""
    (folder / "sitecustomize.py").write_text(code)
    return f"{folder}:{os.environ.get('PYTHONPATH', '')}"


def poisoned_torch(folder: Path, code: str) -> str:
    """Put a ``torch`` that runs *code* when it is imported in front of the real one."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(code)
    return f"{folder}:{os.environ.get('PYTHONPATH', '')}"


def test_an_agent_that_cannot_import_torch_is_a_launch_error_with_its_words(
    tmp_path: Path,
) -> None:
    path = poisoned_torch(tmp_path, "raise ImportError('libtorch is not for this machine')")

    with (
        pytest.raises(LaunchError, match="libtorch is not for this machine"),
        ranks(2, env={"PYTHONPATH": path}),
    ):
        pass


def test_an_agent_that_dies_at_its_import_is_a_launch_error(tmp_path: Path) -> None:
    path = poisoned_torch(tmp_path, "import os; os.write(2, b'illegal instruction'); os._exit(4)")

    with (
        pytest.raises(LaunchError, match="illegal instruction"),
        ranks(2, env={"PYTHONPATH": path}),
    ):
        pass


def test_an_agent_that_dies_before_it_listens_is_a_launch_error(tmp_path: Path) -> None:
    path = poison(tmp_path, "import os; os.write(2, b'no agent today'); os._exit(4)")

    with pytest.raises(LaunchError, match="agent"), ranks(2, env={"PYTHONPATH": path}):
        pass


def test_a_rank_that_dies_on_the_way_ends_the_start_with_its_code_and_words(
    tmp_path: Path,
) -> None:
    # Set in the agent; what it does, it does in the fork that is rank 1.
    code = (
        "import os\n"
        "def doomed():\n"
        "    os.write(2, b'rank one cannot go on\\n'); os._exit(9)\n"
        "import nbdist.rank.engine as engine\n"
        "prepare = engine.prepare\n"
        "engine.prepare = lambda spec, rank: doomed() if rank == 1 else prepare(spec, rank)\n"
    )
    path = poison(tmp_path, code)

    with pytest.raises(LaunchError) as caught, ranks(2, env={"PYTHONPATH": path}):
        pass

    message = str(caught.value)
    assert "rank 1" in message
    assert "exited with code 9" in message
    assert "rank one cannot go on" in message
    assert "%dist start -n 1" in message


def test_a_rank_that_is_killed_on_the_way_ends_the_start_with_the_signal(tmp_path: Path) -> None:
    code = (
        "import os\nimport nbdist.rank.engine as engine\n"
        "engine.prepare = lambda spec, rank: os.kill(os.getpid(), 9)\n"
    )
    path = poison(tmp_path, code)

    with pytest.raises(LaunchError, match="killed by SIGKILL"), ranks(2, env={"PYTHONPATH": path}):
        pass


def test_a_backend_that_does_not_exist_is_an_error_that_shows_torch_s_own() -> None:
    with pytest.raises(LaunchError, match="nonsense"), ranks(2, backend="nonsense"):
        pass


def test_after_a_failed_start_the_next_one_works(tmp_path: Path) -> None:
    with pytest.raises(LaunchError), ranks(2, backend="nonsense"):
        pass
    with pytest.raises(SessionError, match="No ranks are running"):
        current.get()

    with ranks(2) as session:
        assert values(session, "nbdist.all_reduce(1)") == [2, 2]


def kill_at_birth(role: str, run_folder: Path) -> threading.Thread:
    """Kill the process *role* of the next session as soon as it is on record."""

    def kill() -> None:
        def records() -> list[dict[str, Any]]:
            lines = [
                line
                for path in run_folder.glob("*/processes.jsonl")
                for line in path.read_text().splitlines()
            ]
            return [e for e in map(json.loads, lines) if e["role"] == role]

        wait_until(records, f"the {role} to be born")
        os.kill(records()[0]["pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.parametrize("role", ["controller", "agent", "store", "rank 1"])
def test_a_process_that_is_killed_during_the_start_is_a_launch_error(
    run_folder: Path, role: str
) -> None:
    killer = kill_at_birth(role, run_folder)

    with pytest.raises(LaunchError), ranks(2):
        pass

    killer.join()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_starter_that_is_killed_during_the_start_leaves_nothing(
    run_folder: Path, signum: int
) -> None:
    process = start_elsewhere("2")
    wait_until(
        lambda: any('"agent"' in p.read_text() for p in run_folder.glob("*/processes.jsonl")),
        "the agent to be born",
    )

    process.send_signal(signum)

    close(process)
    assert process.returncode != 0


# Machines that are not as they should be ---------------------------------------------------------


def inside(script: str) -> tuple[str, ...]:
    """Return a command that runs *script* and the words after it in namespaces of their own."""
    return ("unshare", "-m", "-u", "sh", "-c", f'{script}; exec "$@"', "sh")


@needs_unshare
def test_a_small_shared_memory_is_no_obstacle() -> None:
    prefix = inside("mount -t tmpfs -o size=1m tmpfs /dev/shm")
    process = start_elsewhere("2", prefix=prefix)
    try:
        found = facts_of(process)
    finally:
        close(process)

    assert found["error"] is None
    assert found["big"] == 2**20


@needs_unshare
def test_a_host_name_that_does_not_resolve_is_no_obstacle() -> None:
    process = start_elsewhere("2", prefix=inside("hostname no-such-host.invalid"))
    try:
        found = facts_of(process)
    finally:
        close(process)

    assert found["error"] is None
    assert [value for _, value in found["values"]] == [1, 1]


def test_one_core_is_enough() -> None:
    core = min(os.sched_getaffinity(0))
    process = start_elsewhere("2", prefix=("taskset", "-c", str(core)))
    try:
        found = facts_of(process)
    finally:
        close(process)

    assert [value for _, value in found["values"]] == [1, 1]


def test_a_runtime_folder_with_too_long_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBDIST_RUNTIME_DIR", str(tmp_path / ("x" * 100)))

    with pytest.raises(LaunchError, match="NBDIST_RUNTIME_DIR"), ranks(1):
        pass


# Who can reach it --------------------------------------------------------------------------------


def test_every_socket_listens_on_loopback_only() -> None:
    with ranks(2) as session:
        mark = processes_marked("NBDIST_SESSION", session.session_id)
        listening = [
            connection.laddr
            for process in mark
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]

    assert listening
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_keys_and_logs_are_for_their_owner_only(run_folder: Path) -> None:
    with ranks(1) as session:
        folder = run_folder / session.session_id
        everything = [folder, *folder.rglob("*")]
        modes = {
            str(path.relative_to(run_folder)): oct(path.stat().st_mode & 0o077)
            for path in everything
        }
        shared = session._processes.folder.shared_memory()
        session.pull("torch.ones(2**20)")
        shared_mode = shared.stat().st_mode & 0o077

    private = {name: mode for name, mode in modes.items() if "sock" not in name}
    assert folder.name in modes
    assert modes[folder.name] == "0o0"
    assert {name for name, mode in private.items() if mode != "0o0" and "security" in name} == set()
    assert shared_mode == 0
    assert {name: mode for name, mode in private.items() if mode != "0o0" and ".log" in name} == {}


def test_a_folder_that_somebody_has_made_in_shared_memory_is_never_taken(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = SessionFolder.create
    traps: list[Path] = []

    def with_a_trap(root: Path) -> SessionFolder:
        """Do what another user could who has read the session's id in `ps`."""
        folder = create(root)
        traps.append(Path(f"/dev/shm/nbdist-{os.getuid()}-{folder.session_id}"))
        traps[0].mkdir()
        traps[0].chmod(0o777)
        return folder

    monkeypatch.setattr(SessionFolder, "create", with_a_trap)
    try:
        with ranks(1) as session:
            rows = session.pull("list(range(2**16))")
            shared = session._processes.folder.shared_memory()
            used = list(traps[0].iterdir())
        left = traps[0].exists()
    finally:
        traps[0].rmdir()

    assert rows[0][-1] == 2**16 - 1
    assert shared != traps[0]
    assert used == []
    assert left


def test_what_cells_make_has_the_mode_that_the_user_s_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with ranks(1) as session:
            session.run(f"open({str(tmp_path / 'made')!r}, 'w').close()").result()
    finally:
        os.umask(before)

    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o640


def test_no_key_is_in_an_argument_or_an_environment() -> None:
    with ranks(1) as session:
        keys = [
            json.loads(path.read_text())["key"]
            for path in session._processes.folder.security.glob("*.json")
        ]
        words = [
            part
            for process in processes_marked("NBDIST_SESSION", session.session_id)
            for part in (
                Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace"),
                Path(f"/proc/{process.pid}/environ").read_text(errors="replace"),
            )
        ]

    assert keys
    assert not any(key in text for key in keys for text in words)
