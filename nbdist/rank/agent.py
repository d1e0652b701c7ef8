"""The agent: one process per host that imports torch once and forks the ranks.

    kernel ──agent.sock──▶ agent ──fork──▶ store keeper     holds the TCPStore
                             ├────fork──▶ minder ──▶ rank 0     an ipyparallel engine
                             └────fork──▶ minder ──▶ rank 1

All ranks come from it; between them stand minders (`nbdist.rank.minder`), which report an exit at
once and end what the rank leaves behind. It tells the kernel. Over its socket (JSON lines) go
births, deaths and signals; neither code nor results. It ends the whole session when told to.

A kernel that goes without a word (killed, crashed) leaves a lease: the ranks go on, and so does
what runs on them. Another kernel may take the session within ``lease_s``; then it ends by itself.
A kernel that goes before it has said ``attach``, that is during the start, leaves nothing.

It also holds the guard's table: when a rank dies, whoever waits for it is freed from here.

It must stay safe to fork from: one thread, no tensor operation ever, no device touched. So it
imports and waits, nothing else. Started by module name (``python -m nbdist.rank.agent FOLDER``).
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from nbdist import private, processes
from nbdist.folder import SessionFolder
from nbdist.packing import ValueFolder, writer_name
from nbdist.processes import exit_words
from nbdist.rank import minder
from nbdist.rank.children import (
    RankProcess,
    StoreKeeper,
    json_lines,
    make_pipe,
    start_store_keeper,
    tail,
)
from nbdist.titles import set_title
from nbdist.wire import AgentSpec

logger = logging.getLogger(__name__)

PATIENCE_S = 1.0  # with killed processes that do not go at once
POLL_S = 0.5  # how often the ranks' pipes are looked at; everything else wakes the loop
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# torch ends the process after a collective that failed or was cut off, unless told otherwise
# before it is imported. Read in torch 2.13; never run on a GPU.
KEEP_ALIVE = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    "TORCH_NCCL_RETHROW_CUDA_ERRORS": "0",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
}


@dataclass(frozen=True)
class Owner:
    """The kernel that has the session.

    Attributes:
        connection: Its end is the kernel's, unless a child that the kernel forked holds it as well.
        process: ``None`` where the kernel cannot be seen from here.
    """

    connection: socket.socket
    process: processes.ProcessId | None

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.process is None or self.process.is_alive


class Agent:
    """Forks, watches, signals and ends the ranks of one host."""

    def __init__(self, folder: SessionFolder, spec: AgentSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.ranks: dict[int, RankProcess] = {}
        self.kernels: dict[socket.socket, bytearray] = {}
        self.owner: Owner | None = None
        self.lease_ends: float | None = None  # on the monotonic clock
        self._num_attached = 0
        self._left_at = 0.0  # when the last kernel went, in seconds since the epoch
        self._controller: processes.ProcessId | None = None
        self._store: StoreKeeper | None = None
        self._table: Any = None  # the guard's, once torch is imported
        self._values = ValueFolder(folder.shared_memory(), folder.path)
        self.is_ending = False
        self._umask = os.umask(0o077)  # of the user: the ranks get it back
        self._history: list[dict[str, Any]] = []
        self._selector = selectors.DefaultSelector()
        self._listener = self._listen()
        self._wakeup = self._watch_children()

    # The loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Start everything, then serve until the session ends."""
        self._serve_until(lambda: bool(self.kernels))
        try:
            self._start()
        except Exception as exc:
            logger.exception("the start failed")
            self._push({"event": "failed", "error": f"{type(exc).__name__}: {exc}"})
        self._serve_until(lambda: self.is_ending)

    def _start(self) -> None:
        import_engine()
        self._push({"event": "imported"})
        gc.freeze()  # the pages of what was imported stay shared with the ranks
        self._store = start_store_keeper(self.folder, self._forget_agent)
        self._make_table()
        for local_rank in range(self.spec.nproc):
            self.spawn(self.spec.first_rank + local_rank)

    def _serve_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over() and not self.is_ending:
            ready = self._selector.select(timeout=POLL_S)
            for key, _ in ready:
                self._do(key.data, key.fileobj)
            self._do(self._collect_exits)
            self._do(self._look_at_pipes)
            self._do(self._look_at_store)
            self._look_at_kernel()
            self._look_at_controller()

    def _do(self, step: Callable[..., None], *arguments: Any) -> None:
        """Take a step of the loop; what goes wrong in it must not cost the ranks their lives."""
        try:
            step(*arguments)
        except Exception:
            logger.exception("the agent goes on after an error")

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        draft = f"{self.folder.agent_socket}.part"
        listener.bind(draft)
        Path(draft).chmod(0o600)  # the umask may have taken the owner's own rights
        listener.listen()
        Path(draft).rename(self.folder.agent_socket)  # who sees the name can connect at once
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        return listener

    def _watch_children(self) -> tuple[socket.socket, socket.socket]:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._selector.register(reader, selectors.EVENT_READ, lambda sock: sock.recv(4096))
        return reader, writer

    def _on_term(self, *_: object) -> None:
        self.end("the agent was told to terminate")

    # The kernel's side ------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        if not private.peer_of(connection).is_me:
            connection.close()
            return
        self.kernels[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ, self._hear_kernel)
        for message in self._history:
            self._send(connection, message)

    def _hear_kernel(self, connection: socket.socket) -> None:
        if connection not in self.kernels:  # given up a moment ago
            return
        try:
            data = connection.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._lose(connection)
            return
        for message in json_lines(self.kernels[connection], data):
            self._obey(connection, message)

    def _lose(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self.kernels.pop(connection, None)
        connection.close()
        if self.owner is not None and self.owner.connection is connection:
            self._begin_lease()
        elif self._is_starting and not self.kernels:
            self.end("the kernel was gone before the session was ready")

    @property
    def _is_starting(self) -> bool:
        """Whether no kernel has had the session yet."""
        return self.owner is None and self.lease_ends is None

    @property
    def _is_controller_lost(self) -> bool:
        """Whether its end was told, and no other has taken its place."""
        return any(event["event"] == "controller lost" for event in self._history)

    def _attach(self, connection: socket.socket, message: Mapping[str, Any]) -> None:
        """Give the session to the kernel at *connection*, unless another one has it."""
        if self.owner is not None and not self.owner.is_alive:
            self._lose(self.owner.connection)
        if self.owner is not None and self.owner.connection is not connection:
            pid = self.owner.process.pid if self.owner.process is not None else None
            self._send(connection, {"event": "refused", "pid": pid})
            return
        try:
            process = processes.ProcessId.of(private.peer_of(connection).pid)
        except ProcessLookupError:
            process = None
        self.owner, self.lease_ends = Owner(connection, process), None
        kernel = {**message["kernel"], "since": time.time()}
        self._do(self._describe, {"kernel": kernel, "lease_until": None})
        answer = {"event": "attached", "turn": self._num_attached, "left_at": self._left_at}
        self._send(connection, answer)
        self._num_attached += 1

    def _begin_lease(self) -> None:
        """Wait for another kernel; the ranks go on."""
        self.owner, self._left_at = None, time.time()
        lease_s = self.spec.config["lease_s"]
        if not lease_s:
            return self.end("the kernel is gone")
        self.lease_ends = time.monotonic() + lease_s
        lease_until = self._left_at + lease_s
        self._do(self._describe, {"lease_until": lease_until})
        logger.info("the kernel is gone; the session waits %s s for another one", lease_s)
        return None

    def _describe(self, changes: Mapping[str, Any]) -> None:
        """Write down what has changed; on a full disk it cannot be, and the session goes on."""
        self.folder.describe({**self.folder.description(), **changes})

    def _look_at_kernel(self) -> None:
        """See a kernel's end where its connection does not show it; end with the lease."""
        if self.owner is not None and not self.owner.is_alive:
            self._lose(self.owner.connection)
        elif self.lease_ends is not None and time.monotonic() > self.lease_ends:
            self.end("no kernel came within the lease")
        elif self._is_starting:
            kernel = processes.ProcessId(self.spec.kernel_pid, self.spec.kernel_started)
            if not kernel.is_alive:
                self.end("the kernel was gone before the session was ready")

    def _look_at_controller(self) -> None:
        """Tell the kernel when the controller is gone: nothing else reaches the ranks."""
        if self._controller is not None and self._controller.is_alive:
            return
        latest = self.folder.process("controller")
        if latest != self._controller:  # the first one, or one that has taken its place
            self._controller = latest
            self._wake_at_end_of(latest)
            self._history = [e for e in self._history if e["event"] != "controller lost"]
        elif latest is not None and not self._is_controller_lost:
            self._push({"event": "controller lost", "pid": latest.pid})

    def _wake_at_end_of(self, process: processes.ProcessId | None) -> None:
        """Let the loop look around at once when *process*, which is no child, ends."""
        if process is None:
            return
        try:
            fd = os.pidfd_open(process.pid)
        except OSError:  # it has ended, or this system has no such thing: the loop looks anyway
            return

        def forget(_: object) -> None:
            self._selector.unregister(fd)
            os.close(fd)

        self._selector.register(fd, selectors.EVENT_READ, forget)

    def _obey(self, connection: socket.socket, message: Mapping[str, Any]) -> None:
        command = message.get("command")
        if command == "stop":
            self.end("told to stop", reply_to=connection)
        elif command == "attach":
            self._attach(connection, message)
        elif command == "spawn":
            self._respawn(message)
        elif command == "kill":
            self._kill(message["rank"])
        elif command == "end calls":
            self._end_calls(message)
        elif command == "state":
            self._send(connection, {"event": "state", "number": message["number"], **self._state()})
        else:
            logger.warning("unknown command: %r", message)

    def _respawn(self, message: Mapping[str, Any]) -> None:
        try:
            self.spawn(message["rank"], message["generation"], message["meeting"])
        except (OSError, RuntimeError) as exc:
            logger.exception("rank %s cannot be started again", message["rank"])
            error = f"{type(exc).__name__}: {exc}"
            self._push({"event": "not spawned", "rank": message["rank"], "error": error})

    def _kill(self, rank: int) -> None:
        if (process := self.ranks.get(rank)) and process.identity.is_alive:
            os.kill(process.identity.pid, signal.SIGKILL)

    def _end_calls(self, message: Mapping[str, Any]) -> None:
        """Tell ranks that nobody can come any more to what they wait in."""
        if self._table is not None:
            numbers = {int(rank): number for rank, number in message["numbers"].items()}
            self._table.end_calls(numbers, message["reason"])

    def _state(self) -> dict[str, Any]:
        """Say what the ranks do, without asking them: a rank may be unable to answer."""
        calls = [] if self._table is None else _calls(self._table)
        stopped = [rank for rank, process in self.ranks.items() if process.is_stopped]
        return {"calls": calls, "stopped": stopped}

    def _push(self, message: dict[str, Any]) -> None:
        """Tell every kernel, and those that connect later."""
        if message["event"] == "spawned":  # what its forerunner did is of no use any more
            old, rank = self._history, message["rank"]
            self._history = [event for event in old if event.get("rank") != rank]
        self._history.append(message)
        for connection in list(self.kernels):
            self._send(connection, message)

    def _send(self, connection: socket.socket, message: Mapping[str, Any]) -> None:
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            logger.info("a kernel did not take %r", message.get("event"))

    # The ranks' side --------------------------------------------------------------------------

    def _make_table(self) -> None:
        """Make the table in which the guards of all ranks say what they are about to call."""
        from nbdist.runtime.table import Table

        name = "guard.table"
        try:
            self._table = Table.create(self.folder.shared_memory() / name, self.spec.world_size)
        except OSError:  # somebody has filled shared memory meanwhile
            self._table = Table.create(self.folder.path / name, self.spec.world_size)

    def spawn(self, rank: int, generation: int = 0, meeting: str | None = None) -> None:
        """Fork the process of *rank*.

        Args:
            rank: Which.
            generation: Of the process groups that it is to join.
            meeting: Where it meets those who are there already; ``None`` at the start.

        Raises:
            RuntimeError: It is there, or the agent is not safe to fork from any more.
        """
        if (there := self.ranks.get(rank)) is not None:
            raise RuntimeError(f"rank {rank} is there already: process {there.identity.pid}")
        threads = list(Path("/proc/self/task").iterdir())
        if len(threads) != 1:
            raise RuntimeError(f"the agent has {len(threads)} threads; a forked rank could hang")
        output, output_end = make_pipe()
        channel, channel_end = socket.socketpair()
        report, report_end = os.pipe()
        agent, minder_pid = os.getpid(), os.fork()
        if minder_pid == 0:
            os.close(report)
            channel.close()
            birth = (rank, generation, meeting)
            be_rank = functools.partial(self._become_rank, birth, output, output_end, channel_end)
            self._become_minder(rank, agent, report_end, be_rank)
        for end in (output_end, report_end):
            os.close(end)
        channel_end.close()
        told = os.fdopen(report, "rb")  # closed with what is known of the rank
        born = told.readline()
        if not born:
            raise RuntimeError(f"the process that was to fork rank {rank} has ended")
        identity = processes.ProcessId(*map(int, born.split()))
        self.ranks[rank] = RankProcess(identity, minder_pid, told, output, channel)
        self._selector.register(channel, selectors.EVENT_READ, lambda _: self._hear_rank(rank))
        self._selector.register(told, selectors.EVENT_READ, lambda _: self._hear_end(rank))
        self._push({"event": "spawned", "rank": rank, "pid": identity.pid})

    def _become_minder(
        self, rank: int, agent: int, report: int, be_rank: Callable[[], NoReturn]
    ) -> NoReturn:
        """Leave the agent's life behind and mind the rank."""
        try:
            set_title(f"nbdist minder {rank}")
            self._forget_agent()
            note_birth = functools.partial(self.folder.record_birth, f"rank {rank}")
            minder.mind(report, agent, be_rank, note_birth)
        except BaseException:  # noqa: BLE001 - the edge of a process: it becomes the log
            traceback.print_exc()
        finally:
            os._exit(1)

    def _become_rank(
        self,
        birth: tuple[int, int, str | None],
        output: int,
        output_end: int,
        channel_end: socket.socket,
    ) -> NoReturn:
        """Run the rank, in a fork of its minder."""
        code = 1
        try:
            os.dup2(output_end, 1)
            # `output_end` stays open: a cell may replace fd 1 and 2, and the pipe must not end.
            os.dup2(output_end, 2)
            gc.enable()
            logging.getLogger().handlers.clear()  # a rank's logging is its user's
            logging.getLogger().setLevel(logging.WARNING)
            from nbdist.rank import engine  # imported already; the name is what is new

            rank, generation, meeting = birth
            assert self._store is not None
            code = engine.run(
                engine.Birth(
                    folder=self.folder,
                    spec=self.spec,
                    rank=rank,
                    generation=generation,
                    meeting=meeting,
                    store_address=self._store.address,
                    table=self._table.path,
                    pipe=output,
                    channel=channel_end,
                    umask=self._umask,
                )
            )
        except BaseException:  # noqa: BLE001 - the edge of a process: it becomes the log and the exit code
            traceback.print_exc()
        finally:
            os._exit(code)

    def _forget_agent(self) -> None:
        """In a fresh child: close what belongs to the agent and undo its signal handling."""
        signal.set_wakeup_fd(-1)
        # SIGHUP too: under nohup it is ignored, and the commands of a dead rank would outlive it.
        for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        self._selector.close()
        for connection in (self._listener, *self._wakeup, *self.kernels):
            connection.close()
        if self._store is not None:
            self._store.channel.close()
        if self._table is not None:
            self._table.close()
        for sibling in self.ranks.values():
            sibling.close()

    def _hear_rank(self, rank: int) -> None:
        process = self.ranks[rank]
        try:
            data = process.channel.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._selector.unregister(process.channel)
            return
        for message in json_lines(process.pending, data):
            self._push({**message, "rank": rank})

    def _collect_exits(self) -> None:
        ended = minder.reap()
        if self._store is not None and self._store.pid in ended:
            self._replace_store(exit_words(ended[self._store.pid]))
        for rank, process in list(self.ranks.items()):
            if process.minder in ended:
                self._bury(rank)

    def _hear_end(self, rank: int) -> None:
        """Free those who wait for a rank that has ended; its minder still clears up."""
        process = self.ranks[rank]
        self._selector.unregister(process.report)
        if (code := process.hear_end()) is not None:
            self._free_peers(rank, code)

    def _free_peers(self, rank: int, code: int) -> None:
        if self._table is not None:
            reason = f"rank {rank} died: it {exit_words(code)}"
            self._table.cancel(reason, rank, of=rank, kind="died")

    def _end_orphans(self) -> None:
        """End what a minder has left, killed itself: no other child is unknown to the agent."""
        known = {process.minder for process in self.ranks.values()}
        if self._store is not None:
            known.add(self._store.pid)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            orphans = [each for each in processes.children(os.getpid()) if each.pid not in known]
            if not orphans:
                return
            for process in (*orphans, *processes.descendants(orphans)):
                process.send(signal.SIGKILL)
            time.sleep(0.01)

    def _replace_store(self, how: str) -> None:
        """Start another store: groups that run need none, and the ranks move before the next cell.

        Not during the start, when they wait in the one that has ended.
        """
        logger.warning("the store keeper %s", how)
        assert self._store is not None
        self._store.channel.close()
        if self._is_starting:
            self._store = None
            self._push({"event": "failed", "error": f"the store keeper {how}"})
            return
        self._store = start_store_keeper(self.folder, self._forget_agent)
        self._push({"event": "store", "address": self._store.address})

    def _look_at_store(self) -> None:
        """Let a store keeper go on that a signal has stopped: all ranks would wait for it."""
        if self._store is not None and processes.is_stopped(self._store.pid):
            logger.warning("the store keeper was stopped from outside, and is continued")
            os.kill(self._store.pid, signal.SIGCONT)

    def _bury(self, rank: int) -> None:
        """Tell that a rank has ended, now that its minder has, and so all that came from it."""
        process = self.ranks.pop(rank)
        is_told = process.code is not None
        code = process.hear_end()
        self._do(self._end_orphans)  # whatever goes wrong in clearing up: the death is told
        if code is None:  # the minder was killed, and the rank ended as its orphan
            code = -signal.SIGKILL
        if not is_told:
            self._free_peers(rank, code)
        self._do(self._drain, rank, process)
        self._do(self._values.discard_drafts, writer_name(rank))
        for end in (process.channel, process.report):
            if end.fileno() in self._selector.get_map():
                self._selector.unregister(end)
        process.close()
        self._push(
            {
                "event": "exited",
                "rank": rank,
                "pid": process.identity.pid,
                "code": code,
                "at": time.time(),
                "tail": tail(self.folder.rank_log(rank)),
                "stack": tail(self.folder.rank_stack(rank)),
            }
        )

    def _look_at_pipes(self) -> None:
        """Empty the pipe of a rank that has let it fill up, so that nobody blocks on writing."""
        for rank, process in self.ranks.items():
            if process.looks_stuck():
                self._drain(rank, process)

    def _drain(self, rank: int, process: RankProcess) -> None:
        from nbdist.rank.logs import RankLog

        log = RankLog(self.folder.rank_log(rank), self.spec.config["log_bytes"], self._secrets)
        while data := process.read_output():  # also where the disk is full: its writers must go on
            log.write(data)
        log.close()

    @functools.cached_property
    def _secrets(self) -> Any:
        from nbdist.rank.secrets import Secrets

        return Secrets.of(self.spec.config)

    # The end ----------------------------------------------------------------------------------

    def end(self, reason: str, reply_to: socket.socket | None = None) -> None:
        """End every process of the session, the agent last, and remove its folder."""
        if self.is_ending:
            return
        self.is_ending = True
        logger.info("the session ends: %s", reason)
        recorded = [process for _, process in self.folder.processes()]
        killed = processes.end(recorded, mark=self.spec.session_id)
        self.folder.remove()
        if reply_to is not None:
            self._send(reply_to, {"event": "stopped", "killed": killed})
        os._exit(0)


def import_engine() -> None:
    """Import all that a rank needs, so that a fork has it already. Starts no thread."""
    from nbdist.rank import engine

    engine.preload()


def _calls(table: Any) -> list[dict[str, Any]]:
    """Return where every rank stands in each of its groups, as JSON of `GroupCall`."""
    return [
        {
            **asdict(member),
            "group": group.key.name,
            "ranks": group.key.ranks,
            "kind": group.key.kind,
        }
        for group in table.view()
        for member in group.members
    ]


def main(folder_path: str) -> None:
    """Run the agent of the session in *folder_path*."""
    set_title("nbdist agent")
    gc.disable()  # imports make no garbage, and collecting takes a quarter of their time
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    minder.take_orphans()  # those of a killed minder
    folder = SessionFolder(Path(folder_path))
    content = json.loads(private.read_bytes(folder.agent_spec))
    content["gpus"] = tuple(content["gpus"])
    spec = AgentSpec(**content)
    folder.record_birth("agent", os.getpid())
    processes.forget_other_clusters()
    # Before torch is imported: with more than one BLAS thread a forked rank can hang.
    for name in ONE_THREAD:
        os.environ[name] = "1"
    if spec.device == "cuda":
        for name, value in KEEP_ALIVE.items():
            os.environ.setdefault(name, value)
    Agent(folder, spec).run()


if __name__ == "__main__":  # spawn workers of a rank import this module again: nothing happens
    main(sys.argv[1])
