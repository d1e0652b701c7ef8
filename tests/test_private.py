from __future__ import annotations

import grp
import os
import pwd
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nbdist import private
from nbdist.errors import NotPrivate

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")
STRANGER = 4711


def file_of_ours(path: Path, content: bytes = b"ours") -> Path:
    fd = private.create_file(path)
    os.write(fd, content)
    os.close(fd)
    return path


def test_a_file_of_ours_is_read(tmp_path: Path) -> None:
    path = file_of_ours(tmp_path / "file", "grün\n".encode() + b"\xff")

    assert private.read_bytes(path) == "grün\n".encode() + b"\xff"
    assert private.read_text(path) == "grün\n\ufffd"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_there_is_never_taken_for_a_new_one(tmp_path: Path) -> None:
    path = file_of_ours(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    for name in (path, tmp_path / "link"):
        with pytest.raises(FileExistsError):
            private.create_file(name)

    assert not (tmp_path / "nowhere").exists()


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def linked(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def named_twice(path: Path) -> None:
    path.with_name("other").hardlink_to(path)


def readable_by_others(path: Path) -> None:
    path.chmod(0o640)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


def a_pipe_without_a_writer(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def of_another_user(path: Path) -> None:
    os.chown(path, STRANGER, -1)


@pytest.mark.parametrize(
    "spoil",
    [
        linked,
        named_twice,
        readable_by_others,
        a_folder,
        a_pipe_without_a_writer,
        pytest.param(of_another_user, marks=needs_root),
    ],
)
def test_nothing_is_read_from_what_may_be_another_s(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = file_of_ours(tmp_path / "file")
    spoil(path)

    with pytest.raises(NotPrivate, match=f"{path}[^$]*nothing was read"):
        private.read_bytes(path)
    if spoil is not a_folder:
        with pytest.raises(NotPrivate):
            private.append_file(path)


def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = file_of_ours(tmp_path / "file")
    readable_by_others(path)
    before = num_open()

    for _ in range(3):
        with pytest.raises(NotPrivate):
            private.open_file(path)

    assert num_open() == before


def test_appending_goes_on_behind_what_is_there(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        fd = private.append_file(tmp_path / "file")
        os.write(fd, text)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, text)
        os.close(fd)

    assert (tmp_path / "file").read_bytes() == b"one\none\ntwo\ntwo\n"


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_place_of_another_user_is_not_safe_whatever_its_mode(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    os.chown(place, STRANGER, STRANGER)

    with pytest.raises(NotPrivate, match="may exchange"):
        private.provide_folder(place / "mine")

    assert not (place / "mine").exists()


@pytest.mark.parametrize(
    ("group", "members", "is_safe"),
    [
        ("alice", [], True),
        ("alice", ["alice"], True),
        ("alice", ["alice", "mallory"], False),
        ("team", [], False),
    ],
)
def test_a_home_that_one_s_own_group_may_write_in_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, members: list[str], is_safe: bool
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o770)
    gid = 4242
    user = pwd.struct_passwd(("alice", "x", os.getuid(), gid, "", "/", "/"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: user)
    monkeypatch.setattr(grp, "getgrgid", lambda _: grp.struct_group((group, "x", gid, members)))
    if os.getuid() == 0:
        os.chown(home, -1, gid)
    elif home.stat().st_gid != gid:
        pytest.skip("only root can give a folder to any group")

    if is_safe:
        private.check_place(home)
    else:
        with pytest.raises(NotPrivate, match="Other users may exchange"):
            private.check_place(home)


def test_who_is_at_the_other_end_of_a_socket_is_known() -> None:
    ours, theirs = socket.socketpair()

    with ours, theirs:
        assert private.peer_of(ours) == private.Peer(os.getpid(), os.getuid())
        assert private.peer_of(ours).is_me
    assert not private.Peer(1, os.getuid() + 1).is_me
