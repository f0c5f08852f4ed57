"""A fine-tuned language model learns what gives answers away on unseen slides, and nothing where nothing does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_questions import clean_questions
from small_models import smollm_spec

from scale_vqa_eval.audit import finetune_probe as module
from scale_vqa_eval.audit.finetune_probe import finetune_probe
from scale_vqa_eval.audit.probe import credit
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question


def short_questions(count: int) -> list[Question]:
    """Options of two made-up words; the right one begins with ``yes``."""
    out = []
    for question in clean_questions(count, patients=3):
        words = [" ".join(text.split()[:2]) for text in question.options]
        words[question.answer] = f"yes {words[question.answer]}"
        out.append(replace(question, question="Which?", options=tuple(words)))
    return out


@pytest.mark.slow
def test_a_small_model_learns_the_leak_and_an_interrupted_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions, cache = short_questions(36), tmp_path / "finetune.jsonl"
    tuned: list[int] = []
    honest = module._tuned

    def counted(lm: object, chosen: list[Question], seed: int, epochs: int) -> object:
        tuned.append(len(chosen))
        if len(tuned) == 3:
            raise KeyboardInterrupt
        return honest(lm, chosen, seed, epochs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_tuned", counted)
    with pytest.raises(KeyboardInterrupt):
        finetune_probe(questions, smollm_spec(), folds=3, cache_path=cache, progress=False)
    probe = finetune_probe(questions, smollm_spec(), folds=3, cache_path=cache, progress=False)
    assert sorted(tuned) == sorted([24, 24, 12, 12, 24, 24]), "what was done before the interruption is not done again"
    assert credit(probe, questions).mean() > 0.7
    assert probe.trained and probe.sequential is not None
    assert np.isneginf(probe.sequential).all(axis=1).sum() == 12
    assert probe.probabilities().sum(axis=1) == pytest.approx(np.ones(36))


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="--finetune"):
        finetune_probe(short_questions(6), str(tmp_path), progress=False)
