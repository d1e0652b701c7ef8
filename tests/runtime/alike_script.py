"""What `test_helpers_alike` runs under every launcher: use each helper, print a line of JSON."""

import json
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nbdist import runtime as nbdist
from nbdist.errors import UsageError


def named(value: object) -> list[object]:
    """Write a value down with its type, so that both can be compared."""
    if isinstance(value, torch.Tensor):
        return [f"tensor {value.dtype} {value.device}", value.tolist()]
    if isinstance(value, np.ndarray):
        return [f"array {value.dtype}", value.tolist()]
    if isinstance(value, list):
        return ["list", [named(entry) for entry in value]]
    return [type(value).__name__, value]


class Config:
    seed = 7
    seed_per_rank = "offset"
    timeout_s = 60


info = nbdist.setup(Config())
assert nbdist.setup() == info
rank, world_size = nbdist.get_rank(), nbdist.get_world_size()

leaf = torch.full((2,), rank + 1.0, requires_grad=True)
strided = (torch.arange(6) + rank).reshape(2, 3).t()
texts: list[Any] = ["a" * 100_000 * (rank + 1), rank]
lists = [{"from": rank}] * (rank + 1)

facts = {
    "initialized": nbdist.initialized(),
    "rank": rank,
    "local_rank": nbdist.get_local_rank(),
    "world_size": world_size,
    "is_master": nbdist.is_master(),
    "group_size": nbdist.get_default_group().size(),
    "device": str(nbdist.get_device()),
    "info": [info.rank, info.local_rank, info.world_size, info.local_world_size, info.backend],
    "seed": torch.initial_seed(),
    "int": named(nbdist.all_reduce(rank + 1)),
    "large int": named(nbdist.all_reduce(2**62 + 1)),
    "bool": named(nbdist.all_reduce(rank == 0)),
    "float": named(nbdist.all_reduce(0.5)),
    "mixed": named(nbdist.all_reduce(1 if rank else 0.5)),
    "int average": named(nbdist.all_reduce(rank + 1, average=True)),
    "numpy number": named(nbdist.all_reduce(np.float32(0.5))),
    "array": named(nbdist.all_reduce(np.array([1, 2], dtype=np.int16)[::-1])),
    "array without dims": named(nbdist.all_reduce(np.array(0.5))),
    "array average": named(nbdist.all_reduce(np.array([rank, 3]), average=True)),
    "tensor": named(nbdist.all_reduce(leaf)),
    "tensor average": named(nbdist.all_reduce(leaf, average=True)),
    "scalar tensor": named(nbdist.all_reduce(torch.tensor(2, dtype=torch.int8))),
    "strided": named(nbdist.all_reduce(strided)),
    "bool tensor": named(nbdist.all_reduce(torch.tensor([True, rank == 0]))),
    "int tensor average": named(nbdist.all_reduce(torch.tensor([rank, 3]), average=True)),
    "half average": named(nbdist.all_reduce(torch.ones(1).bfloat16(), average=True)),
    "unchanged": [leaf.tolist(), leaf.requires_grad, strided.tolist()],
    "gathered numbers": named(nbdist.all_gather(rank == 0)),
    "gathered arrays": named(nbdist.all_gather(np.array([rank]))),
    "gathered tensors": named(nbdist.all_gather(torch.tensor([rank, 5], dtype=torch.int16)[::1])),
    "broadcast": named(nbdist.broadcast(strided, src=world_size - 1)),
    "broadcast in place": strided.tolist(),
    "broadcast bools": named(nbdist.broadcast(torch.tensor(rank == 0))),
    "broadcast leaf": nbdist.broadcast(leaf).requires_grad,
    "broadcast list": nbdist.broadcast_object_list(lists, src=world_size - 1),
    "objects": [[len(text), who] for text, who in nbdist.all_gather_objects(texts)],
    "objects on rank 0": nbdist.gather_objects({"rank": rank}),
}
nbdist.synchronize()

if world_size > 1:
    groups = [dist.new_group([0]), dist.new_group([1])]
    own = groups[rank]
    facts["own group average"] = named(nbdist.all_reduce(rank + 1.0, average=True, group=own))
    facts["own group list"] = nbdist.all_gather(rank, group=own)
    try:
        nbdist.all_reduce(1, group=groups[1 - rank])
    except UsageError as exc:
        facts["other group"] = str(exc)

nbdist.cleanup()
nbdist.cleanup()
facts["after cleanup"] = nbdist.initialized()

again = nbdist.setup(Config())
facts["second group"] = nbdist.all_reduce(1)
nbdist.cleanup()

sys.stdout.write(json.dumps(facts) + "\n")
