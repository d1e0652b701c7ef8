"""What a rank needs wherever it runs: in a cell, under torchrun, under Slurm, in plain Python.

    slurm ◀── environment ◀── device, seed ◀── group ◀── collectives

The same names give the same types at any world size, 1 included.
"""

from nbdist.runtime.bars import progress
from nbdist.runtime.collectives import (
    all_gather,
    all_gather_objects,
    all_reduce,
    broadcast,
    broadcast_object_list,
    gather_objects,
)
from nbdist.runtime.device import assign_device, get_device
from nbdist.runtime.environment import (
    RankEnvironment,
    free_port,
    local_env,
    read_environment,
)
from nbdist.runtime.group import (
    GroupInfo,
    cleanup,
    get_default_group,
    get_init_method,
    get_local_rank,
    get_rank,
    get_world_size,
    initialized,
    is_master,
    setup,
    synchronize,
)
from nbdist.runtime.guard_mode import guard
from nbdist.runtime.replica_check import check as check_replicas
from nbdist.runtime.replica_check import repair as repair_replicas
from nbdist.runtime.seed import rank_seed, set_seed
from nbdist.runtime.synonyms import (
    all_gather_list,
    assign_device_for_local_rank,
    get_device_for_local_rank,
    os_environ_get_or_throw,
    setup_env_local,
    setup_env_local_multi_gpu,
)

__all__ = [
    "GroupInfo",
    "RankEnvironment",
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
    "read_environment",
    "repair_replicas",
    "set_seed",
    "setup",
    "setup_env_local",
    "setup_env_local_multi_gpu",
    "synchronize",
]
