"""The notebook runs from top to bottom in a real kernel and shows its plots."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient
from paths import ROOT


def test_the_notebook_runs_and_its_model_needs_the_images(tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "first_hour.ipynb", as_version=4)
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "visual gain" in text and "Leakage-adjusted accuracy" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
