"""How alike the tissue of two items is, as far as texts and a named organ tell: what makes an exchange group hard.

The images are not read. The proxy is the cosine of TF-IDF vectors (binary term counts) of everything that the file
says about the same images: the right answers and rationales of all questions on the path, else on the slide, else of
the question alone; plus one where both name the same organ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scale_vqa_eval.controls.validity import words
from scale_vqa_eval.questions import Question


@dataclass(frozen=True)
class Tissue:
    """What is known of the tissue behind each of n questions.

    Attributes:
        vectors: sparse (n, vocabulary) array with rows of length one.
        organs: n names of organs, None where unknown.
        views: the views that each question has an image for; empty where unknown.
    """

    vectors: Any
    organs: tuple[str | None, ...]
    views: tuple[frozenset[str], ...]

    def likeness(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Returns (m, m): how alike the tissue of each two of the m questions is, from 0 to 2."""
        part = self.vectors[rows]
        names = np.array([self.organs[row] or "" for row in rows.tolist()], dtype=object)
        same = (names[:, None] == names[None, :]) & (names != "")[:, None]
        return np.asarray((part @ part.T).toarray() + same, dtype=np.float64)

    def unlike_views(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns (m, m): whether two questions have images for different views."""
        kinds = list(dict.fromkeys(self.views))
        of = np.array([kinds.index(self.views[row]) for row in rows.tolist()], dtype=np.int64)
        return np.asarray(of[:, None] != of[None, :])


def describe_tissue(
    questions: Sequence[Question],
    organs: Sequence[str | None] | None = None,
    views: Sequence[frozenset[str]] | None = None,
) -> Tissue:
    """Collects the texts about each question's images.

    Args:
        questions: n questions.
        organs: organ of each question where the file names it.
        views: the views that each question has an image for; None takes them from the questions.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    about: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for row, question in enumerate(questions):
        about[_images(question, row)] += [question.options[question.answer], question.rationale or ""]
    places = {key: place for place, key in enumerate(about)}
    texts = (" ".join(parts) for parts in about.values())
    vectors = TfidfVectorizer(analyzer=_sorted_words, sublinear_tf=True).fit_transform(texts)
    at = [places[_images(question, row)] for row, question in enumerate(questions)]
    if views is None:
        views = [frozenset(view for view, _ in question.images) for question in questions]
    return Tissue(vectors[at], tuple(organs or (None,) * len(questions)), tuple(views))


def _images(question: Question, row: int) -> tuple[str, ...]:
    if question.slide is None:
        return ("row", str(row))
    return ("path", question.slide, question.path_id) if question.path_id else ("slide", question.slide)


def _sorted_words(text: str) -> list[str]:
    return sorted(words(text))
