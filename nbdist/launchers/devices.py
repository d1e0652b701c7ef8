"""Decide which rank uses which device. No torch, and no CUDA context in the notebook kernel.

`plan_devices` decides from numbers alone; `count_gpus` is what looks at the machine.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nbdist.config import Config
from nbdist.errors import LaunchError

_CPU_RANKS = 2
_WAYS_OUT = "Use `device=cpu` for CPU ranks, or `oversubscribe=true` to let ranks share GPUs."


@dataclass(frozen=True)
class DevicePlan:
    """How the ranks of one host use its devices.

    Attributes:
        device: Where the ranks keep their tensors.
        nproc: Ranks on this host.
        gpus: Index among the visible GPUs, by local rank; empty on CPU ranks.
        backend: Backend of the process group as torch names it.
        threads: CPU threads of each rank.
    """

    device: Literal["cuda", "cpu"]
    nproc: int
    gpus: tuple[int, ...]
    backend: str
    threads: int


@dataclass(frozen=True)
class RankDevice:
    """What one rank sees of the devices.

    Attributes:
        index: Of its GPU among those it sees; ``None`` on a CPU rank.
        environment: Variables to set before torch is imported; alike for all ranks of a host.
    """

    index: int | None
    environment: Mapping[str, str] = field(default_factory=dict)


# Deciding ------------------------------------------------------------------------------------


def plan_devices(config: Config, gpus_visible: int, cores: int) -> DevicePlan:
    """Choose device, number of ranks, GPUs, backend and threads for one host.

    Args:
        config: Its keys win; what is *auto* or ``None`` in it is chosen here.
        gpus_visible: Number of GPUs that CUDA would show (`count_gpus`).
        cores: Number of CPU cores this process may use.

    Raises:
        LaunchError: What is asked for and what is there do not fit.
    """
    gpus = _choose_gpus(config, gpus_visible)
    nproc = config.nproc or len(gpus) or _CPU_RANKS
    if gpus and nproc > len(gpus) and not config.oversubscribe:
        raise LaunchError(_too_few_gpus(nproc, gpus, gpus_visible))
    device: Literal["cuda", "cpu"] = "cuda" if gpus else "cpu"
    return DevicePlan(
        device=device,
        nproc=nproc,
        gpus=tuple(gpus[rank % len(gpus)] for rank in range(nproc)) if gpus else (),
        backend=_choose_backend(config.backend, device, is_shared=0 < len(gpus) < nproc),
        threads=config.threads or max(1, cores // nproc),
    )


def device_environment(
    plan: DevicePlan,
    local_rank: int,
    environ: Mapping[str, str] = os.environ,
    *,
    gpus_visible: int | None = None,
) -> RankDevice:
    """Decide what one rank sees, so that its device index is its local rank where that can be.

    Args:
        plan: That of its host.
        local_rank: Its rank on the host.
        environ: The environment the host's ranks start from. Not changed.
        gpus_visible: GPUs that this very rank sees, where that is known. A scheduler may show each
            rank only its own GPU, which then is index 0.
    """
    if plan.device == "cpu":
        return RankDevice(None)
    if gpus_visible == 1:
        return RankDevice(0)
    gpus = list(dict.fromkeys(plan.gpus))
    index = gpus.index(plan.gpus[local_rank])
    if gpus == list(range(len(gpus))):
        return RankDevice(index)  # the first ones: nothing to hide, indices are right already
    outer = environ.get("CUDA_VISIBLE_DEVICES")
    names = _entries(outer) if outer is not None else [str(gpu) for gpu in range(max(gpus) + 1)]
    return RankDevice(index, {"CUDA_VISIBLE_DEVICES": ",".join(names[gpu] for gpu in gpus)})


def _choose_gpus(config: Config, gpus_visible: int) -> list[int]:
    """Return the GPUs to use, none for CPU ranks."""
    if config.device == "cpu":
        return []
    if gpus_visible == 0:
        if config.device == "cuda" or config.gpus is not None:
            asked = "device=cuda" if config.device == "cuda" else f"gpus={config.gpus}"
            raise LaunchError(
                f"{asked} is asked for, but no GPU is visible.\n"
                "Look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES, or use `device=cpu`."
            )
        return []
    gpus = list(range(gpus_visible)) if config.gpus is None else config.gpus
    missing = [gpu for gpu in gpus if gpu >= gpus_visible]
    if missing:
        raise LaunchError(
            f"There is no GPU {_list(missing)}. Visible: {_list(range(gpus_visible))}.\n"
            "Indices count the visible GPUs from 0, whatever CUDA_VISIBLE_DEVICES calls them."
        )
    return gpus


def _too_few_gpus(nproc: int, gpus: list[int], gpus_visible: int) -> str:
    there = f"only {_count(gpus_visible, 'GPU')} visible"
    if len(gpus) < gpus_visible:
        there = f"`gpus` names only {len(gpus)} of the {gpus_visible} that are visible"
    return f"{_count(nproc, 'rank')} asked for on this host, but {there}.\n{_WAYS_OUT}"


def _choose_backend(asked: str, device: str, *, is_shared: bool) -> str:
    """Return the backend; *is_shared* says that several ranks use one GPU."""
    if asked == "auto":
        if device == "cpu":
            return "cpu:gloo"
        # NCCL refuses two ranks on one GPU ("Duplicate GPU detected").
        return "cpu:gloo,cuda:gloo" if is_shared else "cpu:gloo,cuda:nccl"
    if device == "cpu" and "nccl" in asked.lower():
        raise LaunchError(
            f"backend={asked} needs a GPU in every rank, but these are CPU ranks.\n"
            "Use `backend=auto` or `backend=gloo`."
        )
    return asked


def _count(number: int, noun: str) -> str:
    return f"1 {noun} is" if number == 1 else f"{number} {noun}s are"


def _list(gpus: Iterable[int]) -> str:
    return ", ".join(map(str, gpus))


# Looking -------------------------------------------------------------------------------------


def count_by_nvml() -> int | None:
    """Ask the driver for the number of its GPUs; ``None`` where it cannot be asked.

    Needs nvidia-ml-py. It makes no CUDA context.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def count_gpus(
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    nvml: Callable[[], int | None] = count_by_nvml,
) -> int:
    """Count the GPUs that CUDA would show to a process with this environment.

    Makes no CUDA context and imports no torch. Not covered: whether a GPU works, whether a UUID
    exists, AMD GPUs, and MIG slices beyond the first (CUDA shows a process only one).

    Args:
        environ: ``CUDA_VISIBLE_DEVICES`` in it is honoured.
        root: Where ``dev`` and ``proc`` are.
        nvml: Asked first; ``None`` from it means that ``dev`` and ``proc`` are looked at.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not _entries(visible):
        return 0
    from_driver = nvml()
    installed = _count_in(root) if from_driver is None else from_driver
    return installed if visible is None else _count_visible(_entries(visible), installed)


def _count_in(root: Path) -> int:
    """Count GPUs by their device files, or by what the driver lists where there are none yet.

    A container may list all GPUs of its host in ``proc`` and have the files of its own only.
    """
    files = [file for file in root.glob("dev/nvidia*") if re.fullmatch("nvidia[0-9]+", file.name)]
    return len(files) or len(list(root.glob("proc/driver/nvidia/gpus/*")))


def _entries(visible: str) -> list[str]:
    """Return the entries of ``CUDA_VISIBLE_DEVICES`` that CUDA reads: all before a wrong one."""
    entries: list[str] = []
    for entry in visible.split(","):
        if not re.fullmatch(r"\s*([0-9]+|GPU-\S+|MIG-\S+)\s*", entry):
            break
        entries.append(entry.strip())
    return entries


def _count_visible(entries: list[str], installed: int) -> int:
    """Count those of *entries* that exist; with a GPU named twice CUDA shows none."""
    if len(set(entries)) < len(entries):
        return 0
    if entries[0].startswith("MIG-"):
        return min(1, installed)
    exist = [not entry.isdecimal() or int(entry) < installed for entry in entries]
    return min([*exist, False].index(False), installed)
