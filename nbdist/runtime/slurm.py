"""Read where a rank stands from what Slurm sets in its environment.

Pure: a mapping in, frozen data out. Inside ``srun`` the ``SLURM_STEP_*`` variables describe the
ranks that run together; those without ``STEP`` may describe the whole job: the second choice.

Not covered: heterogeneous jobs (``SLURM_HET_*``), and distributions that put rank 0 on another host
than the first of the node list (``--distribution=arbitrary``; set ``MASTER_ADDR`` there).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from nbdist.errors import SetupError

# Below the ports that Linux hands out by itself (32768 and up), so that no passing connection of
# another program sits on the one that a job computes.
_FIRST_PORT = 20_000
_NUM_PORTS = 12_000

_JOB_IDS = ("SLURM_JOB_ID", "SLURM_JOBID")
_STEP_IDS = ("SLURM_STEP_ID", "SLURM_STEPID")
_NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
_NUM_NODES = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
_NUM_TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
_LAYOUTS = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
# The most per host where --ntasks is given too, so it counts only when it fits the sum.
_PER_NODE = "SLURM_NTASKS_PER_NODE"

_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\],\s]+)")


@dataclass(frozen=True)
class SlurmPlace:
    """Where one rank stands in its job step.

    Attributes:
        rank: Rank in the world.
        local_rank: Rank among those of the same host.
        world_size: Ranks in the step.
        local_world_size: Ranks on this host.
        node_rank: Number of this host in the node list.
        hosts: The node list, expanded; empty where Slurm gave none.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    hosts: tuple[str, ...]


def is_slurm_rank(env: Mapping[str, str]) -> bool:
    """Say whether ``srun`` started this process as a rank.

    A batch script and a shell of ``salloc`` see the variables of the job too, yet run once: a
    ``python train.py`` in there is one process alone.
    """
    is_batch_script = env.get("ENVIRONMENT") == "BATCH" and not _first_set(env, _STEP_IDS)
    return "SLURM_PROCID" in env and not is_batch_script


def read_place(env: Mapping[str, str]) -> SlurmPlace:
    """Read the place of a rank that `is_slurm_rank`.

    Raises:
        SetupError: A variable is missing, is no number or contradicts another.
    """
    hosts = parse_node_list(_first_set(env, _NODE_LISTS) or "")
    rank = read_number(env, "SLURM_PROCID")
    layout = _read_layout(env, num_nodes=_read_num_nodes(env, hosts))
    world_size = sum(layout)
    if rank >= world_size:
        raise SetupError(
            f"SLURM_PROCID is {rank}, but the step has {world_size} ranks.\n"
            f"0 to {world_size - 1} would be right. Start the script with `srun`, which sets both."
        )
    node_rank, local_rank = _place_in_blocks(rank, layout)
    if "SLURM_NODEID" in env:
        node_rank = read_number(env, "SLURM_NODEID")
    if "SLURM_LOCALID" in env:
        local_rank = read_number(env, "SLURM_LOCALID")
    if node_rank >= len(layout) or local_rank >= layout[node_rank]:
        raise SetupError(
            f"SLURM_NODEID {node_rank} with SLURM_LOCALID {local_rank} does not fit the ranks per "
            f"host that Slurm names: {', '.join(map(str, layout))}.\n"
            "Look at SLURM_STEP_TASKS_PER_NODE; `srun` sets all three alike."
        )
    return SlurmPlace(rank, local_rank, world_size, layout[node_rank], node_rank, hosts)


def parse_node_list(text: str) -> tuple[str, ...]:
    """Expand a Slurm node list: ``n[1-3,07],login`` gives n1, n2, n3, n07, login.

    Args:
        text: As in ``SLURM_JOB_NODELIST``; several brackets in a name multiply. May be empty.

    Raises:
        SetupError: The text is no node list.
    """
    return tuple(host for name in _split_names(text) for host in _expand_name(name, whole=text))


def parse_tasks_per_node(text: str) -> tuple[int, ...]:
    """Expand Slurm's ranks per host: ``2(x2),1`` gives 2, 2, 1.

    Raises:
        SetupError: The text does not follow this form.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = _TASKS.fullmatch(part.strip())
        if match is None:
            raise SetupError(
                f"cannot read the ranks per host in {text!r}.\n"
                "Slurm writes SLURM_TASKS_PER_NODE like '4,2' or '2(x3),1'."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return tuple(counts)


def job_port(env: Mapping[str, str]) -> int | None:
    """Choose the port that all ranks of one job step compute alike, or ``None`` outside Slurm.

    Two jobs whose first host is the same, and two steps of one job, get different ports: the number
    is ``20000 + (101 * SLURM_JOB_ID + SLURM_STEP_ID) % 12000``. Nobody reserves it: where another
    program listens there, set ``MASTER_PORT``.
    """
    if not _first_set(env, _JOB_IDS):
        return None
    job = read_number(env, *_JOB_IDS)
    step = read_number(env, *_STEP_IDS) if _first_set(env, _STEP_IDS) else 0
    return _FIRST_PORT + (101 * job + step) % _NUM_PORTS


def job_name(env: Mapping[str, str]) -> str:
    """Name this run of this job step, alike on all its ranks: ``4711.0``, ``4711.0.1`` requeued."""
    parts = (_first_set(env, _JOB_IDS), _first_set(env, _STEP_IDS), env.get("SLURM_RESTART_COUNT"))
    return ".".join(part for part in parts if part) or "0"


def read_number(env: Mapping[str, str], *names: str) -> int:
    """Read the first of *names* that is set as a whole number, 0 or more.

    Raises:
        SetupError: None is set, or it is no such number.
    """
    for name in names:
        text = env.get(name, "").strip()
        if text.isascii() and text.isdigit():
            return int(text)
        if text:
            raise SetupError(
                f"{name} is {env[name]!r}; a whole number from 0 on would be right.\n"
                f"Unset it, or start the script with what sets it (`torchrun`, `srun`)."
            )
    raise SetupError(
        f"{names[0]} is not set, though other variables of its kind are.\n"
        "Start the script with `torchrun` or `srun`, which set all of them, "
        f"or set it by hand{' (or ' + ', '.join(names[1:]) + ')' if names[1:] else ''}."
    )


# How many ranks on which host ------------------------------------------------------------------


def _first_set(env: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((env[name] for name in names if env.get(name)), None)


def _read_num_nodes(env: Mapping[str, str], hosts: tuple[str, ...]) -> int:
    if _first_set(env, _NUM_NODES):
        return read_number(env, *_NUM_NODES)
    return len(hosts) or 1


def _read_layout(env: Mapping[str, str], num_nodes: int) -> tuple[int, ...]:
    """Return the ranks per host, in the order of the node list; their sum is the world size."""
    world_size = read_number(env, *_NUM_TASKS) if _first_set(env, _NUM_TASKS) else None
    written = _first_set(env, _LAYOUTS)
    per_node = read_number(env, _PER_NODE) if env.get(_PER_NODE) else 0
    if written:
        layout = parse_tasks_per_node(written)
    elif per_node and world_size in (None, per_node * num_nodes):
        layout = (per_node,) * num_nodes
    else:
        # The name that people know is the one to miss.
        layout = _even_layout(world_size or read_number(env, "SLURM_NTASKS"), num_nodes)
    if world_size not in (None, sum(layout)):
        raise SetupError(
            f"SLURM_NTASKS says {world_size} ranks, SLURM_TASKS_PER_NODE {written!r} makes "
            f"{sum(layout)}.\nStart the script with `srun`, which sets both alike."
        )
    return layout


def _even_layout(world_size: int, num_nodes: int) -> tuple[int, ...]:
    # Slurm always names its layout. Without it only an even one can be told from the two sums, and
    # a guess would send ranks to the wrong GPU.
    if num_nodes == 0 or world_size % num_nodes:
        raise SetupError(
            f"{world_size} ranks on {num_nodes} hosts, and SLURM_TASKS_PER_NODE is not set: how "
            "many ranks stand on which host cannot be told.\n"
            "Start the script with `srun`, or set it, like '4,2'."
        )
    return (world_size // num_nodes,) * num_nodes


def _place_in_blocks(rank: int, layout: tuple[int, ...]) -> tuple[int, int]:
    """Return node rank and local rank when the hosts are filled one after the other."""
    for node_rank, end in enumerate(itertools.accumulate(layout)):
        if rank < end:
            return node_rank, rank - (end - layout[node_rank])
    raise AssertionError("the caller has checked rank against the sum of layout")


# Node lists ------------------------------------------------------------------------------------


def _split_names(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    names = re.split(r",(?![^\[]*\])", text.strip())
    return [] if names == [""] else names


def _expand_name(name: str, whole: str) -> list[str]:
    pieces = list(_PIECE.finditer(name))
    if not pieces or "".join(piece[0] for piece in pieces) != name:
        raise _bad_node_list(name, whole)
    choices = [
        _expand_ranges(piece[1], whole) if piece[1] is not None else [piece[2]] for piece in pieces
    ]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _expand_ranges(ranges: str, whole: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise _bad_node_list(part, whole)
        width = len(match[1])
        numbers += [f"{n:0{width}d}" for n in range(int(match[1]), int(match[2] or match[1]) + 1)]
    return numbers


def _bad_node_list(part: str, whole: str) -> SetupError:
    return SetupError(
        f"cannot read {part!r} in the node list {whole!r}.\n"
        "Slurm writes SLURM_JOB_NODELIST like 'n[1-3,07],login'."
    )
