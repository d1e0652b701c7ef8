"""Descriptors, threads, memory and files of a running session, by role."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from nbdist.folder import SessionFolder
from nbdist.sessions.session import Session
from tests.soak.growth import MB, Quantity

SHARED = "/dev/shm/"
Amounts = dict[Quantity, float]


def folder_of(session: Session) -> SessionFolder:
    return session._processes.folder


def footprint(session: Session) -> Amounts:
    """Count everything; what nobody uses any more is given back first."""
    session.run("tidy_memory()", want_value=False).result(30)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    folder = folder_of(session)
    amounts = of_process("kernel", [os.getpid()])
    for role in ("agent", "controller", "store"):
        if (process := folder.process(role)) is not None:
            amounts |= of_process(role, [process.pid])
    first, *others = pids_of_ranks(session)
    amounts |= of_process("rank 0", [first]) | of_process("other ranks", others)
    amounts |= of_folder("session folder", [folder.path])
    return amounts | of_folder("shared memory", shared_folders(folder))


def pids_of_ranks(session: Session) -> list[int]:
    return [pid for _, pid in sorted(session._processes.pids.items())]


def of_process(role: str, pids: list[int]) -> Amounts:
    """Count for *role*; the mean where it has several processes."""
    processes = [psutil.Process(pid) for pid in pids]
    return {
        Quantity(role, "descriptors"): statistics.fmean(p.num_fds() for p in processes),
        Quantity(role, "threads"): statistics.fmean(p.num_threads() for p in processes),
        Quantity(role, "memory, MB"): statistics.fmean(p.memory_info().rss / MB for p in processes),
    }


def of_folder(role: str, folders: Iterable[Path]) -> Amounts:
    sizes = [size for folder in folders for size in sizes_in(folder)]
    return {
        Quantity(role, "files"): float(len(sizes)),
        Quantity(role, "size, MB"): sum(sizes) / MB,
    }


def sizes_in(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.stat().st_blocks * 512  # not its length: most of the guard's table is a hole


def shared_folders(folder: SessionFolder) -> set[Path]:
    """Return the folders in shared memory from which the agent maps a file, whatever their name."""
    agent = folder.process("agent")
    if agent is None:
        return set()
    maps = Path(f"/proc/{agent.pid}/maps").read_text().splitlines()
    paths = (Path(line.split(maxsplit=5)[-1]) for line in maps if SHARED in line)
    return {path.parent for path in paths if path.parent != Path(SHARED)}
