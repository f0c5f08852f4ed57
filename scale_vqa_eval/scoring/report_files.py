"""Writes a report: three tables as Markdown and LaTeX, all figures as a tidy CSV, and plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval import __version__
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.scoring.measures import REMOVED, Estimate, ReportRow, ReportSection
from scale_vqa_eval.scoring.runs import ReportRun, System
from scale_vqa_eval.text import csv_text, latex, markdown, percent, points

NOT_RUN: Final = "not run"
TITLES: Final = {
    "accuracy": "All",
    "blind": "Blind",
    "gain": "Visual gain",
    "guess": "Guess",
    "adjusted": "Leakage-adjusted",
    "circular": "Circular",
    "group": "Group",
    "unparsed": "Unparsed",
    "truncated": "Cut off",
    "flips": "Flips",
    "no-low": "Low (10x)",
    "no-mid": "Mid (40x)",
    "no-high": "High (200x)",
    "shuffled": "Own images",
}
_DIFFERENCES: Final = frozenset({"gain", *REMOVED})
_LATEX_HEAD: Final = r"""% Needs \usepackage{booktabs}. Redefine \scalevqainterval to lay intervals out in another way.
\providecommand{\scalevqainterval}[3]{\begin{tabular}[c]{@{}r@{}}#1\\[-3pt]{\tiny [#2, #3]}\end{tabular}}
"""


@dataclass(frozen=True)
class ReportTable:
    """A table of a report, with a part for every section.

    Attributes:
        name: name for labels.
        caption: the caption.
        columns: function from a section to its measures.
        published: whether published figures are listed.
    """

    name: str
    caption: str
    columns: Callable[[ReportSection], Sequence[str]]
    published: bool = False

    def rows(self, section: ReportSection) -> list[ReportRow]:
        """Returns the rows of a section that the table lists."""
        return [row for row in section.rows if self.published or not row.published]


def _control_columns(section: ReportSection) -> list[str]:
    """Returns the columns that all sections have, and the optional ones for which this section has figures."""
    shown = {key for row in section.rows for key in row.figures}
    columns = ("accuracy", "blind", "guess", "gain", "adjusted", "circular", "unparsed", "truncated", "flips", "group")
    return [key for key in columns if key in shown or key not in ("guess", "truncated", "flips", "group")]


TABLES: Final = (
    ReportTable(
        "dimensions",
        "Accuracy by dimension in per cent, with 95% intervals clustered by patient (by slide or image where none is "
        "named).",
        lambda section: [*(f"accuracy/{name}" for name in section.dimensions), "accuracy"],
        published=True,
    ),
    ReportTable(
        "controls",
        "Accuracy beside its blind control, in per cent. Visual gain: accuracy minus that of the same model without "
        "images, paired. Leakage-adjusted: (accuracy - blind) / (1 - blind). Both take the larger of blind and guess, "
        "never below chance. Circular: right under every rotation of the options. Unparsed: responses without a "
        "readable answer, counted as wrong. Cut off: ended at the limit of tokens. Flips: answers that change with "
        "another patient's images.",
        _control_columns,
    ),
    ReportTable(
        "scales",
        "Contribution of each magnification, in points: accuracy with all views minus accuracy without it, paired. "
        "Own images: minus accuracy with another patient's images. Questions without that view count as no change.",
        lambda section: REMOVED,
    ),
)


def write_report(
    out: Path,
    sections: Sequence[ReportSection],
    runs: Sequence[ReportRun],
    names: Mapping[System, str],
    data: str,
    mode: str,
) -> list[Path]:
    """Writes the tables as Markdown, LaTeX and CSV, and the plots; returns the files. Reproducible byte by byte.

    Raises:
        InputError: if the folder cannot be written.
    """
    from scale_vqa_eval.plots import section_plots

    files: dict[str, bytes] = {}
    shown: dict[int, list[tuple[str, str]]] = {}
    for number, section in enumerate(sections):
        for plot, (title, png, svg) in section_plots(section).items():
            words = re.sub(r"[^A-Za-z0-9_]+", "-", f"{section.slice.config} {section.slice.split}").strip("-")
            stem = f"{plot}-{words[:60] or 'questions'}"
            stem = stem if f"{stem}.png" not in files else f"{stem}-{number + 1}"
            files |= {f"{stem}.png": png, f"{stem}.svg": svg}
            shown.setdefault(number, []).append((title, f"{stem}.png"))
    source = Path(data).name if Path(data).exists() else data
    about = [f"scale-vqa {__version__}, parsing mode {mode}, data {source}"]
    for run in runs:
        file = f"{run.predictions.path.name}, sha256 {run.predictions.digest[:16]}"
        about.append(f"{names[run.system]}; {run.slice.title}; {run.ablation or 'all images'}: {file}")
    texts = {
        "report.md": markdown_report(sections, shown, about),
        "report.tex": latex_tables(sections),
        "report.csv": csv_table(sections),
    }
    contents: dict[str, str | bytes] = {**texts, **files}
    for name, content in contents.items():
        atomic_write(out / name, content, "name another --out")
    return [out / name for name in contents]


def csv_table(sections: Sequence[ReportSection]) -> str:
    """Returns all figures in per cent as a tidy CSV table with one row per figure."""
    import pandas as pd

    head = ["config", "split", "questions", "patients", "model", "origin", "control"]
    head += ["measure", "dimension", "value", "low", "high"]
    rows = []
    for section in sections:
        about = [*map(csv_text, (section.slice.config, section.slice.split)), section.n or "", section.clusters or ""]
        for row in section.rows:
            model = [csv_text(row.name), "published" if row.published else "run", row.control]
            for key, one in row.figures.items():
                measure, _, dimension = key.partition("/")
                shares = ("" if share is None else f"{100 * share:.4f}" for share in (one.value, one.low, one.high))
                rows.append([*about, *model, measure, csv_text(dimension), *shares])
    text: str = pd.DataFrame(rows, columns=head).to_csv(index=False, lineterminator="\n")
    return text


def score_csv(results: Mapping[str, Any]) -> str:
    """Returns a score, as written by ``scale-vqa score --json``, in per cent as a tidy CSV table."""
    import pandas as pd

    about = results["provenance"]
    run = {name: csv_text(str(about.get(name) or "")) for name in ("config", "split", "model", "ablation")}
    blind = results["blind"] or {}
    total = {**results, "blind_accuracy": blind.get("accuracy"), "gain_interval": blind.get("gain_interval")}
    rows = []
    for dimension, part in (*results["by_dimension"].items(), ("", total)):
        shown = {
            "accuracy": (part["accuracy"], part["interval"]),
            "unparsed": (part["unparsed"]["rate"], None),
            "blind": (part.get("blind_accuracy"), None),
            "gain": (part.get("visual_gain"), part.get("gain_interval")),
            "adjusted": (part.get("leakage_adjusted_accuracy"), part.get("leakage_adjusted_interval")),
        }
        if not dimension:
            shown |= {
                "macro": (results["macro"], results["macro_interval"]),
                "chance": (results["chance"], None),
                "group": (results["group_accuracy"], (results["groups"] or {}).get("interval")),
            }
            for name in ("circular", "flips", "weighted", "text_only_ceiling", "truncated"):
                if one := results.get(name):
                    shown[name] = one.get("accuracy", one.get("rate")), one.get("interval")
        size = {"questions": part["n"], "patients": part["clusters"] if results["clustered"] else ""}
        for measure, (value, ends) in shown.items():
            if value is not None:
                shares = [f"{100 * share:.4f}" for share in (value, *(ends or ()))]
                cells = dict(zip(("value", "low", "high"), [*shares, "", ""], strict=False))
                rows.append({**run, **size, "measure": measure, "dimension": csv_text(dimension), **cells})
    text: str = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    return text


def markdown_report(
    sections: Sequence[ReportSection], plots: Mapping[int, Sequence[tuple[str, str]]], about: Sequence[str]
) -> str:
    """Returns the report as Markdown; ``plots`` maps the index of a section to (title, file name) of its plots."""
    lines = ["# Scale-VQA: results beside their blind control", ""]
    for number, section in enumerate(sections):
        lines += [f"## {markdown(section.slice.title)}", ""]
        if section.n and section.chance is not None:
            lines += [f"{section.size}, chance {percent(section.chance)}%.", ""]
        for table in TABLES:
            if table.rows(section):
                lines += [markdown(table.caption), "", _markdown_table(table, section), ""]
        lines += [f"![{title}]({file})" for title, file in plots.get(number, ())]
        lines += ["", *(f"- {markdown(note)}" for note in section.notes), ""]
    lines += ["## Made from", "", *(f"- {markdown(line)}" for line in about)]
    return "\n".join(lines) + "\n"


def latex_tables(sections: Sequence[ReportSection]) -> str:
    r"""Returns the tables as LaTeX (booktabs), with a part for each section.

    Names are escaped by ``text.latex``, which unlike pandas' ``to_latex(escape=True)`` also replaces characters that
    hide or reorder text, and letters that need special fonts.
    """
    return "\n".join([_LATEX_HEAD, *(_latex_table(table, sections) for table in TABLES)])


def _markdown_table(table: ReportTable, section: ReportSection) -> str:
    keys = table.columns(section)
    lines = [["Model", *(markdown(_heading(key)) for key in keys)], ["---", *["--:"] * len(keys)]]
    lines += [[markdown(row.label), *(_markdown_cell(row, key) for key in keys)] for row in table.rows(section)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _markdown_cell(row: ReportRow, key: str) -> str:
    if key not in row.figures:
        return _missing(row, key)
    value, *ends = _numbers(row.figures[key], key)
    return f"{value} [{', '.join(ends)}]" if ends else value


def _latex_table(table: ReportTable, sections: Sequence[ReportSection]) -> str:
    keys = list(dict.fromkeys(key for section in sections for key in table.columns(section)))
    keys.sort(key=lambda key: key == "accuracy" and table.name == "dimensions")  # all dimensions, then their total
    notes = dict.fromkeys(note for section in sections for note in section.notes)
    lines = [
        r"\begin{table*}[t]",
        r"\centering\footnotesize",
        rf"\caption{{{latex(table.caption)}}}",
        rf"\label{{tab:scale-vqa-{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * len(keys)}}}",
        r"\toprule",
        " & ".join(["Model", *(latex(_heading(key)) for key in keys)]) + r" \\",
    ]
    for section in sections:
        if rows := table.rows(section):
            title = latex(f"{section.slice.title}; {section.size}" if section.n else section.slice.title)
            lines += [r"\midrule", rf"\multicolumn{{{len(keys) + 1}}}{{l}}{{\textit{{{title}}}}} \\"]
            lines += [
                " & ".join([latex(row.label), *(_latex_cell(row, key) for key in keys)]) + r" \\" for row in rows
            ]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if notes:
        text = latex(" ".join(notes))
        lines += [rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize\raggedright {text}}}"]
    return "\n".join([*lines, r"\end{table*}", ""])


def _latex_cell(row: ReportRow, key: str) -> str:
    if key not in row.figures:
        return rf"\textit{{{_missing(row, key)}}}"
    value, *ends = (f"${text}$" for text in _numbers(row.figures[key], key))
    return rf"\scalevqainterval{{{value}}}{{{ends[0]}}}{{{ends[1]}}}" if ends else value


def _heading(key: str) -> str:
    measure, _, dimension = key.partition("/")
    return dimension or TITLES[measure]


def _missing(row: ReportRow, key: str) -> str:
    """Returns the text for a missing figure."""
    measure, _, dimension = key.partition("/")
    if row.published:
        return "not published"
    if (dimension and measure in row.figures) or (measure == "group" and "accuracy" in row.figures):
        return "n/a"
    if measure == "adjusted" and {"accuracy", "blind"} <= row.figures.keys():
        return "undefined"
    return NOT_RUN


def _numbers(estimate: Estimate, key: str) -> list[str]:
    """Returns an estimate and the ends of its interval, if any, in per cent; differences are signed."""
    shares = [share for share in (estimate.value, estimate.low, estimate.high) if share is not None]
    return [(points if key.partition("/")[0] in _DIFFERENCES else percent)(share) for share in shares]
