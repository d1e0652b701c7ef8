"""ipyparallel's launchers, as nbdist uses them: a tuned controller, and one agent for all engines.

`AgentLauncher` is registered under ipyparallel's entry point ``ipyparallel.engine_launchers``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from ipyparallel import Cluster
from ipyparallel.cluster.launcher import EngineLauncher, LocalProcessLauncher
from traitlets.config import Config

from nbdist import private
from nbdist.folder import SessionFolder
from nbdist.processes import MARK

# -P: nothing in the notebook's folder stands in for a module. Its path comes when all is imported.
PYTHON = [sys.executable, "-P", "-m"]

# Measured in docs/decisions.md: threads instead of 8 scheduler processes, and a short heart beat,
# since an engine counts as registered from its first beat on. A rank's death is seen by the agent;
# the hub must never strike a rank off for being slow.
CONTROLLER_ARGS = [
    "--IPController.transport=ipc",
    "--IPController.reuse_files=True",  # if there are any: it takes another one's place
    "--IPController.use_threads=True",
    "--HeartMonitor.period=100",
    "--HeartMonitor.max_heartmonitor_misses=1000000000",
    "--TaskScheduler.scheme_name=pure",
    "--log-level=WARN",
]


RELAYS = ("mux", "control", "iopub")  # of the controller's, those that nbdist uses
CONNECTED = "03"  # in /proc/net/unix; a listening socket has 01


class AgentLauncher(LocalProcessLauncher, EngineLauncher):  # type: ignore[misc]
    """Starts the agent of this host, which forks the engines."""

    def find_args(self) -> list[str]:
        """Return the agent's command line."""
        return [*PYTHON, "nbdist.rank.agent", self.profile_dir]

    async def start(self, n: int) -> Any:
        """Start the agent; *n* engines follow."""
        self.n = n
        return LocalProcessLauncher.start(self)


def make_cluster(folder: SessionFolder, env: dict[str, str]) -> Cluster:
    """Return an ipyparallel cluster whose every file lies in *folder*; nothing is started.

    Args:
        folder: The session's folder.
        env: Additional environment of the agent, and so of the ranks.
    """
    config = Config()
    mark = {MARK: folder.session_id}
    config.AgentLauncher.environment = {**env, **mark}
    config.LocalControllerLauncher.environment = mark
    command = [*PYTHON, "nbdist.launchers.controller"]
    config.LocalControllerLauncher.controller_cmd = command
    log = logging.getLogger(f"{__name__}.cluster")
    log.setLevel(logging.CRITICAL)  # it would report files that went with their session's folder
    return Cluster(
        config=config,
        log=log,
        load_profile=False,
        shutdown_atexit=False,
        profile_dir=str(folder.path),
        cluster_id="",
        cluster_file="",
        engines=AgentLauncher,
        controller_ip=str(folder.channels),
        controller_location="127.0.0.1",  # the host's name need not resolve
        controller_args=[*CONTROLLER_ARGS, f"--ipython-dir={folder.path}"],
        send_engines_connection_env=False,  # the agent imports torch while the controller starts
        delay=0,
    )


def connection_file(folder: SessionFolder, side: str) -> Path:
    """Return the path of the connection file of *side*, ``client`` or ``engine``."""
    return folder.security / f"ipcontroller-{side}.json"


def num_connected(folder: SessionFolder) -> int:
    """Return how many far ends every relay has: those of the ranks, and of who watches them.

    A message to a rank that is not connected is lost without a word.
    """
    engines = json.loads(private.read_text(connection_file(folder, "engine")))
    interface = engines["interface"].removeprefix("ipc://")
    rows = [row.split() for row in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()]
    paths = [row[7] for row in rows if len(row) == 8 and row[5] == CONNECTED]
    return min(paths.count(f"{interface}:{engines[name]}") for name in RELAYS)


def kernel_of_this_process() -> dict[str, Any]:
    """Return what ``nbdist ps`` shows of the process that starts a session."""
    return {"pid": os.getpid(), "folder": str(Path.cwd())}
