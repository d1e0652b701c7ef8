"""The flags of ``%%dist`` and of the verbs of ``%dist``, read by argparse."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NoReturn

from nbdist.config import Config, change_config, load_config
from nbdist.errors import UsageError
from nbdist.sessions.ranks import split_ranks


class Parser(argparse.ArgumentParser):
    """Raises instead of printing and exiting."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False, exit_on_error=False)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, with the right usage.

        Raises:
            UsageError: Always.
        """
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        raise UsageError(f"{message}\nUsage: {usage}\nNothing has run.")

    def read(self, line: str, *, is_code: bool = False) -> argparse.Namespace:
        """Read the words of *line*, quoted as in a shell.

        Args:
            line: What follows the command.
            is_code: Quotes belong to the words: ``state['weight']``.

        Raises:
            UsageError: A flag is unknown, or a value is missing or wrong.
        """
        try:
            words = _join_negative(shlex.split(line, posix=not is_code))
        except ValueError as exc:
            self.error(str(exc))
        # As a format string, which argparse makes of it while words stand around flags.
        self.usage = self.format_usage().removeprefix("usage: ").replace("%", "%%")
        try:
            return self.parse_intermixed_args(words)
        except argparse.ArgumentError as exc:
            self.error(str(exc))


@dataclass(frozen=True)
class CellOptions:
    """What the first line of a ``%%dist`` cell asks for.

    Attributes:
        ranks: Where to run, as typed; all when ``None``.
        out: Name of the notebook variable that takes the values of the last expression.
        noblock: Return a `Run` at once.
        timeout_s: Stop the cell after so many seconds.
        local: Run the cell in the notebook as well.
        fold: Show once what ranks have in common.
        yes: Send values of any size.
        module: Name of the module that the cell is to be.
    """

    ranks: str | None
    out: str | None
    noblock: bool
    timeout_s: float | None
    local: bool
    fold: bool
    yes: bool
    module: str | None = None


@lru_cache(maxsize=256)
def cell_options(line: str) -> CellOptions:
    """Read the first line of a cell, ``0,2 -o x --timeout 30``.

    Raises:
        UsageError: A flag is unknown, or a value is missing or wrong.
        RankError: The ranks cannot be read.
    """
    leading, rest = split_ranks(line)
    parser = Parser("%%dist [RANKS]")
    parser.add_argument("-t", "--targets", metavar="RANKS")
    parser.add_argument("-o", "--out", metavar="NAME", type=_identifier)
    parser.add_argument("-a", "--noblock", action="store_true")
    parser.add_argument("--timeout", metavar="S", type=_seconds)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--no-fold", action="store_true")
    parser.add_argument("--module", metavar="NAME", type=_identifier)
    parser.add_argument("--yes", action="store_true")
    found = parser.read(rest)
    if leading is not None and found.targets is not None:
        parser.error(f"the ranks are named twice: {leading} and --targets {found.targets}")
    if found.noblock and (found.out or found.timeout is not None):
        parser.error(
            "-a returns a Run at once: use its .result() and .wait(S) for -o and --timeout"
        )
    return CellOptions(
        ranks=leading if leading is not None else found.targets,
        out=found.out,
        noblock=found.noblock,
        timeout_s=found.timeout,
        local=found.local,
        fold=not found.no_fold,
        yes=found.yes,
        module=found.module,
    )


def verb_parser(verb: str, *, ranks: bool = False) -> Parser:
    """Return a parser for ``%dist VERB``, with ``-r RANKS`` if wanted."""
    parser = Parser(f"%dist {verb}")
    if ranks:
        parser.add_argument("-r", "-t", "--ranks", "--targets", dest="ranks", metavar="RANKS")
    return parser


@dataclass(frozen=True)
class StartOptions:
    """What a line asks for that says how ranks are to be started.

    Attributes:
        file: Name or path of a configuration.
        overrides: ``key=value``, also those that were written as flags.
        keys: Words that are neither flags nor overrides.
        ranks: Of ``%dist restart --ranks``.
        yes: Start them also where there is little room.
    """

    file: str | None
    overrides: tuple[str, ...]
    keys: tuple[str, ...]
    ranks: str | None
    yes: bool

    @property
    def has_changes(self) -> bool:
        """Whether it asks for anything but what is there."""
        return self.file is not None or bool(self.overrides)

    def config(self, so_far: Config | None = None) -> Config:
        """Return the configuration asked for, with the defaults below it or *so_far*.

        Raises:
            ConfigError: A key or a value is wrong.
        """
        if so_far is not None and self.file is None:
            return change_config(so_far, self.overrides)
        return load_config(self.file, self.overrides)


def start_options(verb: Literal["start", "restart", "config"], line: str) -> StartOptions:
    """Read what follows ``%dist start`` and its kin: ``4``, ``-n 4``, ``seed=7``, in any order.

    Raises:
        UsageError: A flag is unknown, or a number of ranks is given twice.
    """
    parser = verb_parser(verb, ranks=verb == "restart")
    parser.add_argument("-n", "--nproc", "--num-processes", metavar="N")
    parser.add_argument("-g", "--gpus", "--gpu-ids", metavar="0,1")
    parser.add_argument("-c", "--config", metavar="NAME|PATH")
    parser.add_argument("--yes", action="store_true")
    names = "KEY" if verb == "config" else "N"
    parser.add_argument("words", nargs="*", metavar=f"{names}|key=value")
    found = parser.read(line)
    overrides = [word for word in found.words if "=" in word]
    others = [word for word in found.words if "=" not in word]
    if verb != "config":
        counts = [*([found.nproc] if found.nproc is not None else []), *others]
        if len(counts) > 1 or not all(word.lstrip("-").isdigit() for word in others):
            parser.error(f"{counts[-1]!r} is no key=value, and no number of ranks")
        overrides += [f"nproc={count}" for count in counts]
    elif found.nproc is not None:
        overrides.append(f"nproc={found.nproc}")
    if found.gpus is not None:
        overrides.append(f"gpus=[{found.gpus.strip('[]')}]")
    asked = StartOptions(
        file=found.config,
        overrides=tuple(overrides),
        keys=tuple(others) if verb == "config" else (),
        ranks=getattr(found, "ranks", None),
        yes=found.yes,
    )
    if asked.ranks is not None and asked.has_changes:
        parser.error("--ranks replaces ranks of this session, whose configuration stays as it is")
    return asked


def _join_negative(words: list[str]) -> list[str]:
    """Let ``-t -1`` name the last rank: argparse would take ``-1`` for a flag."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in ("-t", "-r") and word[:2].lstrip("-").isdigit():
            joined[-1] += word
        elif joined and joined[-1] in ("--targets", "--ranks"):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _identifier(text: str) -> str:
    if not text.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a variable")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
