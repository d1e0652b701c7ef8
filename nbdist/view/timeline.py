"""Draw what each rank did in a cell: computed, waited for others, was in a collective.

    CellTrace ──▶ spans of each rank ──▶ share of each state in each column of pixels ──▶ PNG

Of ten thousand calls many share a column; it then shows how much of the column's time each state
has taken, so that nothing is hidden by what was drawn last, and the cost depends on the number of
ranks alone. Colours are of Okabe and Ito's palette, which colour-blind people tell apart; states
differ in lightness and hatching as well. The picture has no background and mid-grey text, so it
fits light and dark pages.

matplotlib, an optional extra, is imported when something is drawn.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbdist.errors import UsageError
from nbdist.view.names import name_ranks
from nbdist.view.trace import CellTrace
from nbdist.view.waits import Span, joined

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOW_TO_DRAW = "the timeline picture needs matplotlib: `pip install 'nbdist[plots]'`"

NUM_COLUMNS = 800
NUM_COLORS = 64
WIDTH_IN = 9.0
DPI = 192  # shown at half of it
MAX_TICKS = 20
LEAST_SHARE = 0.12  # so that a short call in a long cell can be seen
BAR = 0.8

GREY_INK, DARK_INK, LATE_INK = "#777777", "#222222", "#b36b00"


@dataclass(frozen=True)
class Look:
    """How a state is drawn."""

    name: str
    color: str
    hatch: str
    hatch_color: str


IN_COLLECTIVE = Look("in collective", "#0072b2", "", "#0072b2")
WAITING = Look("waiting", "#e69f00", "//////", "#8a4b00")
COMPUTE = Look("compute", "#80808066", "", "#80808066")
UNDER_WAY = Look("asynchronous call under way", "#cc79a7", "", "#cc79a7")


@dataclass(frozen=True)
class Lane:
    """What one rank did, as spans of time that do not overlap.

    Attributes:
        in_collective: It was stuck in a call, and nobody was missing any more.
        waiting: It was stuck in a call, and somebody was missing.
        compute: The rest of the cell.
        under_way: An asynchronous call was between its issue and its end; beside the others.
    """

    in_collective: Sequence[Span]
    waiting: Sequence[Span]
    compute: Sequence[Span]
    under_way: Sequence[Span]


def lanes(cell: CellTrace) -> dict[int, Lane]:
    """Say what each rank of *cell* did when."""
    waits: dict[int, list[Span]] = {rank: [] for rank in cell.cells}
    stuck: dict[int, list[Span]] = {rank: [] for rank in cell.cells}
    under_way: dict[int, list[Span]] = {rank: [] for rank in cell.cells}
    for wait in cell.waits:
        waits[wait.rank].append((wait.began, wait.ended))
    for collective in cell.collectives:
        for rank, spans in collective.spans.items():
            stuck[rank] += spans
            call = collective.calls[rank]
            if call.site.is_async and (ended := call.done or call.wait_ended):
                under_way[rank].append((call.began, ended))
    return {
        rank: Lane(
            in_collective=without(joined(stuck[rank]), joined(waits[rank])),
            waiting=joined(waits[rank]),
            compute=without([(ran.began, ran.ended or cell.traces[rank].now)], joined(stuck[rank])),
            under_way=joined(under_way[rank]),
        )
        for rank, ran in cell.cells.items()
    }


def without(spans: Sequence[Span], taken: Sequence[Span]) -> list[Span]:
    """Return the time that *spans* cover and *taken* do not; both in order and not touching."""
    found, place = [], 0
    for start, end in spans:
        while place < len(taken) and taken[place][1] <= start:
            place += 1
        index, at = place, start
        while index < len(taken) and taken[index][0] < end:
            if taken[index][0] > at:
                found.append((at, taken[index][0]))
            at = max(at, taken[index][1])
            index += 1
        if at < end:
            found.append((at, end))
    return found


def shares(spans: Sequence[Span], edges: Any) -> Any:
    """Return which share of each column *spans* cover.

    Args:
        spans: In order and not touching.
        edges: Where the columns begin and end, shape ``(columns + 1,)``, evenly spaced.

    Returns:
        Shape ``(columns,)``, from 0 to 1.
    """
    if not spans:
        return np.zeros(len(edges) - 1)
    points = np.array(spans)
    lengths = points[:, 1] - points[:, 0]
    covered = np.stack([np.cumsum(lengths) - lengths, np.cumsum(lengths)], axis=1)
    return np.diff(np.interp(edges, points.ravel(), covered.ravel())) / np.diff(edges)


# Drawing ---------------------------------------------------------------------------------------


def png(cell: CellTrace) -> bytes | None:
    """Return the picture for a page of any colour; ``None`` where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    buffer = io.BytesIO()
    _draw(cell, GREY_INK, lambda figure: figure.savefig(buffer, dpi=DPI, transparent=True))
    return _smaller(buffer)


def _smaller(png: io.BytesIO) -> bytes:
    """Return the picture with a palette: a third of the bytes, to be kept in the notebook."""
    from PIL import Image  # comes with matplotlib

    smaller = io.BytesIO()
    image = Image.open(png).quantize(NUM_COLORS, method=Image.Quantize.FASTOCTREE)
    image.save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def save(cell: CellTrace, path: str) -> str:
    """Write the picture to *path*, dark on white; return a sentence that says so.

    Raises:
        UsageError: matplotlib is not installed, or the file cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(HOW_TO_DRAW)
    try:
        _draw(cell, DARK_INK, lambda figure: figure.savefig(Path(path).expanduser(), dpi=DPI))
    except (OSError, ValueError) as exc:  # matplotlib's answer to an unknown ending
        raise UsageError(f"The picture cannot be saved as {path!r}: {exc}") from exc
    return f"saved as {path}"


def _draw(cell: CellTrace, ink: str, use: Any) -> None:
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context("default"):
        figure = Figure(figsize=(WIDTH_IN, _height_in(len(cell.cells))), layout="constrained")
        axes = figure.add_subplot()
        looks = _draw_lanes(axes, cell, lanes(cell))
        _draw_frame(axes, cell, ink)
        _draw_legend(axes, looks, ink)
        figure.suptitle(
            f"{cell.label}: {cell.verdict}",
            color=ink,
            fontsize=10,
            x=0.01,
            ha="left",
            weight="bold",
        )
        use(figure)


def _height_in(num_ranks: int) -> float:
    return 1.2 + num_ranks * (0.3 if num_ranks <= 16 else 0.12)


def _draw_lanes(axes: Axes, cell: CellTrace, lanes: Mapping[int, Lane]) -> list[Look]:
    """Draw a bar for each rank; return the states there were."""
    edges = np.linspace(cell.began, cell.ended, NUM_COLUMNS + 1)
    times = edges - cell.began  # of the axis
    seen = {}
    for row, lane in enumerate(lanes.values()):
        base = np.full(NUM_COLUMNS, row + BAR / 2)
        states = (
            (IN_COLLECTIVE, lane.in_collective),
            (WAITING, lane.waiting),
            (COMPUTE, lane.compute),
        )
        for look, spans in states:
            share = shares(spans, edges)
            if look is IN_COLLECTIVE:
                share = np.where(share > 0, np.maximum(share, LEAST_SHARE), 0)
            top = np.maximum(base - BAR * share, row - BAR / 2)
            _fill(axes, times, base, top, look)
            base = top
            if spans:
                seen[look.name] = look
        if lane.under_way:
            share = shares(lane.under_way, edges)
            bottom = np.full(NUM_COLUMNS, row + BAR / 2 + 0.1)
            _fill(axes, times, bottom, bottom - 0.1 * (share > 0), UNDER_WAY)
            seen[UNDER_WAY.name] = UNDER_WAY
    order = (COMPUTE, WAITING, IN_COLLECTIVE, UNDER_WAY)
    return [look for look in order if look.name in seen]


def _fill(axes: Axes, edges: Any, bottom: Any, top: Any, look: Look) -> None:
    axes.stairs(
        top,
        edges,
        baseline=bottom,
        fill=True,
        facecolor=look.color,
        edgecolor=look.hatch_color,
        hatch=look.hatch or None,
        linewidth=0,
    )


def _draw_frame(axes: Axes, cell: CellTrace, ink: str) -> None:
    """Draw axes without a box; the straggler's name is bold."""
    ranks = list(cell.cells)
    late = {ranks.index(one.rank) for one in cell.stragglers if one.rank in ranks}
    if 2 * len(late) > len(ranks):  # all are no news
        late = set()
    every = -(-len(ranks) // MAX_TICKS)
    near = {row + step for row in late for step in (-1, 0, 1)} if every > 1 else late
    shown = sorted(late | ({*range(0, len(ranks), every)} - near))  # names must not touch
    axes.set_yticks(shown, [name_ranks([ranks[row]]) for row in shown])
    axes.set_ylim(len(ranks) - 0.4, -0.6)
    axes.set_xlim(0, cell.ended - cell.began)
    unit, factor = _unit(cell.ended - cell.began)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value * factor:g} {unit}")
    axes.tick_params(colors=ink, labelsize=9, length=3)
    axes.tick_params(axis="y", length=0)
    for label, row in zip(axes.get_yticklabels(), shown, strict=True):
        if row in late:
            label.set(fontweight="bold", color=LATE_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(ink)


def _unit(seconds: float) -> tuple[str, float]:
    if seconds >= 1:
        return "s", 1.0
    return ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)


def _draw_legend(axes: Axes, looks: Iterable[Look], ink: str) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=k.color, edgecolor=k.hatch_color, hatch=k.hatch, linewidth=0, label=k.name)
        for k in looks
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=ink,
        borderpad=0,
        handleheight=1.1,
    )
