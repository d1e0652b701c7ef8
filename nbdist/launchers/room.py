"""Ask back before a start that would bring a machine to its knees: ``-n 200`` for ``-n 20``.

Pure but for `check_room`. What the ranks' own tensors will take, nobody can know.
"""

from __future__ import annotations

from nbdist.config import Config
from nbdist.errors import LaunchError
from nbdist.launchers.devices import count_gpus, plan_devices
from nbdist.launchers.host import available_cores, free_memory
from nbdist.sizes import describe_size

RANKS_PER_CORE = 32
RANK_BYTES = 50 * 2**20  # of a rank with nothing in it: 32 MiB of its own, more once it computes
AGENT_BYTES = 400 * 2**20


def check_room(config: Config) -> None:
    """Refuse a start that this machine has no room for, unless it is asked for once more.

    Raises:
        LaunchError: It has the numbers, and says how to start all the same.
    """
    cores = available_cores()
    nproc = plan_devices(config, count_gpus(), cores).nproc
    if reasons := too_much(nproc, cores, free_memory()):
        raise LaunchError(
            f"{nproc} ranks are a lot for this machine: {' and '.join(reasons)}.\n"
            "Is the number right? With `--yes` (`yes=True` in Python) they are started all the "
            "same. Nothing was started."
        )


def too_much(nproc: int, cores: int, free_bytes: int) -> list[str]:
    """Say what *nproc* ranks have too little of, with the numbers; empty where there is room."""
    reasons = []
    if nproc > RANKS_PER_CORE * cores:
        has = "1 CPU core" if cores == 1 else f"{cores} CPU cores"
        reasons.append(f"it has {has}, which is {nproc / cores:.0f} ranks for each")
    needed = AGENT_BYTES + nproc * RANK_BYTES
    if needed > free_bytes:
        reasons.append(
            f"they need {describe_size(needed)} of memory before they hold anything, and "
            f"{describe_size(free_bytes)} are free"
        )
    return reasons
