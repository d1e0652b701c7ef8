"""Names that a session will use, taken before it comes; its files and processes, looked at."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import make_short_folder
from tests.security.second_user import Attacker, require_second_user
from tests.security.victims import Account, Victim, victim

pytestmark = pytest.mark.ranks
require_second_user()

PRECIOUS = "what must not be lost"


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder like /tmp: everybody may write there, and remove what is his own."""
    folder = make_short_folder()
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


def test_folders_taken_before_the_session_comes_get_nothing_of_it(
    idle_kernel: Victim, other: Attacker
) -> None:
    precious, proof = idle_kernel.home / "precious", idle_kernel.home / "proof"
    precious.write_text(PRECIOUS)
    idle_kernel.give(precious)
    kernel = idle_kernel.kernel.pid

    with other.begin("squat", kernel=kernel, precious=str(precious), proof=str(proof)) as squatting:
        squatting.wait_until_ready()
        idle_kernel.start()
        for _ in range(5):
            idle_kernel.gets_his_values()
        seen = squatting.result()
    idle_kernel.works()

    assert seen["made"] != [], "he has found no name to try"
    assert seen["found"] == []
    assert not proof.exists()
    assert precious.read_text() == PRECIOUS


def test_nothing_can_be_planted_among_the_files_of_a_session(
    attacked: Victim, other: Attacker
) -> None:
    folders = [str(path) for path in folders_of(attacked)]

    assert len(folders) > 1
    assert other.run("plant", folders=folders) == []
    attacked.works()


def test_nothing_of_a_session_can_be_opened(attacked: Victim, other: Attacker) -> None:
    folders = folders_of(attacked)
    files = [path for folder in folders for path in folder.rglob("*")]

    assert other.run("open_all", paths=[str(path) for path in [*folders, *files]]) == []
    attacked.works()


def test_no_process_of_a_session_can_be_signalled_or_looked_into(
    attacked: Victim, other: Attacker
) -> None:
    pids = [process.pid for process in [*attacked.channels(), *attacked.torchs()]]

    assert other.run("touch_processes", pids=pids) == []
    attacked.works()


def test_what_stands_in_command_lines_opens_nothing(attacked: Victim, other: Attacker) -> None:
    lines = [process.cmdline() for process in [*attacked.channels()[1:], *attacked.torchs()]]
    words = {word for line in lines for word in line if "/" in word}
    own = {word for word in words if os.access(word, os.W_OK) and str(attacked.home) in word}

    assert other.run("open_all", paths=sorted(own)) == []
    assert not has_key(lines, attacked)
    attacked.works()


def has_key(lines: list[list[str]], attacked: Victim) -> bool:
    """Whether a command line holds a key by which a session's messages are signed."""
    keys = set()
    for path in folders_of(attacked)[0].rglob("ipcontroller-*.json"):
        keys |= set(re.findall(r'"(?:key|curve_\w+)": "([^"]{8,})"', path.read_text()))
    return any(key in word for line in lines for word in line for key in keys)


def folders_of(victim: Victim) -> list[Path]:
    """Return the session's folder, and those in shared memory in which its processes have files."""
    mapped = {Path(region.path).parent for region in victim.agent.memory_maps()}
    shared = [path for path in mapped if path.parent == Path("/dev/shm")]
    return [Path(victim.ask("about")["folder"]), *shared]


# The folder for sessions --------------------------------------------------------------------------


@pytest.mark.parametrize("is_link", [False, True], ids=["folder", "link"])
def test_a_folder_for_sessions_that_somebody_else_made_is_refused(
    account: Account, other: Attacker, common: Path, is_link: bool
) -> None:
    place = common / f"nbdist-{account.user.uid}"
    environment = {"TMPDIR": str(common), "NBDIST_RUNTIME_DIR": ""}
    with victim(account, environment) as one:
        own = one.home / "elsewhere"
        own.mkdir()
        one.give(own)
        other.run("take_name", path=str(place), leads_to=str(own) if is_link else None)

        answer = one.ask("start", nproc=1)

        assert "LaunchError" in answer["error"], answer
        assert str(place) in answer["error"]
        assert "NBDIST_RUNTIME_DIR" in answer["error"]
        assert list(own.iterdir()) == []
        other.run("give_back", path=str(place))


def test_a_shared_folder_for_sessions_is_refused_and_keeps_its_mode(account: Account) -> None:
    folder = make_short_folder()
    with victim(account, {"NBDIST_RUNTIME_DIR": str(folder)}) as one:
        one.give(folder)
        folder.chmod(0o777)

        answer = one.ask("start", nproc=1)

        assert "LaunchError" in answer.get("error", ""), answer
        assert str(folder) in answer["error"]
        assert folder.stat().st_mode & 0o777 == 0o777
        assert list(folder.iterdir()) == []
    folder.rmdir()


@pytest.mark.parametrize("words", [["ps"], ["stop"], ["stop", "0abc1234"]], ids=" ".join)
def test_records_that_somebody_else_wrote_end_no_process(
    account: Account, other: Attacker, common: Path, words: list[str]
) -> None:
    """He has made a whole folder for sessions, whose records name processes of the victim."""
    root = common / "sessions"
    with victim(account, {"NBDIST_RUNTIME_DIR": str(root)}) as one:
        bystander = one.kernel
        started = int(
            Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(")")[2].split()[19]
        )
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        other.run(
            "make_root",
            path=str(root),
            session="0abc1234",
            pids=[[bystander.pid, started]],
            boot=boot,
        )

        ended = one.command_line(*words)

        assert psutil.pid_exists(bystander.pid)
        assert "Traceback" not in ended.stdout, ended.stdout
        assert str(root) in ended.stdout, ended.stdout
        assert ended.returncode != 0
        assert (root / "0abc1234" / "processes.jsonl").exists()
