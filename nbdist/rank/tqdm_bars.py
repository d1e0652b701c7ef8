"""Bars of tqdm on a rank: what would be thousands of rewritten lines becomes one record a bar.

    tqdm.std                         its bars on our stdout and stderr write to a `TqdmBar`, which
                                     drops the characters and lets `Bars` ask the bar itself
    tqdm.notebook, tqdm.autonotebook plain tqdm under their names: a rank has no widgets

A bar with a ``file=`` elsewhere, a disabled bar, and a bar in a forked child (but for its place)
stay as tqdm made them. All that a bar counts is counted by tqdm. Read in tqdm 4.70; without tqdm
nothing is done.

Not covered: ``tqdm.rich``, ``tqdm.gui`` and ``tqdm.tk``, which draw by themselves; subclasses that
draw by themselves into our stderr are read, but what they draw is dropped; ``container`` and
``colour`` of the widgets in ``tqdm.notebook``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import GeneratorType, ModuleType
from typing import Any

from nbdist.rank.outputs import RankStream, Recorder
from nbdist.rank.progress import rate_text
from nbdist.wire import Progress

Fill = Callable[[ModuleType], None]

FILE_PLACE = 4  # of ``file`` among the arguments of ``tqdm()``


def install(recorder: Recorder) -> None:
    """Follow the bars of tqdm from now on, or from when it is imported."""
    if "tqdm.std" in sys.modules:
        patch(sys.modules["tqdm.std"], recorder)
    stand_ins: dict[str, Fill] = {
        "tqdm.notebook": fill_notebook,
        "tqdm.autonotebook": fill_autonotebook,
    }
    for name, fill in stand_ins.items():
        if name in sys.modules:
            fill(sys.modules[name])
    sys.meta_path.insert(0, TqdmFinder(lambda std: patch(std, recorder), stand_ins))


class TqdmBar:
    """A file that takes what one bar of tqdm writes; it is the sign that the bar moves."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, bar: Any, stream: RankStream, recorder: Recorder) -> None:
        self.steps: Callable[[], GeneratorType[Any, Any, Any] | None] = lambda: None
        self._bar = weakref.ref(bar)  # so that a bar that nobody holds still ends by itself
        self._stream = stream
        self._recorder = recorder
        self._last = Progress(-1, "", 0)

    def __repr__(self) -> str:
        return f"<TqdmBar on {self._stream.name}>"

    # As a file ----------------------------------------------------------------------------------

    def write(self, text: Any) -> int:
        """Drop *text*: only that there is some is of interest."""
        self._recorder.touch_bar(self)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        """It is not a terminal."""
        return False

    def fileno(self) -> int:
        """The file descriptor of the stream it stands for."""
        return self._stream.fileno()

    # As a bar -----------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the bar was closed, or is gone."""
        bar = self._bar()
        return bar is None or bool(getattr(bar, "disable", False))

    def read(self, *, is_exact: bool) -> Progress:
        """Return how far the bar is."""
        bar = self._bar()
        if bar is not None:
            self._last = self._read(bar, self._counted(bar, is_exact=is_exact))
        return self._last

    def _counted(self, bar: Any, *, is_exact: bool) -> Any:
        """Return the steps done; a loop keeps them for itself and tells the bar now and then."""
        steps = self.steps() if is_exact else None
        frame = steps.gi_frame if steps is not None else None
        if frame is None:
            return bar.n
        return frame.f_locals.get("n", bar.n)

    def _read(self, bar: Any, counted: Any) -> Progress:
        scale = bar.unit_scale
        factor = scale if isinstance(scale, (int, float)) and scale not in (0, 1) else 1
        done = number(counted, self._last.done)
        total = None if bar.total is None else number(bar.total, None)
        began_at = getattr(bar, "start_t", None)
        seconds = 0.0 if began_at is None else max(time.time() - began_at, 0.0)
        unit = str(bar.unit).strip() or "it"
        divisor = int(bar.unit_divisor) if scale is True else 0
        steps = (done - number(bar.initial, 0)) * factor
        leave = bar.leave if bar.leave is not None else getattr(bar, "pos", 0) == 0
        return Progress(
            bar=-1,
            text=str(bar.desc or "").removesuffix(": "),
            done=done * factor,
            total=None if total is None else total * factor,
            unit=unit,
            divisor=divisor,
            postfix=str(bar.postfix or ""),
            seconds=seconds,
            rate=rate_text(steps, seconds, unit, divisor),
            is_kept=bool(leave),
        )


def number(value: Any, default: Any) -> Any:
    """Return *value* as a number that JSON has, else *default*.

    Numbers of Python and NumPy, and tensors on the CPU: one on a GPU would have to be waited for.
    """
    if isinstance(value, bool) or getattr(value, "is_cuda", False):
        return default
    if not isinstance(value, (int, float)):
        try:
            value = value.item()
        except (AttributeError, RuntimeError, ValueError):
            return default
    if not isinstance(value, (int, float)) or value - value != 0:  # infinite, or no number
        return default
    return int(value) if value == int(value) else value


def patch(std: ModuleType, recorder: Recorder) -> None:
    """Let the bars of tqdm that would write to this rank's streams write to a `TqdmBar`."""
    tqdm: Any = std.tqdm
    original, original_iter = tqdm.__init__, tqdm.__iter__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        is_by_place = len(args) > FILE_PLACE
        file = args[FILE_PLACE] if is_by_place else kwargs.get("file")
        stream = sys.stderr if file is None else file
        if recorder.is_forked:
            # Below a bar of the parent, which draws nothing, it would move among foreign lines.
            kwargs.setdefault("position", 0)
        elif isinstance(stream, RankStream) and not kwargs.get("gui"):
            self._nbdist_bar = bar = TqdmBar(self, stream, recorder)
            if is_by_place:
                args = (*args[:FILE_PLACE], bar, *args[FILE_PLACE + 1 :])
            else:
                kwargs["file"] = bar
        original(self, *args, **kwargs)

    @functools.wraps(original_iter)
    def iterate(self: Any) -> Any:
        steps = original_iter(self)
        bar = self.__dict__.get("_nbdist_bar")
        if bar is not None:
            bar.steps = weakref.ref(steps)
        return steps

    tqdm.__init__, tqdm.__iter__ = init, iterate


# Names that would mean widgets --------------------------------------------------------------------


def fill_notebook(module: ModuleType) -> None:
    """Make *module* a ``tqdm.notebook`` whose bars are plain ones."""
    plain: Any = importlib.import_module("tqdm.std").tqdm

    class tqdm_notebook(plain):  # type: ignore[misc]  # noqa: N801 - its name there
        """A plain bar that takes what one with widgets takes."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("display", None)
            kwargs["disable"] = bool(kwargs.get("disable", False))
            if isinstance(kwargs.get("ncols"), str):  # a width of the page
                del kwargs["ncols"]
            super().__init__(*args, **kwargs)

    def tnrange(*args: Any, **kwargs: Any) -> Any:
        """Return a bar over ``range(*args)``."""
        return tqdm_notebook(range(*args), **kwargs)

    tqdm_notebook.__module__ = tnrange.__module__ = module.__name__
    names = {"tqdm_notebook": tqdm_notebook, "tnrange": tnrange}
    names |= {"tqdm": tqdm_notebook, "trange": tnrange}
    module.__dict__.update(names, __all__=list(names))


def fill_autonotebook(module: ModuleType) -> None:
    """Make *module* a ``tqdm.autonotebook`` that has chosen plain bars, without a warning."""
    std = importlib.import_module("tqdm.std")
    module.__dict__.update(tqdm=std.tqdm, trange=std.trange, __all__=["tqdm", "trange"])


class TqdmFinder(MetaPathFinder):
    """Stands in the way of three imports of tqdm.

    Args:
        patch_std: Takes ``tqdm.std`` once it has been imported.
        stand_ins: By name, what makes the modules that are ours.
    """

    def __init__(
        self,
        patch_std: Fill,
        stand_ins: dict[str, Fill],
    ) -> None:
        self._patch_std = patch_std
        self._stand_ins = stand_ins

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the modules that are ours to make, and ``tqdm.std`` with what comes after it."""
        if name in self._stand_ins:
            return importlib.util.spec_from_loader(name, StandIn(self._stand_ins[name]))
        if name != "tqdm.std":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._patch_after(spec.loader)
        return spec

    def _patch_after(self, loader: Any) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._patch_std(module)

        loader.exec_module = exec_module  # of this one import alone


class StandIn(Loader):
    """Makes a module of ours."""

    def __init__(self, fill: Fill) -> None:
        self._fill = fill

    def exec_module(self, module: ModuleType) -> None:
        """Fill *module*."""
        self._fill(module)
