"""The tables of a report, and their text as CSV and Markdown; ``latex`` takes the same tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

from scale_vqa_eval.scoring.measures import TAKEN_AWAY, Block, Estimate, Row
from scale_vqa_eval.scoring.score import dimension_order
from scale_vqa_eval.text import csv_text, markdown

NOT_RUN: Final = "not run"
NOT_PUBLISHED: Final = "not published"
UNDEFINED: Final = "undefined"
NONE_SUCH: Final = "n/a"
SIGNED: Final = frozenset({"gain", *TAKEN_AWAY})
TITLES: Final = {
    "accuracy": "All",
    "blind": "Blind",
    "gain": "Visual gain",
    "adjusted": "Leakage-adjusted",
    "circular": "Circular",
    "group": "Group",
    "unparsed": "Unparsed",
    "no-low": "Low (10x)",
    "no-mid": "Mid (40x)",
    "no-high": "High (200x)",
    "shuffled": "Own images",
}
_CONTROLS: Final = ("accuracy", "blind", "gain", "adjusted", "circular", "unparsed")
_BY_DIMENSION: Final = ("accuracy", "blind", "gain", *TAKEN_AWAY)


@dataclass(frozen=True)
class Table:
    """One of the tables that a report has of every block.

    Attributes:
        name: for labels.
        caption: what it shows.
        columns: measures of a block.
        published: whether published figures stand in it; nobody published controls.
    """

    name: str
    caption: str
    columns: Callable[[Block], Sequence[str]]
    published: bool = False

    def rows(self, block: Block) -> list[Row]:
        """Rows that belong here."""
        return [row for row in block.rows if self.published or not row.published]


def _controls(block: Block) -> list[str]:
    groups = any("group" in row.figures for row in block.rows)
    return [*_CONTROLS, *(["group"] if groups else [])]


TABLES: Final = (
    Table(
        "dimensions",
        "Accuracy by dimension in per cent, with 95% intervals clustered by patient (by slide or image where none is "
        "named).",
        lambda block: [*(f"accuracy/{name}" for name in block.dimensions), "accuracy"],
        published=True,
    ),
    Table(
        "controls",
        "Accuracy beside its blind control, in per cent. Visual gain: accuracy less that of the same model without "
        "images, paired. Leakage-adjusted: (accuracy - blind) / (1 - blind). Circular: right under every turn of the "
        "options. Unparsed: responses without a readable answer, counted as wrong.",
        _controls,
    ),
    Table(
        "scales",
        "What each magnification gives, in points: accuracy with all views less accuracy without it, paired. Own "
        "images: less accuracy with another patient's images. Questions that never had the view count as no change.",
        lambda block: TAKEN_AWAY,
    ),
)


def heading(key: str) -> str:
    """Returns the heading of a measure's column."""
    measure, _, part = key.partition("/")
    return part or TITLES[measure]


def missing(row: Row, key: str) -> str:
    """Says why a row has no figure for a measure; it is never a zero."""
    measure, _, part = key.partition("/")
    if row.published:
        return NOT_PUBLISHED
    if (part and measure in row.figures) or (measure == "group" and "accuracy" in row.figures):
        return NONE_SUCH
    if measure == "adjusted" and {"accuracy", "blind"} <= row.figures.keys():
        return UNDEFINED
    return NOT_RUN


def number(estimate: Estimate, key: str) -> tuple[str, str | None, str | None]:
    """Returns an estimate and the ends of its interval in per cent with one decimal; differences carry their sign."""
    sign = "+" if key.partition("/")[0] in SIGNED else ""
    value, low, high = (
        None if share is None else f"{_rounded(100 * share):{sign}}"
        for share in (estimate.value, estimate.low, estimate.high)
    )
    assert value is not None
    return value, low, high


def _rounded(percent: float) -> Decimal:
    """Returns a number with one decimal, halves away from zero: 89.05 is 89.1, which binary floats make 89.0."""
    rounded = Decimal(f"{percent:.6f}").quantize(Decimal("0.1"), ROUND_HALF_UP)
    return rounded if rounded else abs(rounded)  # no -0.0


def csv_table(blocks: Sequence[Block]) -> str:
    """Returns all figures as one table: a line a set of questions and model, in per cent, empty where missing."""
    names = sorted({name for block in blocks for name in block.dimensions}, key=dimension_order)
    keys = [key for measure in TITLES for key in _with_parts(measure, names)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ends = [(key, end) for key in keys for end in ("", " low", " high")]
    head = ["config", "split", "questions", "patients", "model", "origin", "control"]
    writer.writerow([*head, *(csv_text(f"{key}{end}") for key, end in ends)])
    for block in blocks:
        about = [csv_text(block.place.config), csv_text(block.place.split), block.n or "", block.clusters or ""]
        for row in block.rows:
            origin = "published" if row.published else "run"
            cells = [_csv_cells(row.figures, key) for key in keys]
            writer.writerow(
                [*about, csv_text(row.name), origin, row.control, *(one for three in cells for one in three)]
            )
    return out.getvalue()


def markdown_report(
    blocks: Sequence[Block], plots: Mapping[int, Sequence[tuple[str, str]]], about: Sequence[str]
) -> str:
    """Returns the report as Markdown.

    Args:
        blocks: its sets of questions.
        plots: number of a block -> (title, file name) of its plots.
        about: lines on how it was made.
    """
    lines = ["# Scale-VQA: results beside their blind control", ""]
    for place, block in enumerate(blocks):
        lines += [f"## {markdown(block.place.title)}", ""]
        if block.n:
            assert block.chance is not None
            lines += [f"{block.size}, chance {100 * block.chance:.1f}%.", ""]
        for table in TABLES:
            lines += _markdown_table(table, block)
        lines += [f"![{title}]({file})" for title, file in plots.get(place, ())]
        lines += ["", *(f"- {markdown(note)}" for note in block.notes), ""]
    lines += ["## Made from", "", *(f"- {markdown(line)}" for line in about)]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table, block: Block) -> list[str]:
    rows, keys = table.rows(block), table.columns(block)
    if not rows:
        return []
    head = ["Model", *(markdown(heading(key)) for key in keys)]
    lines = [head, ["---", *["--:"] * len(keys)]]
    lines += [[markdown(row.label), *(_markdown_cell(row, key) for key in keys)] for row in rows]
    return [markdown(table.caption), "", *(f"| {' | '.join(cells)} |" for cells in lines), ""]


def _markdown_cell(row: Row, key: str) -> str:
    if key not in row.figures:
        return missing(row, key)
    value, low, high = number(row.figures[key], key)
    return value if low is None else f"{value} [{low}, {high}]"


def _with_parts(measure: str, names: Sequence[str]) -> list[str]:
    return [measure, *(f"{measure}/{name}" for name in names if measure in _BY_DIMENSION)]


def _csv_cells(figures: Mapping[str, Estimate], key: str) -> list[str]:
    if key not in figures:
        return ["", "", ""]
    one = figures[key]
    return ["" if share is None else f"{100 * share:.4f}" for share in (one.value, one.low, one.high)]
