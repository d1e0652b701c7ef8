from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdist.errors import LaunchError
from nbdist.folder import SessionFolder, runtime_root, sessions
from nbdist.processes import ProcessId
from tests.private_files import write_private


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


def test_the_root_is_made_private(tmp_path: Path) -> None:
    chosen = tmp_path / "a" / "b"

    assert runtime_root({"NBDIST_RUNTIME_DIR": str(chosen)}) == chosen
    assert mode(chosen) == "0o700"


def test_a_root_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    assert runtime_root({"NBDIST_RUNTIME_DIR": str(tmp_path)}) == tmp_path
    assert mode(tmp_path) == "0o500"


@pytest.mark.parametrize("found", [0o755, 0o710, 0o701, 0o777])
def test_a_root_that_others_may_open_is_refused_and_left_as_it_is(
    tmp_path: Path, found: int
) -> None:
    tmp_path.chmod(found)

    with pytest.raises(LaunchError, match=r"open to other users[^$]*chmod 700[^$]*RUNTIME_DIR"):
        runtime_root({"NBDIST_RUNTIME_DIR": str(tmp_path)})

    assert mode(tmp_path) == oct(found)


def test_a_root_that_others_could_exchange_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "mine").mkdir(mode=0o700)
    shared.chmod(0o777)

    for name in ("mine", "new"):
        with pytest.raises(LaunchError, match="exchange what lies in"):
            runtime_root({"NBDIST_RUNTIME_DIR": str(shared / name)})
    shared.chmod(0o1777)

    assert runtime_root({"NBDIST_RUNTIME_DIR": str(shared / "mine")}) == shared / "mine"
    assert not (shared / "new").exists()


def test_a_root_is_private_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        made = runtime_root({"NBDIST_RUNTIME_DIR": str(tmp_path / "a" / "b")})
        folder = SessionFolder.create(made)
        folder.describe({"nproc": 2})
        folder.record_birth("agent", os.getpid())
    finally:
        os.umask(before)

    assert {mode(path) for path in (tmp_path / "a", made, folder.path, folder.logs)} == {"0o700"}
    files = [path for path in folder.path.iterdir() if path.is_file()]
    assert {mode(path) for path in files} == {"0o600"}


def test_the_runtime_folder_of_the_desktop_is_used_if_it_can_be(tmp_path: Path) -> None:
    assert runtime_root({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "nbdist"
    missing = runtime_root({"XDG_RUNTIME_DIR": str(tmp_path / "gone")})
    assert missing.name == f"nbdist-{os.getuid()}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_the_runtime_folder_of_another_user_s_desktop_is_not_used(tmp_path: Path) -> None:
    os.chown(tmp_path, 4711, 4711)  # as after `sudo` that keeps the environment

    assert runtime_root({"XDG_RUNTIME_DIR": str(tmp_path)}).name == f"nbdist-{os.getuid()}"


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


DAMAGED_DESCRIPTIONS = [
    b"",
    b"{",
    b"[1]",
    b"5",
    b"null",
    b"\xff\x00\x80",
    b'{"kernel": 5}',
    b'{"kernel": {"pid": "5"}}',
    b'{"kernel": {"pid": -1}}',
    b'{"kernel": {"pid": 1e30}}',
    b'{"kernel": {"pid": true}}',
    b'{"kernel": {"folder": []}}',
    b'{"nproc": "2"}',
    b'{"since": Infinity}',
    b'{"since": NaN}',
    b'{"since": 1e300}',
    b'{"lease_until": {}}',
]


def test_a_session_that_was_never_described_has_an_empty_description(tmp_path: Path) -> None:
    assert SessionFolder.create(tmp_path).description() == {}


@pytest.mark.parametrize("content", DAMAGED_DESCRIPTIONS)
def test_a_damaged_description_costs_that_record_only_and_is_named_once(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SessionFolder.create(tmp_path)
    write_private(folder.path / "session.json", content)

    assert folder.description() == folder.description() == {}
    [message] = caplog.messages
    assert str(folder.path / "session.json") in message
    assert f"nbdist stop {folder.session_id}" in message


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


@pytest.mark.parametrize(
    "line",
    [
        b'{"role": "rank 0", "pid": 1',
        b'{"role": "rank 0"}',
        b'{"role": 5, "pid": 1, "started": 1, "boot": "x"}',
        b'{"role": "rank 0", "pid": "1", "started": 1, "boot": "x"}',
        b'{"role": "rank 0", "pid": -1, "started": 1, "boot": "x"}',
        b"5",
        b"null",
        b"[]",
        b'"}"',
        b"}",
        b"\x00\xff\x80",
    ],
)
def test_a_damaged_line_costs_that_record_only_and_is_named_once(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = SessionFolder.create(tmp_path)
    path = folder.path / "processes.jsonl"
    agent = folder.record_birth("agent", os.getpid())
    with path.open("ab") as file:
        file.write(line)  # without an end, as a full disk leaves it
    parent = folder.record_birth("rank 0", os.getppid())

    assert folder.processes() == [("agent", agent), ("rank 0", parent)]
    assert folder.process("rank 0") == parent
    [message] = caplog.messages
    assert f"{path} has 1 of 3 lines damaged" in message


def test_a_birth_that_a_full_disk_takes_half_of_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, write = SessionFolder.create(tmp_path), os.write
    agent = folder.record_birth("agent", os.getpid())
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
        folder.record_birth("controller", os.getpid())
    with monkeypatch.context() as full:
        full.setattr(os, "write", no_room)
        folder.record_birth("store", os.getpid())
    parent = folder.record_birth("rank 0", os.getppid())

    assert folder.processes() == [("agent", agent), ("rank 0", parent)]
    assert "not written down" in caplog.messages[0]
    assert "No space left" in caplog.messages[1]


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_birth_of_a_process_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProcessLookupError):
        SessionFolder.create(tmp_path).record_birth("rank 0", 2**22 + 1)


def test_removing_takes_shared_memory_along_and_may_be_done_twice(tmp_path: Path) -> None:
    folder = SessionFolder.create(tmp_path)
    folder.make_shared_memory()
    shared = folder.shared_memory()
    (shared / "value").touch()

    folder.remove()
    folder.remove()

    assert not folder.path.exists()
    assert not shared.exists()


def test_shared_memory_is_made_under_a_name_that_nobody_can_know(tmp_path: Path) -> None:
    folder = SessionFolder.create(tmp_path)
    folder.make_shared_memory()
    shared = folder.shared_memory()

    assert shared.parent == Path("/dev/shm")
    assert mode(shared) == "0o700"
    assert folder.session_id not in shared.name
    assert SessionFolder(folder.path).shared_memory() == shared
    folder.remove()


def missing(place: Path) -> None:
    place.rmdir()


def closed(place: Path) -> None:
    place.rmdir()
    place.touch()


def open_to_all(place: Path) -> None:
    place.chmod(0o777)


@pytest.mark.parametrize("spoil", [missing, closed, open_to_all])
def test_where_shared_memory_cannot_be_used_the_session_folder_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    place = tmp_path / "shm"
    place.mkdir()
    spoil(place)
    monkeypatch.setattr("nbdist.folder.SHARED_MEMORY", place)

    folder = SessionFolder.create(tmp_path)
    folder.make_shared_memory()

    assert folder.shared_memory() == folder.path


@pytest.mark.parametrize("name", ["", "..", "../../etc", "nbdist-0-0123456789abcdef"])
def test_nothing_is_taken_for_the_session_s_shared_memory_that_it_has_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = tmp_path / "shm"
    (place / "nbdist-0-0123456789abcdef").mkdir(parents=True)
    (place / "nbdist-0-0123456789abcdef").chmod(0o777)
    monkeypatch.setattr("nbdist.folder.SHARED_MEMORY", place)
    folder = SessionFolder.create(tmp_path)
    write_private(folder.path / "shared-memory.txt", name)

    assert folder.shared_memory() == folder.path


def test_the_sessions_of_a_root_are_found(tmp_path: Path) -> None:
    (tmp_path / "not a session").mkdir()
    (tmp_path / "file").touch()
    made = {SessionFolder.create(tmp_path).session_id for _ in range(2)}

    assert {folder.session_id for folder in sessions(tmp_path)} == made
