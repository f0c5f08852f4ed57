"""Draws the figure of the curation pipeline: ``python docs/figures/draw_curation.py docs/figures/curation.svg``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

BLUE, GREY, RED, GREEN = "#2f5d8a", "#5c6670", "#b3403a", "#3a7d57"
BOXES: Final = (
    ("captions", 0.3, 4.4, 2.1, "captions", "three views a path,\nJSON Lines", GREY),
    ("decompose", 3.0, 4.4, 2.3, "1 decompose", "features, each in\nthe caption's words", BLUE),
    ("generate", 5.9, 4.4, 2.3, "2 generate", "half from templates:\nquestion, two features", BLUE),
    ("options", 8.8, 4.4, 2.5, "2 options by code", "{a, a'} x {b, b'}\nexchange sets", GREEN),
    ("readers", 8.8, 1.9, 2.5, "3 readers, no image", "above chance: left,\nat chance: right", RED),
    ("analyse", 5.9, 1.9, 2.3, "3 analyse", "what gave it away,\na tighter constraint", BLUE),
    ("dropped", 3.0, 1.9, 2.3, "dropped, listed", "leaks in the\nlast round", GREY),
    ("construct", 11.9, 1.9, 2.5, "4 construct", "letters, patients,\nduplicates, flags", GREEN),
    ("release", 11.9, 4.4, 2.5, "release folder", "audit,\ncuration report", GREY),
)
ARROWS: Final = (
    ("captions", "decompose", "", 0.0),
    ("decompose", "generate", "", 0.0),
    ("generate", "options", "", 0.0),
    ("options", "readers", "", 0.0),
    ("readers", "analyse", "", 0.0),
    ("analyse", "generate", "rewritten", 0.0),
    ("analyse", "dropped", "", 0.0),
    ("readers", "construct", "", 0.0),
    ("construct", "release", "", 0.0),
)
HEIGHT: Final = 1.35


def draw(file: Path) -> None:
    """Draws the steps as boxes (blue: a model, green: our code, red: readers without images) with their arrows."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    from scale_vqa_eval.plots import STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.1))
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 14.7), ylim=(0.9, 6.6))
        axes.axis("off")
        places = {name: (x, y, wide) for name, x, y, wide, *_ in BOXES}
        for _, x, y, wide, title, text, colour in BOXES:
            box = FancyBboxPatch(
                (x, y), wide, HEIGHT, "round,pad=0.06,rounding_size=0.12", fc="white", ec=colour, lw=1.8
            )
            axes.add_patch(box)
            axes.text(
                x + wide / 2, y + HEIGHT - 0.08, title, ha="center", va="top", weight="bold", color=colour, size=9
            )
            axes.text(x + wide / 2, y + 0.08, text, ha="center", va="bottom", size=8.5, color="#1f2933")
        for start, end, label, _ in ARROWS:
            (x0, y0), (x1, y1) = _ends(places[start], places[end])
            axes.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.4})
            upright = abs(x1 - x0) < 0.1
            at = ((x0 + x1) / 2 + (0.1 if upright else 0), (y0 + y1) / 2 + (0 if upright else 0.08))
            axes.text(*at, label, ha="left" if upright else "center", va="center" if upright else "bottom", size=7.5)
        axes.text(
            0.3, 6.3, "blue: a language model   green: code   red: readers of the text alone", size=8.5, color=GREY
        )
        axes.text(
            0.3,
            1.2,
            "every answer is kept on disk: killed at any point, the same command goes on",
            size=8.5,
            color=GREY,
        )
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)


def _ends(start: tuple[float, float, float], end: tuple[float, float, float]) -> tuple[tuple[float, float], ...]:
    """Returns where an arrow leaves one box and meets the other: their sides if they are in a row."""
    (x0, y0, w0), (x1, y1, w1) = start, end
    if y0 == y1:
        leaves, meets = (x0 + w0 + 0.08, x1 - 0.1) if x0 < x1 else (x0 - 0.08, x1 + w1 + 0.1)
        return (leaves, y0 + HEIGHT / 2), (meets, y1 + HEIGHT / 2)
    middle = x0 + w0 / 2
    return (middle, y0 - 0.08 if y1 < y0 else y0 + HEIGHT + 0.08), (middle, y1 + HEIGHT + 0.1 if y1 < y0 else y1 - 0.1)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    """Draw the pipeline into FILE (.svg or .png)."""
    draw(file)


if __name__ == "__main__":
    main()
