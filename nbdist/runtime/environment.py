"""Where this process stands among the ranks, read from its environment.

    torchrun, nbdist   RANK, WORLD_SIZE, LOCAL_RANK, …  ─┐
    srun               SLURM_PROCID, SLURM_NTASKS, …    ─┼─▶ read_environment ─▶ RankEnvironment
    plain python       nothing                          ─┘

Pure but for `current_environment`, which looks at this process. Opens no connection.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

from nbdist.errors import SetupError
from nbdist.runtime.slurm import is_slurm_rank, job_port, read_number, read_place

Source = Literal["torchrun", "slurm", "alone", "nbdist"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class RankEnvironment:
    """Where one process stands among the ranks.

    Attributes:
        rank: Rank in the world.
        local_rank: Rank among those of the same host.
        world_size: Number of ranks.
        local_world_size: Number of ranks on this host.
        node_rank: Number of this host (torchrun's ``GROUP_RANK``).
        master_addr: Host where the ranks meet, ``None`` for one process alone.
        master_port: Port where they meet there, ``None`` for one process alone.
        source: Who set the variables; ``alone`` where nobody did.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    master_addr: str | None
    master_port: int | None
    source: Source


ALONE = RankEnvironment(
    rank=0,
    local_rank=0,
    world_size=1,
    local_world_size=1,
    node_rank=0,
    master_addr=None,
    master_port=None,
    source="alone",
)


def read_environment(env: Mapping[str, str]) -> RankEnvironment:
    """Read the place of a rank from *env*: torchrun's variables first, then Slurm's.

    ``RANK`` makes a process a rank of torchrun (or of nbdist); without it ``srun`` decides, even
    where a job script has exported ``WORLD_SIZE`` or ``MASTER_ADDR`` by hand. Nothing of either
    means one process alone.

    Raises:
        SetupError: The environment is half set, or a number in it cannot be right.
    """
    if env.get("RANK"):
        return _from_torchrun(env)
    if is_slurm_rank(env):
        return _from_slurm(env)
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        if env.get(name):
            raise SetupError(
                f"{name} is set ({env[name]!r}), but RANK is not.\n"
                f"Start the script with `torchrun`, which sets both, or unset {name}."
            )
    return ALONE


def current_environment() -> RankEnvironment:
    """Read where this process stands now.

    A group that was made by hand (``mp.spawn``) leaves no variables; its ranks are taken to be on
    one host.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return read_environment(os.environ)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    environment = read_environment(with_world_size(os.environ, world_size))
    if environment.source != "alone":
        return environment
    return RankEnvironment(rank, rank, world_size, world_size, 0, None, None, "alone")


def with_world_size(env: Mapping[str, str], world_size: int | None) -> Mapping[str, str]:
    """Fill in how many ranks there are, where *env* names a rank of one host and leaves that out.

    As `local_env` and `setup_env_local_multi_gpu` do.
    """
    if world_size is None or not env.get("RANK") or env.get("WORLD_SIZE"):
        return env
    size = str(world_size)
    return {"LOCAL_WORLD_SIZE": size, **env, "WORLD_SIZE": size}


def local_env(
    rank: int = 0,
    port: int | None = None,
    address: str = "127.0.0.1",
    *,
    world_size: int | None = None,
) -> dict[str, str]:
    """Make torchrun's variables for ranks on one host; nothing is set, the dict is the result.

    ``local_env()`` is for one process alone and chooses a free port. For several, choose the port
    once (`free_port`) and call it per rank: ``local_env(rank, port, world_size=4)``.

    Args:
        rank: Rank in the world, and on the host.
        port: Where rank 0 listens, alike for all ranks. A free one for a process alone.
        address: Of the host where rank 0 listens.
        world_size: Number of ranks. When it is not given together with *port*, the dict has no
            ``WORLD_SIZE``: pass ``world_size=`` to ``init_process_group``.

    Raises:
        SetupError: Several ranks without a common port, or a rank beyond the world size.
    """
    if port is None and world_size is None:
        world_size = 1
    if world_size is not None:
        _check_rank(rank, world_size)
    if port is None and world_size != 1:
        raise SetupError(
            f"{world_size} ranks need one port that all of them know, and port is not given.\n"
            "Choose it once with `nbdist.free_port()` and hand it to every rank."
        )
    env = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(free_port() if port is None else port),
    }
    if world_size is not None:
        env |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    return env


def free_port() -> int:
    """Ask the system for a free loopback port.

    It is free when asked for and reserved by nobody: use it at once.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _from_torchrun(env: Mapping[str, str]) -> RankEnvironment:
    rank = read_number(env, "RANK")
    world_size = read_number(env, "WORLD_SIZE")
    _check_rank(rank, world_size)
    if world_size > 1:
        _require_master(env)
    is_one_host = world_size == 1 or env.get("MASTER_ADDR") in LOOPBACK
    local_rank = _read_local(env, "LOCAL_RANK", rank if is_one_host else None)
    local_world_size = _read_local(env, "LOCAL_WORLD_SIZE", world_size if is_one_host else None)
    if local_rank >= local_world_size:
        raise SetupError(
            f"LOCAL_RANK is {local_rank}, but LOCAL_WORLD_SIZE is {local_world_size}.\n"
            f"A number from 0 to {local_world_size - 1} would be right; `torchrun` sets both."
        )
    has_node_rank = bool(env.get("GROUP_RANK") or env.get("NODE_RANK"))
    return RankEnvironment(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        local_world_size=local_world_size,
        node_rank=(
            read_number(env, "GROUP_RANK", "NODE_RANK")
            if has_node_rank
            else (rank - local_rank) // local_world_size
        ),
        master_addr=env.get("MASTER_ADDR") or None,
        master_port=read_number(env, "MASTER_PORT") if env.get("MASTER_PORT") else None,
        source="nbdist" if _is_in_session(env) else "torchrun",
    )


def _from_slurm(env: Mapping[str, str]) -> RankEnvironment:
    place = read_place(env)
    port = read_number(env, "MASTER_PORT") if env.get("MASTER_PORT") else job_port(env)
    return RankEnvironment(
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        local_world_size=place.local_world_size,
        node_rank=place.node_rank,
        master_addr=env.get("MASTER_ADDR") or (place.hosts[0] if place.hosts else None),
        master_port=port,
        source="slurm",
    )


def _is_in_session(env: Mapping[str, str]) -> bool:
    # A `!torchrun` in a cell inherits the mark of the session and gives its ranks an id of its own.
    return "NBDIST_SESSION" in env and env.get("TORCHELASTIC_RUN_ID") == env["NBDIST_SESSION"]


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise SetupError(
            f"RANK is {rank}, but WORLD_SIZE is {world_size}.\n"
            + (
                f"A rank from 0 to {world_size - 1} would be right; `torchrun` sets both."
                if world_size > 0
                else "A world size from 1 on would be right; `torchrun` sets both."
            )
        )


def _require_master(env: Mapping[str, str]) -> None:
    for name, right in (("MASTER_ADDR", "the host of rank 0"), ("MASTER_PORT", "a port there")):
        if not env.get(name):
            raise SetupError(
                f"RANK and WORLD_SIZE are set, but {name} is not; {right} would be right.\n"
                "Start the script with `torchrun`, which sets all of them."
            )


def _read_local(env: Mapping[str, str], name: str, on_one_host: int | None) -> int:
    # torch itself asks for RANK and WORLD_SIZE only. On one host the rest follows; on several a
    # guess would put two ranks on one GPU.
    if not env.get(name) and on_one_host is not None:
        return on_one_host
    return read_number(env, name)
