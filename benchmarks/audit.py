"""Cost of the audit's battery: seconds and memory on 1,000, 10,000 and 100,000 generated questions, beside a peer.

    python benchmarks/audit.py [--sizes 1000 10000 100000] [--peer-sizes 1000 10000] [--json OUT]

Each measurement runs in a process of its own, so that its peak memory is its own. The peer is what one would write
with scikit-learn alone: a TF-IDF vocabulary centred within each question (dense columns of the question), logistic
regression, and a Python loop over the questions for the same options geometry, with a random forest; the same five
folds by patient and three partitions. Generated questions are stand-ins: they carry the leak of "one feature changed"
in words that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scale_vqa_eval.audit.battery import run_battery
from scale_vqa_eval.audit.clusters import clusters_of, make_folds
from scale_vqa_eval.audit.probe import evaluate_probe
from scale_vqa_eval.questions import Question

DIMENSIONS = ("Confirmation", "Correspondence", "Diagnosis", "Explanation", "Localization")


def generated_questions(n: int, seed: int = 0) -> list[Question]:
    """Makes n questions of about 25 questions a patient: three wrong options change one word of the right one each."""
    rng = np.random.default_rng(seed)
    words = np.array([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "eo", "i", "ou") for c in _ENDS])
    rarity = 1.0 / np.arange(1, len(words) + 1)
    draws = rng.choice(len(words), size=(n, 24), p=rarity / rarity.sum())
    gold, places = rng.integers(0, 4, n), rng.integers(0, 20, (n, 4))
    questions = []
    for row in range(n):
        right = list(words[draws[row, :20]])
        options = []
        for option in range(4):
            text = right.copy()
            if option != gold[row]:
                text[places[row, option]] = words[draws[row, 20 + option]]
            options.append(" ".join(text))
        dimension = DIMENSIONS[row % 5]
        stem = f"Which option fits the {dimension.lower()} of {right[0]} and {right[1]}?"
        patient = f"patient-{row // 25}"
        questions.append(Question(f"q{row}", stem, tuple(options), int(gold[row]), dimension, patient, patient))
    return questions


_ENDS = tuple(
    f"{a}{b}" for a in ("lin", "ros", "tem", "vak", "ser", "nod", "mit", "cel") for b in ("", "al", "ic", "oma")
)


def peer_battery(questions: Sequence[Question]) -> float:
    """Returns the accuracy of the peer's summed votes over three partitions."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [text for question in questions for text in question.options]
    owner = np.repeat(np.arange(len(questions)), [len(question.options) for question in questions])
    right = np.concatenate([np.arange(len(q.options)) == q.answer for q in questions]).astype(int)
    geometry = np.array([row for question in questions for row in _peer_geometry(question)])
    tfidf = TfidfVectorizer(ngram_range=(1, 3), min_df=2, sublinear_tf=True).fit_transform(texts).tocsr()
    mean = _question_means(tfidf, owner)
    centred = (tfidf - mean[owner]).tocsr()
    votes = np.zeros(len(texts))
    for partition, folds in enumerate(make_folds(clusters_of(questions).ids, 0, 3)):
        for fold in range(5):
            train, test = folds[owner] != fold, folds[owner] == fold
            forest = RandomForestClassifier(100, min_samples_leaf=3, n_jobs=2, random_state=partition * 5 + fold)
            forest.fit(geometry[train], right[train])
            words = LogisticRegression(max_iter=200).fit(centred[train], right[train])
            votes[test] += _shares(forest.predict_proba(geometry[test])[:, 1], owner[test])
            votes[test] += _shares(np.exp(words.decision_function(centred[test])), owner[test])
    best = np.maximum.reduceat(votes, np.flatnonzero(np.diff(owner, prepend=-1)))
    return float((votes[right == 1] >= best).mean())


def _peer_geometry(question: Question) -> list[list[float]]:
    sets = [set(text.lower().split()) for text in question.options]
    rows = []
    for at, own in enumerate(sets):
        others = [len(own & other) / max(1, len(own | other)) for place, other in enumerate(sets) if place != at]
        text = question.options[at].lower()
        negations = sum(word in ("no", "not", "without", "absent", "lacks") for word in text.split())
        rows.append([float(np.mean(others)), min(others), max(others), len(text), len(own), negations])
    centre = np.mean(rows, axis=0)
    ranks = np.argsort(np.argsort(rows, axis=0), axis=0)
    return [[*row, *(np.array(row) - centre), *rank] for row, rank in zip(rows, ranks, strict=True)]


def _question_means(matrix, owner):
    from scipy import sparse

    share = 1.0 / np.bincount(owner)[owner]
    return sparse.csr_matrix((share, (owner, np.arange(len(owner))))) @ matrix


def _shares(votes: np.ndarray, owner: np.ndarray) -> np.ndarray:
    return votes / np.bincount(owner, weights=votes)[owner]


def measure(what: str, n: int) -> dict[str, float]:
    """Runs one battery on n generated questions in this process."""
    questions = generated_questions(n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    if what == "peer":
        strongest = peer_battery(questions)
    else:
        units = clusters_of(questions)
        strongest = max(evaluate_probe(r, questions, units).accuracy for r in run_battery(questions))
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "questions_mb": before / 1024,
        "strongest": strongest,
    }


def main() -> None:
    """Prints a table; the ratio is the cost per question against the size before it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--peer-sizes", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "N"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        print(json.dumps(measure(wanted.one[0], int(wanted.one[1]))))
        return
    rows = []
    print("battery  questions  seconds  CPU s  ms/question  ratio  peak MB  (before)  strongest")
    for what, sizes in (("ours", wanted.sizes), ("peer", wanted.peer_sizes)):
        last = None
        for n in sizes:
            run = [sys.executable, __file__, "--one", what, str(n)]
            found = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
            each = 1000 * found["cpu_seconds"] / n
            ratio = f"{each / last:5.2f}" if last else "    -"
            last = each
            rows.append({"battery": what, "n": n, "ms_per_question": each, **found})
            print(
                f"{what:7s}  {n:9d}  {found['seconds']:7.1f}  {found['cpu_seconds']:5.0f}  {each:11.2f}  {ratio}  "
                f"{found['peak_mb']:7.0f}  {found['questions_mb']:8.0f}  {found['strongest']:9.3f}",
                flush=True,
            )
    if wanted.json:
        wanted.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
