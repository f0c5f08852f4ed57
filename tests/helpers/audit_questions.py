"""Generated questions for the audit's tests: with a known leak, without any, and in exchange sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scale_vqa_eval.questions import Question

WORDS = np.array([f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("lin", "ros", "tem", "vak", "ser")])


def leaking_questions(n: int, seed: int = 0, patients: int = 12, dimensions: int = 3, k: int = 4) -> list[Question]:
    """Each wrong option changes one word of the right one: the right one is the centre of the options."""
    rng = np.random.default_rng(seed)
    questions = []
    for row in range(n):
        right = rng.choice(WORDS, 8, replace=False)
        options = []
        gold = int(rng.integers(k))
        for option in range(k):
            text = right.copy()
            if option != gold:
                text[rng.integers(8)] = rng.choice(WORDS)
            options.append(" ".join(text))
        questions.append(_question(row, options, gold, patients, dimensions))
    return questions


def clean_questions(n: int, seed: int = 0, patients: int = 12, dimensions: int = 3, k: int = 4) -> list[Question]:
    """Options and golds drawn at random: the text says nothing of the answer."""
    rng = np.random.default_rng(seed)
    return [
        _question(
            row,
            [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(k)],
            int(rng.integers(k)),
            patients,
            dimensions,
        )
        for row in range(n)
    ]


def exchange_questions(groups: int, seed: int = 0, k: int = 4, patients: int = 12) -> list[Question]:
    """Sets of k items with the same text, each option gold once, of different patients; in shuffled order."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(groups):
        one = clean_questions(1, seed * 1000 + group, k=k)[0]
        for gold, patient in enumerate(rng.choice(patients, k, replace=False)):
            name = f"patient-{patient}"
            dimension = f"dimension-{group % 3}"
            rows.append(replace(one, id=f"{group}-{gold}", answer=gold, dimension=dimension, slide=name, patient=name))
    return [rows[at] for at in rng.permutation(len(rows))]


def block_exchange_questions(blocks: int, paths: int = 3, seed: int = 0) -> list[Question]:
    """Groups of four rows, from the four slides of a block and the four paths of a quadruple; each option gold once.

    Every option holds a word of its own slide, so a reader of the file knows which options go together.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for block, path in np.ndindex(blocks, paths):
        for item in range(2):
            options = [f"{WORDS[4 * block + i]} {' '.join(rng.choice(WORDS[100:], 3))}" for i in range(4)]
            order = rng.permutation(4)
            for slide in range(4):
                name, row_id = f"slide-{block}-{slide}", f"{block}-{path}-{item}-{slide}"
                texts = tuple(options[at] for at in order)
                gold, part = int(np.flatnonzero(order == slide)[0]), f"dimension-{item}"
                rows.append(Question(row_id, "Which?", texts, gold, part, name, name, f"path-{path}"))
    return rows


def _question(row: int, options: list[str], gold: int, patients: int, dimensions: int) -> Question:
    name = f"patient-{row % patients}"
    dimension = f"dimension-{row % dimensions}" if dimensions else None
    return Question(f"q{row}", "Which option fits best?", tuple(options), gold, dimension, name, name)
