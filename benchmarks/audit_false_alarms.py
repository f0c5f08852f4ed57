"""False alarms and power of the audit's verdict: files with nothing to leak, shuffled answers, planted leaks.

    python benchmarks/audit_false_alarms.py [--runs 100] [--kinds clean tiny few-slides uneven copies one-slide]
    python benchmarks/audit_false_alarms.py --data val.json --kinds redrawn permuted
    python benchmarks/audit_false_alarms.py --power [--sizes 200 500 1005] [--leaks 0 5 10] [--runs 20]

Each run is a new file (or new gold answers) with a seed of its own. The stated rate of false alarms is 5% at most. A
light configuration (one partition, 20 trees) stands in for the full one: it has the same folds and the same tests. A
leak of L points is planted by making the most central option gold in a share of the questions that gives the medoid
probe 25% + L points of accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import stats

from scale_vqa_eval.audit.battery import read_features, redraw_gold, run_battery
from scale_vqa_eval.audit.clusters import clusters_of
from scale_vqa_eval.audit.joint_reader import joint_probes
from scale_vqa_eval.audit.probe import evaluate_probe, picked
from scale_vqa_eval.audit.text_features import TextFeatures
from scale_vqa_eval.audit.verdict import ALPHA, SliceVerdict, reach_verdict
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
    answers = np.random.default_rng(seed).permutation([question.answer for question in questions])
    return [replace(q, answer=int(gold)) for q, gold in zip(questions, answers, strict=True)]


def planted(questions: list[Question], leak: float, seed: int) -> list[Question]:
    """Redraws the gold answers so that the most central option is right ``leak`` (a share) above chance."""
    rng = np.random.default_rng([seed, 11])
    (medoid, *_) = run_battery(questions, families=["similarity"])
    drawn = redraw_gold(questions, seed)
    share = leak / (1.0 - 0.25)
    return [
        replace(question, answer=int(pick)) if rng.random() < share else question
        for question, pick in zip(drawn, picked(medoid), strict=True)
    ]


def verdict_of(questions: list[Question], seed: int, texts: TextFeatures | None = None) -> SliceVerdict:
    """Returns the verdict over all questions; ``leaks`` also where a dimension leaks."""
    results = [*run_battery(questions, seed, partitions=1, features=texts), *joint_probes(questions, seed, 1)]
    clusters = clusters_of(questions)
    found = reach_verdict([evaluate_probe(r, questions, None if r.joint else clusters) for r in results])
    return replace(found.whole, verdict=found.verdict)


def print_power(sizes: list[int], leaks: list[float], runs: int) -> None:
    """Prints a row for each size and planted leak: how often each verdict was reached, and the detectable leak."""
    print("questions  slides  planted, points  leaks  clean  inconclusive  detectable, points (mean)", flush=True)
    for size in sizes:
        slides = max(8, round(size * 37 / 1005))
        for leak in leaks:
            found = []
            for seed in range(runs):
                questions = planted(clean(seed, size, slides, 5), leak / 100, seed)
                found.append(verdict_of(questions, seed))
            counts = [sum(one.verdict == kind for one in found) for kind in ("leaks", "clean", "inconclusive")]
            detectable = 100 * float(np.mean([one.minimum_detectable_leak for one in found]))
            row = f"{size:9d}  {slides:6d}  {leak:15.0f}  {counts[0]:5d}  {counts[1]:5d}  {counts[2]:12d}"
            print(f"{row}  {detectable:.1f}", flush=True)


def main() -> None:
    """Prints a row for each kind: files called leaking, and how many the stated rate allows (99% of the time)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS, "redrawn", "permuted"], default=list(KINDS))
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--data", help="a file of four-option questions for the kinds redrawn and permuted")
    parser.add_argument("--power", action="store_true", help="print the power table instead")
    parser.add_argument("--sizes", type=int, nargs="*", default=[200, 500, 1005])
    parser.add_argument("--leaks", type=float, nargs="*", default=[0, 5, 10])
    options = parser.parse_args()
    if options.power:
        print_power(options.sizes, options.leaks, options.runs)
        return
    real = read_questions(options.data) if options.data else []
    texts = read_features(real) if real else None
    allowed = int(stats.binom.ppf(0.99, options.runs, ALPHA))
    for kind in options.kinds:
        alarms = 0
        about = KINDS[kind][0] if kind in KINDS else f"{options.data}, gold answers {kind}"
        for seed in range(options.runs):
            if kind in KINDS:
                found = verdict_of(KINDS[kind][1](seed), seed)
            else:
                found = verdict_of((redraw_gold if kind == "redrawn" else permuted)(real, seed), seed, texts)
            alarms += found.verdict == "leaks"
        print(
            f"{kind:10s}  {alarms:3d} of {options.runs} called leaking (at most {allowed} expected)  {about}",
            flush=True,
        )


if __name__ == "__main__":
    main()
