"""The leaderboard Space: accuracy beside its blind control, from the results files in ``$RESULTS_DIR``."""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gradio as gr
from board import NO_BLIND, PUBLISHED, Board, BoardLine, Interval, read_board

from scale_vqa_eval.text import percent, points

HERE: Final = Path(__file__).parent
EVERY: Final = "all"
ORDERS: Final = {
    "leakage-adjusted accuracy": lambda line: (line.adjusted is not None, line.adjusted or 0.0, line.accuracy),
    "visual gain": lambda line: (line.gain is not None, line.gain or 0.0, line.accuracy),
    "accuracy": lambda line: (True, line.accuracy, 0.0),
    "blind accuracy": lambda line: (line.blind is not None, line.blind or 0.0, line.accuracy),
}
"""Sort keys; an unknown value comes last, never as a zero. Lines that are not ranked come after those that are."""
STYLE: Final = """
#board .scroll { overflow-x: auto; }
#board table { border-collapse: collapse; width: 100%; font-size: 14px; margin-bottom: 18px; }
#board caption { text-align: left; font-weight: 600; padding: 6px 0; overflow-wrap: anywhere; }
#board td, #board th { padding: 5px 9px; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--border-color-primary); }
#board td:nth-child(2), #board th:nth-child(2) { text-align: left; overflow-wrap: anywhere; min-width: 170px; }
#board td.blind { background: rgba(124, 58, 237, .1); }
#board small { display: block; opacity: .75; white-space: nowrap; }
#board td:nth-child(2) small { white-space: normal; }
#board .mark { display: inline-block; border: 1px solid #c2410c; color: #c2410c; border-radius: 3px; padding: 0 5px;
  font-size: 12px; font-weight: 600; margin: 2px 4px 0 0; }
#board ul.out { padding-left: 20px; }
#board .none { color: #c2410c; font-weight: 600; font-size: 12px; }
"""


def render(board: Board, order: str, questions: str, dimensions: bool) -> str:
    """Renders a table for each set of questions; every text is escaped."""
    tables = [
        _table(name, [one for one in board.lines if one.questions == name], order, dimensions)
        for name in board.sets()
        if questions in (EVERY, name)
    ]
    out = "".join(f"<li>{html.escape(text)}</li>" for text in board.left_out)
    left_out = f"<p>Left out:</p><ul class='out'>{out}</ul>" if out else ""
    return "".join(tables) + left_out or "<p>No results yet.</p>"


def _table(name: str, lines: list[BoardLine], order: str, dimensions: bool) -> str:
    lines = sorted(lines, key=lambda line: (line.model, line.source))
    lines.sort(key=ORDERS[order], reverse=True)
    lines.sort(key=lambda line: not line.ranked)
    parts = list(dict.fromkeys(part for line in lines for part in line.by_dimension)) if dimensions else []
    head = ["#", "model", "accuracy", "blind", "visual gain", "leakage-adjusted", "questions", "unparsed", *parts]
    rows = "".join(f"<tr>{_row(rank, line, parts)}</tr>" for rank, line in enumerate(lines, 1))
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    caption = f"<caption>{html.escape(name)}</caption>"
    return f"<div class='scroll'><table>{caption}<thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>"


def _row(rank: int, line: BoardLine, parts: list[str]) -> str:
    marks = "".join(f"<span class='mark'>{html.escape(mark)}</span>" for mark in line.marks)
    asked = "" if line.n is None else str(line.n) + (f"<small>{line.patients} patients</small>" * bool(line.patients))
    missing = "not published" if PUBLISHED in line.marks else "not run"
    none = f"<span class='none'>{missing if PUBLISHED in line.marks else NO_BLIND}</span>"
    cells = [
        str(rank) if line.ranked else "&ndash;",
        f"{html.escape(line.model)}<small>{html.escape(line.source)}</small>{marks}",
        _estimate(line.accuracy, line.interval),
        none if line.blind is None else _estimate(line.blind, line.blind_interval),
        missing if line.gain is None else _estimate(line.gain, line.gain_interval, points),
        (missing if line.blind is None else "undefined") if line.adjusted is None else percent(line.adjusted),
        asked,
        "" if line.unparsed is None else f"{percent(line.unparsed)}%",
        *("" if part not in line.by_dimension else percent(line.by_dimension[part]) for part in parts),
    ]
    return "".join(f"<td{' class=blind' if column == 3 else ''}>{cell}</td>" for column, cell in enumerate(cells))


def _estimate(value: float, interval: Interval | None, form: Callable[[float], str] = percent) -> str:
    ends = "" if interval is None else f"<small>{' to '.join(form(end) for end in interval)}</small>"
    return form(value) + ends


def page(folder: Path) -> gr.Blocks:
    """Builds the page. Texts of files go into ``gr.HTML`` alone, escaped; Markdown and toasts would render them."""

    def show(order: str, questions: str, dimensions: bool, uploads: list[str] | None) -> str:
        return render(read_board(folder, map(Path, uploads or [])), order, questions, dimensions)

    def refresh(order: str, dimensions: bool, uploads: list[str] | None) -> tuple[Any, str]:
        choices = [EVERY, *read_board(folder, map(Path, uploads or [])).sets()]
        return gr.update(choices=choices, value=EVERY), show(order, EVERY, dimensions, uploads)

    first = next(iter(ORDERS))
    with gr.Blocks(title="Scale-VQA leaderboard", delete_cache=(3600, 3600), analytics_enabled=False) as blocks:
        gr.Markdown(
            "# Scale-VQA leaderboard\nPer cent, with 95% intervals. **Blind** is the same model without images; "
            "**visual gain** is accuracy less blind; **leakage-adjusted** is (accuracy - blind) / (1 - blind). "
            "Only lines whose blind control shows a visual gain above zero are ranked."
        )
        with gr.Row():
            order = gr.Radio(list(ORDERS), value=first, label="Sort by", elem_id="order", scale=3)
            questions = gr.Dropdown([EVERY], value=EVERY, label="Questions", elem_id="questions", scale=2)
            dimensions = gr.Checkbox(False, label="Dimensions", elem_id="dimensions", scale=1)
        board = gr.HTML(elem_id="board", apply_default_css=False)
        uploads = gr.File(
            label="See your own results.json beside them (shown to you alone, not kept)",
            file_count="multiple",
            file_types=[".json"],
            elem_id="uploads",
            height=140,
        )
        inputs = [order, questions, dimensions, uploads]
        for control in (order, questions, dimensions):
            control.change(show, inputs, board, show_progress="hidden")
        uploads.change(refresh, [order, dimensions, uploads], [questions, board])
        blocks.load(refresh, [order, dimensions, uploads], [questions, board])
    return blocks


if __name__ == "__main__":
    results = Path(os.environ.get("RESULTS_DIR", HERE / "results"))
    page(results).launch(css=STYLE, max_file_size="20mb", footer_links=[])
