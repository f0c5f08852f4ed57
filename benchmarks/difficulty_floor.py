"""Fields that the floor of difficulty leaves out, and fields that it keeps, as one picture.

    python benchmarks/difficulty_floor.py SLIDE_OR_DIR... --out floor.png [--fields 1500] [--examples 10]

Draws random 200x fields with at least half tissue from every slide, prints the spread of their structure (standard
deviation of lightness over details of 16 um) and the share below the floor, and draws examples from both sides, in
order of their structure, at 1.28 um per pixel.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dataset_script.slides.sampling import MIN_STRUCTURE
from dataset_script.slides.slide_files import find_slides
from dataset_script.slides.thumbnail import map_slide
from scale_vqa_eval.wsi import OpenSlideSource

SIDE_UM = 256.0
TILE_PX = 200

Drawn = tuple[float, Path, float, float]
"""(structure, slide, x, y)."""


def draw_fields(path: Path, count: int) -> list[Drawn]:
    with OpenSlideSource(path) as source:
        tissue = map_slide(source)
    half = SIDE_UM / 2
    rng = np.random.default_rng(0)
    bounds = (half, tissue.extent[0] - half, half, tissue.extent[1] - half)
    x, y = tissue.tissue_points(bounds, count, rng)
    x, y = np.clip(x, half, tissue.extent[0] - half), np.clip(y, half, tissue.extent[1] - half)
    fit = tissue.tissue_share(x, y, SIDE_UM) >= 0.5
    values = tissue.structure(x[fit], y[fit], SIDE_UM)
    if len(values):
        spread = " / ".join(f"{value:.1f}" for value in np.percentile(values, [1, 50, 99]))
        print(f"{path.stem}: structure {spread} (1%, median, 99%); {np.mean(values < MIN_STRUCTURE):.1%} left out")
    return [(float(value), path, float(a), float(b)) for value, a, b in zip(values, x[fit], y[fit], strict=True)]


def picture(rows: Sequence[Sequence[Drawn]]) -> Image.Image:
    sheet = Image.new("RGB", (max(map(len, rows)) * (TILE_PX + 4), len(rows) * (TILE_PX + 24)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        if not row:
            draw.text((2, number * (TILE_PX + 24) + 4), f"no field {'kept' if number else 'left out'}", fill="black")
        for column, (value, path, x, y) in enumerate(row):
            with OpenSlideSource(path) as source:
                image = source.read_region(x, y, SIDE_UM / TILE_PX, TILE_PX)
            left, top = column * (TILE_PX + 4), number * (TILE_PX + 24)
            sheet.paste(image, (left, top + 20))
            draw.text((left + 2, top + 4), f"{'kept' if number else 'left out'} {value:.2f} {path.stem}", fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("floor.png"))
    parser.add_argument("--fields", type=int, default=1500)
    parser.add_argument("--examples", type=int, default=10)
    given = parser.parse_args()
    drawn = sorted(field for path in find_slides(given.slides) for field in draw_fields(path, given.fields))
    parts = (
        [field for field in drawn if field[0] < MIN_STRUCTURE],
        [field for field in drawn if field[0] >= MIN_STRUCTURE],
    )
    rows = [
        [part[round(at)] for at in np.linspace(0, len(part) - 1, min(len(part), given.examples))] for part in parts
    ]
    picture(rows).save(given.out)
    print(f"{len(parts[0])} fields left out, {len(parts[1])} kept; examples in {given.out}")


if __name__ == "__main__":
    main()
