"""Helpers under the names that programs written for DPR and fairchem call them by.

    from fairchem.core.common.distutils import …  ─┐
    from dpr.utils.dist_utils import …            ─┴─▶  from nbdist import …

Signatures are those of facebookresearch/DPR, ``dpr/utils/dist_utils.py``, and of fairchem-core,
``common/distutils.py``. What is called alike here and there (`all_reduce`, `broadcast`, ...) stands
with the other helpers; what differs all the same, in ``docs/coming-from.md``.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist

from nbdist.errors import SetupError
from nbdist.runtime import torch_private
from nbdist.runtime.collectives import all_gather_objects
from nbdist.runtime.device import assign_device, get_device
from nbdist.runtime.environment import current_environment, local_env
from nbdist.runtime.group import initialized

T = TypeVar("T")


def os_environ_get_or_throw(x: str) -> str:
    """Return the environment variable *x*.

    Raises:
        SetupError: It is not set.
    """
    if x not in os.environ:
        raise SetupError(
            f"the environment variable {x} is not set.\n"
            "torchrun, srun and nbdist each set their own; `nbdist.get_rank()` and its like read "
            "all of them."
        )
    return os.environ[x]


def assign_device_for_local_rank(cpu: bool, local_rank: int) -> torch.device:
    """Make one device the current one of this rank and return it; a rank of nbdist has its own.

    Args:
        cpu: Take the CPU, whatever there is.
        local_rank: Rank among those of the same host.

    Raises:
        SetupError: There is no GPU, or none left for this rank.
    """
    if _has_group():
        place, own = current_environment(), get_device()
        # The session's group was made on that device, which `gpus` in its config may have chosen.
        has_own = place.source == "nbdist" and place.local_rank == local_rank
        if has_own and (own.type == "cpu") == cpu:
            return own
    return assign_device(local_rank, cpu=cpu)


def get_device_for_local_rank() -> str:
    """Return the device of this rank in words: ``cuda:0`` or ``cpu``."""
    return str(get_device())


def setup_env_local() -> None:
    """Set torchrun's variables for one process alone, where no launcher has set them."""
    if not _has_group() and not os.environ.get("MASTER_ADDR"):
        os.environ.update(local_env(address="localhost"))


def setup_env_local_multi_gpu(rank: int, port: int, address: str = "localhost") -> None:
    """Set torchrun's variables for one of several processes on this host.

    How many they are, `setup` reads in its config, or ``init_process_group`` in ``world_size``.
    Where this process has its group already (a cell, a second call) nothing is changed.

    Args:
        rank: Rank in the world, and on this host.
        port: Where rank 0 listens, alike for all ranks.
        address: Of the host where rank 0 listens.
    """
    if not _has_group():
        os.environ.update(local_env(rank, port, address))
        # Whatever torchrun's agent keeps at another address, here rank 0 has to.
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def all_gather_list(
    data: T,
    group: dist.ProcessGroup | None = None,
    max_size: int = 16384,  # noqa: ARG001 - DPR's buffer had to be told
) -> list[T]:
    """Collect the ``data`` of every rank, of any size; all ranks get the whole list.

    Args:
        data: Anything that can be pickled, different on every rank if need be.
        group: All ranks when ``None``.
        max_size: Not used: there is no buffer that could be too small.
    """
    return all_gather_objects(data, group)


def _has_group() -> bool:
    # A script may have put the session's group aside; its address is needed all the same.
    return initialized() or torch_private.is_world_aside()
