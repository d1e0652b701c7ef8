"""A program as one wrote it for fairchem and DPR, but for where its helpers come from.

Run by torchrun, by hand, alone, without a group, and as a cell; it prints a line of JSON.
"""

import json
import os
import sys

import torch

from nbdist import (
    all_gather,
    all_gather_list,
    all_reduce,
    assign_device_for_local_rank,
    broadcast,
    broadcast_object_list,
    cleanup,
    gather_objects,
    get_default_group,
    get_device_for_local_rank,
    get_init_method,
    get_rank,
    get_world_size,
    initialized,
    is_master,
    os_environ_get_or_throw,
    setup,
    setup_env_local,
    setup_env_local_multi_gpu,
    synchronize,
)

if "WORKER" in os.environ:  # as `spawn_multi_process` starts them
    setup_env_local_multi_gpu(int(os.environ["WORKER"]), int(os.environ["PORT"]), "localhost")
    assign_device_for_local_rank(True, int(os.environ["WORKER"]))
    num_ranks = 2
else:
    setup_env_local()
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
config = {"submit": False, "cpu": True, "distributed_backend": "gloo", "timeout": 1}
if "WITHOUT_GROUP" not in os.environ:
    setup({**config, "world_size": num_ranks})
rank, size = get_rank(), get_world_size()
assign_device_for_local_rank(True, int(os_environ_get_or_throw("LOCAL_RANK")))
group = get_default_group() if initialized() else None

halves = torch.full((2,), rank + 0.5)
later = torch.full((3,), rank)
handle = broadcast(later, size - 1, group, True)
handle.wait()
turned = torch.arange(4.0).reshape(2, 2).t() + rank
assert broadcast(turned, size - 1, group, async_op=True).wait()
things = [{"from": rank}, None]
broadcast_object_list(things, 0, group, "cpu")

facts = {
    "rank": rank,
    "size": size,
    "is_master": is_master(),
    "device": get_device_for_local_rank(),
    "sum": all_reduce(rank + 1),
    "average": all_reduce(halves, group, True, "cpu").tolist(),
    "list": all_reduce([1, rank], group, False).tolist(),
    "by name": all_reduce(data=1.0, group=group, average=True, device=None),
    "gathered": [part.tolist() for part in all_gather(halves, group, "cpu")],
    "gathered lists": [part.tolist() for part in all_gather([rank, 1], group)],
    "objects": gather_objects({"rank": rank}, group),
    "all objects": all_gather_list([rank, "q" * 20_000], group, max_size=100)[0][0],
    "broadcast": broadcast(halves, 0, group, False).tolist(),
    "broadcast later": later.tolist(),
    "broadcast turned": turned.tolist(),
    "is completed": handle.is_completed(),
    "broadcast things": things,
    "url": get_init_method("tcp", size, rank, "localhost", None).partition("?")[2],
    "file": get_init_method("file", size, rank=rank, filename="/x/y"),
}
try:
    get_init_method("ftp", size, rank)
except ValueError:
    facts["unknown init method"] = "ValueError"
try:
    os_environ_get_or_throw("NOBODY_HAS_SET_THIS")
except RuntimeError:
    facts["missing variable"] = "RuntimeError"
try:
    broadcast(3, 0)
except ValueError:
    facts["no tensor"] = "ValueError"
synchronize()
cleanup()
facts["after cleanup"] = initialized()
sys.stdout.write(json.dumps(facts) + "\n")
