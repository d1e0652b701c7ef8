"""Which device belongs to this rank.

`choose_device` decides over counts alone; `assign_device` asks torch, calls it and makes the choice
the current device. A process has one device, so this module remembers it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nbdist.errors import SetupError

_assigned: torch.device | None = None


def choose_device(
    local_rank: int,
    num_gpus: int,
    *,
    cpu: bool = False,
    gpus: Sequence[int] | None = None,
    oversubscribe: bool = False,
) -> torch.device:
    """Choose the device of a rank.

    Args:
        local_rank: Rank among those of the same host.
        num_gpus: GPUs that this process can see. One is taken by every rank: schedulers show each
            rank only its own, as index 0.
        cpu: Choose the CPU, whatever there is.
        gpus: Indices among the visible GPUs; all of them when ``None``.
        oversubscribe: Let ranks beyond the number of GPUs share them.

    Raises:
        SetupError: There is no GPU, or none left for this rank.
    """
    if cpu:
        return torch.device("cpu")
    if num_gpus == 0:
        raise SetupError(
            "a CUDA device was asked for, but this process sees none.\n"
            "Look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or run on the CPU: "
            "`assign_device(local_rank, cpu=True)`, or `device=cpu` in the config."
        )
    if num_gpus == 1:
        return torch.device("cuda", 0)
    usable = range(num_gpus) if gpus is None else gpus
    if not usable or max(usable) >= num_gpus:
        raise SetupError(
            f"GPUs {list(usable)} are asked for, but this process sees {num_gpus}: "
            f"{list(range(num_gpus))}.\nLook at CUDA_VISIBLE_DEVICES and at `gpus` in the config."
        )
    if local_rank >= len(usable) and not oversubscribe:
        raise SetupError(
            f"local rank {local_rank} has no GPU of its own: there are {len(usable)} for the ranks "
            f"of this host.\nStart at most {len(usable)} ranks on it, or set `device=cpu` or "
            "`oversubscribe=true` in the config."
        )
    return torch.device("cuda", usable[local_rank % len(usable)])


def assign_device(
    local_rank: int,
    *,
    cpu: bool = False,
    gpus: Sequence[int] | None = None,
    oversubscribe: bool = False,
) -> torch.device:
    """Make one device the current one of this rank and return it.

    Args:
        local_rank: Rank among those of the same host.
        cpu: Take the CPU, whatever there is.
        gpus: Indices among the visible GPUs; all of them when ``None``.
        oversubscribe: Let ranks beyond the number of GPUs share them.

    Raises:
        SetupError: There is no GPU, or none left for this rank.
    """
    global _assigned
    num_gpus = 0 if cpu else count_gpus()
    device = choose_device(local_rank, num_gpus, cpu=cpu, gpus=gpus, oversubscribe=oversubscribe)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _assigned = device
    return device


def get_device() -> torch.device:
    """Return the device of this rank.

    Before `assign_device` or `setup` that is CUDA's current device, or the CPU where there is none.
    """
    if _assigned is not None:
        return _assigned
    if count_gpus():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def count_gpus() -> int:
    """Count the GPUs that this process sees; creates no CUDA context."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
