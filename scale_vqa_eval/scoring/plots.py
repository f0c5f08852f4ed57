"""The plots of a report as PNG and SVG: bars and radar of the dimensions, bars of what each scale contributes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

import matplotlib
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from scale_vqa_eval.audit.plots import CHANCE, COLOURS, MARKS, STYLE
from scale_vqa_eval.scoring.measures import REMOVED, Estimate, ReportRow, ReportSection
from scale_vqa_eval.scoring.report_files import NOT_RUN, TITLES
from scale_vqa_eval.text import one_line

DPI: Final = 200
LABEL: Final = 36
_STYLE: Final = STYLE | {"font.size": 9}


def section_plots(section: ReportSection) -> dict[str, tuple[str, bytes, bytes]]:
    """Draws the plots of one set of questions.

    Returns:
        Name of the plot -> title, PNG and SVG. A radar needs three dimensions, ``scales`` a run without a view.
    """
    runs = [row for row in section.rows if not row.published and "accuracy" in row.figures]
    drawn: dict[str, tuple[str, Callable[[Figure], None], float]] = {}
    if any("accuracy" in row.figures for row in section.rows):
        drawn["bars"] = (
            "Accuracy by dimension",
            lambda figure: _bars(figure, section),
            3.8 + 0.09 * len(section.rows),
        )
        if len(section.dimensions) > 2:
            drawn["radar"] = (
                "Accuracy by dimension, radar",
                lambda figure: _radar(figure, section),
                4.8 + 0.09 * len(section.rows),
            )
    if any(key in row.figures for row in runs for key in REMOVED):
        drawn["scales"] = ("What each scale gives", lambda figure: _scales(figure, runs), 3.6 + 0.09 * len(runs))
    return {name: (title, *_rendered(draw, height)) for name, (title, draw, height) in drawn.items()}


def _bars(figure: Figure, section: ReportSection) -> None:
    """Bars of the runs with intervals and a line at the blind accuracy; published figures as marks beside them."""
    axes = figure.subplots()
    runs = [row for row in section.rows if not row.published]
    published = [row for row in section.rows if row.published]
    keys = [*(f"accuracy/{name}" for name in section.dimensions), "accuracy"]
    width_of_runs = 0.84 * (len(runs) / (len(runs) + 0.7) if published else 1.0)
    width = width_of_runs / max(1, len(runs))
    for number, row in enumerate(runs):
        _bar_series(
            axes, row, keys, [index - 0.42 + (number + 0.5) * width for index in range(len(keys))], width, number
        )
        for index, key in enumerate(keys):
            if blind := row.figures.get(key.replace("accuracy", "blind")):
                left = index - 0.42 + number * width
                axes.hlines(100 * blind.value, left, left + width, color="black", linewidth=1.4)
    for number, row in enumerate(published):
        known = [index for index, key in enumerate(keys) if key in row.figures]
        shift = -0.42 + width_of_runs + (0.84 - width_of_runs) * (number + 0.5) / len(published) if runs else 0.0
        heights = [100 * row.figures[keys[index]].value for index in known]
        axes.plot(
            [index + shift for index in known],
            heights,
            MARKS[number % len(MARKS)],
            color="none",
            markeredgecolor=COLOURS[(len(runs) + number) % len(COLOURS)],
            markersize=5,
            label=_label(row),
        )
    if any("blind" in row.figures for row in runs):
        axes.plot([], [], color="black", linewidth=1.4, label="the same model, blind")
    if section.chance is not None:
        axes.axhline(
            100 * section.chance,
            color=CHANCE,
            linestyle="--",
            linewidth=1,
            label=f"chance, {100 * section.chance:.0f}%",
        )
    axes.set_xticks(range(len(keys)), [*(_short(name) for name in section.dimensions), TITLES["accuracy"]])
    axes.set_xlim(-0.5, len(keys) - 0.5)
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y")
    _legend(figure)


def _scales(figure: Figure, runs: Sequence[ReportRow]) -> None:
    """Bars of what is lost without each view, with intervals; what was not run says so."""
    axes = figure.subplots()
    width = 0.84 / len(runs)
    for number, row in enumerate(runs):
        at = [index - 0.42 + (number + 0.5) * width for index in range(len(REMOVED))]
        _bar_series(axes, row, REMOVED, at, width, number)
        for index, key in zip(at, REMOVED, strict=True):
            if key not in row.figures:
                axes.text(index, 0, f" {NOT_RUN}", rotation=90, ha="center", va="bottom", fontsize=7, color="#666666")
    axes.axhline(0, color=CHANCE, linewidth=1)
    axes.set_xticks(range(len(REMOVED)), [TITLES[key] for key in REMOVED])
    axes.set_xlim(-0.5, len(REMOVED) - 0.5)
    axes.set_ylabel("accuracy lost without it, points")
    axes.grid(axis="y")
    _legend(figure)


def _bar_series(
    axes: Any, row: ReportRow, keys: Sequence[str], at: Sequence[float], width: float, number: int
) -> None:
    """Draws one run's bars and intervals; bar ``i`` has the SVG id ``bar-<run>-<i>``."""
    colour = COLOURS[number % len(COLOURS)]
    hatch = ("", "///", "...", "xxx")[number // len(COLOURS) % 4]
    axes.bar([at[0]], [math.nan], width, color=colour, hatch=hatch, edgecolor="white", label=_label(row))
    for index, key in enumerate(keys):
        one = row.figures.get(key)
        if one is None:
            continue
        (bar,) = axes.bar([at[index]], [100 * one.value], 0.94 * width, color=colour, hatch=hatch, edgecolor="white")
        bar.set_gid(f"bar-{number}-{index}")
        if one.low is not None and one.high is not None:
            axes.vlines(at[index], 100 * one.low, 100 * one.high, color="#222222", linewidth=0.8)


def _radar(figure: Figure, section: ReportSection) -> None:
    axes: Any = figure.add_subplot(projection="polar")
    names = section.dimensions
    angles = [2 * math.pi * index / len(names) for index in range(len(names))]
    for number, row in enumerate(section.rows):
        values = [row.figures.get(f"accuracy/{name}") for name in names]
        if any(value is None for value in values):
            continue
        heights = [100 * value.value for value in values if isinstance(value, Estimate)]
        mark, colour = MARKS[number % len(MARKS)], COLOURS[number % len(COLOURS)]
        axes.plot(
            [*angles, angles[0]],
            [*heights, heights[0]],
            mark,
            color=colour,
            markersize=4,
            linestyle=":" if row.published else "-",
            linewidth=1.2 if row.published else 1.8,
            label=_label(row),
        )
    if section.chance is not None:
        circle = [2 * math.pi * step / 120 for step in range(121)]
        axes.plot(circle, [100 * section.chance] * 121, color=CHANCE, linestyle="--", linewidth=1, label="chance")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [_short(name) for name in names])
    axes.tick_params(axis="x", pad=8)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):  # away from the circle
        side = round(math.sin(angle), 6)
        label.set_horizontalalignment("center" if side == 0 else "left" if side > 0 else "right")
    axes.set_ylim(0, 100)
    axes.set_yticks([25, 50, 75, 100])
    _legend(figure)


def _legend(figure: Figure) -> None:
    """Puts the legend below the axes; bars first, as they are the runs."""
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: not isinstance(pair[0], BarContainer))
    figure.legend(
        [handle for handle, _ in pairs], [label for _, label in pairs],
        loc="outside lower left", ncols=2, frameon=False, fontsize=8,
    )  # fmt: skip


def _label(row: ReportRow) -> str:
    """Returns the name, cut where it is long, with its marks whole; one that opens with '_' would be left out."""
    name = _short(row.name, LABEL)
    return "\u200b" * name.startswith("_") + ReportRow(name, row.figures, row.published).label


def _short(name: str, limit: int = 18) -> str:
    line = one_line(name)
    return line if len(line) <= limit else line[: limit - 1] + "\u2026"


def _rendered(draw: Callable[[Figure], None], height: float) -> tuple[bytes, bytes]:
    """Returns a figure as PNG and SVG without date or version; no state is left in matplotlib."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box in the plot; the tables have the name
        figure = Figure(figsize=(7.6, height), layout="constrained")
        draw(figure)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), svg.getvalue()
