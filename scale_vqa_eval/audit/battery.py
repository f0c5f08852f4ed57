"""The image-free battery: every probe that needs no language model, in one call.

results = run_battery(questions)
accuracies = [evaluate_probe(result, questions) for result in results]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from scale_vqa_eval.audit import trained, untrained
from scale_vqa_eval.audit.layout import OptionLayout
from scale_vqa_eval.audit.prepared import WORDING_FAMILIES, Prepared, Reader
from scale_vqa_eval.audit.probe import ProbeResult
from scale_vqa_eval.audit.units import units_of
from scale_vqa_eval.audit.wording import chunks
from scale_vqa_eval.questions import Question

TRAIN_CAP: Final = 20_000
"""Most questions that models are fitted to; beyond, they are drawn from the file and the rest is streamed."""
MEMBERS: Final = ("geometry", "words", "contrast")
"""Families whose votes the ensemble sums: one for each kind of evidence (characters see the words again)."""
FAMILIES: Final = (*untrained.FAMILIES, "geometry", *WORDING_FAMILIES, "ensemble")
_NAMES: Final = {"position": "letter prior"}


def run_battery(
    questions: Sequence[Question],
    seed: int = 0,
    partitions: int | None = None,
    families: Sequence[str] | None = None,
    prepared: Prepared | None = None,
    folds: int = 5,
    progress: bool = False,
) -> list[ProbeResult]:
    """Scores every question with every probe of the wanted families; trained probes are cross-fitted by unit.

    Args:
        questions: any questions with 2 to 26 options; dimension, slide and patient may be absent.
        seed: of folds and forests; the same seed gives the same scores.
        partitions: how often the units are dealt to folds anew, votes averaged; None means 3, or 1 beyond
            ``TRAIN_CAP`` questions.
        families: some of ``FAMILIES``, None for all. ``ensemble`` sums those of ``MEMBERS`` that are listed, or all
            of them where none is.
        prepared: what ``prepare`` made of these very questions, to save reading the texts again.
        folds: folds of a partition, at most.
        progress: show a bar on standard error.

    Raises:
        ValueError: where a family is unknown, there is no question, or ``prepared`` is of other questions.
    """
    wanted = _checked(FAMILIES if families is None else tuple(families))
    n = len(questions)
    if not n:
        raise ValueError("the battery needs at least one question")
    streamed = n > TRAIN_CAP
    if prepared is not None and (streamed or len(prepared.layout.counts) != n):
        raise ValueError(f"prepared texts are of {len(prepared.layout.counts)} questions, not of these {n}")
    sampled = (
        np.sort(np.random.default_rng([seed, 2]).choice(n, TRAIN_CAP, replace=False)) if streamed else np.arange(n)
    )
    sample_questions = [questions[row] for row in sampled] if streamed else questions
    reader = Reader.fit(sample_questions, _wording(wanted)) if prepared is None else None
    sample = prepared if reader is None else reader.read(sample_questions)
    assert sample is not None
    found: list[Prepared] = []

    def parts() -> Iterator[trained.Part]:
        if not streamed:
            found.append(sample)
            yield trained.Part(np.arange(n), sample)
            return
        assert reader is not None
        for chunk in chunks(questions):
            texts = reader.read([questions[row] for row in chunk])
            found.append(Prepared(texts.layout, texts.types, texts.geometry, {}))
            yield trained.Part(np.arange(chunk.start, chunk.stop), texts)

    gold = np.array([question.answer for question in sample_questions], dtype=np.int64)
    fitted = [family for family in trained.FAMILIES if family in _needed(wanted)]
    votes = trained.cross_fitted(
        fitted,
        {family: trained.make_fitter(family, sample, gold) for family in fitted},
        sampled,
        trained.folds_of(units_of(questions), seed, partitions or (1 if streamed else 3), folds),
        parts(),
        seed,
        keep_models=streamed,
        progress=progress,
    )
    layout = OptionLayout.of_questions(questions)
    geometry = np.concatenate([texts.geometry for texts in found])
    results = untrained.untrained_probes(layout, geometry, wanted)
    results += [
        trained.trained_result(_NAMES.get(family, family), family, votes[family], layout)
        for family in fitted
        if family in wanted
    ]
    if "ensemble" in wanted:
        members = [family for family in MEMBERS if family in wanted] or list(MEMBERS)
        crossed = np.mean([votes[family].crossed for family in members], axis=0)
        sequential = np.mean([votes[family].sequential for family in members], axis=0)
        results.append(trained.trained_result("ensemble", "ensemble", trained.Votes(crossed, sequential), layout))
    return results


def prepare(questions: Sequence[Question], families: Sequence[str] | None = None) -> Prepared:
    """Reads the texts of at most ``TRAIN_CAP`` questions once, for many runs of the battery.

    ``prepare(questions).take(rows)`` serves ``[questions[row] for row in rows]``: gold answers are not part of it.
    """
    if len(questions) > TRAIN_CAP:
        raise ValueError(f"texts are prepared for at most {TRAIN_CAP} questions, got {len(questions)}")
    return Reader.fit(questions, _wording(FAMILIES if families is None else tuple(families))).read(questions)


def _checked(families: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [family for family in families if family not in FAMILIES]
    if unknown:
        raise ValueError(f"unknown family {', '.join(unknown)}; the battery has {', '.join(FAMILIES)}")
    return families


def _needed(wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The families to fit: those wanted, and the members of an ensemble that is wanted by itself."""
    alone = "ensemble" in wanted and not any(family in wanted for family in MEMBERS)
    return (*wanted, *MEMBERS) if alone else wanted


def _wording(wanted: tuple[str, ...]) -> list[str]:
    return [family for family in WORDING_FAMILIES if family in _needed(wanted)]
