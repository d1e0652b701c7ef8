"""Turn a fresh fork into a rank: environment, device, seed, process group, ipyparallel engine.

    fork ──▶ run ──▶ join the process groups ──▶ one all_reduce ──▶ engine registers as id == rank

The engine is ipyparallel's own; what is replaced is how it runs cells and what it does with their
output. ipyparallel's and ipykernel's private names that this needs stand in `nbdist.rank.kernel`.
"""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from nbdist.folder import SessionFolder
from nbdist.rank import crashes
from nbdist.rank.logs import RankLog
from nbdist.rank.secrets import Secrets
from nbdist.shadows import drop_working_folder
from nbdist.titles import set_title
from nbdist.wire import AgentSpec

logger = logging.getLogger(__name__)

GRACE_S = 1.0
MACHINERY = r"(ipyparallel|ipykernel|IPython|jupyter_client|traitlets|tornado|zmq|asyncio)(\.|$)"


@dataclass(frozen=True)
class Birth:
    """What a fork is told of the rank it is to be.

    Attributes:
        folder: The session's files.
        spec: What the agent was told.
        rank: In the world.
        generation: Of the process groups to join: 0, and later for one that replaces a dead rank.
        meeting: Where it meets the ranks that are there already; ``None`` at the start.
        store_address: Host and port of the TCPStore.
        table: File that the guards of all ranks share.
        pipe: Non-blocking read end of the pipe that is this process's fd 1 and 2.
        channel: Socket to the agent; its end means that the agent is gone.
        umask: Of the user, for what his cells make.
    """

    folder: SessionFolder
    spec: AgentSpec
    rank: int
    generation: int
    meeting: str | None
    store_address: tuple[str, int]
    table: Path
    pipe: int
    channel: socket.socket
    umask: int


def preload() -> None:
    """Import, in the agent, everything a rank will need, so that the fork has it already."""
    import torch.distributed._composable_state  # `torch_private.probe` looks at it, in every rank
    import torch.nn.parallel  # noqa: F401 - imported to be there after the fork

    import nbdist.config
    import nbdist.rank.kernel
    import nbdist.runtime.rescue  # noqa: F401
    from nbdist.runtime.hooks import hooks

    hooks.install()  # passive until a rank has a guard


def run(birth: Birth) -> int:
    """Be a rank until the session ends.

    Returns:
        The exit code of the process.
    """
    spec, rank = birth.spec, birth.rank
    set_title(f"nbdist rank {rank}")
    secrets = Secrets.of(spec.config)
    log = RankLog(birth.folder.rank_log(rank), spec.config["log_bytes"], secrets)
    signal.signal(signal.SIGTERM, _end_on_term)
    crashes.install(birth.folder.rank_stack(rank))
    _watch_agent(birth.channel)
    set_environment(spec, rank, birth.store_address)
    sys.argv = [""]  # a script without arguments, to argparse and Hydra
    _quiet_warnings()
    device = prepare(spec, rank)
    from nbdist.rank.kernel import RankEngine
    from nbdist.rank.recovery import Recovery

    recovery = Recovery.for_rank(spec, rank, birth.store_address, birth.table)
    recovery.join(device, birth.generation, birth.meeting)
    _tell(birth.channel, event="joined", limits=recovery.limits)
    engine = RankEngine.for_rank(
        folder=birth.folder, spec=spec, rank=rank, pipe=birth.pipe, log=log, recovery=recovery
    )
    engine.names = namespace(spec, rank, device)
    engine.secrets = secrets
    engine.is_fresh = birth.meeting is not None
    engine.umask = birth.umask
    engine.initialize([])
    drop_working_folder()
    engine.start()
    return 0


def set_environment(spec: AgentSpec, rank: int, store_address: tuple[str, int]) -> None:
    """Set what torchrun would set, so that code written for it runs in a cell as well.

    Lightning, for one, asks for `TORCHELASTIC_RUN_ID`, and for ``sys.ps1`` (`RankShell`).
    """
    local_rank = rank - spec.first_rank
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(spec.world_size),
        LOCAL_WORLD_SIZE=str(spec.nproc),
        GROUP_RANK=str(spec.first_rank // spec.nproc),
        GROUP_WORLD_SIZE=str(spec.world_size // spec.nproc),
        NODE_RANK=str(spec.first_rank // spec.nproc),
        ROLE_NAME="default",
        ROLE_RANK=str(rank),
        ROLE_WORLD_SIZE=str(spec.world_size),
        MASTER_ADDR=store_address[0],
        MASTER_PORT=str(store_address[1]),
        OMP_NUM_THREADS=str(spec.threads),  # for children; this process is past reading it
        TORCHELASTIC_RUN_ID=spec.session_id,
        TORCHELASTIC_RESTART_COUNT="0",
        TORCHELASTIC_MAX_RESTARTS="0",
        # True would mean every address, also in what a rank starts; `SessionGroup` means ours.
        TORCHELASTIC_USE_AGENT_STORE="False",
    )
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    if spec.nproc == spec.world_size:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def prepare(spec: AgentSpec, rank: int) -> Any:
    """Set threads, device and seed.

    Returns:
        The rank's ``torch.device``.
    """
    import torch

    from nbdist.runtime import assign_device, rank_seed, set_seed

    config = spec.config
    torch.set_num_threads(spec.threads)
    is_cpu = spec.device == "cpu"  # the device before the group: NCCL takes the current one
    local_rank = rank - spec.first_rank
    device = assign_device(local_rank, cpu=is_cpu, gpus=list(spec.gpus) or None, oversubscribe=True)
    if is_cpu:
        multiprocessing.set_start_method("fork", force=True)  # classes of cells reach the workers
    seed = rank_seed(config["seed"], rank, config["seed_per_rank"])
    set_seed(seed, deterministic=config["deterministic"])
    return device


def namespace(spec: AgentSpec, rank: int, device: Any) -> dict[str, Any]:
    """Return the names every rank starts with."""
    import torch

    import nbdist
    from nbdist.config import from_dict
    from nbdist.rank.shell import refuse_exit

    return {
        "rank": rank,
        "local_rank": rank - spec.first_rank,
        "world_size": spec.world_size,
        "device": device,
        "dist": torch.distributed,
        "torch": torch,
        "cfg": from_dict(spec.config),
        "nbdist": nbdist,
        "exit": refuse_exit,
        "quit": refuse_exit,
    }


def _quiet_warnings() -> None:
    """Keep warnings about our own way of working from the user; theirs are left alone."""
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", append=True)
    warnings.filterwarnings("ignore", message="To exit: use 'exit'")
    # Where the user has made warnings errors, those of what we run on would end the rank.
    warnings.filterwarnings("ignore", module=MACHINERY)
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)


def _tell(channel: socket.socket, **message: Any) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def _watch_agent(channel: socket.socket) -> None:
    """End this rank when the agent is gone: nobody else would."""

    def wait() -> None:
        try:
            while channel.recv(4096):
                pass
        except OSError:
            logger.info("the channel to the agent broke")
        _end_group()

    threading.Thread(target=wait, name="nbdist-agent", daemon=True).start()


def _end_group() -> NoReturn:
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _end_on_term(_signum: int, _frame: FrameType | None) -> NoReturn:
    """Run what the user's libraries registered for the exit, then go; no interpreter teardown."""
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
    finally:
        os._exit(0)
