from __future__ import annotations

import dataclasses
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdist.errors import UsageError
from nbdist.view import timeline
from nbdist.view.timeline import COMPUTE, IN_COLLECTIVE, LANE_PX, UNDER_WAY, WAITING, Lane, Look
from nbdist.view.waits import Span, joined
from tests.view.traces import START, cell, held, issued, late, site

matplotlib = pytest.importorskip("matplotlib")

PAIR = site(ranks=(0, 1))

numbers = st.lists(st.integers(0, 30), min_size=2, max_size=12)


def spans(points: list[int]) -> list[Span]:
    return joined((a, b) for a, b in zip(points[::2], points[1::2], strict=False) if a < b)


def is_in(spans: list[Span], at: float) -> bool:
    return any(start <= at < end for start, end in spans)


def lane(
    in_collective: list[Span] | None = None,
    waiting: list[Span] | None = None,
    compute: list[Span] | None = None,
    under_way: list[Span] | None = None,
) -> Lane:
    return Lane(in_collective or [], waiting or [], compute or [], under_way or [])


def colours(pixels: np.ndarray, x: float, row: int = 0) -> list[tuple[int, ...]]:
    """Return the colours at part *x* of the width, from the top of a lane down, each once."""
    column = pixels[row * LANE_PX : (row + 1) * LANE_PX, int(x * pixels.shape[1])]
    return list(dict.fromkeys(tuple(int(part) for part in pixel) for pixel in column))


CLEAR = (0, 0, 0, 0)


# What each rank did ------------------------------------------------------------------------------


def test_a_rank_computes_waits_and_is_in_the_collective() -> None:
    found = timeline.lanes(late(1, num_ranks=2, by=1.0))

    first, second = found[0], found[1]
    assert np.allclose(first.compute, [(START, START + 0.2), (START + 1.3, START + 2.1)])
    assert np.allclose(first.waiting, [(START + 0.2, START + 1.2)])
    assert np.allclose(first.in_collective, [(START + 1.2, START + 1.3)])
    assert np.allclose(second.compute, [(START, START + 1.2), (START + 1.3, START + 2.1)])
    assert second.waiting == []


def test_the_three_states_fill_the_cell() -> None:
    for one in timeline.lanes(late(2)).values():
        total = sum(
            b - a for part in (one.compute, one.waiting, one.in_collective) for a, b in part
        )
        assert total == pytest.approx(2.1)


def test_a_rank_that_called_nothing_has_computed() -> None:
    found = timeline.lanes(cell([held(PAIR, 1, 0.1, 0.1, 0.2)], []))

    assert found[1] == lane(compute=[(START, START + 2.0)])


def test_an_asynchronous_call_is_under_way_while_the_rank_computes() -> None:
    calls = [issued(PAIR, 1, 0.1, wait_began=1.0, wait_ended=1.2)]

    found = timeline.lanes(cell(calls, calls))[0]

    assert np.allclose(found.under_way, [(START + 0.1, START + 1.2)])
    assert np.allclose(found.in_collective, [(START + 1.0, START + 1.2)])


@given(numbers, numbers)
def test_what_is_left_is_covered_by_the_one_and_not_the_other(a: list[int], b: list[int]) -> None:
    kept, taken = spans(a), spans(b)

    left = timeline.without(kept, taken)

    for tick in range(61):
        at = tick / 2
        assert is_in(left, at) == (is_in(kept, at) and not is_in(taken, at))


@given(numbers)
def test_shares_add_up_to_the_time_that_is_covered(points: list[int]) -> None:
    found = timeline.shares(spans(points), np.linspace(0, 30, 8))

    assert found.min() >= 0
    assert found.max() <= 1 + 1e-9
    assert found.sum() * 30 / 7 == pytest.approx(sum(end - start for start, end in spans(points)))


# Pixels ------------------------------------------------------------------------------------------


def test_each_state_has_its_colour_and_waiting_its_hatching() -> None:
    pixels = timeline.picture([lane([(0, 1)], [(1, 2)], [(2, 3)], [(2, 3)])], 0, 4)

    assert colours(pixels, 0.1) == [IN_COLLECTIVE.color, CLEAR]
    assert set(colours(pixels, 0.3)) == {WAITING.color, WAITING.hatch_color, CLEAR}
    assert colours(pixels, 0.6) == [COMPUTE.color, UNDER_WAY.color, CLEAR]
    assert colours(pixels, 0.9) == [CLEAR]


def test_a_column_shows_how_much_of_its_time_each_state_took() -> None:
    period = 1e-4  # a dozen in each column
    begins = np.arange(0, 1, period)
    quarter = [(t, t + period / 4) for t in begins]
    rest = [(t + period / 4, t + period) for t in begins]

    pixels = timeline.picture([lane(quarter, [], rest)], 0, 1)

    column = [tuple(pixel) for pixel in pixels[:LANE_PX, 700]]
    num_inside, num_compute = column.count(IN_COLLECTIVE.color), column.count(COMPUTE.color)
    assert num_inside / (num_inside + num_compute) == pytest.approx(0.25, abs=0.1)


def test_a_short_call_in_a_long_cell_can_be_seen() -> None:
    pixels = timeline.picture([lane([(50, 50.0001)], [], [(0, 50), (50.0001, 100)])], 0, 100)

    assert (pixels == np.array(IN_COLLECTIVE.color)).all(axis=2).sum() >= 5


def test_ranks_are_below_one_another() -> None:
    pixels = timeline.picture([lane([(0, 1)]), lane(compute=[(0, 1)])], 0, 1)

    assert colours(pixels, 0.5, row=0)[0] == IN_COLLECTIVE.color
    assert colours(pixels, 0.5, row=1)[0] == COMPUTE.color


def test_many_ranks_get_narrow_lanes() -> None:
    many = timeline.picture([lane(compute=[(0, 1)])] * 64, 0, 1)

    assert many.shape[0] < 30 * LANE_PX


def lightness(look: Look, page: int) -> float:
    """Return how light a state is on a page of that grey, from 0 to 1."""
    red, green, blue, opacity = (part / 255 for part in look.color)
    on_page = [part * opacity + page / 255 * (1 - opacity) for part in (red, green, blue)]
    linear = [((part + 0.055) / 1.055) ** 2.4 for part in on_page]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


@pytest.mark.parametrize("page", [255, 17])
def test_without_colours_the_states_differ_in_lightness_or_hatching(page: int) -> None:
    plain = [lightness(look, page) for look in (COMPUTE, IN_COLLECTIVE)]

    assert (max(plain) + 0.05) / (min(plain) + 0.05) > 1.4
    assert WAITING.hatch_color is not None


# The picture -------------------------------------------------------------------------------------


def image_of(png: bytes | None) -> np.ndarray:
    from PIL import Image

    assert png is not None
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))


def test_the_picture_is_small_and_has_no_background() -> None:
    png = timeline.png(late(2))

    pixels = image_of(png)
    assert png is not None
    assert len(png) < 30_000
    assert pixels.shape[1] == timeline.WIDTH_PX
    assert pixels[-1, -1, 3] == 0


def test_the_bars_are_drawn_pixel_by_pixel() -> None:
    pixels = image_of(timeline.png(late(2)))

    drawn = (np.abs(pixels.astype(int) - np.array(WAITING.color)).max(axis=2) < 12).sum()
    expected = timeline.picture(list(timeline.lanes(late(2)).values()), START, START + 2.1)
    assert drawn >= 0.95 * (expected == np.array(WAITING.color)).all(axis=2).sum()


def test_sixty_four_ranks_are_a_page_and_no_more() -> None:
    png = timeline.png(late(37, num_ranks=64))

    assert png is not None
    assert image_of(png).shape[0] < 1800
    assert len(png) < 120_000


def test_the_same_trace_gives_the_same_picture() -> None:
    assert timeline.png(late(2)) == timeline.png(late(2))


def test_the_user_s_own_style_changes_nothing() -> None:
    plain = timeline.png(late(2))

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "hatch.linewidth": 9}):
        assert timeline.png(late(2)) == plain


def test_only_a_saved_picture_names_the_cell(tmp_path: Path) -> None:
    cells = [late(2), dataclasses.replace(late(2), label="In[7]")]

    assert timeline.png(cells[0]) == timeline.png(cells[1])  # the page says it above
    for place, found in enumerate(cells):
        timeline.save(found, str(tmp_path / f"{place}.png"))
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()


def test_a_saved_picture_is_dark_on_white(tmp_path: Path) -> None:
    said = timeline.save(late(2), str(tmp_path / "out.png"))

    pixels = image_of((tmp_path / "out.png").read_bytes())
    assert said == f"saved as {tmp_path / 'out.png'}"
    assert tuple(pixels[-1, -1]) == (255, 255, 255, 255)
    assert pixels[..., :3].min() < 60


def test_a_picture_that_cannot_be_saved_says_why(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be saved"):
        timeline.save(late(2), str(tmp_path / "out.nonsense"))
    with pytest.raises(UsageError, match="cannot be saved"):
        timeline.save(late(2), str(tmp_path / "missing" / "out.png"))


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    assert timeline.png(late(2)) is None
    with pytest.raises(UsageError, match="needs matplotlib"):
        timeline.save(late(2), "out.png")
