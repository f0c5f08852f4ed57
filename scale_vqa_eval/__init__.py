"""Scale-VQA: the benchmark's vocabulary, its metric, its leakage audit and its controls.

Importing this package is cheap (no torch, no datasets, no numpy): the functions below import what they need when they
are called. They do what the commands of the same name do and return plain values that pandas takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from scale_vqa_eval.questions import Question

__version__ = "0.1.0"
__all__ = ["audit_questions", "build_control", "compare_predictions", "read_questions", "score_predictions"]


def read_questions(data: str | Path, split: str | None = None, config: str | None = None) -> list[Question]:
    """Reads multiple-choice questions, images left aside.

    Args:
        data: release folder, ``.parquet``, ``.json``, ``.jsonl``, ``.csv``, Hub id, or the bare name ``scale-vqa``.
        split: keep this split only; None keeps all.
        config: config of a release folder or Hub id; None takes its default.

    Returns:
        The questions in the order of the data: dataclasses, so ``pandas.DataFrame(questions)`` is a table of them.

    Raises:
        InputError: with every problem of the data.
    """
    from scale_vqa_eval.questions import read_questions as read

    return read(data, split, config)


def audit_questions(questions: Sequence[Question], seed: int = 0, detailed: bool = False) -> dict[str, Any]:
    """Measures how far text-only baselines get on questions, as ``scale-vqa audit`` does; images are not compared.

    Args:
        questions: the questions, as ``read_questions`` returns them.
        seed: of folds and forests; the same seed gives the same report.
        detailed: add the learning curve, the text-only score of every question and the evidence of the leakiest.

    Returns:
        The report: ``verdict`` ("clean", "leaks" or "inconclusive"), ``strongest``, ``probes`` (a list of rows with
        name, accuracy and its 95% interval), ``defects`` (a list of rows), and what docs/audit.md names further.
    """
    from scale_vqa_eval.audit.report import audit_questions as audit

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
        predictions: JSONL with ``id`` and ``response`` in each line.
        data: what the questions are read from; see ``read_questions``.
        split: score this split only.
        config: config of a release folder or Hub id.
        blind: predictions of the same model without images.
        mode: how the letter is read: the published rule, or strict.

    Returns:
        ``accuracy`` with its patient-clustered 95% interval, ``by_dimension``, ``warnings``, and what docs/evaluate.md
        names further. Accuracies are shares from 0 to 1.

    Raises:
        InputError: with every problem of the files, and of their ids against those of the questions.
    """
    from scale_vqa_eval.scoring.score import score_files

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
    """Compares two predictions files on the same questions, paired and clustered, as ``scale-vqa compare`` does.

    Args:
        a: a predictions file.
        b: another one, on the same questions.
        data: what the questions are read from; see ``read_questions``.
        split: compare on this split only.
        config: config of a release folder or Hub id.
        mode: how the letter is read: the published rule, or strict.

    Returns:
        ``difference`` (a - b) as a share, ``interval`` (95%), ``p_value``, and the same in ``by_dimension``.

    Raises:
        InputError: with every problem of the files, and of their ids against those of the questions.
    """
    from scale_vqa_eval.questions import read_questions as read
    from scale_vqa_eval.scoring.answers import join
    from scale_vqa_eval.scoring.predictions import read_predictions
    from scale_vqa_eval.scoring.score import compare_answers

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
    """Builds a control of groups of four questions with one text, each option right for exactly one of them.

    Args:
        data: what the questions are read from; see ``read_questions``.
        method: as for ``scale-vqa control --method``; screening writes files and is left to the command.
        split: use this split only.
        config: config of a release folder or Hub id.
        seed: of the letters and of ties.
        allow_unknown_patients: count a question without patient and slide as a patient of its own.

    Returns:
        Rows in the authors' format, ``extra_info.group`` naming the group; empty if no group can be made.

    Raises:
        InputError: with every problem of the data, or if a question has no patient: a group has four of them.
    """
    from scale_vqa_eval.controls.block_exchange import block_exchange
    from scale_vqa_eval.controls.exchange import PairRules, exchange
    from scale_vqa_eval.controls.row_edits import authors_row, exchange_edits, read_source
    from scale_vqa_eval.errors import InputError, Problem

    source = read_source(data, split, config)
    unknown = sum(question.patient is None for question in source.questions)
    if unknown and not allow_unknown_patients:
        found = f"none in {unknown} of {len(source.questions)} questions"
        hint = "add wsi_name or patient_id, or set allow_unknown_patients"
        raise InputError(Problem(str(data), "a patient or slide for every question", found, hint))
    build = {"exchange": exchange, "block-exchange": block_exchange}[method]
    groups = build(PairRules(source.questions), seed).groups
    edits = exchange_edits(source.questions, groups, False)
    return [authors_row(source.questions[row], source.rows[row], edits[row]) for row in sorted(edits)]
