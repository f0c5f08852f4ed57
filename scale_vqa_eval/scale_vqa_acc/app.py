"""The metric's Space: a web page for ``scale-vqa score``.

Files are read, checked and scored by the installed package ``scale-vqa``. (``evaluate.utils.launch_gradio_widget``
needs ``gradio.inputs``, which Gradio removed in version 4.)
"""

from __future__ import annotations

import html
import tempfile
from pathlib import Path
from typing import Any, Final

import gradio as gr

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import write_json
from scale_vqa_eval.release_folder.read import HUB_ID
from scale_vqa_eval.scoring.results import score_table
from scale_vqa_eval.scoring.score import score_files

MAX_FILE: Final = "200mb"
STYLE: Final = """
#score pre { overflow-x: auto; line-height: 1.35; }
#score p { border-left: 5px solid #c2410c; padding: 6px 10px; font-weight: 600; overflow-wrap: anywhere; }
#score p.bad { border-left-color: #b91c1c; font-weight: 400; white-space: pre-line; }
"""


def answer(
    run: str | None, gold: str | None, hub: str, config: str, split: str, blind: str | None, mode: Any
) -> tuple[str, Any]:
    """Scores the uploaded files; returns HTML and the results file, or the problems as HTML and no file."""
    hub, config, split = hub.strip(), config.strip(), split.strip()
    try:
        if not run:
            raise InputError(Problem("Predictions", "a file", "none", "choose one"))
        if bool(gold) == bool(hub):
            raise InputError(Problem("Gold", "a file or a dataset on the Hub", "both or none", "give one of the two"))
        if hub and (not HUB_ID.fullmatch(hub) or ".." in hub or Path(hub).exists()):
            raise InputError(Problem("Dataset", "a Hub id org/name", hub[:80], "write it as the Hub does"))
        wanted = split or ("test" if hub else None)
        results, warnings = score_files(run, gold or hub, wanted, config or None, mode, blind=[blind] if blind else [])
    except InputError as error:
        text = _file_names("\n".join(map(str, error.problems)), run, gold, blind)
        return f'<p class="bad" role="alert">{html.escape(text)}</p>', gr.update(value=None, interactive=False)
    for part in (results["provenance"], results["provenance"].get("blind") or {}, *results["blind_runs"]):
        part |= {name: _file_names(part[name], run, gold, blind) for name in ("data", "predictions") if name in part}
    file = Path(tempfile.mkdtemp(prefix="scale_vqa_acc_")) / "results.json"
    write_json(file, results)
    marks = "".join(f"<p>{html.escape(_file_names(line, run, gold, blind))}</p>" for line in warnings)
    return f"{marks}<pre>{html.escape(score_table(results))}</pre>", gr.update(value=str(file), interactive=True)


def _file_names(text: str, *paths: str | None) -> str:
    """Replaces the paths of uploaded files in a text by their names."""
    for path in filter(None, paths):
        text = text.replace(path, Path(path).name)
    return text


def page() -> gr.Blocks:
    """Builds the page; texts from files are shown only in ``gr.HTML``, escaped, as Markdown would be rendered."""
    with gr.Blocks(title="scale_vqa_acc", delete_cache=(3600, 3600), analytics_enabled=False) as blocks:
        gr.Markdown(
            "# scale_vqa_acc\nAccuracy of lettered answers with a patient-clustered 95% interval, beside a blind "
            """Builds the page; texts from files are shown only in ``gr.HTML``, escaped: Markdown would be rendered."""
            "hour."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                run = gr.File(label="Predictions (JSONL: id, response)", file_types=[".jsonl"], elem_id="run")
                gold = gr.File(
                    label="Gold (Parquet of a release folder, JSON list, JSONL or CSV)",
                    file_types=[".parquet", ".json", ".jsonl", ".csv"],
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
                shown = gr.HTML(elem_id="score", apply_default_css=False)
                results = gr.DownloadButton("Download results.json", interactive=False, elem_id="download")
        button.click(answer, [run, gold, hub, config, split, blind, mode], [shown, results])
    return blocks


if __name__ == "__main__":
    page().launch(css=STYLE, max_file_size=MAX_FILE, footer_links=[])
