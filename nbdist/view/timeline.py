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
from collections.abc import Callable, Iterable, Sequence
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
    from matplotlib.figure import Figure

HOW_TO_DRAW = "the timeline picture needs matplotlib: `pip install 'nbdist[plots]'`"

# All lengths are those of the picture, which is shown at half its size.
DPI = 192
NUM_COLUMNS, COLUMN_PX = 790, 2
WIDTH_PX, LEFT_PX, TOP_PX, BOTTOM_PX = 1728, 136, 96, 52
LANE_PX, NARROW_LANE_PX, FEW_RANKS = 60, 22, 16
STRIP = 0.1  # of a lane, for asynchronous calls; as much is left free
HATCH_PX, HATCH_SHARE = 12, 0.35
LEAST_SHARE = 0.12  # so that a short call in a long cell can be seen
MAX_TICKS = 20
NUM_COLORS = 64

GREY_INK, DARK_INK, LATE_INK = "#777777", "#222222", "#b36b00"


Color = tuple[int, int, int, int]


@dataclass(frozen=True)
class Look:
    """How a state is drawn: red, green, blue and opacity."""

    name: str
    color: Color
    hatch_color: Color | None = None


COMPUTE = Look("compute", (128, 128, 128, 100))
WAITING = Look("waiting", (230, 159, 0, 255), (138, 75, 0, 255))
IN_COLLECTIVE = Look("in collective", (0, 114, 178, 255))
UNDER_WAY = Look("asynchronous call under way", (204, 121, 167, 255))
LOOKS = (COMPUTE, WAITING, IN_COLLECTIVE, UNDER_WAY)


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
    _draw(
        cell,
        cell.verdict,  # the page has named the cell
        GREY_INK,
        lambda figure: figure.savefig(buffer, dpi=DPI, transparent=True),
    )
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
        _draw(
            cell,
            f"{cell.label}: {cell.verdict}",
            DARK_INK,
            lambda figure: figure.savefig(Path(path).expanduser(), dpi=DPI),
        )
    except (OSError, ValueError) as exc:  # matplotlib's answer to an unknown ending
        raise UsageError(f"The picture cannot be saved as {path!r}: {exc}") from exc
    return f"saved as {path}"


def _draw(cell: CellTrace, title: str, ink: str, use: Callable[[Figure], object]) -> None:
    import matplotlib.style
    from matplotlib.figure import Figure

    found = lanes(cell)
    pixels = picture(list(found.values()), cell.began, cell.ended)
    height = pixels.shape[0] + TOP_PX + BOTTOM_PX
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(WIDTH_PX / DPI, height / DPI), dpi=DPI)
        # Not `imshow`: that would draw the pixels anew, and spoil the hatching.
        figure.figimage(pixels, LEFT_PX, BOTTOM_PX)
        axes = figure.add_axes(
            (
                LEFT_PX / WIDTH_PX,
                BOTTOM_PX / height,
                pixels.shape[1] / WIDTH_PX,
                pixels.shape[0] / height,
            )
        )
        axes.patch.set_visible(False)
        _draw_frame(axes, cell, ink)
        _draw_legend(axes, _looks_of(found.values()), ink)
        figure.suptitle(
            title,
            color=ink,
            fontsize=10,
            weight="bold",
            x=8 / WIDTH_PX,
            y=1 - 8 / height,
            ha="left",
            va="top",
        )
        use(figure)


def picture(lanes: Sequence[Lane], began: float, ended: float) -> Any:
    """Return the bars as pixels, one lane below the other.

    Returns:
        Red, green, blue and opacity from 0 to 255, shape ``(height, width, 4)``.
    """
    edges = np.linspace(began, ended, NUM_COLUMNS + 1)
    height = LANE_PX if len(lanes) <= FEW_RANKS else NARROW_LANE_PX
    return np.concatenate([_lane_pixels(lane, edges, height) for lane in lanes])


def _lane_pixels(lane: Lane, edges: Any, height: int) -> Any:
    """Stack the shares of the states in each column, from the bottom of the bar up."""
    strip = round(height * STRIP)
    bar = height - 2 * strip - 1
    inside = shares(lane.in_collective, edges)
    inside = np.where(inside > 0, np.maximum(inside, LEAST_SHARE), 0)
    heights = [inside, shares(lane.waiting, edges), shares(lane.compute, edges)]
    tops = np.rint(np.minimum(np.cumsum(heights, axis=0), 1) * bar).repeat(COLUMN_PX, axis=1)
    above = np.arange(bar - 1, -1, -1)[:, np.newaxis]
    pixels = np.zeros((height, tops.shape[1], 4), dtype=np.uint8)
    # From the top down, so that each state is painted over by those below it.
    for look, top in zip((COMPUTE, WAITING, IN_COLLECTIVE), tops[::-1], strict=True):
        _paint(pixels[:bar], above < top, look)
    under_way = (shares(lane.under_way, edges) > 0).repeat(COLUMN_PX)
    _paint(pixels[bar : bar + strip], np.tile(under_way, (strip, 1)), UNDER_WAY)
    return pixels


def _paint(pixels: Any, where: Any, look: Look) -> None:
    pixels[where] = look.color
    if look.hatch_color is not None:
        rows, columns = np.indices(where.shape)
        is_stripe = (rows + columns) % HATCH_PX < HATCH_PX * HATCH_SHARE
        pixels[where & is_stripe] = look.hatch_color


def _looks_of(lanes: Iterable[Lane]) -> list[Look]:
    """Return the states there were."""
    seen: set[str] = set()
    for lane in lanes:
        states = (lane.compute, lane.waiting, lane.in_collective, lane.under_way)
        seen |= {look.name for look, spans in zip(LOOKS, states, strict=True) if spans}
    return [look for look in LOOKS if look.name in seen]


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
    axes.set_ylim(len(ranks) - 0.5 + STRIP, -0.5 + STRIP)
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
        Patch(
            facecolor=_part_of_one(look.color),
            edgecolor=_part_of_one(look.hatch_color or look.color),
            hatch="//////" if look.hatch_color else None,
            linewidth=0,
            label=look.name,
        )
        for look in looks
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=ink,
        borderpad=0.2,
        borderaxespad=0.2,
        handleheight=1.1,
    )


def _part_of_one(color: Color) -> tuple[float, float, float, float]:
    red, green, blue, opacity = (part / 255 for part in color)
    return red, green, blue, opacity
