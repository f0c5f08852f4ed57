"""What a dataset's splits share, how its letters lie, and what is missing: checks of the data, without a probe.

Patients, slides, paths, image paths, question texts and the images themselves are compared across splits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from scale_vqa_eval.audit.defects import normalised
from scale_vqa_eval.audit.image_overlap import EXAMPLES, image_overlap
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.scale_vqa_acc.clustered import holm
from scale_vqa_eval.schema import LETTERS

_LEVELS: dict[str, Callable[[Question], list[Hashable]]] = {
    "patients": lambda question: [question.patient] if question.patient else [],
    "slides": lambda question: [question.slide] if question.slide else [],
    "paths": lambda question: [f"{question.slide or ''}::{question.path_id}"] if question.path_id else [],
    "image_paths": lambda question: [PurePosixPath(path.replace("\\", "/")).as_posix() for _, path in question.images],
}


def find_overlap(
    data: str | Path, config: str | None = None, images: bool = True, progress: bool = True
) -> dict[str, Any]:
    """Checks all splits of a dataset against each other, and each by itself.

    Args:
        data: as for ``read_questions``.
        config: config of a release folder.
        images: compare the images too, where the data holds them.
        progress: show a bar on standard error.

    Returns:
        Plain values: ``splits`` (questions of each), ``patients``, ``slides``, ``paths``, ``image_paths`` (how many
        are named, how many stand in two splits, examples), ``texts`` (repeated questions), ``images`` (see
        ``image_overlap``; None where none were compared), ``letters`` (chi-square by split and dimension), ``nulls``,
        ``leaks`` (a sentence for each thing that two splits share) and ``notes`` (what was not checked, and why).

    Raises:
        InputError: where the data cannot be read.
    """
    questions = read_questions(data, None, config)
    report: dict[str, Any] = {"splits": dict(Counter(question.split or "all" for question in questions))}
    report |= {level: _shared(questions, names) for level, names in _LEVELS.items()}
    report["texts"] = _repeated_texts(questions)
    report["images"] = image_overlap(data, config, questions, progress) if images else None
    report["letters"] = letter_balance(questions)
    report["nulls"] = _nulls(questions, report["images"])
    report["leaks"] = _leaks(report)
    report["notes"] = _notes(report, questions, images)
    return report


def letter_balance(questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Returns Pearson's chi-square of the gold letters by split, and by split and dimension, Holm-corrected.

    Each question expects 1/k of every letter that it has; degrees of freedom are the letters less one. ``small`` marks
    tests with an expected count below 5, whose p-value is rough.
    """
    from scipy.stats import chisquare

    cells: dict[tuple[str, str | None], list[Question]] = defaultdict(list)
    for question in questions:
        for dimension in dict.fromkeys((None, question.dimension)):
            cells[question.split or "all", dimension].append(question)
    rows: list[dict[str, Any]] = []
    p_values: list[float] = []
    for (split, dimension), members in sorted(cells.items(), key=lambda cell: (cell[0][0], cell[0][1] or "")):
        letters = LETTERS[: max(len(question.options) for question in members)]
        observed = Counter(question.letter for question in members)
        expected = [
            sum(1 / len(question.options) for question in members if place < len(question.options))
            for place in range(len(letters))
        ]
        test = chisquare([observed[letter] for letter in letters], expected)
        p_values.append(float(test.pvalue))
        rows.append(
            {
                "split": split,
                "dimension": dimension,
                "n": len(members),
                "counts": {letter: observed[letter] for letter in letters},
                "chi2": float(test.statistic),
                "p": p_values[-1],
                "small": min(expected) < 5,
            }
        )
    for row, corrected in zip(rows, holm(p_values), strict=True):
        row["p_holm"] = corrected
    return rows


def _shared(questions: Sequence[Question], names: Callable[[Question], list[Hashable]]) -> dict[str, Any]:
    """Counts the things that ``names`` names, and those that stand in more than one split."""
    splits: dict[Hashable, Counter[str]] = defaultdict(Counter)
    naming = 0
    for question in questions:
        found = names(question)
        naming += bool(found)
        for name in found:
            splits[name][question.split or "all"] += 1
    crossing = sorted((str(name), dict(sorted(seen.items()))) for name, seen in splits.items() if len(seen) > 1)
    return {
        "questions_naming": naming,
        "distinct": len(splits),
        "shared": len(crossing),
        "examples": [{"name": name, "questions": seen} for name, seen in crossing[:EXAMPLES]],
    }


def _repeated_texts(questions: Sequence[Question]) -> dict[str, Any]:
    """Finds questions with the same normalised question and options (in any order), across splits and within one.

    Where every option of such a text is gold equally often in each split, it is an exchange set: knowing the text says
    nothing of the answer, and it is counted as ``exchange_sets`` alone.
    """
    same: dict[tuple[str, ...], list[Question]] = defaultdict(list)
    for question in questions:
        options = sorted(normalised(text) or text for text in question.options)
        same[normalised(question.question), *options].append(question)
    crossing: list[list[Question]] = []
    within: list[list[Question]] = []
    exchange = contradicting = 0
    for (_, *options), members in same.items():
        if len(members) < 2:
            continue
        golds: dict[str | None, Counter[str]] = defaultdict(Counter)
        for question in members:
            gold = question.options[question.answer]
            golds[question.split][normalised(gold) or gold] += 1
        if all(len(seen) == len(options) and len(set(seen.values())) == 1 for seen in golds.values()):
            exchange += 1
            continue
        (crossing if len(golds) > 1 else within).append(members)
        contradicting += len(set().union(*golds.values())) > 1
    return {
        "across_splits": len(crossing),
        "within_split": len(within),
        "other_answer": contradicting,
        "exchange_sets": exchange,
        "examples": [
            {
                "question": members[0].question,
                "rows": [{"id": question.id, "split": question.split} for question in _spread(members)],
            }
            for members in [*crossing, *within][:EXAMPLES]
        ],
    }


def _spread(members: Sequence[Question]) -> list[Question]:
    """Returns at most four questions, one of each split first."""
    firsts = list({question.split: question for question in reversed(members)}.values())[::-1]
    return [*firsts, *(question for question in members if question not in firsts)][:4]


def _nulls(questions: Sequence[Question], images: Mapping[str, Any] | None) -> dict[str, Any]:
    """Counts the questions that lack a field, and the views that lack an image."""
    fields = ("dimension", "slide", "patient", "path_id", "rationale")
    missing = {name: sum(getattr(question, name) is None for question in questions) for name in fields}
    views: dict[str, int] = dict(images["nulls"]) if images else {}
    if not views:
        named = Counter(view for question in questions for view, _ in question.images)
        holders = sum(bool(question.images) for question in questions)
        views = {view: holders - count for view, count in sorted(named.items())}
    return {**missing, "views": views}


def _leaks(report: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each kind of thing that two splits share."""
    words = {"patients": "patient", "slides": "slide", "paths": "path", "image_paths": "image path"}
    found = [(report[level]["shared"], f"{noun}(s) in more than one split") for level, noun in words.items()]
    found.append((report["texts"]["across_splits"], "question text(s) with the same options in more than one split"))
    if report["images"]:
        found.append((report["images"]["exact"]["across_splits"], "image(s), pixel by pixel, in more than one split"))
        found.append((report["images"]["near"]["across_splits"], "pair(s) of near-duplicate images across splits"))
    return [f"{count} {what}" for count, what in found if count]


def _notes(report: Mapping[str, Any], questions: Sequence[Question], images: bool) -> list[str]:
    notes = []
    if len(report["splits"]) == 1:
        notes.append("There is one split only: nothing could be compared across splits.")
    for level, what in (("patients", "patient"), ("slides", "slide")):
        lacking = len(questions) - report[level]["questions_naming"]
        if lacking:
            notes.append(f"{lacking} of {len(questions)} questions name no {what}: sharing one would not be seen.")
    if report["images"] is None:
        why = "the file holds none; build a release folder to compare them" if images else "they were left out"
        notes.append(f"No images were compared: {why}.")
    else:
        notes.append(
            "Near duplicates are found after re-encoding, resizing and changes of brightness or colour, not after "
            "mirroring, turning or cropping by more than a few percent."
        )
        if report["images"]["elsewhere"]:
            notes.append(f"{report['images']['elsewhere']} images are named by path only and were not compared.")
    return notes
