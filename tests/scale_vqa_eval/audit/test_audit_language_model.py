"""Option likelihood by a real causal model (SmolLM2-135M): right to the nat, whatever the batch, and resumable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import smollm
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from scale_vqa_eval.audit import language_model
from scale_vqa_eval.audit.language_model import CausalLM, language_model_probes, option_likelihoods
from scale_vqa_eval.audit.probe import credit
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question

GENERAL = [
    ("What colour is the sky on a clear day?", ("blue", "the square root of seven", "quickly", "because of Tuesday")),
    (
        "Which organ pumps blood through the body?",
        ("the pencil", "the heart", "of running under", "a green idea, since"),
    ),
    ("Where do fish live?", ("in the ninth arithmetic", "in a verb", "in the water", "in between the sleep")),
    ("What do bees make?", ("gearboxes of noon", "seldom", "a parliament of seven", "honey")),
]


def general(count: int = 4) -> list[Question]:
    return [Question(f"g{n}", text, options, n) for n, (text, options) in enumerate(GENERAL[:count])]


def one_by_one(context: str, option: str) -> float:
    """The definition, without batches: the sum over the option's tokens, each from a forward pass of its own text."""
    lm = smollm()
    before, both = (lm.tokenizer(text)["input_ids"] for text in (context, f"{context} {option}"))
    assert both[: len(before)] == before
    with torch.inference_mode():
        chances = lm.model(torch.tensor([both])).logits[0].log_softmax(-1)
    return sum(float(chances[place - 1, both[place]]) for place in range(len(before), len(both)))


def test_batched_likelihoods_are_those_of_the_definition() -> None:
    groups = [(f"Question: {text}\nAnswer:", options) for text, options in GENERAL[:2]]
    groups.append(("Short:", ("x", "a far longer option, so that the batch is padded by much, on and on", "é≥ 7 µm")))
    for (context, options), likelihoods in zip(groups, option_likelihoods(smollm(), groups), strict=True):
        expected = [one_by_one(context, option) for option in options]
        assert [total for total, _ in likelihoods] == pytest.approx(expected, abs=2e-3)


def test_the_size_of_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [(f"Question: {text}\nAnswer:", options) for text, options in GENERAL[:2]]
    whole = option_likelihoods(smollm(), groups)
    monkeypatch.setattr(language_model, "_LOGITS_BYTES", 1)
    single = option_likelihoods(smollm(), groups)
    for left, right in zip(whole, single, strict=True):
        assert np.array(left) == pytest.approx(np.array(right), abs=2e-3)


def test_a_token_across_the_boundary_moves_the_start_of_every_option() -> None:
    """``: d`` is one token of this tokeniser: the colon then belongs to the options, to the other one as well."""
    letters = {letter: number for number, letter in enumerate("Q: dogcat")}
    merges = [(" ", "d"), (":", " d")]
    vocabulary = letters | {" d": len(letters), ": d": len(letters) + 1}
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, merges)))
    lm = CausalLM("tiny", "tiny", None, fast, 100, ())
    (dog, dog_start), (cat, cat_start) = language_model._rows(lm, "Q:", ("dog", "cat"))
    assert fast.convert_ids_to_tokens(dog) == ["Q", ": d", "o", "g"]
    assert fast.convert_ids_to_tokens(cat) == ["Q", ":", " ", "c", "a", "t"]
    assert dog_start == cat_start == 1
    ((_, alone),) = language_model._rows(lm, "Q:", ("cat",))
    assert alone == 2


def test_a_model_that_knows_the_answer_is_right_and_the_scores_differ_in_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = smollm()  # loaded before its loader is replaced
    monkeypatch.setattr(language_model, "load_causal_lm", lambda spec: model)
    raw, per_token, pmi = language_model_probes(general(), "x", progress=False)
    assert [probe.name.split(" (")[0] for probe in (raw, per_token, pmi)] == [
        "likelihood",
        "likelihood per token",
        "likelihood PMI",
    ]
    assert credit(pmi, general()).mean() == 1.0
    tokens = raw.scores / per_token.scores
    assert tokens == pytest.approx(np.round(tokens)), "the score per token is the sum over a whole number of tokens"
    neutral = [one_by_one("Question: Which statement is right?\nAnswer:", option) for option in GENERAL[0][1]]
    assert raw.scores[0] - pmi.scores[0] == pytest.approx(np.array(neutral), abs=2e-3)


def test_an_interrupted_run_goes_on_and_a_finished_one_computes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = smollm()  # loaded before its loader is replaced
    monkeypatch.setattr(language_model, "load_causal_lm", lambda spec: model)
    scored: list[int] = []

    def counted(lm: object, groups: list[object]) -> list[object]:
        scored.append(len(groups))
        if len(scored) == 2:
            raise KeyboardInterrupt
        return option_likelihoods(lm, groups)  # type: ignore[arg-type]

    monkeypatch.setattr(language_model, "option_likelihoods", counted)
    monkeypatch.setattr(language_model, "_QUESTIONS_A_ROUND", 2)
    cache = tmp_path / "lm.jsonl"
    with pytest.raises(KeyboardInterrupt):
        language_model_probes(general(2), "x", cache, progress=False)
    first = language_model_probes(general(2), "x", cache, progress=False)
    assert scored == [2, 2, 2], "the two groups on disk were not computed again"
    again = language_model_probes(general(2), "x", cache, progress=False)
    assert scored == [2, 2, 2]
    assert [probe.scores.tolist() for probe in again] == [probe.scores.tolist() for probe in first]
    assert all(set(json.loads(line)) == {"key", "likelihoods"} for line in cache.read_text().splitlines())


def test_questions_with_other_numbers_of_options_and_repeated_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smollm()  # loaded before its loader is replaced
    monkeypatch.setattr(language_model, "load_causal_lm", lambda spec: model)
    items = [
        Question("a", "Is water wet?", ("Yes", "No"), 0),
        Question("b", "Pick {one}.", ("x", "y {z}", "w"), 2),
        Question("c", "Is water wet?", ("Yes", "No"), 1),
    ]
    raw, *_ = language_model_probes(items, "x", progress=False)
    assert raw.scores.shape == (3, 3)
    assert np.isinf(raw.scores).tolist() == [[False, False, True], [False] * 3, [False, False, True]]
    assert raw.scores[0].tolist() == raw.scores[2].tolist()


def test_real_questions_get_finite_scores(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scale_vqa_eval.questions import read_questions

    model = smollm()  # loaded before its loader is replaced
    monkeypatch.setattr(language_model, "load_causal_lm", lambda spec: model)
    items = read_questions(shared / "other_benchmarks" / "multipathqa_expert.csv")[:8]
    for probe in language_model_probes(items, "x", progress=False):
        assert np.isfinite(probe.scores[:, :2]).all()
        assert (probe.scores[np.isfinite(probe.scores)] < 60).all()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for spec in (str(tmp_path), f"{tmp_path}#missing.gguf"):
        with pytest.raises(InputError, match="--lm"):
            language_model_probes(general(1), spec, progress=False)


def test_an_option_longer_than_the_model_reads_is_refused_and_a_long_question_is_cut_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import dataclasses

    small = dataclasses.replace(smollm(), positions=40)
    monkeypatch.setattr(language_model, "load_causal_lm", lambda spec: small)
    long_question = Question("q", "word " * 60, ("one", "two"), 0)
    (raw, *_) = language_model_probes([long_question], "x", progress=False)
    assert np.isfinite(raw.scores).all()
    assert "1 questions were longer" in raw.note
    with pytest.raises(InputError, match="fewer than 40 tokens"):
        language_model_probes([Question("q", "Why?", ("word " * 60, "two"), 0)], "x", progress=False)
