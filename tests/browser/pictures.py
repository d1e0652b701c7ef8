"""The pictures of the README and of docs/comparison.md, from cells that really run.

    make pictures

Each cell of `kinds` runs on four ranks in nbdist, in ``%%px`` of ipyparallel and in
jupyter-distributed, in the same JupyterLab at the same width. What is higher than `MAX_HEIGHT` is
cut in the picture; the height that is written above it is that of the whole output.

Without the peers' environment only nbdist's own pictures are made.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFont
from playwright.sync_api import Locator

from tests.bench.peers import PEERS_PYTHON, Peer, ipyparallel, jupyter_distributed
from tests.browser.kinds import KINDS, SETUP
from tests.browser.lab import Lab, chromium
from tests.browser.page import NotebookPage

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"
NUM_RANKS = 4
WIDTH, HEIGHT = 900, 1300  # of the window for one picture, px
TRACE_WIDTH = 1060
COLUMN = 620  # of the window for a column of a comparison, px
MAX_HEIGHT = 420  # of an output in a comparison, px
GAP, CAPTION = 28, 26
NUM_COLOURS = 200
GREY, WHITE = (110, 110, 110), (255, 255, 255)

NO_TOOLS = """
.jp-Collapser, .jp-cell-toolbar, .jp-ActiveCellTool { visibility: hidden !important }
.cm-cursorLayer, .cm-activeLine { background: transparent !important }
"""

FOLDED = """%%dist
settings = {"model": "small", "width": 256, "dropout": 0.1 if rank != 2 else 0.01}
for name, value in settings.items():
    print(f"{name:8} {value}")
torch.randn(1000, generator=torch.Generator().manual_seed(rank)).mean()"""
FAILURE = """%%dist
def step(batch):
    loss = batch.reshape(8, 8).mean()
    return nbdist.all_reduce(loss, average=True)

step(torch.ones(64 if rank != 2 else 63))"""
LIVE = """%%dist
for shard in nbdist.progress(range(50), desc="reading"):
    time.sleep((0.05, 0.11, 0.06, 0.02)[rank])    # rank 1 has a slow disk
    if shard % 10 == 0:
        print(f"shard {shard} of rank {rank}")
nbdist.all_reduce(shard)"""
HANG = """%%dist
def load_batch():
    if rank == 1:
        time.sleep(3600)
    return torch.ones(64)

nbdist.all_reduce(load_batch().mean(), average=True)"""
TRACE = """%%dist
for step in range(20):
    time.sleep((0.08 if rank == 1 else 0.02) + 0.01 * ((rank * 7 + step * 3) % 5))
    dist.all_reduce(torch.zeros(512, 512))"""

START = f"%load_ext nbdist\n%dist start -n {NUM_RANKS} hang.after_s=2"


def main() -> int:
    executable = chromium()
    if executable is None:
        print("Chromium is missing: no picture was made", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory(prefix="nbd-") as folder,
        Lab(Path(folder), executable, scale=1.0) as lab,
    ):
        make_own(lab)
        if PEERS_PYTHON.exists():
            make_comparisons(lab)
        else:
            print(f"{PEERS_PYTHON} is missing (`make venv-peers`): no comparison", file=sys.stderr)
    return 0


# One picture of nbdist each -----------------------------------------------------------------------


def make_own(lab: Lab) -> None:
    """Make what the README shows."""
    cells = [START, "%%dist\nimport time", FOLDED, FAILURE, LIVE, HANG, TRACE, "%dist trace"]
    with opened(lab, "own.ipynb", cells, WIDTH) as page:
        page.run(0)
        page.run(1)
        page.run(2)
        save(picture(page, source(page, 2), page.area(2)), "folded")
        page.run(3)
        save(picture(page, source(page, 3), page.area(3)), "failure")
        page.begin(4)
        page.wait_for_text(4, "shard 20 of rank 0")
        save(picture(page, source(page, 4), page.area(4)), "live")
        stop(page)
        page.begin(5)
        card = page.cell(5).locator(".nbdist-card")
        card.wait_for()
        save(picture(page, source(page, 5), card), "hang")
        stop(page)
        page.tab.set_viewport_size({"width": TRACE_WIDTH, "height": HEIGHT})
        page.run(6)
        page.run(7)
        page.area(7).locator("img").wait_for()
        save(picture(page, source(page, 7), page.area(7)), "trace")


def stop(page: NotebookPage) -> None:
    page.press_stop()
    page.wait_until_idle()


# The same cell in three tools ---------------------------------------------------------------------


def make_comparisons(lab: Lab) -> None:
    """Put the same cells of all tools beside each other, and print how high each output is."""
    [px], [distributed] = ipyparallel(NUM_RANKS), jupyter_distributed(NUM_RANKS)
    columns = [
        peer_columns(lab, px),
        peer_columns(lab, distributed),
        columns_of(lab, "nbdist", "python3", [START], "%%dist\n", "%dist stop"),
    ]
    names = [f"%%px · ipyparallel {version('ipyparallel')}"]
    names += [f"jupyter-distributed {version('jupyter_distributed')}", "%%dist · nbdist"]
    print(f"| output | {' | '.join(names)} |\n{'| --- ' * (1 + len(names))}|")
    for kind in KINDS:
        parts = [column[kind] for column in columns]
        save(beside(parts, names), f"beside-{kind}")
        heights = " | ".join(f"{height:,}" for _, height in parts)
        print(f"| {kind} | {heights} |")


Column = dict[str, tuple[Image.Image, int]]


def peer_columns(lab: Lab, peer: Peer) -> Column:
    name = peer.name.strip("%")
    lab.add_kernel(name, peer.argv, peer.env)
    setup = [*peer.start, peer.cell(SETUP)]
    return columns_of(lab, name, name, setup, peer.prefix, peer.stop or "")


def columns_of(
    lab: Lab, name: str, kernel: str, setup: Sequence[str], prefix: str, end: str
) -> Column:
    """Run all kinds of cells; return of each the output's picture and its whole height in px."""
    cells = [*setup, *(prefix + cell.strip() for cell in KINDS.values()), end]
    with opened(lab, f"{name}.ipynb", cells, COLUMN, kernel) as page:
        for number in range(len(setup)):
            page.run(number, timeout_s=120)
        column = {}
        for number, kind in enumerate(KINDS, start=len(setup)):
            page.run(number)
            page.tab.wait_for_timeout(500)  # images and fonts
            column[kind] = picture_and_height(page, page.area(number))
        page.run(len(cells) - 1)
    return column


def picture_and_height(page: NotebookPage, area: Locator) -> tuple[Image.Image, int]:
    box = area.bounding_box()
    assert box is not None
    image = picture(page, area, max_height=MAX_HEIGHT)
    return image, round(box["height"])


def beside(parts: Sequence[tuple[Image.Image, int]], names: Sequence[str]) -> Image.Image:
    """Return the pictures beside each other, each with its name and height above it."""
    font = ImageFont.truetype(str(files("matplotlib") / "mpl-data/fonts/ttf/DejaVuSans.ttf"), 12)
    width = max(image.width for image, _ in parts)
    height = CAPTION + max(image.height for image, _ in parts)
    whole = Image.new("RGB", (width * len(parts) + GAP * (len(parts) - 1), height), WHITE)
    draw = ImageDraw.Draw(whole)
    for number, ((image, own_height), name) in enumerate(zip(parts, names, strict=True)):
        left = number * (width + GAP)
        cut = ", cut here" if own_height > MAX_HEIGHT else ""
        draw.text((left, 4), f"{name}  ({own_height:,} px{cut})", fill=GREY, font=font)
        whole.paste(image, (left, CAPTION))
    return whole


def version(package: str) -> str:
    """Return the version of *package* in the peers' environment."""
    [found] = PEERS_PYTHON.parents[1].glob(f"lib/python3*/site-packages/{package}-*.dist-info")
    return found.name.split("-")[1].removesuffix(".dist")


# Taking them --------------------------------------------------------------------------------------


@contextmanager
def opened(
    lab: Lab, name: str, cells: Sequence[str], width: int, kernel: str = "python3"
) -> Iterator[NotebookPage]:
    page = lab.notebook(name, cells, kernel=kernel)
    page.tab.set_viewport_size({"width": width, "height": HEIGHT})
    page.tab.add_style_tag(content=NO_TOOLS)
    try:
        yield page
    finally:
        page.close()


def source(page: NotebookPage, number: int) -> Locator:
    return page.cell(number).locator(".jp-Cell-inputArea")


def picture(page: NotebookPage, *parts: Locator, max_height: int = HEIGHT) -> Image.Image:
    """Return one picture around all *parts*, without empty space below."""
    page.tab.evaluate("document.activeElement?.blur()")
    page.tab.mouse.move(5, 5)
    parts[0].evaluate("element => element.scrollIntoView({block: 'start'})")
    boxes = [box for part in parts if (box := part.bounding_box())]
    left, top = (min(box[side] for box in boxes) for side in ("x", "y"))
    right = max(box["x"] + box["width"] for box in boxes)
    bottom = max(box["y"] + box["height"] for box in boxes)
    bottom = min(bottom, top + max_height, HEIGHT)
    data = page.tab.screenshot(
        clip={"x": left, "y": top, "width": right - left, "height": max(bottom - top, 1)}
    )
    image = Image.open(io.BytesIO(data)).convert("RGB")
    drawn = ImageChops.difference(image, Image.new("RGB", image.size, WHITE)).getbbox()
    return image.crop((0, 0, image.width, min(image.height, drawn[3] + 8))) if drawn else image


def save(image: Image.Image, name: str) -> None:
    """Write *image* with few colours: flat ones stay exactly what they are."""
    found: Any = image.getcolors(1 << 24)  # how often, and the three parts of the colour
    flat = [part for _, colour in sorted(found, reverse=True)[:NUM_COLOURS] for part in colour]
    palette = Image.new("P", (1, 1))
    palette.putpalette((flat + flat[:3] * 256)[:768])
    path = FOLDER / f"{name}.png"
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {image.width} x {image.height}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
