from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nbdist.errors import LaunchError
from nbdist.folder import SessionFolder, runtime_root, sessions
from nbdist.processes import ProcessId


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def test_the_root_is_made_private(tmp_path: Path) -> None:
    chosen = tmp_path / "a" / "b"

    assert runtime_root({"NBDIST_RUNTIME_DIR": str(chosen)}) == chosen
    assert mode(chosen) == "0o700"


def test_a_root_that_others_could_read_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    runtime_root({"NBDIST_RUNTIME_DIR": str(tmp_path)})

    assert mode(tmp_path) == "0o700"


def test_the_runtime_folder_of_the_desktop_is_used_if_it_can_be(tmp_path: Path) -> None:
    assert runtime_root({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "nbdist"
    missing = runtime_root({"XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    assert missing.name == f"nbdist-{os.getuid()}"


def test_a_link_is_not_taken_for_one_s_own_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(LaunchError, match="NBDIST_RUNTIME_DIR"):
        runtime_root({"NBDIST_RUNTIME_DIR": str(tmp_path / "link")})


def test_a_root_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)

    with pytest.raises(LaunchError, match="another user"):
        runtime_root({"NBDIST_RUNTIME_DIR": str(tmp_path)})


def test_a_root_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(LaunchError, match="NBDIST_RUNTIME_DIR"):
        runtime_root({"NBDIST_RUNTIME_DIR": str(tmp_path / "file")})
    with pytest.raises(LaunchError, match="cannot be made"):
        runtime_root({"NBDIST_RUNTIME_DIR": str(tmp_path / "file" / "below")})


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 90)
    root.mkdir()

    with pytest.raises(LaunchError, match="too long"):
        SessionFolder.create(root)

    assert list(root.iterdir()) == []


def test_a_session_s_folders_are_private(tmp_path: Path) -> None:
    folder = SessionFolder.create(tmp_path)

    assert {mode(path) for path in (folder.path, folder.logs, folder.security)} == {"0o700"}
    assert folder.session_id == folder.path.name
    assert SessionFolder.create(tmp_path).session_id != folder.session_id
    assert repr(folder) == f"<SessionFolder {folder.path}>"


def test_what_is_written_is_whole_and_private(tmp_path: Path) -> None:
    folder = SessionFolder.create(tmp_path)

    folder.describe({"nproc": 2})

    assert folder.description() == {"nproc": 2}
    assert mode(folder.path / "session.json") == "0o600"
    assert [p.name for p in folder.path.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_a_session_that_was_never_described_has_an_empty_description(
    tmp_path: Path, content: str | None
) -> None:
    folder = SessionFolder.create(tmp_path)
    if content is not None:
        (folder.path / "session.json").write_text(content)

    assert folder.description() == {}


def test_births_are_recorded_in_order_and_privately(tmp_path: Path) -> None:
    folder = SessionFolder.create(tmp_path)
    assert folder.processes() == []

    me = folder.record_birth("agent", os.getpid())
    folder.record_birth("rank 0", os.getppid())

    assert folder.processes() == [
        ("agent", me),
        ("rank 0", ProcessId.of(os.getppid())),
    ]
    assert mode(folder.path / "processes.jsonl") == "0o600"


def test_a_record_that_was_cut_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    folder = SessionFolder.create(tmp_path)
    me = folder.record_birth("agent", os.getpid())
    with (folder.path / "processes.jsonl").open("a") as file:
        file.write(json.dumps({"role": "rank 0", "pid": 1})[:-5])

    assert folder.processes() == [("agent", me)]


def test_the_birth_of_a_process_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        SessionFolder.create(tmp_path).record_birth("rank 0", 2**22 + 1)


def test_removing_takes_shared_memory_along_and_may_be_done_twice(tmp_path: Path) -> None:
    folder = SessionFolder.create(tmp_path)
    folder.shared_memory().mkdir()
    (folder.shared_memory() / "value").touch()

    folder.remove()
    folder.remove()

    assert not folder.path.exists()
    assert not folder.shared_memory().exists()


def test_the_sessions_of_a_root_are_found(tmp_path: Path) -> None:
    (tmp_path / "not a session").mkdir()
    (tmp_path / "file").touch()
    made = {SessionFolder.create(tmp_path).session_id for _ in range(2)}

    assert {folder.session_id for folder in sessions(tmp_path)} == made
