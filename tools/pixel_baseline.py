"""A baseline that looks at pixels: no network, a few minutes at most, so that a demo shows what seeing adds.

Questions with text options are answered by a logistic regression on products of option words and image features,
cross-fitted by patient: what a word means for the picture is learnt, and no patient is both learnt from and asked
about. Questions with image options are answered by matching the finer view, brought to the coarser view's scale,
inside it (normalised cross-correlation; Lewis 1995, "Fast normalized cross-correlation").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import sparse
from skimage.feature import match_template
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from scale_vqa_eval.schema import MPP, VIEWS

Array = npt.NDArray[np.float64]
OPTION_VIEW: Final = {"zoom-in": "high_mag", "zoom-out": "low_mag", "bridge": "mid_mag"}
"""Kind of grounding question -> the view that its options show."""

FEATURES: Final = 24
_SIDE = 128
_WORDS = 400


def image_features(image: Image.Image | None) -> Array:
    """Returns ``FEATURES`` numbers of a view: colour, its spread, darkness quantiles, edges at two scales.

    Args:
        image: a view, or None if the question has none; that gives zeros.

    Returns:
        Array of shape (FEATURES,); optical densities without unit.
    """
    if image is None:
        return np.zeros(FEATURES)
    small = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    density = -np.log((small + 1) / 256)
    dark = density.mean(axis=2)
    coarse = dark.reshape(_SIDE // 8, 8, _SIDE // 8, 8).mean(axis=(1, 3))
    edges = [np.abs(np.diff(plane, axis=axis)).mean() for plane in (dark, coarse) for axis in (0, 1)]
    blue = density[..., 0] - density[..., 2]
    return np.concatenate(
        [
            density.mean(axis=(0, 1)),
            density.std(axis=(0, 1)),
            np.quantile(dark, np.linspace(0.05, 0.95, 7)),
            np.quantile(blue, (0.1, 0.5, 0.9)),
            [coarse.std(), (dark < 0.1).mean(), (dark > 1.0).mean(), (blue > 0.3).mean()],
            edges,
        ]
    )


def best_match(coarse: Image.Image, fine: Image.Image, ratio: float) -> float:
    """Returns how well a finer field is found inside a coarser one: the highest normalised cross-correlation.

    Args:
        coarse: the wider field.
        fine: the field that may lie inside it.
        ratio: um per pixel of ``coarse`` over that of ``fine``, above 1.

    Returns:
        A correlation in [-1, 1]; -1 where the finer field is too small or larger than the coarser one.
    """
    width, height = round(fine.width / ratio), round(fine.height / ratio)
    if min(width, height) < 8 or width > coarse.width or height > coarse.height:
        return -1.0
    template = np.asarray(fine.convert("L").resize((width, height), Image.Resampling.BOX), dtype=np.float64)
    if template.std() == 0:
        return -1.0
    return float(match_template(np.asarray(coarse.convert("L"), dtype=np.float64), template).max())


def answer_by_pixels(rows: Iterable[Mapping[str, Any]], kinds: Sequence[str], folds: int = 5) -> list[int]:
    """Answers questions by their pixels.

    Args:
        rows: decoded rows of a release folder, in one pass; images are reduced at once, so memory stays small.
        kinds: names of the ``dimension`` ClassLabel.
        folds: parts of the cross-fit; less where there are fewer patients.

    Returns:
        Index of the picked option for each row.

    Raises:
        ValueError: where text questions come from fewer than two patients, so that nothing can be learnt and asked.
    """
    picks: list[int] = []
    texts: list[tuple[int, list[str], int, str, str]] = []
    seen: list[Array] = []
    for place, row in enumerate(rows):
        kind = kinds[row["dimension"]]
        if row["option_images"]:
            picks.append(_match_options(row, OPTION_VIEW[kind]))
            continue
        picks.append(0)
        texts.append((place, row["options"], row["answer"], row["patient_id"], kind))
        seen.append(np.concatenate([image_features(row[view]) for view in VIEWS]))
    if texts:
        for (place, *_), pick in zip(texts, _learnt(texts, np.stack(seen), folds), strict=True):
            picks[place] = pick
    return picks


def _match_options(row: Mapping[str, Any], option_view: str) -> int:
    """Picks the option image that fits best into, or around, the views that the question shows."""
    scores = np.zeros(len(row["option_images"]))
    for view in VIEWS:
        preview = row[view]
        if preview is None:
            continue
        ratio = MPP[view] / MPP[option_view]
        for index, option in enumerate(row["option_images"]):
            pair = (preview, option, ratio) if ratio > 1 else (option, preview, 1 / ratio)
            scores[index] += best_match(*pair)
    return int(scores.argmax())


def _learnt(texts: Sequence[tuple[int, list[str], int, str, str]], seen: Array, folds: int) -> list[int]:
    """Picks options by word x pixel products, each question by a model that saw no question of its patient."""
    patients = np.array([patient for *_, patient, _ in texts])
    count = min(folds, len(set(patients)))
    if count < 2:
        raise ValueError("text questions of one patient only: a cross-fit by patient needs two")
    sizes = [len(options) for _, options, *_ in texts]
    owner = np.repeat(np.arange(len(texts)), sizes)
    words = CountVectorizer(binary=True, min_df=2, max_features=_WORDS, token_pattern=r"(?u)\b\w+\b")
    matrix = _centred(words.fit_transform(option for _, options, *_ in texts for option in options), owner)
    gold = np.concatenate([np.arange(size) == answer for size, (_, _, answer, *_) in zip(sizes, texts, strict=True)])
    scaled = (seen - seen.mean(axis=0)) / np.maximum(seen.std(axis=0), 1e-9)
    products = _products(matrix, np.clip(scaled, -4, 4)[owner])
    scores = np.zeros(len(owner))
    for train, test in GroupKFold(count).split(products, groups=patients[owner]):
        model = LogisticRegression(C=0.02, max_iter=300).fit(products[train], gold[train])
        scores[test] = model.decision_function(products[test])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return [int(scores[start:end].argmax()) for start, end in pairwise(starts)]


def _centred(matrix: sparse.csr_matrix, owner: npt.NDArray[np.int64]) -> sparse.csr_matrix:
    """Takes the mean over a question's options away, so that words which all options share say nothing."""
    count = int(owner[-1]) + 1
    gather = sparse.csr_matrix((np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(count, len(owner)))
    means = sparse.diags(1 / np.asarray(gather.sum(axis=1)).ravel()) @ gather @ matrix
    centred = sparse.csr_matrix(matrix - means[owner])
    centred.data[np.abs(centred.data) < 1e-12] = 0
    centred.eliminate_zeros()
    return centred


def _products(words: sparse.csr_matrix, pixels: Array) -> sparse.csr_matrix:
    """Returns the row-wise products of words (n, w) and pixel features (n, p) as a sparse (n, w * p) matrix."""
    blocks = [words.multiply(pixels[:, [column]]).tocsr() for column in range(pixels.shape[1])]
    return sparse.hstack(blocks, format="csr")
