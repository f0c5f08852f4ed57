"""The tables of a report as LaTeX: booktabs and nothing else, each set of questions a part of one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scale_vqa_eval.scoring.measures import Block, Row
from scale_vqa_eval.scoring.tables import TABLES, Table, heading, missing, number
from scale_vqa_eval.text import latex

_HEAD: Final = r"""% Needs \usepackage{booktabs}. Redefine \scalevqainterval to lay intervals out in another way.
\providecommand{\scalevqainterval}[3]{\begin{tabular}[c]{@{}r@{}}#1\\[-3pt]{\tiny [#2, #3]}\end{tabular}}
"""


def latex_tables(blocks: Sequence[Block]) -> str:
    """Returns the tables; a column is there if any set of questions has it."""
    return "\n".join([_HEAD, *(_table(table, blocks) for table in TABLES)])


def _table(table: Table, blocks: Sequence[Block]) -> str:
    keys = list(dict.fromkeys(key for block in blocks for key in table.columns(block)))
    keys.sort(key=lambda key: key in ("accuracy",) and table.name == "dimensions")  # all dimensions, then their total
    notes = dict.fromkeys(note for block in blocks for note in block.notes)
    lines = [
        r"\begin{table*}[t]",
        r"\centering\footnotesize",
        rf"\caption{{{latex(table.caption)}}}",
        rf"\label{{tab:scale-vqa-{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * len(keys)}}}",
        r"\toprule",
        " & ".join(["Model", *(latex(heading(key)) for key in keys)]) + r" \\",
    ]
    for block in blocks:
        if rows := table.rows(block):
            title = latex(f"{block.place.title}; {block.size}" if block.n else block.place.title)
            lines += [r"\midrule", rf"\multicolumn{{{len(keys) + 1}}}{{l}}{{\textit{{{title}}}}} \\"]
            lines += [_line(row, keys) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if notes:
        text = latex(" ".join(notes))
        lines += [rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize\raggedright {text}}}"]
    return "\n".join([*lines, r"\end{table*}", ""])


def _line(row: Row, keys: Sequence[str]) -> str:
    return " & ".join([latex(row.label), *(_cell(row, key) for key in keys)]) + r" \\"


def _cell(row: Row, key: str) -> str:
    if key not in row.figures:
        return rf"\textit{{{missing(row, key)}}}"
    value, low, high = (None if text is None else f"${text}$" for text in number(row.figures[key], key))
    assert value is not None
    return value if low is None else rf"\scalevqainterval{{{value}}}{{{low}}}{{{high}}}"
