"""The Python API: the page that documents it runs, and what it returns is what the commands return."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

import scale_vqa_eval
from scale_vqa_eval.errors import InputError

TABLE = [{"question": "?", "options": ["x", "y"], "answer": "A"}]


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert "100% of 48 questions, 12 patients" in done.stdout


def test_every_function_is_documented_typed_and_named_on_the_page() -> None:
    page = (ROOT / "docs/api.md").read_text()
    for name in scale_vqa_eval.__all__:
        function = getattr(scale_vqa_eval, name)
        assert f"`{name}(" in page
        assert "return" in function.__annotations__
        assert "Returns:" in function.__doc__


def test_exchange_needs_patients(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "?", "options": ["x", "y"], "answer": "A"}\n' * 4)
    with pytest.raises(InputError, match="none in 4 of 4 questions"):
        scale_vqa_eval.build_control(tmp_path / "q.jsonl")


def test_wrong_arguments_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one question"):
        scale_vqa_eval.audit_questions([])
    for call in (scale_vqa_eval.score_predictions, scale_vqa_eval.compare_predictions):
        with pytest.raises(InputError, match="one of reference, strict, found 'stict'; did you mean 'strict'"):
            call(*[tmp_path / "missing"] * (3 if call is scale_vqa_eval.compare_predictions else 2), mode="stict")
    with pytest.raises(InputError, match="one of exchange, block-exchange"):
        scale_vqa_eval.build_control(tmp_path / "missing", method="screened")
