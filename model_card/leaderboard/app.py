"""The leaderboard Space: accuracy beside its blind control, from published figures and results files.

The results files are in ``$RESULTS_DIR``.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.files import inside_root
from scale_vqa_eval.schema import ANTICIPATION, CONFIGS, DIMENSIONS, GROUNDING_KINDS
from scale_vqa_eval.scoring.blind_control import control_problems
from scale_vqa_eval.scoring.results import read_reported_scores, read_results
from scale_vqa_eval.text import one_line, percent, points

if TYPE_CHECKING:
    import gradio as gr

NO_BLIND: Final = "no blind control"
NO_GAIN: Final = "no visual gain shown"
PUBLISHED: Final = "published"
UPLOADED: Final = "uploaded"
MAX_FILE: Final = 20_000_000
_OTHER_DIMENSIONS: Final = {
    "grounding": frozenset(GROUNDING_KINDS),
    ANTICIPATION: frozenset([ANTICIPATION]),
    "phantom": None,
}
"""Config -> its dimensions, or None for any. All other configs have those of the benchmark."""

Interval = tuple[float, float]

EVERY: Final = "all"
ORDERS: Final = {
    "leakage-adjusted accuracy": lambda line: (line.adjusted is not None, line.adjusted or 0.0, line.accuracy),
    "visual gain": lambda line: (line.gain is not None, line.gain or 0.0, line.accuracy),
    "accuracy": lambda line: (True, line.accuracy, 0.0),
    "blind accuracy": lambda line: (line.blind is not None, line.blind or 0.0, line.accuracy),
}
"""Sort keys. Unknown values come last. Ranked lines come before the others."""
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
    """Renders one table per set of questions, with all text escaped."""
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
    """Builds the page. Text of files is shown only in ``gr.HTML``, escaped; Markdown and toasts would render it."""
    import gradio as gr

    def show(order: str, questions: str, dimensions: bool, uploads: list[str] | None) -> str:
        return render(read_board(folder, map(Path, uploads or [])), order, questions, dimensions)

    def refresh(order: str, dimensions: bool, uploads: list[str] | None) -> tuple[Any, str]:
        choices = [EVERY, *read_board(folder, map(Path, uploads or [])).sets()]
        return gr.update(choices=choices, value=EVERY), show(order, EVERY, dimensions, uploads)

    first = next(iter(ORDERS))
    with gr.Blocks(title="Scale-VQA leaderboard", delete_cache=(3600, 3600), analytics_enabled=False) as blocks:
        gr.Markdown(
            "# Scale-VQA leaderboard\nPer cent, with 95% intervals. **Blind** is the same model without images; "
            "**visual gain** is accuracy minus blind; **leakage-adjusted** is (accuracy - blind) / (1 - blind). "
            "Only models with a valid blind control and a visual gain shown to be above zero are ranked."
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


@dataclass(frozen=True)
class BoardLine:
    """One model on one set of questions; shares are in [0, 1], unknown values are None.

    Attributes:
        model: name of the model, and the prompt if known.
        questions: config, split and data hash; for published figures, the published name of the data.
        source: results file, or source of published figures.
        ranked: whether a valid blind control shows a visual gain above zero.
        marks: warnings shown beside the name.
    """

    model: str
    questions: str
    source: str
    accuracy: float
    interval: Interval | None = None
    blind: float | None = None
    blind_interval: Interval | None = None
    gain: float | None = None
    gain_interval: Interval | None = None
    adjusted: float | None = None
    by_dimension: Mapping[str, float] = field(default_factory=dict)
    n: int | None = None
    patients: int | None = None
    unparsed: float | None = None
    ranked: bool = False
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Board:
    """All lines, and the files that were left out with the reason."""

    lines: tuple[BoardLine, ...]
    left_out: tuple[str, ...]

    def sets(self) -> list[str]:
        """Returns the sets of questions: measured ones before published ones, then by number of lines."""
        names = [line.questions for line in self.lines]
        published = {line.questions for line in self.lines if PUBLISHED in line.marks}
        return sorted(dict.fromkeys(names), key=lambda name: (name in published, -names.count(name), name))


def read_board(folder: Path, uploads: Iterable[Path] = ()) -> Board:
    """Reads every ``*.json`` below a folder, uploaded files, and the published figures.

    A file that is not a results file, has an invalid blind control, or is a link out of the folder is left out and
    listed with the reason; it does not affect the other files.
    """
    lines: list[BoardLine] = []
    left_out: list[str] = []
    files = [(path, path.relative_to(folder).as_posix(), ()) for path in sorted(folder.rglob("*.json"))]
    for path, name, marks in [*files, *((path, path.name, (UPLOADED,)) for path in uploads)]:
        try:
            if not marks and inside_root(folder, name) is None:
                raise ValueError("it is a link out of the folder")
            lines.append(results_line(path, name, marks))
        except InputError as error:
            first = error.problems[0]
            left_out.append(_plain(f"{name}: expected {first.expected}, found {first.found}", 300))
        except Exception as error:  # untrusted input: any error affects only this file
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
            left_out.append(_plain(f"{name}: {reason}", 300))
    return Board((*lines, *published_lines()), tuple(left_out))


def results_line(path: Path, name: str, marks: tuple[str, ...] = ()) -> BoardLine:
    """Returns the line of one results file.

    Raises:
        InputError, ValueError, KeyError, TypeError: if it is not a results file, or is that of an ablation, has an
            invalid blind control, or has the wrong config.
    """
    if not path.is_file() or path.stat().st_size > MAX_FILE:
        raise ValueError(f"it is not a plain file of at most {MAX_FILE:,} bytes")
    content = read_results(path)
    about = content["provenance"]
    if about.get("ablation") not in (None, ""):
        raise ValueError(f"it is the run of an ablation ({str(about['ablation'])[:40]}), not of all images")
    if problems := control_problems(name, content):
        raise InputError(problems)
    by_dimension = {_plain(key): _number(part["accuracy"]) for key, part in content["by_dimension"].items()}
    config, split = str(about.get("config") or "default"), about.get("split") or "all splits"
    own = _OTHER_DIMENSIONS.get(config, frozenset(DIMENSIONS)) if config in CONFIGS else None
    if own is not None and (strange := sorted(by_dimension.keys() - own)):
        raise ValueError(f"it is labelled {config}, which has no questions of {', '.join(strange)[:80]}")
    blind = content.get("blind")
    if blind and not about.get("blind"):
        raise ValueError("its blind control has no provenance")
    gain_interval = _interval(blind.get("gain_interval"), -1.0) if blind else None
    adjusted = content.get("leakage_adjusted_accuracy") if blind else None
    ranked = gain_interval is not None and gain_interval[0] > 0
    prompt = f" ({about['prompt_id']})" if about.get("prompt_id") else ""
    return BoardLine(
        model=_plain(f"{about.get('model') or Path(name).stem}{prompt}"),
        questions=_plain(f"{config}, {split}, {str(about.get('data_hash') or 'no data hash')[:12]}"),
        source=_plain(name),
        accuracy=_number(content["accuracy"]),
        interval=_interval(content.get("interval")),
        blind=_number(blind["accuracy"]) if blind else None,
        blind_interval=_interval(blind.get("interval")) if blind else None,
        gain=_number(content["visual_gain"], -1.0) if blind else None,
        gain_interval=gain_interval,
        # it is far below 0 if the blind run is nearly always right
        adjusted=None if adjusted is None else _number(adjusted, -1e6),
        by_dimension=by_dimension,
        n=_count(content.get("n")),
        patients=_count(content.get("clusters")) if content.get("clustered") else None,
        unparsed=_number(content["unparsed"]["rate"]) if content.get("unparsed") else None,
        ranked=ranked,
        marks=(*marks, *([NO_BLIND] if not blind else [] if ranked else [NO_GAIN])),
    )


def published_lines() -> list[BoardLine]:
    """Returns the lines of published figures."""
    content = read_reported_scores("scale-vqa-test")
    return [
        BoardLine(
            model=model,
            questions=f"published: {content['data']}",
            source=str(content["source"]),
            accuracy=row["all"],
            by_dimension={part: value for part, value in row.items() if part != "all"},
            marks=(PUBLISHED, NO_BLIND),
        )
        for model, row in content["models"].items()
    ]


def _plain(text: Any, limit: int = 200) -> str:
    """Returns untrusted text on one line with control characters escaped."""
    return one_line(str(text)[:limit])


def _number(value: Any, minimum: float = 0.0, maximum: float = 1.0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum - 1e-9 <= value <= maximum + 1e-9:
        raise ValueError(f"expected a share of {minimum:g} to {maximum:g}, found {value!r:.40}")
    return float(value)


def _interval(value: Any, minimum: float = 0.0) -> Interval | None:
    if value is None or None in value:
        return None
    low, high = (_number(end, minimum) for end in value)
    return low, high


def _count(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**12):
        raise ValueError("expected a count")
    return value


if __name__ == "__main__":
    results = Path(os.environ.get("RESULTS_DIR", Path(__file__).parent / "results"))
    page(results).launch(css=STYLE, max_file_size="20mb", footer_links=[])
