"""A Jupyter-first workbench for distributed PyTorch.

    %load_ext nbdist        in a notebook
    nbdist.start()          in a script
    nbdist.all_reduce(x)    on a rank, under torchrun, or alone

Importing it imports next to nothing: every name is looked up in its module on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "nbdist.config": ("Config", "load_config"),
    "nbdist.errors": (
        "CellFailed",
        "CellStopped",
        "CollectiveAborted",
        "CollectiveError",
        "CollectiveMismatch",
        "CollectiveTimeout",
        "ConfigError",
        "LaunchError",
        "NbdistError",
        "NotPrivate",
        "PeerFailed",
        "RankDied",
        "RankError",
        "RebuildError",
        "SessionError",
        "SetupError",
        "TransferError",
        "UsageError",
    ),
    "nbdist.sessions.current": ("attach", "launch", "start"),
    "nbdist.sessions.run": ("Run",),
    "nbdist.sessions.session": ("Session",),
    "nbdist.sessions.values": ("RankTensor", "RankValues"),
    "nbdist.runtime": (
        "all_gather",
        "all_gather_list",
        "all_gather_objects",
        "all_reduce",
        "assign_device",
        "assign_device_for_local_rank",
        "broadcast",
        "broadcast_object_list",
        "check_replicas",
        "cleanup",
        "free_port",
        "gather_objects",
        "get_default_group",
        "get_device",
        "get_device_for_local_rank",
        "get_init_method",
        "get_local_rank",
        "get_rank",
        "get_world_size",
        "guard",
        "initialized",
        "is_master",
        "local_env",
        "os_environ_get_or_throw",
        "progress",
        "rank_seed",
        "repair_replicas",
        "set_seed",
        "setup",
        "setup_env_local",
        "setup_env_local_multi_gpu",
        "synchronize",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["load_ipython_extension", "session", "unload_ipython_extension", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'nbdist' has no attribute {name!r}")
    from nbdist.shadows import without_working_folder

    with without_working_folder():
        value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])


def session() -> Any:
    """Return the running `Session`.

    Raises:
        SessionError: There is none.
    """
    return importlib.import_module("nbdist.sessions.current").get()


def load_ipython_extension(shell: Any) -> None:
    """Take ``%load_ext nbdist``."""
    importlib.import_module("nbdist.notebook").load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Take ``%unload_ext nbdist``; the ranks go on until ``%dist stop``."""
    importlib.import_module("nbdist.notebook").unload(shell)
