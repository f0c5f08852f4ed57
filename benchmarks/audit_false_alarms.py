"""How often the audit calls a file leaking that has nothing to leak: generated files, shuffled golds of a real one.

    python benchmarks/audit_false_alarms.py [--runs 100] [--kinds clean tiny few-slides uneven copies one-slide]
    python benchmarks/audit_false_alarms.py --data val.json --kinds redrawn permuted

Each run is a new file (or new golds) with a seed of its own. The stated rate is 5% at most. A light configuration (one
partition, 30 trees) stands in for the full one: it has the same folds and the same tests.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import stats

from scale_vqa_eval.audit import fitted_probes
from scale_vqa_eval.audit.battery import read_features, redraw_gold, run_battery
from scale_vqa_eval.audit.clusters import clusters_of
from scale_vqa_eval.audit.probe import evaluate_probe
from scale_vqa_eval.audit.text_features import TextFeatures
from scale_vqa_eval.audit.verdict import ALPHA, reach_verdict
from scale_vqa_eval.questions import Question, read_questions

WORDS = np.array([f"word{number}" for number in range(300)])
FREQUENCY = 1.0 / np.arange(1, 301)
FREQUENCY /= FREQUENCY.sum()


def clean(
    seed: int, n: int, slides: int, dimensions: int, uneven: bool = False, copies: float = 0.0
) -> list[Question]:
    """Options that share six words and differ in two, golds drawn evenly.

    Args:
        seed: of the file.
        n: questions.
        slides: slides that the questions are drawn from, evenly, or with weights 1, 1/2, 1/3, ... if ``uneven``.
        dimensions: kinds of question, in turn.
        uneven: see ``slides``.
        copies: share of questions that repeat one text and gold of their slide.
    """
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, slides + 1) if uneven else np.ones(slides)
    drawn = rng.choice(slides, n, p=weights / weights.sum())
    first: dict[int, tuple[tuple[str, ...], int]] = {}
    questions = []
    for row in range(n):
        core = rng.choice(WORDS, 6, p=FREQUENCY)
        options = tuple(" ".join([*core, *rng.choice(WORDS, 2, p=FREQUENCY)]) for _ in range(4))
        one = (options, int(rng.integers(4)))
        if rng.random() < copies:
            one = first.setdefault(int(drawn[row]), one)
        slide = f"slide-{drawn[row]}"
        questions.append(Question(f"q{row}", "Which?", *one, f"dimension-{row % dimensions}", slide, slide))
    return questions


KINDS: dict[str, tuple[str, Callable[[int], list[Question]]]] = {
    "clean": ("300 questions, 20 slides, 5 dimensions", lambda seed: clean(seed, 300, 20, 5)),
    "tiny": ("18 questions, 6 slides, 5 dimensions", lambda seed: clean(seed, 18, 6, 5)),
    "few-slides": ("120 questions, 3 slides, 3 dimensions", lambda seed: clean(seed, 120, 3, 3)),
    "uneven": ("200 questions, 12 slides of uneven size", lambda seed: clean(seed, 200, 12, 5, uneven=True)),
    "copies": (
        "200 questions, 70% repeat their slide's text and gold",
        lambda seed: clean(seed, 200, 15, 5, copies=0.7),
    ),
    "one-slide": ("60 questions of one slide", lambda seed: clean(seed, 60, 1, 2)),
}


def permuted(questions: list[Question], seed: int) -> list[Question]:
    """Returns the questions with their gold letters shuffled among them."""
    golds = np.random.default_rng(seed).permutation([question.answer for question in questions])
    return [replace(q, answer=int(gold)) for q, gold in zip(questions, golds, strict=True)]


def leaks(questions: list[Question], seed: int, texts: TextFeatures | None = None) -> bool:
    """Says whether the audit would call the questions leaking."""
    units = clusters_of(questions)
    results = run_battery(questions, seed, partitions=1, features=texts)
    return reach_verdict([evaluate_probe(result, questions, units) for result in results]).verdict == "leaks"


def main() -> None:
    """Prints a row a kind: files, those called leaking, and how many the stated rate allows (99% of the time)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS, "redrawn", "permuted"], default=list(KINDS))
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--data", help="a file of four-option questions for the kinds redrawn and permuted")
    wanted = parser.parse_args()
    fitted_probes.TREES = 30  # type: ignore[misc]
    real = read_questions(wanted.data) if wanted.data else []
    texts = read_features(real) if real else None
    allowed = int(stats.binom.ppf(0.99, wanted.runs, ALPHA))
    for kind in wanted.kinds:
        if kind in KINDS:
            about, make = KINDS[kind]
            alarms = sum(leaks(make(seed), seed) for seed in range(wanted.runs))
        else:
            about, change = f"{wanted.data}, golds {kind}", redraw_gold if kind == "redrawn" else permuted
            alarms = sum(leaks(change(real, seed), seed, texts) for seed in range(wanted.runs))
        print(
            f"{kind:10s}  {alarms:3d} of {wanted.runs} called leaking (at most {allowed} expected)  {about}",
            flush=True,
        )


if __name__ == "__main__":
    main()
