"""Those who are attacked: who runs the tests, and an ordinary user where there can be one."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import make_short_folder, quiet_environment
from tests.processes import describe, end, wait_for_end
from tests.security.second_user import SYSTEM_PYTHON, User, unused_users

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "victim_script.py"
PATIENCE_S = 30.0
HEALTH = "import os; print('he' + 'alth'); int(os.environ['RANK']) + 1"


@dataclass(frozen=True)
class Account:
    """Somebody who can have sessions.

    Attributes:
        user: Who.
        python: An interpreter that he can run, with all that nbdist needs on *path*.
        path: For ``PYTHONPATH``.
    """

    user: User
    python: str
    path: str


def own_account() -> Account:
    return Account(User(os.getuid()), sys.executable, str(REPOSITORY))


def ordinary_account() -> Account | str:
    """Return an ordinary user who can run nbdist, or why there is none."""
    if os.getuid() != 0:
        return "the tests do not run as root: who runs them is the ordinary user already"
    _, user = unused_users()
    path = os.pathsep.join([str(REPOSITORY), *site.getsitepackages()])
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    imports = "import IPython, ipyparallel, nbdist, numpy, zmq, tests.sessions.driving"
    for python in (sys.executable, SYSTEM_PYTHON):
        environment = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        if user.can_run([python, "-c", version]) and user.can_run(
            [python, "-c", imports], environment
        ):
            return Account(user, python, path)
    return "no ordinary user can run a Python here that has what nbdist needs"


class Victim:
    """A kernel process of *account*, without a session at first.

    Args:
        account: Whose.
        environment: Beside what keeps it away from the user's own settings.

    Attributes:
        is_known_to_work: Nothing was done since it has worked.
    """

    is_known_to_work = False

    def __init__(self, account: Account, environment: dict[str, str] | None = None) -> None:
        self.account = account
        self.home = make_short_folder()
        quiet = quiet_environment(self.home)
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            **quiet,
            "HOME": str(self.home),
            "PYTHONPATH": account.path,
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        }
        self.give(self.home, *self.home.iterdir())
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        self._kernel = account.user.popen(
            [account.python, str(SCRIPT)],
            self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )

    def give(self, *paths: Path) -> None:
        """Make *paths* this user's own."""
        for path in paths:
            os.chown(path, self.account.user.uid, -1)

    # What he does -----------------------------------------------------------------------------

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Have his kernel do something; return its answer.

        Raises:
            TimeoutError: There was none; the kernel is ended.
        """
        stdin, stdout = self._kernel.stdin, self._kernel.stdout
        assert stdin is not None
        assert stdout is not None
        self.is_known_to_work = False
        watch = threading.Timer(PATIENCE_S, self._kernel.kill)
        watch.start()
        try:
            stdin.write(json.dumps({"command": command, "arguments": arguments}) + "\n")
            stdin.flush()
            line = stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise TimeoutError(f"no answer to {command} {arguments}; it said:\n{self.said()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def start(self, num_ranks: int = 2) -> None:
        answer = self.ask("start", nproc=num_ranks)
        assert "error" not in answer, answer["error"]

    def command_line(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ``nbdist`` with *words* in a shell of his."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [self.account.python, "-m", "nbdist", *words]
        with self.account.user.popen(command, self.environment, **pipes) as process:
            text, _ = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(command, process.returncode, text)

    def works(self) -> None:
        """Assert that his session runs a cell, moves values, and has said nothing unasked."""
        cell = self.ask("run", code=HEALTH)
        assert cell == {
            "is_over": True,
            "statuses": ["ok", "ok"],
            "values": [1, 2],
            "printed": ["health\n", "health\n"],
        }
        self.gets_his_values()
        assert self.ask("about")["trouble"] is None
        assert "Traceback" not in self.said(), self.said()
        self.is_known_to_work = True

    def gets_his_values(self) -> None:
        """Assert that values of all sizes come as they were sent."""
        assert self.ask("pull", expression="[0] * 10") == {"values": [[0] * 10] * 2}
        rows = self.ask("pull", expression="[{'row': i} for i in range(20_000)]")
        assert rows == {"values": [[{"row": i} for i in range(20_000)]] * 2}
        assert self.ask("push", size=200_000) == {}
        assert self.ask("run", code="len(pushed)")["values"] == [200_000, 200_000]

    def said(self) -> str:
        """Return what his kernel has written to stderr."""
        self._said.seek(0)
        return self._said.read()

    # What can be seen of him ------------------------------------------------------------------

    @property
    def kernel(self) -> psutil.Process:
        return psutil.Process(self._kernel.pid)

    @property
    def agent(self) -> psutil.Process:
        """The parent of the ranks."""
        return next(p for p in self.kernel.children() if p.cmdline() == ["nbdist", "agent"])

    def torchs(self) -> list[psutil.Process]:
        """Return the processes with sockets of torch: the ranks and the store keeper."""
        return list(self.agent.children(recursive=True))

    def channels(self) -> list[psutil.Process]:
        """Return all others: between them cells, values and deaths are told."""
        everything = [self.kernel, *self.kernel.children(recursive=True)]
        return [process for process in everything if process not in self.torchs()]

    def close(self) -> None:
        """Stop what there is, and assert that nothing is left and nothing was said."""
        processes = [self.kernel, *self.kernel.children(recursive=True)]
        try:
            answer = self.ask("stop") if len(processes) > 1 else {}
            assert answer == {}
            assert "Traceback" not in self.said(), self.said()
            assert self._kernel.stdin is not None
            self._kernel.stdin.close()
            left = wait_for_end(processes, PATIENCE_S)
            assert [describe(process) for process in left] == []
        finally:
            self.drop(processes)

    def drop(self, processes: list[psutil.Process] | None = None) -> None:
        """End everything, whatever state it is in, and leave no file of it."""
        if processes is None and self._kernel.poll() is None:
            processes = [self.kernel, *self.kernel.children(recursive=True)]
        self._kernel.kill()
        self._kernel.wait()
        if processes and len(processes) > 1:
            self.command_line("stop", "--all")
        for process in processes or []:
            end(process)
        for pipe in (self._kernel.stdin, self._kernel.stdout, self._said):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def victim(account: Account, environment: dict[str, str] | None = None) -> Iterator[Victim]:
    """Lend a kernel process of *account* that has no session yet; nothing is left of it."""
    one = Victim(account, environment)
    try:
        yield one
    except BaseException:
        one.drop()
        raise
    one.close()
