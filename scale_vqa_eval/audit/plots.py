"""The plots of an audit page, as SVG text: probes against chance, dimensions, blind scores, learning curve."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from scale_vqa_eval.text import one_line

UNTRAINED: Final = "#2f6db3"
TRAINED: Final = "#b5502a"
LANGUAGE: Final = "#5c4a99"
CHANCE: Final = "#444444"
MARKS: Final = "osD^vPX*<>"
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#7f3c8d", "#4d4d4d")
"""Distinguishable with any colour vision, after Okabe and Ito (2008); yellow is darker, for a white background."""
LABEL: Final = 50
WIDTH: Final = 10.4

STYLE: Final = {
    "svg.hashsalt": "scale-vqa",  # the same report gives the same bytes
    "svg.fonttype": "path",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a939e",
    "axes.axisbelow": True,
    "grid.color": "#e3e7eb",
}


def probe_plot(probes: Sequence[Mapping[str, Any]], chance: float) -> str:
    """Draws every probe's accuracy with its 95% interval, strongest on top, against chance."""
    ordered = sorted(probes, key=lambda probe: (probe["accuracy"], probe["name"]))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, probe in enumerate(ordered):
            colour = _colour(probe)
            low, high = 100 * probe["ci_low"], 100 * probe["ci_high"]
            axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(100 * probe["accuracy"], row, "s" if probe["trained"] else "o", color=colour, markersize=6)
        axes.set_yticks(range(len(ordered)), [_label(probe["name"]) for probe in ordered])
        axes.set_ylim(-0.7, len(ordered) - 0.3)
        _percent_axis(axes.xaxis, axes, chance)
        axes.set_xlim(0, 100)
        kinds = [("not fitted", "o", UNTRAINED), ("fitted to answers of other questions", "s", TRAINED)]
        if any(probe["family"] in ("language model", "chat") for probe in ordered):
            kinds.append(("language model", "o", LANGUAGE))
        for name, mark, colour in kinds:
            axes.plot([], [], mark, color=colour, label=name)
        axes.legend(loc="lower right", frameon=True, framealpha=0.95, edgecolor="#e3e7eb")

    return _svg(draw, 1.0 + 0.27 * len(ordered))


def dimension_plot(
    parts: Mapping[str, Mapping[str, Any]], published: Mapping[str, Mapping[str, float]], chance: float
) -> str:
    """Draws the strongest probe of each dimension with its interval, and published models beside it.

    Args:
        parts: dimension, or ``all`` -> accuracy, ci_low, ci_high, chance.
        published: model -> dimension or ``all`` -> reported accuracy (0 to 1).
        chance: accuracy of guessing over all questions.
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
            axes.plot(
                np.array(present) + shift,
                heights,
                mark,
                color=colour,
                markersize=6,
                label=f"{_label(model)}, published",
            )
        axes.set_xticks(
            positions,
            [_label(name, 18) for name in names],
            rotation=25 if len(names) > 7 else 0,
            ha="right" if len(names) > 7 else "center",
        )
        _percent_axis(axes.yaxis, axes, chance)
        axes.set_ylim(0, 100)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)

    return _svg(draw, 4.4)


def score_plot(scores: Sequence[float], chance: float) -> str:
    """Draws the histogram of the blind score s(x), the cross-fitted probability of the gold option."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.hist(scores, bins=np.linspace(0, 1, 26).tolist(), color="#cfd9e6", edgecolor=UNTRAINED)
        axes.axvline(chance, color=CHANCE, linestyle="--", linewidth=1.2, label=f"even guess, {chance:.0%}")
        axes.axvline(float(np.mean(scores)), color=TRAINED, linewidth=1.6, label=f"mean, {np.mean(scores):.0%}")
        axes.set_xlabel("blind score s(x): probability that text alone gives the right option")
        axes.set_ylabel("questions")
        axes.set_xlim(0, 1)
        axes.grid(axis="y")
        axes.legend(frameon=False)

    return _svg(draw, 3.4)


def learning_plot(points: Sequence[Mapping[str, Any]], chance: float) -> str:
    """Draws the trained ensemble's accuracy against the number of training questions."""

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

    return _svg(draw, 3.6)


def _percent_axis(axis: Any, axes: Any, chance: float) -> None:
    """Labels an axis in per cent and draws chance across it."""
    axis.set_label_text("accuracy, %")
    axis.grid(True)
    line = axes.axvline if axis.axis_name == "x" else axes.axhline
    line(100 * chance, color=CHANCE, linestyle="--", linewidth=1.2, label=f"even guess, {100 * chance:.0f}%")


def _colour(probe: Mapping[str, Any]) -> str:
    if probe["family"] in ("language model", "chat"):
        return LANGUAGE
    return TRAINED if probe["trained"] else UNTRAINED


def _label(name: str, limit: int = LABEL) -> str:
    """Returns a name on one line, truncated to ``limit``; the tables have the full name."""
    line = one_line(name)
    return line if len(line) <= limit else line[: limit - 1] + "\u2026"


def _svg(draw: Callable[[Figure], None], height: float) -> str:
    """Returns a figure of page width and ``height`` inches as SVG, without changing matplotlib's state."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the plot has a box; the tables have the name
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()
