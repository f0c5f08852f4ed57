"""The plots of an audit page (SVG) and of a report (PNG and SVG)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from scale_vqa_eval.scoring.measures import REMOVED, Estimate, ReportRow, ReportSection
from scale_vqa_eval.scoring.report_files import NOT_RUN, TITLES
from scale_vqa_eval.text import one_line

UNTRAINED: Final = "#2f6db3"
TRAINED: Final = "#b5502a"
LANGUAGE: Final = "#5c4a99"
CHANCE: Final = "#444444"
MARKS: Final = "osD^vPX*<>"
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#7f3c8d", "#4d4d4d")
"""Colours for all kinds of colour vision (Okabe and Ito 2008), with darker yellows for white paper."""
LABEL: Final = 50
REPORT_LABEL: Final = 36

STYLE: Final = {
    "svg.hashsalt": "scale-vqa",  # the same report gives the same bytes
    "svg.fonttype": "path",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a939e",
    "axes.axisbelow": True,
    "grid.color": "#e3e7eb",
}
_UNDATED: Final[dict[str, dict[str, Any]]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
"""Metadata without what differs between two runs."""


def probe_plot(probes: Sequence[Mapping[str, Any]], chance: float) -> str:
    """Draws the accuracy of every probe with its 95% interval, the strongest on top, and chance."""
    ordered = sorted(probes, key=lambda probe: (probe["accuracy"], probe["name"]))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, probe in enumerate(ordered):
            colour = _colour(probe)
            low, high = 100 * probe["ci_low"], 100 * probe["ci_high"]
            axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(100 * probe["accuracy"], row, "s" if probe["trained"] else "o", color=colour, markersize=6)
        axes.set_yticks(range(len(ordered)), [_short(probe["name"]) for probe in ordered])
        axes.set_ylim(-0.7, len(ordered) - 0.3)
        _percent_axis(axes.xaxis, axes, chance)
        axes.set_xlim(0, 100)
        kinds = [("not fitted", "o", UNTRAINED), ("fitted to answers of other questions", "s", TRAINED)]
        if any(probe["family"] in ("language model", "chat") for probe in ordered):
            kinds.append(("language model", "o", LANGUAGE))
        for name, mark, colour in kinds:
            axes.plot([], [], mark, color=colour, label=name)
        axes.legend(loc="lower right", frameon=True, framealpha=0.95, edgecolor="#e3e7eb")

    return _audit_svg(draw, 1.0 + 0.27 * len(ordered))


def dimension_plot(
    parts: Mapping[str, Mapping[str, Any]], published: Mapping[str, Mapping[str, float]], chance: float
) -> str:
    """Draws the strongest probe of each dimension with its interval, and published models beside it.

    Args:
        parts: dimension or ``all`` -> accuracy, ci_low, ci_high.
        published: model -> dimension or ``all`` -> published accuracy (0 to 1).
        chance: accuracy of random guessing over all questions.
    """
    names = list(parts)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        positions = np.arange(len(names))
        values = np.array([100 * parts[name]["accuracy"] for name in names])
        low = values - [100 * parts[name]["ci_low"] for name in names]
        high = np.array([100 * parts[name]["ci_high"] for name in names]) - values
        left = positions - 0.22 if published else positions
        axes.bar(left, values, 0.4, color="#e9cdbf", edgecolor=TRAINED, label="strongest probe, no images")
        axes.errorbar(left, values, np.maximum(0, [low, high]), fmt="none", ecolor=TRAINED, capsize=3)
        for number, (model, row) in enumerate(published.items()):
            present = [index for index, name in enumerate(names) if name in row]
            shift = 0.08 + 0.38 * (number + 0.5) / len(published)
            heights = [100 * row[names[index]] for index in present]
            mark, colour = MARKS[number % len(MARKS)], COLOURS[number % len(COLOURS)]
            label = f"{_short(model)}, published"
            axes.plot(np.array(present) + shift, heights, mark, color=colour, markersize=6, label=label)
        rotation, side = (25, "right") if len(names) > 7 else (0, "center")
        axes.set_xticks(positions, [_short(name, 18) for name in names], rotation=rotation, ha=side)
        _percent_axis(axes.yaxis, axes, chance)
        axes.set_ylim(0, 100)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

    return _audit_svg(draw, 4.4)


def score_plot(scores: Sequence[float], chance: float) -> str:
    """Draws the histogram of the blind score s(x), the cross-fitted probability of the gold option."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.hist(scores, bins=np.linspace(0, 1, 26).tolist(), color="#cfd9e6", edgecolor=UNTRAINED)
        axes.axvline(chance, color=CHANCE, linestyle="--", linewidth=1.2, label=f"chance, {chance:.0%}")
        axes.axvline(float(np.mean(scores)), color=TRAINED, linewidth=1.6, label=f"mean, {np.mean(scores):.0%}")
        axes.set_xlabel("blind score s(x): probability that text alone gives the right option")
        axes.set_ylabel("questions")
        axes.set_xlim(0, 1)
        axes.grid(axis="y")
        axes.legend(frameon=False)

    return _audit_svg(draw, 3.4)


def learning_plot(points: Sequence[Mapping[str, Any]], chance: float) -> str:
    """Draws the accuracy of the trained ensemble over the number of questions that it was fitted to."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        sizes = [point["questions"] for point in points]
        columns = ("accuracy", "ci_low", "ci_high")
        middle, low, high = (np.array([100 * point[column] for point in points]) for column in columns)
        axes.fill_between(sizes, low, high, color="#f0dccf", label="95% interval")
        axes.plot(sizes, middle, "s-", color=TRAINED, label="ensemble")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("questions with answers that the probe was fitted to")
        _percent_axis(axes.yaxis, axes, chance)
        axes.set_ylim(0, 100)
        axes.legend(loc="upper left", frameon=False)

    return _audit_svg(draw, 3.6)


def _percent_axis(axis: Any, axes: Any, chance: float | None) -> None:
    """Labels an axis in per cent and draws a line at chance, if it is known."""
    axis.set_label_text("accuracy, %")
    axis.grid(True)
    if chance is not None:
        line = axes.axvline if axis.axis_name == "x" else axes.axhline
        line(100 * chance, color=CHANCE, linestyle="--", linewidth=1.2, label=f"chance, {100 * chance:.0f}%")


def _colour(probe: Mapping[str, Any]) -> str:
    if probe["family"] in ("language model", "chat"):
        return LANGUAGE
    return TRAINED if probe["trained"] else UNTRAINED


def section_plots(section: ReportSection) -> dict[str, tuple[str, bytes, bytes]]:
    """Returns name -> (title, PNG, SVG) of the plots of a section: ``bars``, ``radar`` and ``scales``, if possible."""
    runs = [row for row in section.rows if not row.published and "accuracy" in row.figures]
    plots: dict[str, tuple[str, bytes, bytes]] = {}

    def add(name: str, title: str, draw: Callable[[Figure], None], height: float, rows: int) -> None:
        png, svg = rendered(draw, (7.6, height + 0.09 * rows), 9, "png", "svg")
        plots[name] = title, png, svg

    count = len(section.rows)
    if any("accuracy" in row.figures for row in section.rows):
        add("bars", "Accuracy by dimension", lambda figure: _bars(figure, section), 3.8, count)
        if len(section.dimensions) > 2:
            add("radar", "Accuracy by dimension, radar", lambda figure: _radar(figure, section), 4.8, count)
    if any(key in row.figures for row in runs for key in REMOVED):
        add("scales", "Contribution of each scale", lambda figure: _scales(figure, runs), 3.6, len(runs))
    return plots


def _bars(figure: Figure, section: ReportSection) -> None:
    """Draws bars with intervals and a line at the blind accuracy for each run, and marks for published figures."""
    axes = figure.subplots()
    runs = [row for row in section.rows if not row.published]
    published = [row for row in section.rows if row.published]
    keys = [*(f"accuracy/{name}" for name in section.dimensions), "accuracy"]
    width_of_runs = 0.84 * (len(runs) / (len(runs) + 0.7) if published else 1.0)
    width = width_of_runs / max(1, len(runs))
    for number, row in enumerate(runs):
        centres = [index - 0.42 + (number + 0.5) * width for index in range(len(keys))]
        _bar_series(axes, row, keys, centres, width, number)
        for index, key in enumerate(keys):
            if blind := row.figures.get(key.replace("accuracy", "blind")):
                left = index - 0.42 + number * width
                axes.hlines(100 * blind.value, left, left + width, color="black", linewidth=1.4)
    for number, row in enumerate(published):
        known = [index for index, key in enumerate(keys) if key in row.figures]
        shift = -0.42 + width_of_runs + (0.84 - width_of_runs) * (number + 0.5) / len(published) if runs else 0.0
        heights = [100 * row.figures[keys[index]].value for index in known]
        mark, colour = MARKS[number % len(MARKS)], COLOURS[(len(runs) + number) % len(COLOURS)]
        look: dict[str, Any] = {"color": "none", "markeredgecolor": colour, "markersize": 5, "label": _label(row)}
        axes.plot([index + shift for index in known], heights, mark, **look)
    if any("blind" in row.figures for row in runs):
        axes.plot([], [], color="black", linewidth=1.4, label="the same model, blind")
    axes.set_xticks(range(len(keys)), [*(_short(name, 18) for name in section.dimensions), TITLES["accuracy"]])
    axes.set_xlim(-0.5, len(keys) - 0.5)
    axes.set_ylim(0, 100)
    _percent_axis(axes.yaxis, axes, section.chance)
    _legend(figure)


def _scales(figure: Figure, runs: Sequence[ReportRow]) -> None:
    """Draws bars of the accuracy lost without each view, with intervals."""
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
    """Draws the bars and intervals of a run; bar ``i`` has the SVG id ``bar-<run>-<i>``."""
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
        line: dict[str, Any] = (
            {"linestyle": ":", "linewidth": 1.2} if row.published else {"linestyle": "-", "linewidth": 1.8}
        )
        look: dict[str, Any] = {"color": colour, "markersize": 4, "label": _label(row), **line}
        axes.plot([*angles, angles[0]], [*heights, heights[0]], mark, **look)
    if section.chance is not None:
        circle = [2 * math.pi * step / 120 for step in range(121)]
        axes.plot(circle, [100 * section.chance] * 121, color=CHANCE, linestyle="--", linewidth=1, label="chance")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_xticks(angles, [_short(name, 18) for name in names])
    axes.tick_params(axis="x", pad=8)
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):  # away from the circle
        side = round(math.sin(angle), 6)
        label.set_horizontalalignment("center" if side == 0 else "left" if side > 0 else "right")
    axes.set_ylim(0, 100)
    axes.set_yticks([25, 50, 75, 100])
    _legend(figure)


def _legend(figure: Figure) -> None:
    """Puts the legend below the axes, with the runs (bars) first."""
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: not isinstance(pair[0], BarContainer))
    figure.legend(
        [handle for handle, _ in pairs], [label for _, label in pairs],
        loc="outside lower left", ncols=2, frameon=False, fontsize=8,
    )  # fmt: skip


def _label(row: ReportRow) -> str:
    """Returns the name, shortened, with its marks; matplotlib would omit a label that begins with ``_``."""
    name = _short(row.name, REPORT_LABEL)
    return "\u200b" * name.startswith("_") + replace(row, name=name).label


def _short(name: str, limit: int = LABEL) -> str:
    """Returns a name on one line, cut to fit; the tables give it in full."""
    line = one_line(name)
    return line if len(line) <= limit else line[: limit - 1] + "\u2026"


def _audit_svg(draw: Callable[[Figure], None], height: float) -> str:
    return rendered(draw, (10.4, height), 10, "svg")[0].decode()


def rendered(draw: Callable[[Figure], None], size: tuple[float, float], font: int, *formats: str) -> list[bytes]:
    """Returns a figure of ``size`` inches in each format, without a date or version; leaves matplotlib unchanged."""
    with matplotlib.rc_context(STYLE | {"font.size": font}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the plot has a box; the tables have the name
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        contents = []
        for kind in formats:
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=200 if kind == "png" else "figure", metadata=_UNDATED[kind])
            contents.append(file.getvalue())
    return contents
