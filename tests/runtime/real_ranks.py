"""Run one function on several forked ranks and collect what they say.

    test ──subprocess──▶ script ──fork──▶ ranks (gloo, guard, lifeline)     script: the TCPStore
                            ◀──JSON lines─── what each rank said

A script made of such functions ends with ``main(globals())``; ``python script.py NAME N`` runs one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
PATIENCE_S = 50.0
# Who is freed, is freed in milliseconds; who is not, waits for the group's own timeout of 30 s.
FREED_MS = 5_000

Facts = dict[str, Any]


def run_ranks(
    script: str, case: str, num_ranks: int, *, patience_s: float = PATIENCE_S
) -> list[Facts]:
    """Run *case* of *script* for at most *patience_s*; return what each rank said, by rank."""
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HERE / script), case, str(num_ranks), str(patience_s)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=patience_s + 8)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the ranks are in its process group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, f"{out}\n{err}"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda facts: int(facts["rank"]))


def cases(facts: Facts) -> dict[str, Any]:
    """Return what a rank said of each case, by the case's name."""
    return {name: fact for name, fact in facts.items() if name != "rank"}


@dataclass
class World:
    """What a function of a script gets: its rank and what it needs for a group."""

    rank: int
    size: int
    port: int
    folder: Path
    generation: int = 0
    facts: Facts = field(default_factory=dict)
    num_meetings: int = 0

    def __post_init__(self) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from nbdist.runtime.guard import Guard
        from nbdist.runtime.lifeline import Lifeline
        from nbdist.runtime.rescue import Rescue
        from nbdist.runtime.table import Table

        self.store = TCPStore(
            "127.0.0.1",
            self.port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
        )
        self.table = Table(self.folder / "table")
        self.guard = Guard(self.table, self.rank)
        self.lifeline = Lifeline()
        self.rescue = Rescue(self.guard, self.lifeline)

    def join(self, timeout_s: float = 30) -> None:
        """Join the world's group, with guard and lifeline."""
        import torch
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        torch.set_num_threads(1)
        self.guard.install()
        self.lifeline.install(generation=self.generation)
        self.rescue.start()
        dist.init_process_group(
            "gloo",
            store=PrefixStore(f"gen{self.generation}", self.open_store()),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout_s),
        )

    def open_store(self) -> Any:
        return self.lifeline.open_store("127.0.0.1", self.port, timedelta(seconds=30))

    def say(self, **facts: Any) -> None:
        self.facts |= facts

    def attempt(self, action: Callable[[], Any]) -> str:
        """Run *action*; return the error's class and message, or ``ok``."""
        try:
            action()
        except BaseException as exc:  # noqa: BLE001 - what it is, is what the test looks at
            return f"{type(exc).__name__}: {exc}"
        return "ok"

    def run_cell(self, action: Callable[[], Any]) -> str:
        """Run *action* as the engine runs a cell: what it raises is explained, and told others."""
        try:
            action()
        except BaseException as exc:  # noqa: BLE001 - as in the engine
            error = self.guard.explain(exc)
            text = f"{type(error).__name__}: {error}"
            culprit = getattr(error, "culprit", self.rank)
            first = str(error).partition("\n")[0]
            reason = first if culprit != self.rank else f"rank {self.rank} raised {text}"
            self.guard.cancel(reason, culprit)
            return text
        return "ok"

    def recover(self) -> Any:
        """Do what the engine does before the cell after a failed one."""
        outcome = self.resync()
        if outcome.needs_rebuild:
            self.rebuild()
        else:
            self.lifeline.reset_modules()
        return outcome

    def meet(self) -> None:
        """Wait for all ranks without a group."""
        self.num_meetings += 1
        key = f"meet/{self.generation}/{self.num_meetings}"
        self.store.set(f"{key}/{self.rank}", "here")
        for rank in range(self.size):
            self.store.get(f"{key}/{rank}")

    def resync(self, *, is_fresh: bool = False) -> Any:
        """Go on after a failure, as the engine does before the next cell."""
        self.num_meetings += 1
        tag = f"resync/{self.generation}/{self.num_meetings}"
        is_broken = self.lifeline.aborted is not None
        return self.guard.resync(self.store, tag, is_broken=is_broken, is_fresh=is_fresh)

    def rebuild(self) -> None:
        """Make the groups anew, as the engine does after an abort."""
        self.generation += 1
        self.num_meetings = 0
        self.lifeline.end_remains()
        self.lifeline.rebuild(self.open_store(), self.generation)
        self.guard.rebuilt()

    def start_fresh(self, script: str, rank: int) -> None:
        """Start an interpreter in the place of a dead rank: it runs ``fresh`` of *script*."""
        arguments = [sys.executable, "-W", "ignore", script, "fresh", str(rank), str(self.size)]
        where = [str(self.port), str(self.folder)]
        os.posix_spawn(sys.executable, [*arguments, *where], os.environ)

    def take_place(self) -> None:
        """Be such an interpreter: join the others, who rebuild for the first time."""
        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        self.generation = 1
        self.guard.install()
        self.lifeline.install(generation=1)

        def make_world(store: Any) -> None:
            dist.init_process_group(
                "gloo",
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=30),
            )

        agreed = self.resync(is_fresh=True)
        self.lifeline.join(
            make_world,
            self.open_store(),
            1,
            rank=self.rank,
            world_size=self.size,
            group_count=agreed.group_count,
        )
        self.guard.rebuilt()

    def interrupt_after(self, seconds: float) -> list[float]:
        """Press stop in a moment; what is returned gets the time of that, once it is done."""
        pressed: list[float] = []

        def press() -> None:
            pressed.append(time.time())
            os.kill(os.getpid(), signal.SIGINT)

        self.after(seconds, press)
        return pressed

    def after(self, seconds: float, action: Callable[[], Any]) -> None:
        """Run *action* in a thread, as the control channel does."""
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()


def main(functions: Mapping[str, Any]) -> None:
    """Be the script: fork the ranks, keep the store, end when they have.

    With ``fresh`` as its argument, be the one rank that `World.start_fresh` has asked for.
    """
    if sys.argv[1] == "fresh":
        rank, size, port = map(int, sys.argv[2:5])
        end_after(lambda: functions["fresh"](World(rank, size, port, Path(sys.argv[5]))))
    import torch.distributed as dist

    import nbdist.runtime.rescue  # noqa: F401 - imported to be there after the fork
    from nbdist.runtime.table import Table

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    case, size, deadline = sys.argv[1], int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        folder = Path(name)
        Table.create(folder / "table", size).close()
        pids = [fork(functions[case], rank, size, folder) for rank in range(size)]
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        (folder / "port.part").write_text(str(store.port))
        (folder / "port.part").rename(folder / "port")
        codes = [wait_for(pid, deadline) for pid in pids]
    if functions[case].__dict__.get("expected_codes", [0] * size) != codes:
        sys.exit(f"the ranks ended with {codes}")


def fork(function: Callable[[World], None], rank: int, size: int, folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        end_after(lambda: be_rank(function, rank, size, folder))
    return pid


def be_rank(function: Callable[[World], None], rank: int, size: int, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if we run in the background
    while not (folder / "port").exists():
        time.sleep(0.002)
    world = World(rank, size, int((folder / "port").read_text()), folder)
    function(world)
    world.say(rank=rank)
    os.write(1, (json.dumps(world.facts) + "\n").encode())
    world.meet()


def end_after(run: Callable[[], None]) -> NoReturn:
    """End this process as soon as *run* is over: at an ordinary end it would wait for its peers."""
    code = 1
    try:
        run()
        code = 0
    except BaseException:  # noqa: BLE001 - the edge of a process
        traceback.print_exc()
    finally:
        os._exit(code)


def wait_for(pid: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -1000  # it hung
