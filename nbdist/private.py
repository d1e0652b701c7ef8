"""Files and folders that are this user's alone, in places that other users may write to.

    provide_folder, make_folder     private folders: made whole, or found private
    create_file, append_file        new files of ours, 0600 whatever the umask is
    open_file, read_bytes           nothing is read before owner, mode and links are checked
    peer_of                         who is at the other end of a Unix socket

What is checked stays so until it is used: a file is asked by its descriptor, and a folder of ours
in a place where nobody else may rename it cannot be exchanged.

Not covered: root, and other processes of this user.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from nbdist.errors import NotPrivate

OTHERS = 0o077
# Owners that this machine cannot name: root outside of a container looks like that from inside.
_UNKNOWN_OWNER = Path("/proc/sys/kernel/overflowuid")


@dataclass(frozen=True)
class Peer:
    """The process that made the other end of a Unix socket."""

    pid: int
    uid: int

    @property
    def is_me(self) -> bool:
        """Whether it belongs to this user."""
        return self.uid == os.getuid()


def peer_of(connection: socket.socket) -> Peer:
    """Return who is at the other end of *connection*, as the system has written it down."""
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", packed)
    return Peer(pid, uid)


# Folders ------------------------------------------------------------------------------------------


def provide_folder(path: Path) -> None:
    """Make *path*, and what is missing above it, or take what is there if it is private.

    Args:
        path: Absolute, without links but for the last part.

    Raises:
        NotPrivate: It is not this user's alone, or others may put something else in its place.
        OSError: It cannot be made.
    """
    above = list(reversed(path.parents))
    for folder in above:
        if not os.path.lexists(folder):
            make_folder(folder)
        check_place(folder)
    if not os.path.lexists(path):
        make_folder(path)
    check_folder(path)


def make_folder(path: Path) -> None:
    """Make *path*, which must not be there, for this user alone; its place must be safe."""
    path.mkdir(mode=0o700)
    path.chmod(0o700)  # the umask may have taken the owner's own rights


def check_folder(path: Path) -> None:
    """Raise `NotPrivate` unless *path* is a folder of this user, closed to all others."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotPrivate(f"{path} is no folder, or a link.")
    if found.st_uid != os.getuid():
        raise NotPrivate(f"{path} belongs to another user, {_name_of(found.st_uid)}.")
    if found.st_mode & OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise NotPrivate(f"{path} is open to other users (mode {mode:03o}): `chmod 700 {path}`.")


def check_place(folder: Path) -> None:
    """Raise `NotPrivate` if another user may rename what lies in *folder*, which is no link."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if found.st_uid not in (0, os.getuid(), _unknown_owner()):
        owner = _name_of(found.st_uid)
        raise NotPrivate(f"{folder} belongs to {owner}, who may exchange what lies in it.")
    is_open = bool(found.st_mode & stat.S_IWOTH)
    is_open |= bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found.st_gid)
    if is_open and not found.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(found.st_mode)
        raise NotPrivate(
            f"Other users may exchange what lies in {folder} (mode {mode:03o}, not sticky)."
        )


def _unknown_owner() -> int:
    try:
        return int(_UNKNOWN_OWNER.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 65534


def _is_own_group(gid: int) -> bool:
    """Whether *gid* is root's, or the group that holds this user and nobody else."""
    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(gid)
    except KeyError:  # a container that knows no names
        return gid == 0
    is_alone = set(group.gr_mem) <= {user.pw_name, "root"}
    return is_alone and (gid == 0 or (gid == user.pw_gid and group.gr_name == user.pw_name))


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


# Files --------------------------------------------------------------------------------------------


def create_file(path: Path) -> int:
    """Make the new file *path* for this user alone, and return its descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.fchmod(fd, 0o600)  # the umask may have taken the owner's own rights
    return fd


def append_file(path: Path) -> int:
    """Open *path* for appending; made as `create_file` does it, or checked as `open_file` does."""
    try:
        return open_file(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        pass
    try:
        fd = create_file(path)
    except FileExistsError:  # another process of ours was quicker
        return open_file(path, os.O_RDWR | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open *path* and return its descriptor, if it is a file of this user alone.

    Raises:
        NotPrivate: It is a link, has other names, belongs to someone else, or is open to others.
        OSError: It cannot be opened.
    """
    try:  # not blocking: a pipe in its place would hold us up
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise NotPrivate(f"{path} is a link; nothing was read from it.") from None
        raise
    if problem := _problem_of(os.fstat(fd)):
        os.close(fd)
        raise NotPrivate(f"{path} {problem}; nothing was read from it.")
    return fd


def _problem_of(found: os.stat_result) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        return "is no file"
    if found.st_uid != os.getuid():
        return f"belongs to another user, {_name_of(found.st_uid)}"
    if found.st_mode & OTHERS:
        return f"is open to other users (mode {stat.S_IMODE(found.st_mode):03o})"
    if found.st_nlink > 1:
        return "has a second name somewhere"
    return None


def read_bytes(path: Path) -> bytes:
    """Return the content of a file of this user alone; raises as `open_file` does."""
    with os.fdopen(open_file(path), "rb") as file:
        return file.read()


def read_text(path: Path) -> str:
    """Return the text of a file of this user alone; what is no UTF-8 is replaced."""
    return read_bytes(path).decode(errors="replace")
