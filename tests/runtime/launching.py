"""Run a script as one or several ranks, as each launcher would, and read the JSON it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE_S = 100

Facts = dict[str, Any]


def run_alone(script: str) -> Facts:
    [facts] = run_by_hand(script, [{}])
    return facts


def run_torchrun(script: str, num_ranks: int) -> list[Facts]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    process = start([*launcher, str(HERE / script)], {}, None)
    try:
        return read_facts(finish(process))
    finally:
        process.terminate()  # torchrun ends its ranks when asked to, not when killed
        process.wait()


def run_by_hand(
    script: str, environments: list[dict[str, str]], folder: Path | None = None
) -> list[Facts]:
    """Start one process per environment in *folder*, and wait for all."""
    processes = [start([str(HERE / script)], env, folder) for env in environments]
    try:
        return read_facts("".join(finish(process) for process in processes))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def slurm_env(rank: int, num_ranks: int) -> dict[str, str]:
    """Write down what ``srun`` sets on one host; the job id is of this test run alone."""
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
        "SLURM_NTASKS": str(num_ranks),
        "SLURM_TASKS_PER_NODE": str(num_ranks),
        "SLURM_STEP_NODELIST": "localhost",
    }


def start(
    arguments: list[str], env: Mapping[str, str], folder: Path | None
) -> subprocess.Popen[str]:
    # One thread: several ranks share two cores with whatever else runs here.
    quiet = {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **quiet, **env},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out


def read_facts(output: str) -> list[Facts]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return sorted(map(json.loads, lines), key=lambda facts: int(facts["rank"]))
