"""The metric's Space: a predictions file and the gold answers in, accuracy beside its blind control out.

This folder is copied to a Space as it is, so that nothing of the rest of the library is imported here.
"""

from __future__ import annotations

import html
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gradio as gr
from app_files import Refused, read_gold, read_hub, score_runs  # type: ignore[import-not-found]

MAX_FILE: Final = "200mb"
NO_BLIND: Final = (
    "No blind control. This score alone does not show that images were used: on these questions a reader of the text "
    "alone can be far above chance. Answer the same questions without images and give that file too."
)
BLIND_ITSELF: Final = "This run saw no images: it is the blind control of a run with images."
ALONE: Final = "No patient or slide is named: questions are taken as independent, which makes intervals too narrow."
STYLE: Final = """
#score table { border-collapse: collapse; width: 100%; }
#score td, #score th { padding: 4px 7px; text-align: right; white-space: nowrap; vertical-align: bottom;
  border-bottom: 1px solid var(--border-color-primary); }
#score td:first-child, #score th:first-child { text-align: left; white-space: normal; overflow-wrap: break-word;
  min-width: 120px; max-width: 320px; }
#score th { white-space: normal; }
#score tr:last-child td { font-weight: 600; }
#score .scroll { overflow-x: auto; }
#score p { margin: 6px 0; }
#score p.none { border-left: 5px solid #c2410c; padding: 6px 10px; font-weight: 600; overflow-wrap: anywhere; }
#score p.bad { border-left: 5px solid #b91c1c; padding: 6px 10px; white-space: pre-line; overflow-wrap: anywhere; }
"""


def answer(
    run: str | None, gold: str | None, hub: str, config: str, split: str, blind: str | None, mode: str
) -> tuple[str, Any]:
    """Scores what the page was given; returns HTML and the results file, or what is wrong and none."""
    try:
        if not run:
            raise Refused("Predictions: expected a file, found none")
        if bool(gold) == bool(hub.strip()):
            raise Refused("Gold: expected a file or a dataset on the Hub, one of the two")
        questions = read_gold(gold) if gold else read_hub(hub.strip(), config.strip(), split.strip())
        figures, doubts = score_runs(questions, run, blind, mode)
    except (Refused, ValueError) as error:
        return f'<p class="bad" role="alert">{html.escape(str(error))}</p>', gr.update(value=None, interactive=False)
    figures["provenance"] |= {"config": config.strip() or None, "split": split.strip() or None}
    if hub.strip():
        figures["provenance"]["data"] = hub.strip()
    file = Path(tempfile.mkdtemp(prefix="scale_vqa_acc_")) / "results.json"
    file.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return page_of(figures, doubts), gr.update(value=str(file), interactive=True)


def page() -> gr.Blocks:
    """Builds the page. Texts of files go into ``gr.HTML`` alone, escaped: Markdown and toasts would read them."""
    with gr.Blocks(title="scale_vqa_acc", delete_cache=(3600, 3600), analytics_enabled=False) as blocks:
        gr.Markdown(
            "# scale_vqa_acc\nAccuracy of lettered answers with a patient-clustered 95% interval, beside a blind "
            "control. What cannot be read is wrong and counted, never guessed. Files are deleted after an hour."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                run = gr.File(label="Predictions (JSONL: id, response)", file_types=[".jsonl"], elem_id="run")
                gold = gr.File(
                    label="Gold (Parquet of a release folder, JSON list or JSONL)",
                    file_types=[".parquet", ".json", ".jsonl"],
                    elem_id="gold",
                )
                hub = gr.Textbox(label="or a dataset on the Hub, org/name", elem_id="hub")
                with gr.Row():
                    config = gr.Textbox(label="Config", elem_id="config", min_width=80)
                    split = gr.Textbox(label="Split", placeholder="test", elem_id="split", min_width=80)
                blind = gr.File(label="Blind run: the same, without images", file_types=[".jsonl"], elem_id="blind")
                mode = gr.Radio(["reference", "strict"], value="reference", label="Parsing", elem_id="mode")
                button = gr.Button("Score", variant="primary", elem_id="go")
            with gr.Column(scale=2, min_width=320):
                preview = gr.HTML(elem_id="score", apply_default_css=False)
                results = gr.DownloadButton("Download results.json", interactive=False, elem_id="download")
        button.click(answer, [run, gold, hub, config, split, blind, mode], [preview, results])
    return blocks


def page_of(figures: Mapping[str, Any], doubts: Sequence[str]) -> str:
    """Renders results as HTML; every text is escaped."""
    blind = figures["blind"]
    head = ["dimension", "questions", "patients", "accuracy, %", "95% interval", "unparsed"]
    total = dict(figures) | ({"blind_accuracy": blind["accuracy"]} if blind else {})
    parts = {**figures["by_dimension"], "all": total}
    if set(figures["by_dimension"]) == {"none"}:
        del parts["none"]
    rows = [_cells(name, part, blind is not None) for name, part in parts.items()]
    head += ["blind, %", "visual gain"] if blind else ["blind, %"]
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in cells) for cells in rows]
    notes = [f"<p>{html.escape(note)}</p>" for note in _notes(figures)]
    itself = figures["provenance"].get("ablation") == "blind"
    warned = [BLIND_ITSELF if itself else NO_BLIND] * (blind is None) + list(doubts)
    bars = "".join(f'<p class="none">{html.escape(text)}</p>' for text in warned)
    table = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'{bars}<div class="scroll"><table>{table}</table></div>{"".join(notes)}'


def _notes(figures: Mapping[str, Any]) -> list[str]:
    unparsed, blind, groups = figures["unparsed"], figures["blind"], figures["groups"]
    reasons = "".join(f"; {reason} {count}" for reason, count in unparsed["reasons"].items())
    notes = [f"Chance {_percent(figures['chance'])}%. Unparsed, counted as wrong: {unparsed['n']}{reasons}."]
    notes += [] if figures["clustered"] else [ALONE]
    if groups:
        said = f"{_percent(figures['group_accuracy'])}% of {groups['n']} [{_interval(groups['interval'])}]"
        notes.append(f"Exchange groups with all items right: {said}, chance {_percent(groups['chance'])}%.")
    if blind:
        adjusted = figures["leakage_adjusted_accuracy"]
        low, high = (f"{100 * end:+.1f}" for end in blind["gain_interval"])
        notes.append(f"Visual gain {100 * figures['visual_gain']:+.1f} points [{low} to {high}], paired.")
        preview = "undefined: the blind run is always right" if adjusted is None else f"{_percent(adjusted)}%"
        notes.append(f"Leakage-adjusted accuracy, (accuracy - blind) / (1 - blind): {preview}.")
    return notes


def _cells(name: str, part: Mapping[str, Any], blind: bool) -> list[str]:
    cells = [name, str(part["n"]), str(part["clusters"]), _percent(part["accuracy"]), _interval(part["interval"])]
    cells.append(str(part["unparsed"]["n"]))
    if not blind:
        return [*cells, "no blind control"]
    return [*cells, _percent(part["blind_accuracy"]), f"{100 * part['visual_gain']:+.1f}"]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(ends: Sequence[float]) -> str:
    return f"{_percent(ends[0])} to {_percent(ends[1])}"


if __name__ == "__main__":
    page().launch(css=STYLE, max_file_size=MAX_FILE, footer_links=[])
