"""Start a session's processes, and end them: all of them, or none is left.

start ──▶ agent (imports torch, forks ranks) ─┐
      └─▶ controller ──▶ connection file ─────┴─▶ every rank joined and registered
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nbdist import private, processes
from nbdist.config import Config, to_dict
from nbdist.errors import ConfigError, LaunchError, NbdistError, SessionError
from nbdist.folder import SessionFolder, runtime_root
from nbdist.launchers.agent_link import AgentLink, Event
from nbdist.launchers.devices import (
    DevicePlan,
    RankDevice,
    count_gpus,
    device_environment,
    plan_devices,
)
from nbdist.launchers.host import available_cores
from nbdist.launchers.launcher import (
    connection_file,
    kernel_of_this_process,
    make_cluster,
    num_connected,
)
from nbdist.processes import ProcessId, exit_words
from nbdist.wire import AgentSpec, to_json

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 5.0
ATTACH_TIMEOUT_S = 10.0
RECONNECT_S = 10.0
ENDING_S = 1.0  # until a process whose end was seen has been waited for
TAIL_LINES = 15

# Keys that sessions do not use yet, and what their users can do instead.
NOT_YET = {
    "hosts": (
        "all ranks run on this machine. On several hosts a script with `nbdist.setup(cfg)` runs "
        "under torchrun or Slurm."
    ),
    "init_method": (
        "the ranks of a session always find each other over a socket of this machine. "
        "It counts for `nbdist.setup(cfg)` under torchrun or Slurm."
    ),
    "mesh": (
        "no mesh is made. Make it in a cell:\n"
        "    from torch.distributed.device_mesh import init_device_mesh\n"
        "    mesh = init_device_mesh(device.type, (2, 2), mesh_dim_names=('dp', 'tp'))"
    ),
}


@dataclass
class Processes:
    """The running processes of one session, as their starter holds them.

    Attributes:
        folder: Where their records lie.
        plan: Which devices the ranks use.
        on_exit: Called in the link's thread when a rank, or the agent, is gone.
        pids: Process id of each rank.
        exits: How ranks ended, by rank: the agent's event.
        joined: Ranks that have joined the process group.
        not_spawned: Why a fresh process could not be made for a rank.
        limits: What the ranks' torch does not allow.
        store_address: Of the store that took the place of one that ended; ``None`` while the first
            one lives.
        failure: What the agent could not do or keep alive, if there is anything.
        has_imported: The agent has imported torch.
        is_agent_lost: The agent is gone, and with it the session.
        is_controller_lost: The controller is gone: the ranks cannot be reached until another one is
            there.
        blockage: Why nothing passes although the controller lives; ``None`` while messages pass.
        turn: How many kernels had the session before this one; ``None`` until this one has it.
        left_at: When the one before it went, in seconds since the epoch.
        changed: Notified whenever one of these changes.
        link: The connection to the agent.
        cluster: ipyparallel's view of the processes.
        controller: The controller's process.
    """

    folder: SessionFolder
    plan: DevicePlan
    on_exit: Callable[[Event], None] = lambda _: None
    pids: dict[int, int] = field(default_factory=dict)
    exits: dict[int, Event] = field(default_factory=dict)
    joined: set[int] = field(default_factory=set)
    not_spawned: dict[int, str] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    store_address: tuple[str, int] | None = None
    failure: str | None = None
    has_imported: bool = False
    is_agent_lost: bool = False
    is_controller_lost: bool = False
    blockage: str | None = None
    turn: int | None = None
    left_at: float = 0.0
    changed: threading.Condition = field(default_factory=threading.Condition)
    link: AgentLink = field(init=False)
    cluster: Any = None
    controller: ProcessId | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _state: Event = field(default_factory=dict)
    _owner: Event | None = None

    def __post_init__(self) -> None:
        self.link = AgentLink(self.folder, self._hear)

    def _hear(self, event: Event) -> None:
        """Take an event of the agent; runs in the link's thread."""
        kind = event["event"]
        with self.changed:
            if kind == "imported":
                self.has_imported = True
            elif kind == "spawned":
                self.pids[event["rank"]] = event["pid"]
                self.exits.pop(event["rank"], None)
                self.not_spawned.pop(event["rank"], None)
            elif kind == "not spawned":
                self.not_spawned[event["rank"]] = event["error"]
            elif kind == "joined":
                self.joined.add(event["rank"])
                self.limits = tuple(event["limits"])
            elif kind == "exited":
                self.joined.discard(event["rank"])
                self.exits[event["rank"]] = event
            elif kind == "state":
                self._state = event
            elif kind == "store":
                self.store_address = tuple(event["address"])
            elif kind == "failed":
                self.failure = event["error"]
            elif kind == "attached":
                self.turn, self.left_at = event["turn"], event["left_at"]
            elif kind == "refused":
                self._owner = event
            elif kind == "controller lost":
                if self.controller is not None and event["pid"] != self.controller.pid:
                    return  # its place has been taken
                self.is_controller_lost = True
            elif kind in ("lost", "stopped"):
                self.is_agent_lost = True
            self.changed.notify_all()
        if kind in ("exited", "lost", "controller lost"):
            self.on_exit(event)

    @property
    def is_lost(self) -> bool:
        """Whether the ranks cannot be reached: the agent or the controller is gone."""
        return self.is_agent_lost or self.is_controller_lost

    def note_blockage(self, blockage: str | None) -> None:
        """Take why nothing passes through the controller; ``None`` when messages pass."""
        with self.changed:
            self.blockage = blockage
            self.changed.notify_all()

    def ending_of(self, rank: int) -> str:
        """Say how *rank*, which is gone, has ended: ``was killed by SIGKILL``."""
        event = self.exits.get(rank)
        if event is None:
            return "is gone: the agent that watched it has ended"
        return exit_words(event["code"])

    def ask_state(self, timeout_s: float) -> Event:
        """Return what the agent sees of the ranks: their calls, and whose process is stopped.

        Empty where it does not answer within *timeout_s*.
        """
        number = next(self._numbers)
        try:
            self.link.send("state", number=number)
        except OSError:
            return {}
        with self.changed:
            self.changed.wait_for(lambda: self._state.get("number", -1) >= number, timeout_s)
            # A later answer, to another who asked meanwhile, is as good.
            return self._state if self._state.get("number", -1) >= number else {}

    def attach(self) -> None:
        """Take the session: from now on the ranks wait for another kernel when this one is killed.

        Raises:
            SessionError: Another kernel has it, or its agent does not answer.
        """
        session_id = self.folder.session_id
        with self.changed:
            try:
                self.link.send("attach", kernel=kernel_of_this_process())
            except OSError:
                self.is_agent_lost = True
            self.changed.wait_for(
                lambda: self.turn is not None or self._owner is not None or self.is_agent_lost,
                ATTACH_TIMEOUT_S,
            )
        if self.turn is not None:
            return
        if self._owner is not None:
            raise SessionError(
                f"Session {session_id} belongs to a kernel that runs, pid {self._owner['pid']}.\n"
                "Shut that kernel down to end both, or use its notebook; `nbdist ps` lists them."
            )
        raise SessionError(
            f"The agent of session {session_id} does not answer.\n"
            f"`nbdist stop {session_id}` in a shell clears up; `%dist start` starts anew."
        )

    def kill(self, ranks: Iterable[int]) -> None:
        """End the processes of *ranks*, and return when they are gone."""
        doomed = set(ranks)
        for rank in doomed:
            self.link.send("kill", rank=rank)
        with self.changed:
            self.changed.wait_for(lambda: doomed <= set(self.exits), STOP_TIMEOUT_S)

    def start_failure(self) -> str | None:
        """Say what has gone wrong with the start so far, if anything has."""
        if self.exits:
            return (
                f"{describe_exit(min(self.exits.items())[1])}\n{_room_note(self.folder)}"
                "Run `%dist start -n 1` to see "
                "whether one rank alone starts. Nothing was left running."
            )
        if self.failure is not None or self.is_agent_lost:
            return _agent_failed(self)
        return None

    def stop(self) -> None:
        """End every process of the session and remove its folder; may be called twice."""
        try:
            self.link.send("stop")
            with self.changed:
                self.changed.wait_for(lambda: self.is_agent_lost, timeout=STOP_TIMEOUT_S)
        except OSError:
            pass  # the agent is gone already: what is left is ended by the records
        self.link.close()
        end_session(self.folder)
        with self.changed:  # whether it has said so or not
            self.is_agent_lost = True
            self.changed.notify_all()

    def stop_soon(self) -> None:
        """Have every process of the session ended, and do not wait for it; for signal handlers."""
        try:
            self.link.send("stop")
        except OSError:  # the agent is gone already
            end_session(self.folder)


def end_session(folder: SessionFolder) -> list[str]:
    """End what still runs of the session in *folder*, by its own records, and remove the folder.

    Returns:
        The roles of the processes that were still alive.
    """
    records = folder.processes()
    alive = [role for role, process in records if process.is_alive]
    processes.end([process for _, process in records], mark=folder.session_id)
    folder.remove()
    return alive


def launch(config: Config) -> Processes:
    """Start controller and agent and return at once; the ranks follow.

    Args:
        config: The resolved configuration.

    Raises:
        ConfigError: It asks for what no session can do yet.
        LaunchError: They cannot be started; nothing is left running.
    """
    check_supported(config)
    check_working_folder()
    plan = plan_devices(config, count_gpus(), available_cores())
    folder = SessionFolder.create(runtime_root())
    session = Processes(folder, plan)
    try:
        folder.make_shared_memory()
        _launch(session, config)
    except BaseException as exc:
        session.stop()
        if isinstance(exc, (NbdistError, KeyboardInterrupt)):
            raise
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LaunchError(_no_room(folder)) from exc
        raise LaunchError(f"The session could not be started: {type(exc).__name__}: {exc}") from exc
    return session


def check_working_folder() -> None:
    """Refuse to start ranks in a folder that was deleted under this process.

    Raises:
        LaunchError: There is no working folder.
    """
    try:
        Path.cwd()
    except OSError as exc:
        raise LaunchError(
            f"The working folder of this process cannot be found: {exc.strerror}. Was it deleted?\n"
            "Go to another one first: `%cd ~` in a notebook, `os.chdir(...)` in a script."
        ) from exc


def check_supported(config: Config) -> None:
    """Refuse a configuration with values that would silently have no effect.

    Raises:
        ConfigError: It names the key, and what to do instead.
    """
    default = Config()
    for key, instead in NOT_YET.items():
        if getattr(config, key) != getattr(default, key):
            raise ConfigError(
                f"{key} is not supported yet by the sessions of this version: {instead}\n"
                f"Leave {key} out to start."
            )


def _launch(session: Processes, config: Config) -> None:
    folder, plan = session.folder, session.plan
    devices = [device_environment(plan, local_rank) for local_rank in range(plan.nproc)]
    spec = AgentSpec(
        session_id=folder.session_id,
        world_size=plan.nproc,
        first_rank=0,
        nproc=plan.nproc,
        device=plan.device,
        gpus=tuple(device.index for device in devices if device.index is not None),
        backend=plan.backend,
        threads=plan.threads,
        config=to_dict(config),
        engine_file=str(connection_file(folder, "engine")),
        kernel_pid=os.getpid(),
        kernel_started=ProcessId.of(os.getpid()).started,
    )
    folder.write_json(folder.agent_spec, to_json(spec))
    folder.describe({"kernel": kernel_of_this_process(), "nproc": plan.nproc, "since": time.time()})
    session.cluster = make_cluster(folder, agent_environment(config, devices[0]))
    for log in (folder.agent_log, folder.controller_log):
        os.close(private.create_file(log))  # ipyparallel would leave them open to others
    # The agent first: nothing takes as long as its import of torch.
    session.cluster.start_engines_sync(n=plan.nproc, output_file=str(folder.agent_log))
    _start_controller(session)


def replace_controller(session: Processes, num_watching: int) -> None:
    """Put another controller in the place of one that is gone, or passes nothing on.

    Client and ranks find it by themselves; returns when they have, but for ranks that are stopped.
    What was under way is lost.

    Args:
        session: Its processes.
        num_watching: How many others are connected as if they were ranks.

    Raises:
        LaunchError: It could not be started.
    """
    if session.controller is not None:
        _end_controller(session.controller, session.folder.session_id)
    with session.changed:  # the agent tells, and who waits for an answer is told
        session.changed.wait_for(lambda: session.is_controller_lost, STOP_TIMEOUT_S)
    session.cluster = make_cluster(session.folder, {})
    _start_controller(session)
    wanted = session.plan.nproc - len(session.exits) + num_watching
    deadline = time.monotonic() + RECONNECT_S
    while num_connected(session.folder) < wanted and time.monotonic() < deadline:
        if session.controller is None or not session.controller.is_alive:
            raise LaunchError(_controller_failed(session))
        time.sleep(0.01)
    session.is_controller_lost = False
    session.note_blockage(None)


def _end_controller(controller: ProcessId, mark: str) -> None:
    """End what is left of the controller: its heart monitor is a fork that holds its sockets."""
    for pid in {*processes.group_members(controller.pid, mark), controller.pid}:
        with contextlib.suppress(ProcessLookupError):
            if pid != controller.pid or controller.is_alive:
                os.kill(pid, signal.SIGKILL)


def _start_controller(session: Processes) -> None:
    session.cluster.start_controller_sync(output_file=str(session.folder.controller_log))
    try:
        pid = session.cluster.controller.pid
        session.controller = session.folder.record_birth("controller", pid)
    except ProcessLookupError:
        raise LaunchError(_controller_failed(session)) from None


def wait_until_joined(session: Processes, on_progress: Callable[[str], None]) -> None:
    """Return when every rank has joined the process group and run one collective.

    Args:
        session: As `launch` returned it.
        on_progress: Told in a few words what is being waited for.

    Raises:
        LaunchError: A process ended or did not come. The caller stops the rest.
    """
    try:
        agent = ProcessId.of(session.cluster.engine_set.pid)
        session.link.connect(is_agent_alive=lambda: agent.is_alive, timeout_s=START_TIMEOUT_S)
    except (LaunchError, ProcessLookupError) as exc:
        session.failure = str(exc)
        raise LaunchError(_agent_failed(session)) from exc
    on_progress("importing torch")
    nproc = session.plan.nproc
    deadline = time.monotonic() + START_TIMEOUT_S
    with session.changed:
        while len(session.joined) < nproc:
            if failure := session.start_failure():
                raise LaunchError(failure)
            if session.controller is None or not session.controller.is_alive:
                raise LaunchError(_controller_failed(session))
            if time.monotonic() > deadline:
                raise LaunchError(_too_slow(session))
            if session.has_imported:
                on_progress(f"{len(session.joined)} of {nproc} ranks joined")
            session.changed.wait(0.5)


def agent_environment(config: Config, device: RankDevice) -> dict[str, str]:
    """Return what the agent's environment gets before it imports torch, alike for all ranks.

    What the user has set already wins over our choices; ``env`` of the configuration is the user's.
    """
    chosen = dict(device.environment)
    if config.deterministic and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        chosen["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return {**chosen, **config.env}


def describe_exit(event: Event) -> str:
    """Say how a rank ended and what it wrote last."""
    return (
        f"rank {event['rank']} (pid {event['pid']}) {exit_words(event['code'])} "
        f"before it had joined the others.\n{last_words(str(event.get('tail', '')))}"
    )


def last_words(log: str) -> str:
    """Return the end of *log*, and first of all the error that it tells of."""
    lines = log.splitlines()
    if not lines:
        return "It wrote nothing."
    shown = lines[-TAIL_LINES:]
    cause = _cause_in(lines)
    named = [] if cause is None or cause in shown else [f"The cause: {cause}"]
    return "\n".join([*named, "Its log ends with:", *shown])


def _cause_in(lines: Iterable[str]) -> str | None:
    """Return the line of the last exception of all tracebacks; an exit only says that it ended."""
    cause, is_inside = None, False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            is_inside = True
        elif is_inside and line[:1].strip():
            is_inside = False
            cause = cause if line.startswith("SystemExit") else line
    return cause


def _agent_failed(session: Processes) -> str:
    what = session.failure or "it ended"
    return (
        f"The agent could not start the ranks: {what}{_how_ended(session.cluster.engine_set)}\n"
        f"{_log_end(session.folder.agent_log)}\n{_room_note(session.folder)}"
        "Nothing was left running."
    )


def _how_ended(launcher: Any) -> str:
    """Say how the process that ipyparallel has started ended; nothing while it runs."""
    try:
        code = launcher.process.wait(timeout=ENDING_S)
    except (AttributeError, psutil.Error):  # never started, or it runs
        return ""
    return "" if code is None else f" It {exit_words(int(code))}."


def _controller_failed(session: Processes) -> str:
    end = _log_end(session.folder.controller_log)
    how = _how_ended(session.cluster.controller)
    return (
        f"ipyparallel's controller ended during the start.{how}\n{end}\n"
        f"{_room_note(session.folder)}Nothing was left running."
    )


def _room_note(folder: SessionFolder) -> str:
    """Say that the disk is full, if it is: then the logs cannot tell."""
    return f"{_no_room(folder)}\n" if folder.is_full else ""


def _no_room(folder: SessionFolder) -> str:
    return (
        f"The disk on which {folder.path} lies is full.\n"
        "Free space there, or set NBDIST_RUNTIME_DIR to a folder on another disk."
    )


def _too_slow(session: Processes) -> str:
    missing = sorted(set(range(session.plan.nproc)) - session.joined)
    return (
        f"Ranks {missing} did not join the process group within {START_TIMEOUT_S:.0f} s.\n"
        f"{_log_end(session.folder.rank_log(missing[0]))}\nNothing was left running."
    )


def _log_end(path: Path) -> str:
    try:
        return last_words(private.read_text(path))
    except OSError as exc:
        return f"Its log cannot be read: {exc}."


def session_summary(plan: DevicePlan, seed: int) -> str:
    """Return the one line that a start prints; the same for the same configuration."""
    ranks = "1 rank" if plan.nproc == 1 else f"{plan.nproc} ranks"
    return f"{ranks} on 1 host · {plan.device} · {plan.backend} · seed {seed}"
