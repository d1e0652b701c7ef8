"""The ``nbdist`` command: one function per word, and the error that a person at a shell sees.

nbdist lab          JupyterLab of this Python                          `nbdist.cli.lab`
nbdist run          a notebook, for real, printed as it goes           `nbdist.cli.run`
nbdist ps | stop    the sessions of this user                          `nbdist.cli.sessions`
nbdist config       the resolved configuration
nbdist version      what is installed

Importing it, and ``nbdist version``, imports none of the heavy packages.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from nbdist.errors import NbdistError

VERSIONS_SHOWN = ("nbdist", "torch", "ipyparallel")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line *arguments* (those of this process when ``None``).

    Returns:
        The exit code: 0, 1 for a notebook that failed, 2 for what nbdist refuses to do, 130 after
        Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, for_jupyter = _split(words)
    parser = make_parser()
    found = parser.parse_args(words)
    if for_jupyter and found.command is not _lab:
        parser.error("only `nbdist lab` takes arguments after --")
    found.for_jupyter = for_jupyter
    try:
        code: int = found.command(found)
        sys.stdout.flush()
    except NbdistError as exc:
        sys.stderr.write(f"nbdist: {exc}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `nbdist ps | head -1`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Take off what stands behind the first ``--``."""
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command; each word sets the function that does it."""
    parser = argparse.ArgumentParser(
        prog="nbdist",
        description="A Jupyter-first workbench for distributed PyTorch.",
        allow_abbrev=False,
    )
    words = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    lab = words.add_parser(
        "lab",
        help="open JupyterLab on a folder",
        usage="nbdist lab [-h] [DIR] [-- JUPYTERLAB ARGUMENTS]",
    )
    lab.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="DIR")
    lab.set_defaults(command=_lab)

    run = words.add_parser("run", help="run a notebook here in the terminal")
    run.add_argument("notebook", type=Path, metavar="NOTEBOOK")
    run.add_argument(
        "--out", type=Path, metavar="FILE", help="keep the notebook with its new outputs"
    )
    run.set_defaults(command=_run)

    ps = words.add_parser("ps", help="list your sessions")
    ps.set_defaults(command=_ps)

    stop = words.add_parser("stop", help="end sessions and all their processes")
    stop.add_argument("ids", nargs="*", metavar="ID", help="as `nbdist ps` shows it")
    stop.add_argument("--all", action="store_true", help="end all of them")
    stop.set_defaults(command=_stop)

    config = words.add_parser("config", help="show the resolved configuration")
    config.add_argument("-c", "--config", metavar="NAME|PATH")
    config.add_argument("overrides", nargs="*", metavar="key=value")
    config.set_defaults(command=_config)

    version = words.add_parser("version", help="show what is installed")
    version.set_defaults(command=_version)
    return parser


# What the words do: each imports what it needs, when it is needed ------------------------------


def _lab(found: argparse.Namespace) -> int:
    from nbdist.cli.lab import open_lab

    return open_lab(found.folder, found.for_jupyter)


def _run(found: argparse.Namespace) -> int:
    from nbdist.cli.run import run_notebook

    return run_notebook(found.notebook, found.out)


def _ps(_: argparse.Namespace) -> int:
    from nbdist.cli.sessions import session_table
    from nbdist.folder import runtime_root

    _say(session_table(runtime_root()))
    return 0


def _stop(found: argparse.Namespace) -> int:
    from nbdist.cli.sessions import choose, stop
    from nbdist.folder import runtime_root

    for folder in choose(runtime_root(), found.ids, is_all=found.all):
        _say(stop(folder))
    return 0


def _config(found: argparse.Namespace) -> int:
    from nbdist.config import load_config, to_yaml

    _say(to_yaml(load_config(found.config, found.overrides)).rstrip())
    return 0


def _version(_: argparse.Namespace) -> int:
    for name in VERSIONS_SHOWN:
        _say(f"{name:<12} {_installed(name)}")
    _say(f"{'python':<12} {platform.python_version()}")
    return 0


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
