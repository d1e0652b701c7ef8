from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed import ReduceOp
from nbdist.runtime.hooks import hooks

def listen(call, issue):
    seen.append((call.op, call.args["reduce_op"]))
    return issue()

seen = []
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
hooks.install()
hooks.listener = listen
x, y = torch.ones(1), torch.ones(1)
options = dist.AllreduceOptions()
options.reduceOp = ReduceOp.MIN

dist.all_reduce(x)
dist.all_reduce(x, op=ReduceOp.MAX)
dist.all_reduce(x, ReduceOp(ReduceOp.PRODUCT))
dist.reduce(x, 0, ReduceOp.MIN)
dist.reduce_scatter(y, [x], ReduceOp.MAX)
dist.reduce_scatter_tensor(y, x, ReduceOp.PRODUCT)
dist.group.WORLD.allreduce([x], options).wait()
functional.all_reduce(x, "max", dist.group.WORLD).sum()
print(json.dumps([(op, ReduceOp.RedOpType(number).name) for op, number in seen]))
"""


def test_a_reduce_operation_is_known_however_it_was_called() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=True
    )

    assert json.loads(done.stdout) == [
        ["allreduce_", "SUM"],
        ["allreduce_", "MAX"],
        ["allreduce_", "PRODUCT"],
        ["reduce_", "MIN"],
        ["reduce_scatter_", "MAX"],
        ["_reduce_scatter_base_", "PRODUCT"],
        ["allreduce_", "MIN"],
        ["allreduce_", "MAX"],
    ]
