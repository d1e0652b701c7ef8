"""What every test may rely on: a quiet environment, a short run folder, and nothing left behind.

    pytest_configure      marks this run's processes, hides the user's own settings from them,
                          makes the examples of property tests the same in each run
    fixtures              run_folder
    pytest_sessionfinish  every process that carries the mark must be gone, or the run fails

Also loaded by name (``-p tests.conftest``) when the tutorials are tested, so that their kernels and
ranks are looked for too.

Not seen: a process that pytest itself forked without exec and that lost its parent.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from tests.processes import describe, end, processes_marked, wait_for_end

MARK = "NBDIST_TEST_RUN"
GRACE_S = 5.0

# Set by torchrun or a scheduler around us, they would make every test a rank of something.
OF_A_LAUNCHER = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
OF_A_LAUNCHER |= {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}
OF_THE_USER = {"MPLBACKEND", "NBDIST_LIVE", "NBDIST_RUNTIME_DIR"}

run_id = pytest.StashKey[str]()
scratch = pytest.StashKey[Path]()
left_behind = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cluster", action="store_true", help="also run tests that need a cluster")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's `&` does that to us
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[run_id] = uuid.uuid4().hex
    config.stash[scratch] = make_short_folder()
    for name in list(os.environ):
        if name in OF_A_LAUNCHER | OF_THE_USER or name.startswith("SLURM_"):
            del os.environ[name]
    os.environ |= quiet_environment(config.stash[scratch])
    os.environ[MARK] = config.stash[run_id]
    use_same_examples()
    if config.getoption("--nbval", default=False):
        os.environ["NBDIST_LIVE"] = "off"


def use_same_examples() -> None:
    """Let property tests try the same examples in each run; HYPOTHESIS_PROFILE=search tries new."""
    settings.register_profile("same", derandomize=True, deadline=None, database=None)
    settings.register_profile("search", deadline=None, max_examples=3000, print_blob=True)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def quiet_environment(folder: Path) -> dict[str, str]:
    """Point IPython, Jupyter, matplotlib and nbdist at *folder* in place of the user's home."""
    # Not MPLBACKEND: it would also win over a kernel's own, and figures would never come back.
    matplotlibrc = folder / "matplotlibrc"
    matplotlibrc.write_text("backend: agg\n")
    return {
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter"),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter-runtime"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "MATPLOTLIBRC": str(matplotlibrc),
        "NBDIST_RUNTIME_DIR": str(folder / "run"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def make_short_folder() -> Path:
    """Make a folder (0700) whose path leaves room for a Unix socket's name, 107 bytes in all."""
    return Path(tempfile.mkdtemp(prefix="nbd-", dir="/tmp"))


@pytest.fixture
def run_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let sessions of this test keep their files in an empty folder of its own."""
    folder = make_short_folder()
    monkeypatch.setenv("NBDIST_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    has_gpu = Path("/proc/driver/nvidia").exists()
    wants_cluster = config.getoption("--cluster")
    for item in items:
        if not has_gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
        if not wants_cluster and item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason="runs only with --cluster"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    stash = session.config.stash
    survivors = wait_for_end(processes_of(stash[run_id]), GRACE_S)
    stash[left_behind] = [describe(process) for process in survivors]
    for process in survivors:
        end(process)
    if survivors:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(left_behind, [])
    if lines:
        terminalreporter.section("left behind: processes that outlived the tests", red=True)
        for line in lines:
            terminalreporter.write_line(line)
        terminalreporter.write_line("They were ended now. The run counts as failed.", red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[scratch], ignore_errors=True)


def processes_of(run: str) -> list[psutil.Process]:
    """Find the processes that the run *run* started, but for multiprocessing's helper of pytest."""
    found = set(processes_marked(MARK, run)) | set(psutil.Process().children(recursive=True))
    return sorted((p for p in found if not is_resource_tracker(p)), key=lambda p: p.pid)


def is_resource_tracker(process: psutil.Process) -> bool:
    """Whether this is a child of ours that multiprocessing keeps until we end ourselves."""
    try:
        of_ours = process.ppid() == os.getpid()
        return of_ours and any("resource_tracker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False
