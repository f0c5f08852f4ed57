"""Scale-VQA: question schema, metric, leakage audit, controls and model backends.

Importing this package is cheap (no torch, datasets or numpy): each function imports what it needs when it is called.
The functions do what the corresponding commands do, and return plain values that pandas accepts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from scale_vqa_eval.questions import Question

__version__ = "0.1.0"
__all__ = ["audit_questions", "build_control", "compare_predictions", "read_questions", "score_predictions"]


def read_questions(data: str | Path, split: str | None = None, config: str | None = None) -> list[Question]:
    """Reads multiple-choice questions without their images.

    Args:
        data: release folder, ``.parquet``, ``.json``, ``.jsonl`` or ``.csv`` file, Hub id, or the name ``scale-vqa``.
        split: split to read, or None for all splits.
        config: config of a release folder or Hub id, or None for its default.

    Returns:
        The questions in the order of the data. They are dataclasses: ``pandas.DataFrame(questions)`` makes a table.

    Raises:
        InputError: lists every problem of the data.
    """
    from scale_vqa_eval.questions import read_questions as read

    return read(data, split, config)


def audit_questions(questions: Sequence[Question], seed: int = 0, detailed: bool = False) -> dict[str, Any]:
    """Measures the accuracy of text-only baselines, as ``scale-vqa audit`` does, but does not compare images.

    Args:
        questions: the questions, as ``read_questions`` returns them.
        seed: seed of folds and forests; the same seed gives the same report.
        detailed: add the learning curve, the text-only score of every question and the evidence for the worst ones.

    Returns:
        The report: ``verdict`` ("clean", "leaks" or "inconclusive"), ``strongest``, ``probes`` (rows with name,
        accuracy and its 95% interval), ``defects`` (rows), and the other fields that docs/audit.md describes.

    Raises:
        InputError: if there are no questions.
    """
    from scale_vqa_eval.audit.report import audit_questions as audit
    from scale_vqa_eval.errors import InputError, Problem

    if not questions:
        raise InputError(Problem("questions", "at least one question", "none", "check the file or the filter"))
    return audit(questions, seed, detailed=detailed)


def score_predictions(
    predictions: str | Path,
    data: str | Path,
    split: str | None = None,
    config: str | None = None,
    blind: str | Path | None = None,
    mode: Literal["reference", "strict"] = "reference",
) -> dict[str, Any]:
    """Scores a predictions file, as ``scale-vqa score`` does.

    Args:
        predictions: JSONL file with ``id`` and ``response`` in each line.
        data: source of the questions; see ``read_questions``.
        split: split to score, or None for all splits.
        config: config of a release folder or Hub id, or None for its default.
        blind: predictions of the same model without images.
        mode: parsing rule, ``reference`` (the published rule) or ``strict``.

    Returns:
        ``accuracy`` (0 to 1) with its patient-clustered 95% interval, ``by_dimension``, ``warnings``, and the other
        fields that docs/metric.md describes.

    Raises:
        InputError: lists every problem of the files, and every id that does not match the questions.
    """
    from scale_vqa_eval.scoring.score import score_files

    _check_name("mode", mode, ("reference", "strict"))
    blind_runs = [blind] if blind is not None else []
    results, warnings = score_files(predictions, str(data), split, config, mode, blind=blind_runs)
    return results | {"warnings": warnings}


def compare_predictions(
    a: str | Path,
    b: str | Path,
    data: str | Path,
    split: str | None = None,
    config: str | None = None,
    mode: Literal["reference", "strict"] = "reference",
) -> dict[str, Any]:
    """Compares two predictions files by a paired, patient-clustered test, as ``scale-vqa compare`` does.

    Args:
        a: a predictions file.
        b: a predictions file on the same questions.
        data: source of the questions; see ``read_questions``.
        split: split to compare on, or None for all splits.
        config: config of a release folder or Hub id, or None for its default.
        mode: parsing rule, ``reference`` (the published rule) or ``strict``.

    Returns:
        ``difference`` (accuracy of a minus accuracy of b), ``interval`` (95%), ``p_value``, and the same figures in
        ``by_dimension``.

    Raises:
        InputError: lists every problem of the files, and every id that does not match the questions.
    """
    from scale_vqa_eval.questions import read_questions as read
    from scale_vqa_eval.scoring.predictions import join, read_predictions
    from scale_vqa_eval.scoring.score import compare_answers

    _check_name("mode", mode, ("reference", "strict"))
    questions = read(data, split, config)
    return compare_answers(*(join(read_predictions(path), questions, mode) for path in (a, b)))


def build_control(
    data: str | Path,
    method: Literal["exchange", "block-exchange"] = "exchange",
    split: str | None = None,
    config: str | None = None,
    seed: int = 42,
    allow_unknown_patients: bool = False,
) -> list[dict[str, Any]]:
    """Builds exchange groups: four questions with the same text, each option being right for one of them.

    Args:
        data: source of the questions; see ``read_questions``.
        method: as in ``scale-vqa control --method``; only the command can build a screened split.
        split: split to use, or None for all splits.
        config: config of a release folder or Hub id, or None for its default.
        seed: seed of the letters and of ties.
        allow_unknown_patients: count a question without a patient and slide as its own patient.

    Returns:
        Rows in the authors' format, with the group in ``extra_info.group``; an empty list if no group is possible.

    Raises:
        InputError: lists every problem of the data; also if a question has no patient, because the four questions of
            a group must come from different patients.
    """
    from scale_vqa_eval.controls.block_exchange import block_exchange
    from scale_vqa_eval.controls.exchange import PairRules, exchange
    from scale_vqa_eval.controls.output import authors_row, exchange_edits, read_source
    from scale_vqa_eval.errors import InputError, Problem

    builders = {"exchange": exchange, "block-exchange": block_exchange}
    _check_name("method", method, builders)
    source = read_source(data, split, config)
    unknown = sum(question.patient is None for question in source.questions)
    if unknown and not allow_unknown_patients:
        found = f"none in {unknown} of {len(source.questions)} questions"
        hint = "add wsi_name or patient_id, or set allow_unknown_patients"
        raise InputError(Problem(str(data), "a patient or slide for every question", found, hint))
    groups = builders[method](PairRules(source.questions), seed).groups
    edits = exchange_edits(source.questions, groups, False)
    return [authors_row(source.questions[row], source.rows[row], edits[row]) for row in sorted(edits)]


def _check_name(argument: str, value: object, names: Collection[str]) -> None:
    """Raises InputError if an argument is not one of the names."""
    from scale_vqa_eval.errors import InputError, Problem, did_you_mean, preview

    if value not in names:
        raise InputError(Problem(argument, f"one of {', '.join(names)}", preview(value), did_you_mean(value, names)))
