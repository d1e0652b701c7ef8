"""How each peer is started, given a cell, asked for a value and stopped.

A peer is data: what it does is in the cells it is given. All run the same code on their ranks. Who
wants to add one writes a function here and names it in `PEERS`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import free_port

PYTHON = Path(sys.executable)
PEERS_PYTHON = Path(os.environ.get("NBDIST_BENCH_PEERS", ".venv-peers")).absolute() / "bin/python"
KERNEL = ("-m", "ipykernel_launcher", "-f", "{connection_file}")

SCRIPT = Path(__file__).with_name("first_all_reduce.py")


@dataclass(frozen=True)
class Peer:
    """One way to run cells on ranks, at one number of ranks.

    Attributes:
        name: Column of the table that its readings go to.
        argv: Command that starts its kernel.
        prefix: What makes a cell run on the ranks.
        start: Cells that start the ranks; none where they start with the kernel itself.
        stop: Cell that ends them; ``None`` where only the end of the kernel does.
        pull: Cell that brings ``x`` of rank 1 to the notebook as ``y``, if there is a way.
        env: Environment of the kernel.
        measures: Keys of the measures that are taken of it.
    """

    name: str
    argv: tuple[str, ...]
    prefix: str
    measures: tuple[str, ...]
    start: tuple[str, ...] = ()
    stop: str | None = None
    pull: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def starts_with_kernel(self) -> bool:
        return not self.start

    def cell(self, code: str) -> str:
        """Return *code* as a cell that runs on every rank."""
        return self.prefix + code


def nbdist(num_ranks: int) -> tuple[Peer, ...]:
    """Three sessions, since what is shown while a cell runs is chosen at the start."""
    off = (
        "start",
        "empty",
        "pull",
        "memory",
        "guard",
        "freed",
        "hopeless",
        "stopped",
        "recovered",
        "stop",
    )
    shown = {"off": off, "lines": ("first_line",), "widget": ("first_line_widget", "lines")}
    return tuple(
        Peer(
            name="nbdist",
            argv=(str(PYTHON), *KERNEL),
            prefix="%%dist\n",
            measures=measures,
            start=("%load_ext nbdist", f"%dist start -n {num_ranks} device=cpu live={live}"),
            stop="%dist stop",
            pull="%dist pull x -r 1 -o y",
        )
        for live, measures in shown.items()
    )


def ipyparallel(num_ranks: int) -> tuple[Peer, ...]:
    """Stock engines and ``%%px``; the process group is ours to make."""
    start = f"""\
import ipyparallel
rc = ipyparallel.Cluster(n={num_ranks}, log_level=40).start_and_connect_sync(activate=True)
rc[:].scatter("rank", list(range({num_ranks})), flatten=True, block=True)
rc[:].execute('''
import os
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="{free_port()}")
os.environ.update(RANK=str(rank), WORLD_SIZE="{num_ranks}")
''', block=True)"""
    peer = Peer(
        name="%%px",
        argv=(str(PEERS_PYTHON), *KERNEL),
        prefix="%%px\n",
        measures=("start", "empty", "first_line", "lines", "pull", "memory", "stop"),
        start=(start,),
        stop="rc.cluster.stop_cluster_sync()",
        pull='y = rc[1]["x"]',
    )
    return (peer,)


def jupyter_distributed(num_ranks: int) -> tuple[Peer, ...]:
    """A kernel that is all ranks at once; its start is that of the kernel."""
    peer = Peer(
        name="jupyter-distributed",
        argv=(str(PEERS_PYTHON), "-m", "jupyter_distributed.kernel", "-f", "{connection_file}"),
        prefix="",
        measures=("start", "empty", "first_line", "lines", "memory", "stop"),
        env={
            "JUPYTER_DISTRIBUTED_WORLD_SIZE": str(num_ranks),
            "JUPYTER_DISTRIBUTED_BASE_KERNEL": "python3",
        },
    )
    return (peer,)


def torchrun(num_ranks: int) -> tuple[str, ...]:
    """Return the command line; torchrun has no cells, so only its start can be compared."""
    ranks = f"--nproc-per-node={num_ranks}"
    return (str(PYTHON), "-m", "torch.distributed.run", "--standalone", ranks, str(SCRIPT))


PEERS: dict[str, Callable[[int], tuple[Peer, ...]]] = {
    "px": ipyparallel,
    "jd": jupyter_distributed,
    "nbdist": nbdist,
}
