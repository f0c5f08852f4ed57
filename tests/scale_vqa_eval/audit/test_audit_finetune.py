"""A fine-tuned language model learns what gives answers away on unseen slides, and nothing where nothing does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_questions import WORDS, clean_questions
from small_models import smollm_spec

from scale_vqa_eval.audit import language_model as module
from scale_vqa_eval.audit.language_model import CausalLM, finetune_probe
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


def tiny_lm() -> CausalLM:
    """A Llama of two small layers with random weights, whose words are single tokens."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["[UNK]", "Question:", "Which?", "Answer:", "yes", *"ABCD", *(f"{letter}." for letter in "ABCD"), *WORDS]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=64, **sizes))
    return CausalLM("tiny", "tiny", model.eval(), PreTrainedTokenizerFast(tokenizer_object=tokenizer), 64, ())


def test_votes_are_cross_fitted_and_an_interrupted_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, questions, cache = tiny_lm(), short_questions(36), tmp_path / "finetune.jsonl"
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    tuned: list[int] = []
    honest = module._tuned

    def counted(lm: object, chosen: list[Question], seed: int, epochs: int) -> object:
        tuned.append(len(chosen))
        if len(tuned) == 3:
            raise KeyboardInterrupt
        return honest(lm, chosen, seed, epochs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "load_causal_lm", lambda spec, option: lm)
    monkeypatch.setattr(module, "_tuned", counted)
    with pytest.raises(KeyboardInterrupt):
        finetune_probe(questions, "x", folds=3, epochs=1, cache_path=cache, progress=False)
    probe = finetune_probe(questions, "x", folds=3, epochs=1, cache_path=cache, progress=False)
    assert sorted(tuned) == [12, 12, 24, 24, 24, 24], "what was done before the interruption is not done again"
    assert probe.trained and probe.sequential is not None
    assert np.isneginf(probe.sequential).all(axis=1).sum() == 12
    assert probe.probabilities().sum(axis=1) == pytest.approx(np.ones(36))
    assert before.keys() == lm.model.state_dict().keys(), "the adapters are gone"
    assert all(bool((lm.model.state_dict()[name] == value).all()) for name, value in before.items())


@pytest.mark.slow
def test_a_real_small_model_is_tuned_and_scores_every_question() -> None:
    questions = short_questions(12)
    probe = finetune_probe(questions, smollm_spec(), folds=2, epochs=1, progress=False)
    assert np.isfinite(probe.scores).all() and probe.scores.std() > 0
    assert probe.probabilities().sum(axis=1) == pytest.approx(np.ones(12))
    assert probe.name.startswith("fine-tuned (SmolLM2-135M")


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="--finetune"):
        finetune_probe(short_questions(6), str(tmp_path), progress=False)
