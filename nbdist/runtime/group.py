"""Join the process group of this run, whoever started it, and ask about it.

    torchrun    env://                     its agent keeps the store
    srun        tcp:// or file://          rank 0, or a shared file, keeps it
    one rank    a store in this process    no port, no file
    nbdist      the group is there already: `setup` returns what it is

Leaves the choice of a device to `device`, reading variables to `environment` and `slurm`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Documented there, but torch re-exports it without the `as` that mypy wants to see.
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from nbdist.config import Config
from nbdist.errors import SetupError, did_you_mean
from nbdist.runtime import torch_private
from nbdist.runtime.device import assign_device, count_gpus, get_device
from nbdist.runtime.environment import (
    RankEnvironment,
    current_environment,
    free_port,
    read_environment,
    with_world_size,
)
from nbdist.runtime.seed import rank_seed, set_seed
from nbdist.runtime.slurm import job_name, job_port, parse_node_list, read_number

INIT_METHODS = ("tcp", "file")


@dataclass(frozen=True)
class GroupInfo:
    """The process group as one rank sees it.

    Attributes:
        rank: Rank in the world.
        local_rank: Rank among those of the same host.
        world_size: Number of ranks.
        local_world_size: Number of ranks on this host.
        device: Device of this rank.
        backend: Backends by device type, as torch writes them: ``cpu:gloo,cuda:nccl``.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    backend: str


@dataclass(frozen=True)
class GroupSettings:
    """What of a config decides about the group; the meaning of each key is told at `Config`."""

    device: str
    gpus: Sequence[int] | None
    oversubscribe: bool
    backend: str
    seed: int
    seed_per_rank: str
    deterministic: bool
    threads: int | None
    timeout_s: float
    init_method: str

    @classmethod
    def from_config(cls, cfg: Any) -> GroupSettings:
        """Pick the keys out of *cfg*, an object or a mapping; what it lacks has its default."""
        defaults, other = Config(), _of_fairchem(cfg)
        asked = {key.name: _get(cfg, key.name, other.get(key.name)) for key in fields(cls)}
        return cls(
            **{k: getattr(defaults, k) if value is None else value for k, value in asked.items()}
        )


def _of_fairchem(cfg: Any) -> dict[str, Any]:
    """Translate the keys that fairchem's ``setup`` takes: ``timeout`` is in minutes there."""
    translated = {"backend": _get(cfg, "distributed_backend")}
    if (is_cpu := _get(cfg, "cpu")) is not None:
        translated["device"] = "cpu" if is_cpu else "cuda"
    if (minutes := _get(cfg, "timeout")) is not None:
        translated["timeout_s"] = 60.0 * minutes
    return translated


def _get(cfg: Any, key: str, default: Any = None) -> Any:
    value = cfg.get(key) if isinstance(cfg, Mapping) else getattr(cfg, key, None)
    return default if value is None else value


# The group that setup() has made here, and how many it made so far in this process.
_own_group: dist.ProcessGroup | None = None
_num_setups = 0


def setup(cfg: Any = None) -> GroupInfo:
    """Choose the device, seed, and join the process group; alone, make a group of one.

    Runs under torchrun, under ``srun python train.py`` and in plain Python. Where a group is there
    already (a second call, a rank of nbdist) nothing is done, seeds included.

    Args:
        cfg: A config (`nbdist.load_config`), or any object or mapping with some of its keys; also
            with those of fairchem's ``setup``: ``cpu``, ``distributed_backend``, ``world_size``,
            ``timeout`` (in minutes). Without one the defaults hold, as for ``%dist start``.

    Raises:
        SetupError: The environment is half set, a device is missing, or the ranks did not meet.
    """
    asked_size = _get(cfg, "world_size")
    if torch_private.is_world_aside():  # destroyed by a script, and the session's all the same
        dist.init_process_group()
    if initialized():
        _check_world_size(asked_size, dist.get_world_size())
        return _describe()
    environment = read_environment(with_world_size(os.environ, asked_size))
    _check_world_size(asked_size, environment.world_size)
    settings = GroupSettings.from_config(cfg)
    device = assign_device(
        environment.local_rank,
        cpu=wants_cpu(settings.device, count_gpus()),
        gpus=settings.gpus,
        oversubscribe=settings.oversubscribe,
    )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    seed = rank_seed(settings.seed, environment.rank, settings.seed_per_rank)
    set_seed(seed, deterministic=settings.deterministic)
    num_gpus = count_gpus() if settings.gpus is None else len(settings.gpus)
    is_shared = settings.oversubscribe and environment.local_world_size > num_gpus
    _join(environment, settings, choose_backend(settings.backend, device, is_shared=is_shared))
    return _describe()


def cleanup() -> None:
    """End the group that `setup` has made; may be called twice.

    A group that somebody else made (nbdist around a notebook cell, the user) is left to its maker.
    """
    global _own_group
    if _own_group is not None and initialized() and dist.group.WORLD is _own_group:
        dist.destroy_process_group()
    _own_group = None


def _check_world_size(asked: int | None, there_are: int) -> None:
    if asked not in (None, there_are):
        raise SetupError(
            f"world_size is {asked} in the config, but the launcher started {there_are}.\n"
            "Leave it out: the number of ranks is what the launcher has made it."
        )


def wants_cpu(device: str, num_gpus: int) -> bool:
    """Decide whether a rank computes on the CPU.

    Raises:
        SetupError: *device* is neither ``auto`` nor ``cuda`` nor ``cpu``.
    """
    if device not in ("auto", "cuda", "cpu"):
        raise SetupError(
            f"device is {device!r}. {did_you_mean(str(device), ('auto', 'cuda', 'cpu'))}"
        )
    return device == "cpu" or (device == "auto" and num_gpus == 0)


def choose_backend(backend: str, device: torch.device, *, is_shared: bool = False) -> str:
    """Choose the backends of the group.

    Args:
        backend: ``auto``, or what the user wants, which is taken as it is.
        device: Device of this rank.
        is_shared: Several ranks share a GPU, which NCCL refuses; gloo carries both devices then.
    """
    if backend != "auto":
        return backend
    if device.type == "cuda" and not is_shared:
        return "cpu:gloo,cuda:nccl"
    return "gloo"


def get_init_method(
    init_method: str,
    world_size: int | None,
    rank: int | None = None,
    node_list: str | Sequence[str] | None = None,
    filename: str | Path | None = None,
) -> str:
    """Write the URL by which the ranks find each other, for ``init_process_group(init_method=)``.

    It names this rank and the world size, so nothing else is to be passed there. The signature is
    that of fairchem's ``common/distutils.py``.

    ``tcp`` is the first host of the node list, with ``MASTER_PORT`` where that is set, else with a
    port that each job step computes for itself (`job_port`); one rank alone takes a free loopback
    port. ``file`` is a file that all ranks see and that no earlier run has left behind.

    Args:
        init_method: ``tcp`` or ``file``.
        world_size: Number of ranks; what the environment says when ``None``.
        rank: Rank of this process; what the environment says when ``None``.
        node_list: As Slurm writes it (``n[1-3],login``), or the names. For ``tcp``.
        filename: For ``file``; relative to the working directory.

    Raises:
        SetupError: The kind is unknown, or what it needs is missing.
    """
    size = get_world_size() if world_size is None else world_size
    own = get_rank() if rank is None else rank
    if not 0 <= own < size:
        raise SetupError(f"rank {own} does not exist in a world of {size} ranks.")
    return f"{_url(init_method, size, node_list, filename)}?world_size={size}&rank={own}"


def _url(
    kind: str,
    world_size: int,
    node_list: str | Sequence[str] | None,
    filename: str | Path | None,
) -> str:
    if kind == "tcp":
        return _tcp_url(world_size, node_list)
    if kind == "file":
        return _file_url(filename)
    raise SetupError(f"unknown init method {kind!r}. {did_you_mean(str(kind), INIT_METHODS)}")


# Questions about the group ---------------------------------------------------------------------


def initialized() -> bool:
    """Say whether this process has a process group."""
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """Return the rank in the world; before `setup` the one that the environment names."""
    return dist.get_rank() if initialized() else current_environment().rank


def get_world_size() -> int:
    """Return the number of ranks; before `setup` the one that the environment names."""
    return dist.get_world_size() if initialized() else current_environment().world_size


def get_local_rank() -> int:
    """Return the rank among those of the same host."""
    return current_environment().local_rank


def is_master() -> bool:
    """Say whether this is rank 0."""
    return get_rank() == 0


def get_default_group() -> dist.ProcessGroup:
    """Return the group of all ranks.

    Raises:
        SetupError: There is none yet.
    """
    group = dist.group.WORLD if initialized() else None
    if group is None:
        raise SetupError("there is no process group yet.\nCall `nbdist.setup()` first.")
    return group


def synchronize() -> None:
    """Wait until every rank has come here; alone, return at once.

    Where the group has a CUDA backend and this rank a GPU, the GPU's work so far is waited for too.
    """
    if not has_group():
        return
    device = get_device()
    if device.type == "cuda" and "cuda" in carried_devices(None):
        torch.cuda.synchronize(device)
        dist.barrier(device_ids=[device.index])
    else:
        dist.barrier()


def has_group() -> bool:
    """Say whether collectives go over the wire; ``False`` means that this is the only rank.

    Raises:
        SetupError: There is no group, though the environment says that there are more ranks.
    """
    if initialized():
        return True
    environment = current_environment()
    if environment.world_size > 1:
        # Going on alone would give every rank its own numbers, and nobody would see it.
        raise SetupError(
            f"this is rank {environment.rank} of {environment.world_size} "
            f"({environment.source}), but it has not joined a process group.\n"
            "Call `nbdist.setup()` first."
        )
    return False


def carried_devices(group: dist.ProcessGroup | None) -> frozenset[str]:
    """Return the device types whose tensors *group* can carry: of ``cpu`` and ``cuda``."""
    pairs = dist.get_backend_config(group).split(",")
    return frozenset(pair.partition(":")[0] for pair in pairs)


# Joining ---------------------------------------------------------------------------------------


def _describe() -> GroupInfo:
    environment = current_environment()
    return GroupInfo(
        rank=dist.get_rank(),
        local_rank=environment.local_rank,
        world_size=dist.get_world_size(),
        local_world_size=environment.local_world_size,
        device=get_device(),
        backend=dist.get_backend_config(),
    )


def _join(environment: RankEnvironment, settings: GroupSettings, backend: str) -> None:
    global _own_group, _num_setups
    timeout = timedelta(seconds=settings.timeout_s)
    where = _meeting_place(environment, settings.init_method)
    try:
        store = _open_store(where, environment, timeout)
        _num_setups += 1
        dist.init_process_group(
            backend,
            # A store that outlives the group (torchrun's, a file) still has the addresses of the
            # group before, so every group of a process gets its own prefix.
            store=PrefixStore(f"nbdist/{_num_setups}", store),
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timeout,
            device_id=get_device() if "nccl" in backend else None,
        )
    except (dist.DistError, RuntimeError, ValueError, OSError) as exc:
        raise SetupError(
            f"rank {environment.rank} of {environment.world_size} could not join the group at "
            f"{where or 'a store of its own'} ({backend}): {exc}\n"
            "Look whether all ranks run, and whether another program listens on that port; "
            "MASTER_ADDR and MASTER_PORT choose another."
        ) from exc
    _own_group = dist.group.WORLD


def _meeting_place(environment: RankEnvironment, init_method: str) -> str | None:
    """Return the URL where the ranks meet, or ``None`` for one rank, which needs none."""
    if environment.world_size == 1:
        return None
    if environment.source != "slurm":
        return "env://"
    return _url(
        init_method,
        environment.world_size,
        [environment.master_addr] if environment.master_addr else None,
        f".nbdist-rendezvous-{job_name(os.environ)}",
    )


def _open_store(where: str | None, environment: RankEnvironment, timeout: timedelta) -> Store:
    if where is None:
        return HashStore()
    meetings = rendezvous(where, environment.rank, environment.world_size, timeout=timeout)
    store: Store = next(iter(meetings))[0]
    store.set_timeout(timeout)
    return store


def _tcp_url(world_size: int, node_list: str | Sequence[str] | None) -> str:
    if world_size == 1 and not node_list:
        return f"tcp://127.0.0.1:{free_port()}"
    hosts = parse_node_list(node_list) if isinstance(node_list, str) else node_list
    if not hosts:
        raise SetupError(
            f"{world_size} ranks meet at the first host of a node list, and there is none.\n"
            "SLURM_JOB_NODELIST names it in a Slurm job; else pass node_list, or set MASTER_ADDR."
        )
    host = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
    return f"tcp://{host}:{_common_port(world_size)}"


def _common_port(world_size: int) -> int:
    if os.environ.get("MASTER_PORT"):
        return read_number(os.environ, "MASTER_PORT")
    port = job_port(os.environ)
    if port is None and world_size == 1:
        return free_port()
    if port is None:
        raise SetupError(
            f"{world_size} ranks need one port that all of them know: SLURM_JOB_ID is not set, "
            "from which it is computed, and neither is MASTER_PORT.\n"
            "Start the script with `srun`, or set MASTER_PORT alike for all ranks."
        )
    return port


def _file_url(filename: str | Path | None) -> str:
    if not filename:
        raise SetupError(
            "the init method 'file' needs a filename: a path that every rank sees, where no file "
            "is yet."
        )
    return f"file://{Path(filename).expanduser().absolute()}"
