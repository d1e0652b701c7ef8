"""What ``%dist VERB`` and ``%%dist`` do, in a notebook. Loaded on first use.

Commands.command     a line: the verb's method does it
Commands.run_cell    a cell: sent to the ranks, followed, shown
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from IPython.display import publish_display_data

from nbdist.config import Config, differences, to_lines, to_yaml
from nbdist.errors import SessionError, UsageError, did_you_mean
from nbdist.folder import runtime_root
from nbdist.launchers.room import check_room
from nbdist.notebook.autodist import aside, of
from nbdist.notebook.background import tell_troubles
from nbdist.notebook.closing import end_ranks_on_shutdown
from nbdist.notebook.options import (
    CellOptions,
    Parser,
    cell_options,
    start_options,
    verb_parser,
)
from nbdist.notebook.progress import StartProgress
from nbdist.notebook.stopping import StopButton
from nbdist.sessions import current
from nbdist.sessions.leases import waiting
from nbdist.sizes import describe_size
from nbdist.view import name_ranks, render
from nbdist.view.columns import align
from nbdist.view.page import lay_out
from nbdist.view.text import render_text

HOW_TO_START = (
    "No ranks are running. `%dist start` starts one per GPU (or 2 on CPU), `%dist start -n 4` four."
)

HELP = """\
%dist start [N] [-g 0,1] [-c NAME|PATH] [--yes] [key=value ...]   start the ranks, N of them
%dist status                     what every rank is doing
%dist stop                       end the ranks
%dist restart [-n N] [key=value ...]   end them, and start anew with the same config but for this
%dist config [KEY ...]           the resolved configuration, or these keys and sections of it
%dist seed N                     reseed all ranks
%dist attach [ID]                take a session whose kernel was killed, with all its variables
%dist recover                    a fresh rank in the place of each dead one; the others keep all
              [--from RANK] [--copy NAME ...]   copy to it what differs between the others, too
%dist restart --ranks 1          end rank 1 and put a fresh one in its place
%dist check NAME [--repair --from RANK]   are the replicas of a variable equal on all ranks
%dist guard [on|trace|off]       check collectives before they run
%dist trace [In[12]] [--all] [--table] [--save FILE.png]   who waited for whom in collectives
%dist pull EXPR [-r RANKS] [-o NAME] [--yes]   bring a variable of the ranks here
%dist push NAME ... [-r RANKS]   send variables of the notebook to the ranks
%dist last [In[12]]              the last cell's output again, or that of another one
%dist log In[12] [-r RANKS] [-n LINES]   what each rank put out in that cell
%dist logs [-r RANKS] [-n LINES] the end of each rank's log
%%dist [RANKS] [-o NAME] [-a] [--timeout S] [--local] [--no-fold]   run a cell on the ranks
%%dist --module NAME             the cell is a module, which ranks and spawned workers can import
# dist: ranks=0,2 [-o NAME] ...  the same, as a remark that linters pass over
%autodist on|off                 plain cells go to the ranks; %%local runs one here
%sync                            wait until every rank is here
RANKS: 0   0,2   0-2   1:   -1   [0,2]   all (default)"""


class Commands:
    """The commands of one IPython shell."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell

    def command(self, line: str) -> Any:
        """Do what ``%dist LINE`` asks for.

        Raises:
            UsageError: There is no such verb, or it is called in a way it does not know.
        """
        verb, _, rest = line.strip().partition(" ")
        if not verb:
            return self._status("")
        verbs = self._verbs()
        if verb not in verbs:
            raise UsageError(
                f"`%dist {verb}` is not a command. {did_you_mean(verb, verbs)}\n"
                "`%dist help` explains them."
            )
        return verbs[verb](rest.strip())

    def _verbs(self) -> dict[str, Callable[[str], Any]]:
        return {
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "recover": self._recover,
            "attach": self._attach,
            "last": self._last,
            "log": self._log,
            "check": self._check,
            "guard": self._guard,
            "trace": self._trace,
            "status": self._status,
            "config": self._config,
            "seed": self._seed,
            "help": self._help,
            "pull": self._pull,
            "push": self._push,
            "logs": self._logs,
        }

    # Cells ------------------------------------------------------------------------------------

    def run_cell(self, line: str, cell: str) -> Any:
        """Run *cell* on the ranks that *line* names.

        Returns:
            A `Run` with ``-a``, else nothing.

        Raises:
            CellFailed: It failed on some rank; its output has been shown.
        """
        return self._run(cell_options(line), with_first_line(line, cell), cell)

    def run_plain_cell(self, cell: str) -> None:
        """Run a cell without a first line of ours on all ranks, as ``%autodist on`` asks for.

        Raises:
            CellFailed: It failed on some rank; its output has been shown.
        """
        ranks = name_ranks(range(current.get().world_size))
        self._run(cell_options(""), cell, cell, note=f"on {ranks}: %autodist is on")

    def _run(self, options: CellOptions, code: str, cell: str, note: str | None = None) -> Any:
        from nbdist.notebook import cells

        session = current.get()
        number = cell_number(self.shell)
        limit: dict[str, Any] = {"max_value_bytes": 2**62} if options.yes else {}
        wants_value = options.out is not None or options.noblock
        with aside(self.shell), StopButton() as button:
            self._check_syntax(code, number, is_module=options.module is not None)
            run = session.run(
                code,
                options.ranks,
                want_value=wants_value,
                number=number,
                module=options.module,
                **limit,
            )
            run.fold = options.fold
            run.notes += [note] if note else []
            if options.noblock:
                tell_troubles(run)
                return run
            try:
                if options.local:
                    with button.raising():
                        self._run_here(cell)
            finally:
                cells.follow(session, run, self.shell, button, options.timeout_s)
        self._keep_value(run, options)
        return None

    def _check_syntax(self, code: str, number: int | None, *, is_module: bool) -> None:
        """Find a syntax error before anything is sent; a module is plain Python, without magics.

        Raises:
            SyntaxError: In the user's own lines, named ``In[3]``.
        """
        label = "cell" if number is None else f"In[{number}]"
        transformed = code if is_module else self.shell.transform_cell(code)
        flags = 0 if is_module else ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(transformed, label, "exec", flags=flags, dont_inherit=True)

    def _run_here(self, cell: str) -> None:
        result = self.shell.run_cell(cell, store_history=False)
        result.raise_error()

    def _keep_value(self, run: Any, options: CellOptions) -> None:
        if options.out is not None:
            self.shell.user_ns[options.out] = run.values()

    # Magics of their own ----------------------------------------------------------------------

    def autodist(self, line: str) -> None:
        """Switch on or off that plain cells go to the ranks; without a word, say how it is."""
        parser = Parser("%autodist")
        parser.add_argument("state", nargs="?", choices=["on", "off"])
        state = parser.read(line).state
        transformer = of(self.shell)
        if transformer is None:  # after %unload_ext
            raise UsageError("nbdist is not loaded here: `%load_ext nbdist`.")
        if state is not None:
            transformer.is_on = state == "on"
        if transformer.is_on:
            self._say(
                "Plain cells run on the ranks; `%%local` as the first line runs one here, "
                "`%autodist off` all of them."
            )
        else:
            self._say("Plain cells run here; `%%dist` as the first line runs one on the ranks.")

    def sync(self, line: str) -> None:
        """Wait until every rank is here."""
        verb_parser("sync").read(line)
        self._run_quietly("nbdist.synchronize()")
        self._say(f"{name_ranks(range(current.get().world_size))} are here")

    # Verbs ------------------------------------------------------------------------------------

    def _start(self, line: str) -> None:
        asked = start_options("start", line)
        config = asked.config()
        if current.is_running():
            session = current.get()
            if not session.is_alive:
                raise SessionError(
                    f"The session that was running here is lost: {session.trouble}.\n"
                    "`%dist stop` clears up; then `%dist start` starts anew."
                )
            if different := differences(session.config, config):
                raise SessionError(
                    f"Ranks are already running with another configuration: {session.summary}\n"
                    f"There and here differ: {', '.join(different)}.\n"
                    "`%dist restart` with these words ends them and starts anew."
                )
            return self._say(f"already running: {session.summary}")
        self._name_waiting()
        return self._launch(config, yes=asked.yes)

    def _name_waiting(self) -> None:
        """Say which sessions of killed kernels still hold devices and memory."""
        for found in waiting(runtime_root()):
            self._say(
                f"A session waits for a kernel: {found}.\n"
                f"`%dist attach {found.folder.session_id}` takes it, "
                f"`nbdist stop {found.folder.session_id}` in a shell ends it."
            )

    def _attach(self, line: str) -> None:
        from nbdist.notebook import cells

        parser = verb_parser("attach")
        parser.add_argument("session_id", nargs="?", metavar="ID")
        session = current.attach(parser.read(line).session_id)
        end_ranks_on_shutdown(self.shell)
        with StopButton() as button:
            self._say(f"attached: {session.summary}")
            for run in session.restored:
                cells.follow(session, run, self.shell, button)

    def _launch(self, config: Config, *, yes: bool) -> None:
        end_ranks_on_shutdown(self.shell)
        with StartProgress(self.shell) as progress:
            session = current.start(config, on_progress=progress.show, yes=yes)
        self._say(session.summary)

    def _stop(self, line: str) -> None:
        verb_parser("stop").read(line)
        if not current.is_running():
            return self._say("No ranks are running.")
        session = current.get()
        ranks = name_ranks(range(session.world_size))
        current.stop()
        return self._say(f"{ranks} stopped")

    def _restart(self, line: str) -> None:
        from nbdist.launchers.start import check_supported

        asked = start_options("restart", line)
        session = current.get()
        if asked.ranks is not None:
            return self._say(str(session.restart_ranks(asked.ranks)))
        config = asked.config(session.config)
        check_supported(config)  # before anything is lost
        if asked.has_changes and not asked.yes:
            check_room(config)
        current.stop()
        return self._launch(config, yes=True)

    def _recover(self, line: str) -> None:
        parser = verb_parser("recover")
        parser.add_argument("--from", dest="source", type=int, metavar="RANK")
        parser.add_argument("--copy", nargs="+", default=[], metavar="NAME")
        found = parser.read(line)
        self._say(str(current.get().recover(source=found.source, also=found.copy)))

    def _check(self, line: str) -> None:
        parser = verb_parser("check")
        parser.add_argument("expression", nargs="+", metavar="NAME")
        parser.add_argument("--repair", action="store_true")
        parser.add_argument("--from", dest="source", type=int, metavar="RANK")
        found = parser.read(line, is_code=True)
        if found.repair != (found.source is not None):
            parser.error("--repair and --from RANK go together: RANK is the one that is right")
        expression = " ".join(found.expression)
        self._run_quietly(check_code(expression, found.source))

    def _guard(self, line: str) -> None:
        parser = verb_parser("guard")
        parser.add_argument("mode", nargs="?", choices=["on", "trace", "off"])
        mode = parser.read(line).mode
        self._run_quietly(f"print('guard', nbdist.guard({mode!r}))")

    def _trace(self, line: str) -> None:
        from nbdist.view import timeline

        parser = verb_parser("trace")
        parser.add_argument("label", nargs="?", metavar="In[N]")
        parser.add_argument("--all", action="store_true")
        parser.add_argument("--table", action="store_true")
        parser.add_argument("--save", metavar="FILE.png")
        found = parser.read(line)
        label = None if found.label is None else cell_label(found.label)
        trace = current.get().trace("last" if label is None else [label])
        cell = trace.last() if label is None else trace.labelled(label)
        if cell is None:
            return self._say(trace.nothing())
        image = None if found.table else timeline.png(cell)
        hints = [timeline.HOW_TO_DRAW] if image is None and not found.table else []
        if found.save is not None:
            hints.append(timeline.save(cell, found.save))
        publish_display_data(cell.render(lists_all=found.all, image=image, hints=hints))
        return None

    def _run_quietly(self, code: str) -> None:
        """Run code of ours on all ranks and show what it prints."""
        from nbdist.notebook import cells

        session = current.get()
        with StopButton() as button:
            run = session.run(code, want_value=False)
            run.shows_calls = False  # they are ours
            cells.follow(session, run, self.shell, button)

    def _last(self, line: str) -> None:
        parser = verb_parser("last")
        parser.add_argument("label", nargs="?", metavar="In[N]")
        label = parser.read(line).label
        journals = current.get().journals
        cells = journals.last() if label is None else journals.labelled(cell_label(label))
        bundle = render([journals.output_of(cell) for cell in cells])
        if bundle:
            publish_display_data(bundle)
        else:
            name = "The last cell" if label is None else cell_label(label)
            self._say(f"{name} has put out nothing.")

    def _log(self, line: str) -> None:
        parser = verb_parser("log", ranks=True)
        parser.add_argument("label", metavar="In[N]")
        parser.add_argument("-n", "--lines", type=int, metavar="LINES")
        found = parser.read(line)
        session = current.get()
        ranks = session.select(found.ranks)
        for cell in session.journals.labelled(cell_label(found.label)):
            if cell.rank in ranks:
                output = session.journals.output_of(cell)
                page = lay_out([output], is_folded=False, is_trimmed=False)
                text = render_text(page) or f"[rank{cell.rank}] put out nothing"
                lines = text.splitlines()
                self._say("\n".join(lines[-found.lines :] if found.lines else lines))

    def _status(self, line: str) -> None:
        verb_parser("status").read(line)
        if not current.is_running():
            return self._say(HOW_TO_START)
        session = current.get()
        return self._say(status_table(session))

    def _config(self, line: str) -> None:
        asked = start_options("config", line)
        is_of_session = not asked.has_changes and current.is_running()
        config = current.get().config if is_of_session else asked.config()
        parts = [to_lines(config, key) for key in asked.keys]
        self._say("\n".join(parts) if parts else to_yaml(config).rstrip())

    def _seed(self, line: str) -> None:
        parser = verb_parser("seed")
        parser.add_argument("seed", type=int, metavar="N")
        seed = parser.read(line).seed
        session = current.get()
        per_rank = session.config.seed_per_rank
        self._run_quietly(f"nbdist.set_seed(nbdist.rank_seed({seed}, rank, {per_rank!r}))")
        self._say(f"seed {seed} ({per_rank}) on {name_ranks(range(session.world_size))}")

    def _help(self, line: str) -> None:
        verb_parser("help").read(line)
        self._say(HELP)

    def _pull(self, line: str) -> None:
        parser = verb_parser("pull", ranks=True)
        parser.add_argument("expression", nargs="+", metavar="EXPR")
        parser.add_argument("-o", "--out", metavar="NAME")
        parser.add_argument("--yes", action="store_true")
        found = parser.read(line, is_code=True)
        expression = " ".join(found.expression)
        name = found.out or expression
        if not name.isidentifier():
            parser.error(f"-o NAME is needed: {name!r} is not the name of a variable")
        limit: dict[str, Any] = {"max_bytes": None} if found.yes else {}
        self.shell.user_ns[name] = current.get().pull(expression, found.ranks, **limit)

    def _push(self, line: str) -> None:
        parser = verb_parser("push", ranks=True)
        parser.add_argument("names", nargs="+", metavar="NAME")
        found = parser.read(line)
        session = current.get()
        known = self.shell.user_ns
        for name in found.names:
            if name not in known:
                raise UsageError(f"There is no variable {name!r} here. {self._name_mine(name)}")
        session.push({name: known[name] for name in found.names}, found.ranks)

    def _name_mine(self, name: str) -> str:
        """Name the variables of the user that *name* may mean; not those that IPython put there."""
        is_hidden = self.shell.user_ns_hidden.keys()
        mine = [n for n in self.shell.user_ns if not n.startswith("_") and n not in is_hidden]
        return did_you_mean(name, mine) if mine else "You have none yet."

    def _logs(self, line: str) -> None:
        parser = verb_parser("logs", ranks=True)
        parser.add_argument("-n", "--lines", type=int, default=20, metavar="LINES")
        found = parser.read(line)
        session = current.get()
        for rank in session.select(found.ranks):
            self._say(f"── rank {rank} ──\n{session.log_tail(rank, found.lines)}")

    def _say(self, text: str) -> None:
        print(text)  # noqa: T201 - a command's answer is what the user asked to see


def cell_number(shell: Any) -> int | None:
    """Return the number that stands beside the running cell, or ``None`` where it has none.

    IPython's own counter is one ahead or not, depending on its version; the history is not. A cell
    that is run without history, as nbval does, has no number.
    """
    history = shell.history_manager.input_hist_raw
    parent = shell.kernel.get_parent("shell") if hasattr(shell, "kernel") else None
    code = parent["content"].get("code") if parent else None
    if code is not None and history[-1].strip() != code.strip():
        return None
    return len(history) - 1


def cell_label(text: str) -> str:
    """Return the label that *text*, a number or a label, means: ``In[12]`` for ``12``."""
    return f"In[{text}]" if text.isdigit() else text


def with_first_line(line: str, cell: str) -> str:
    """Return a cell's code with its magic line as a comment: line numbers are then the page's.

    A cell whose body begins with a cell magic of its own keeps it in first place.
    """
    if cell.lstrip().startswith("%%"):
        return cell
    return f"# %%dist {line}".rstrip() + f"\n{cell}"


def check_code(expression: str, source: int | None) -> str:
    """Return the cell that compares *expression* on all ranks, or repairs it from rank *source*.

    The expression has a line for itself: that is what an error in it shows.
    """
    if source is None:
        return f"print(nbdist.check_replicas(\n{expression}\n, name={expression!r}))"
    return f"print(nbdist.repair_replicas(\n{expression}\n, {source}, name={expression!r}))"


def status_table(session: Any) -> str:
    """Return what every rank is doing, one line a rank."""
    header = ("rank", "pid", "memory", "GPU", "state")
    rows = [header]
    for state in session.states():
        memory = "–" if state.memory_bytes is None else describe_size(state.memory_bytes)
        gpu = "–" if state.gpu_bytes is None else describe_size(state.gpu_bytes)
        rows.append((str(state.rank), str(state.pid), memory, gpu, state.state))
    lines = align(rows, (True, True, True, True, False))
    trouble = [f"trouble: {session.trouble}"] if session.trouble else []
    limits = [f"not with this torch: {limit}" for limit in session.limits]
    first = f"{session.summary} · session {session.session_id}"
    return "\n".join([first, *lines, *trouble, *limits])
