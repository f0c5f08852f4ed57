"""The Space's page: rows of responses and gold letters in, the score out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio as gr

FIELDS = ("response", "reference", "dimension", "cluster", "group", "blind")
EXAMPLE = [
    {
        "response": "<think>Nests at 10x, pleomorphic nuclei at 200x.</think> <answer>B</answer>",
        "reference": "B",
        "dimension": "Diagnosis",
        "cluster": "patient 1",
        "blind": "<answer>A</answer>",
    },
    {
        "response": "<answer>C</answer>",
        "reference": "A",
        "dimension": "Localization",
        "cluster": "patient 2",
        "blind": "<answer>A</answer>",
    },
    {
        "response": "The answer is D.",
        "reference": "D",
        "dimension": "Diagnosis",
        "cluster": "patient 3",
        "blind": None,
    },
]

metric = evaluate.load(str(Path(__file__).with_name("scale_vqa_acc.py")))


def score(text: str, mode: str, options: float) -> dict[str, Any]:
    """Scores rows given as a JSON list; what is wrong with them is shown on the page."""
    try:
        rows = json.loads(text)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("give a JSON list of objects, one a response")
        columns = {field: [row.get(field) for row in rows] for field in FIELDS if any(field in row for row in rows)}
        predictions, references = columns.pop("response"), columns.pop("reference")
        figures: dict[str, Any] = metric.compute(
            predictions=predictions, references=references, mode=mode, options=int(options), **columns
        )
    except KeyError as error:
        raise gr.Error(f"every row needs the field {error}") from error
    except ValueError as error:
        raise gr.Error(str(error)) from error
    return figures


def page() -> gr.Blocks:
    """Builds the page."""
    with gr.Blocks(title="scale_vqa_acc") as blocks:
        gr.Markdown(
            "# scale_vqa_acc\nAccuracy of lettered answers with a patient-clustered 95% interval, beside a blind "
            f"control. One JSON object a response, with {', '.join(FIELDS[:2])} and, as you have them, "
            f"{', '.join(FIELDS[2:])}. What cannot be read is wrong and counted, never guessed."
        )
        with gr.Row():
            with gr.Column():
                rows = gr.Code(json.dumps(EXAMPLE, indent=1), language="json", label="Rows", max_lines=30)
                mode = gr.Radio(["reference", "strict"], value="reference", label="Parsing")
                options = gr.Number(4, precision=0, minimum=2, maximum=26, label="Options per question")
                button = gr.Button("Score", variant="primary")
            figures = gr.JSON(label="Score", max_height=None)
        button.click(score, [rows, mode, options], figures)
    return blocks


if __name__ == "__main__":
    page().launch()
