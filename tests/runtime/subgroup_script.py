"""What `test_collectives` runs on three ranks: two overlapping groups that are not the world."""

import json
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist

from nbdist import runtime as nbdist
from nbdist.errors import UsageError

nbdist.setup(SimpleNamespace(timeout_s=60, init_method="file"))
rank = nbdist.get_rank()
ends, tail = dist.new_group([0, 2]), dist.new_group([1, 2])

facts: dict[str, object] = {"rank": rank, "world": nbdist.all_reduce(rank, average=True)}
if rank in (0, 2):
    facts["average"] = nbdist.all_reduce(float(rank), average=True, group=ends)
    facts["tensors"] = nbdist.all_reduce(torch.tensor([rank]), average=True, group=ends).tolist()
    facts["list"] = nbdist.all_gather(torch.tensor(rank), group=ends)[1].item()
if rank in (1, 2):
    facts["objects"] = nbdist.gather_objects(f"of {rank}", group=tail)
    facts["all objects"] = nbdist.all_gather_objects(f"of {rank}", group=tail)
    facts["broadcast"] = nbdist.broadcast(torch.tensor([rank]), src=2, group=tail).tolist()
    facts["broadcast list"] = nbdist.broadcast_object_list([rank], src=2, group=tail)
    try:
        nbdist.broadcast(torch.zeros(1), src=0, group=tail)
    except UsageError as exc:
        facts["wrong source"] = str(exc)
nbdist.synchronize()
nbdist.cleanup()

sys.stdout.write(json.dumps(facts) + "\n")
