from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdist.processes import (
    MARK,
    ProcessId,
    children,
    descendants,
    end,
    group_members,
    has_mark,
    marked,
)
from tests.waiting import wait_until

DEAF = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(flush=True)\n"
    "time.sleep(600)"
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes that are gone after the test, whatever it does."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str, mark: str | None = None, alone: bool = True) -> subprocess.Popen[str]:
        env = os.environ | ({MARK: mark} if mark else {})
        process = subprocess.Popen(
            command, env=env, start_new_session=alone, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_living_process_has_an_identity(start: Start) -> None:
    process = start("sleep", "600")

    identity = ProcessId.of(process.pid)

    assert identity.is_alive
    assert identity == ProcessId.of(process.pid)


def test_another_process_of_the_same_number_is_not_the_same(start: Start) -> None:
    identity = ProcessId.of(start("sleep", "600").pid)

    assert not ProcessId(identity.pid, identity.started - 1).is_alive


def test_a_process_that_is_not_there_has_none() -> None:
    with pytest.raises(ProcessLookupError):
        ProcessId.of(2**22 + 1)


def test_a_zombie_is_not_alive(start: Start) -> None:
    process = start("sleep", "600")
    identity = ProcessId.of(process.pid)

    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not identity.is_alive, "the killed process to be a zombie")

    assert Path(f"/proc/{process.pid}").exists()


def test_a_name_of_any_bytes_is_read_right(tmp_path: Path, start: Start) -> None:
    odd = tmp_path / os.fsdecode(b") R 1 (x\xff")
    odd.write_bytes(Path("/bin/sleep").read_bytes())
    odd.chmod(0o755)

    assert ProcessId.of(start(str(odd), "600").pid).is_alive


def test_only_the_processes_of_the_mark_are_found(start: Start) -> None:
    mine = start("sleep", "600", mark="t-mine")
    start("sleep", "600", mark="t-mine-too")
    start("sleep", "600")

    wait_until(lambda: marked("t-mine") == [mine.pid], "exactly one process with the mark")
    assert has_mark(mine.pid, "t-mine")
    assert not has_mark(mine.pid, "t-min")
    assert group_members(mine.pid, "t-mine") == [mine.pid]
    assert group_members(mine.pid, "t-other") == []


def test_ending_goes_from_a_request_to_force(start: Start) -> None:
    obedient = start("sleep", "600", mark="t-end")
    deaf = start(sys.executable, "-c", DEAF, mark="t-end")
    assert deaf.stdout is not None
    deaf.stdout.readline()

    killed = end([ProcessId.of(p.pid) for p in (obedient, deaf)], mark="t-end", grace_s=0.3)

    assert killed == [deaf.pid]
    assert (obedient.wait(5), deaf.wait(5)) == (-signal.SIGTERM, -signal.SIGKILL)


def test_a_stopped_process_is_ended_too(start: Start) -> None:
    process = start("sleep", "600")
    os.kill(process.pid, signal.SIGSTOP)

    assert end([ProcessId.of(process.pid)], mark="t-none", grace_s=2) == []
    assert process.wait(5) == -signal.SIGTERM


def test_children_of_a_session_are_ended_wherever_they_have_gone(start: Start) -> None:
    script = "setsid sleep 600 & sleep 600 & echo; wait"
    leader = start("sh", "-c", script, mark="t-family")
    assert leader.stdout is not None
    leader.stdout.readline()
    wait_until(lambda: len(marked("t-family")) == 3, "the family to be complete")

    end([ProcessId.of(leader.pid)], mark="t-family", grace_s=2)

    assert marked("t-family") == []


UNMARKED_FAMILY = "setsid sh -c 'sleep 600 & wait' & echo; wait"


def test_children_without_the_mark_are_ended_with_their_ancestor(start: Start) -> None:
    leader = start("sh", "-c", UNMARKED_FAMILY)
    identity = ProcessId.of(leader.pid)
    wait_until(lambda: len(descendants([identity])) == 2, "the family to be complete")
    family = descendants([identity])

    end([identity], mark="t-unmarked", grace_s=2)

    assert [member for member in family if member.is_alive] == []


def test_a_family_is_all_that_is_below_and_nobody_else(start: Start) -> None:
    leader, other = (ProcessId.of(start("sh", "-c", UNMARKED_FAMILY).pid) for _ in range(2))
    wait_until(lambda: len(descendants([leader, other])) == 4, "both families to be complete")

    assert not set(descendants([leader])) & {leader, other, *descendants([other])}
    assert len(children(leader.pid)) == 1
    assert descendants([ProcessId(leader.pid, leader.started - 1)]) == []
    end([leader, other], mark="t-unmarked", grace_s=2)


def test_a_process_of_another_user_is_never_one_of_the_family(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = start("sh", "-c", UNMARKED_FAMILY)
    identity = ProcessId.of(leader.pid)
    wait_until(lambda: len(descendants([identity])) == 2, "the family to be complete")

    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert descendants([identity]) == []

    end([identity], mark="t-unmarked", grace_s=2)


def test_who_does_not_carry_the_mark_is_left_alone(start: Start) -> None:
    other = start("sleep", "600", mark="t-other")
    leader = start("sleep", "600", mark="t-mine")

    end([ProcessId.of(leader.pid)], mark="t-mine", grace_s=2)

    assert other.poll() is None


def test_a_reused_number_is_left_alone(start: Start) -> None:
    innocent = start("sleep", "600")
    identity = ProcessId.of(innocent.pid)

    assert end([ProcessId(identity.pid, identity.started - 1)], mark="t-gone", grace_s=0.2) == []
    assert innocent.poll() is None


def test_the_caller_never_ends_itself() -> None:
    code = (
        "import os\n"
        "from nbdist.processes import ProcessId, end\n"
        "print(end([ProcessId.of(os.getpid())], mark='t-self', grace_s=0.1))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
