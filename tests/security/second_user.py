"""Run programs as another user of this machine: by our own right as root, or by ``sudo -n``.

The users need no entry in any list; they are numbers that nobody has.
"""

from __future__ import annotations

import functools
import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MARK

SCRIPT = Path(__file__).parent / "attacker_script.py"
FIRST_UID = 47110
SYSTEM_PYTHON = "/usr/bin/python3"
PATIENCE_S = 30.0


@dataclass(frozen=True)
class User:
    """Somebody with an account here.

    Attributes:
        uid: His number, and that of his group.
    """

    uid: int

    def popen(
        self, command: Sequence[str], environment: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[str]:
        """Start *command* as this user, in a session of its own, away from our folder."""
        environment = {**environment, MARK: os.environ.get(MARK, "")}
        options |= {"cwd": "/", "start_new_session": True, "text": True}
        if self.uid == os.getuid():
            return subprocess.Popen(command, env=environment, **options)
        if os.getuid() == 0:
            options |= {"user": self.uid, "group": self.uid, "extra_groups": []}
            return subprocess.Popen(command, env=environment, **options)
        words = [f"{name}={value}" for name, value in environment.items()]
        as_him = ["sudo", "-n", "-u", f"#{self.uid}", "env", "-i", *words]
        return subprocess.Popen([*as_him, *command], **options)

    def can_run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> bool:
        """Whether *command*, run as this user, ends well."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            return self.popen(command, environment or {}, **quiet).wait(PATIENCE_S) == 0
        except OSError:
            return False


class Attack:
    """A command of `attacker_script` on its way.

    Args:
        attacker: Who runs it.
        python: His interpreter.
        command: Its name.
        arguments: By keyword.
    """

    def __init__(self, attacker: User, python: str, command: str, arguments: Any) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        words = [python, "-I", "-c", SCRIPT.read_text(), command, json.dumps(arguments)]
        self._process = attacker.popen(words, {"PATH": os.defpath}, **pipes)

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=PATIENCE_S)  # he takes away what he has made
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def wait_until_ready(self) -> None:
        """Return when he has begun."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def result(self) -> Any:
        """Tell him to end, if he does not by himself; return what he says."""
        out, err = self._process.communicate(timeout=PATIENCE_S)  # closes his stdin
        assert self._process.returncode == 0, err
        return json.loads(out.splitlines()[-1])


@dataclass(frozen=True)
class Attacker:
    """Another user, and the interpreter that he can run."""

    user: User
    python: str

    def begin(self, command: str, **arguments: Any) -> Attack:
        return Attack(self.user, self.python, command, arguments)

    def run(self, command: str, **arguments: Any) -> Any:
        with self.begin(command, **arguments) as attack:
            return attack.result()


@functools.cache
def unused_users() -> tuple[User, User]:
    """Return two users that are nobody's."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    free = [uid for uid in range(FIRST_UID, FIRST_UID + 100) if uid not in taken]
    return User(free[0]), User(free[1])


@functools.cache
def attacker() -> Attacker | str:
    """Return another user who can run a Python, or why there is none."""
    user, _ = unused_users()
    if os.getuid() != 0 and not (shutil.which("sudo") and user.can_run(["true"])):
        return "no second user: neither root here, nor does `sudo -n` work"
    for python in (sys.executable, SYSTEM_PYTHON):
        if user.can_run([python, "-I", "-c", "import sys; sys.exit(sys.version_info < (3, 10))"]):
            return Attacker(user, python)
    return f"no second user: neither {sys.executable} nor {SYSTEM_PYTHON} can be run by him"


def require_second_user() -> None:
    """Pass over the module that calls this, where there can be no second user.

    From here, and not from a fixture, so that one line says so for all tests.
    """
    if isinstance(found := attacker(), str):
        pytest.skip(found, allow_module_level=True)
