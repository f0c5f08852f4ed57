"""Draws one picture of the three views of synthetic paths and, if named, of slide files.

``python tools/contact_sheet.py OUT.png [--paths 4] [--seed 42] [--side 320] [--beside SLIDE ...]``
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from PIL import Image, ImageDraw

from dataset_script.phantom.slide import VIEW_PIXELS, phantom_slides
from scale_vqa_eval.schema import MAGNIFICATION, MPP
from scale_vqa_eval.wsi import OpenSlideSource, SlideSource

GAP = 4
CAPTION = 18


def phantom_rows(paths: int, seed: int) -> list[tuple[str, list[Image.Image]]]:
    """Returns (title, views) of paths, each of another slide."""
    rows = []
    for number, slide in enumerate(phantom_slides(paths, seed)):
        views = slide.views(number % 4)
        title = f"phantom (procedural, no tissue): {slide.name}"
        rows.append((title, [slide.view_image(view, VIEW_PIXELS) for view in views.values()]))
    return rows


def slide_row(source: SlideSource) -> tuple[str, list[Image.Image]]:
    """Returns (title, views) around the centre of a slide; the coarsest as large as the slide allows."""
    x, y = (side * source.mpp / 2 for side in source.size)
    views = []
    for mpp in MPP.values():
        pixels = min(VIEW_PIXELS, int(2 * min(x, y) / mpp) - 2)
        views.append(source.read_region(x, y, mpp, pixels))
    return f"slide file: {source.name}", views


def contact_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], side: int) -> Image.Image:
    """Returns a picture with one row of views for each (title, views), views ``side`` pixels wide."""
    columns = max(len(views) for _, views in rows)
    width = columns * (side + GAP) + GAP
    sheet = Image.new("RGB", (width, len(rows) * (side + CAPTION + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (title, views) in enumerate(rows):
        top = row * (side + CAPTION + GAP)
        pen.text((GAP, top + 3), title + "   " + "  |  ".join(MAGNIFICATION.values()), fill="black")
        for column, view in enumerate(views):
            preview = view.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(preview, (GAP + column * (side + GAP), top + CAPTION))
    return sheet


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--paths", default=4, show_default=True, type=click.IntRange(0), help="Phantom paths to show.")
@click.option("--seed", default=42, show_default=True)
@click.option("--side", default=320, show_default=True, type=click.IntRange(32), help="Pixels of a view.")
@click.option("--colours", type=click.IntRange(2, 256), help="Reduce to so many colours: a small PNG.")
@click.option("--beside", multiple=True, type=click.Path(exists=True), help="A slide file to show below.")
def main(out: Path, paths: int, seed: int, side: int, colours: int | None, beside: tuple[str, ...]) -> None:
    """Write a contact sheet of phantom paths to OUT (PNG or JPEG by its name)."""
    rows = phantom_rows(paths, seed)
    for path in beside:
        with OpenSlideSource(path) as source:
            rows.append(slide_row(source))
    sheet = contact_sheet(rows, side)
    if colours:
        sheet = sheet.quantize(colours, dither=Image.Dither.NONE)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main()
