"""Computes the figures of a score from parsed answers: accuracies with intervals, and comparison with a blind run.

All figures are plain Python numbers that can be written as JSON; undefined figures are None.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import special

from .clustered import (
    ClusteredInterval,
    Codes,
    Numbers,
    cluster_codes,
    clustered_interval,
    clustered_standard_error,
    overlapping_interval,
    paired_difference,
)
from .parsing import ACCURACY_WEIGHT, FORMAT_WEIGHT, REASONS, ParsedBatch

MAX_BLIND_UNPARSED: Final = 0.02
"""Maximum share of blind responses without a letter: a model that refuses to answer has no valid blind control."""


def gold_codes(references: Sequence[Any], options: int | npt.NDArray[np.int64] = 26) -> npt.NDArray[np.uint8]:
    """Returns the ASCII code of each gold letter.

    Args:
        references: letters (either case) or 0-based class indices.
        options: number of options, one for all or one per item.

    Raises:
        ValueError: names the first reference that is neither of them, or is not one of the options.

    >>> gold_codes(["A", "d", 1]).tobytes()
    b'ADB'
    """
    codes = _gold_indices(references)
    wrong = np.flatnonzero((codes < 0) | (codes >= options))
    if wrong.size:
        row = int(wrong[0])
        count = int(np.broadcast_to(options, codes.shape)[row])
        raise ValueError(
            f"reference {row} must be one of the letters A-{chr(64 + count)} or an index 0-{count - 1}, "
            f"got {references[row]!r}"
        )
    return (codes + ord("A")).astype(np.uint8)


def _gold_indices(references: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Returns 0-based indices, or -1 for references that are neither letters nor indices."""
    array = np.asarray(references) if isinstance(references, np.ndarray) else None
    if array is None and all(type(item) is int for item in references[:1]):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            array = np.asarray(references)
    if array is not None and array.dtype.kind in "iu":
        return array.astype(np.int64)
    return np.fromiter(map(_gold_index, references), np.int64, len(references))


def _gold_index(reference: Any) -> int:
    if isinstance(reference, str):
        letter = reference.strip().upper()
        return ord(letter) - ord("A") if len(letter) == 1 and "A" <= letter <= "Z" else -1
    is_index = isinstance(reference, int | np.integer) and not isinstance(reference, bool)
    return int(reference) if is_index and 0 <= reference < 26 else -1


def summarise(
    parsed: ParsedBatch,
    gold: npt.NDArray[np.uint8],
    *,
    dimension: Sequence[Any] | None = None,
    cluster: Sequence[Any] | None = None,
    group: Sequence[Any] | None = None,
    blind: ParsedBatch | None = None,
    options: int | npt.NDArray[np.int64] = 4,
    withheld: Sequence[str] = (),
) -> dict[str, Any]:
    """Summarises n answers.

    Args:
        parsed: parse results of n responses.
        gold: (n,) ASCII codes of the gold letters.
        dimension: (n,) name of the dimension of each item, or None.
        cluster: (n,) patient or slide of each item, or None to treat all items as independent.
        group: (n,) exchange group of each item (None if it is in no group), or None.
        blind: answers of the same model to the same items without images, or None.
        options: number of options, one for all or one per item.
        withheld: reasons why the blind run is not a valid control. Gain and adjusted accuracy are then None, as they
            are if more than ``MAX_BLIND_UNPARSED`` of the blind responses have no letter.

    Returns:
        The figures described in ``docs/metric.md``.

    Raises:
        ValueError: if there is no item or the lengths differ.
    """
    size = gold.size
    if size == 0:
        raise ValueError("a score needs at least one item")
    answered = {"predictions": parsed.letters, "blind": None if blind is None else blind.letters}
    for name, values in {**answered, "dimension": dimension, "cluster": cluster, "group": group}.items():
        if values is not None and len(values) != size:
            raise ValueError(f"{size} references but {len(values)} values of {name}")
    correct = (parsed.letters == gold).astype(np.float64)
    codes = np.arange(size) if cluster is None else cluster_codes(cluster)[0]
    chances = 1.0 / np.broadcast_to(np.asarray(options, dtype=np.float64), (size,))
    reasons = [*withheld, *_refusals(blind)]
    control = None if blind is None or reasons else blind
    by_dimension: dict[str, dict[str, Any]] = {}
    macro: dict[str, Any] = {"macro": None, "macro_interval": None}
    if dimension is not None:
        index = {name: number for number, name in enumerate(dict.fromkeys(dimension))}
        strata = np.fromiter(map(index.__getitem__, dimension), np.int64, size)
        for number, name in enumerate(index):
            rows = np.flatnonzero(strata == number)
            part = {**_accuracy(correct[rows], codes[rows]), "unparsed": _unparsed(parsed[rows])}
            if control is not None:
                beside = _beside_blind(correct[rows], control[rows], gold[rows], chances[rows], codes[rows])
                own = beside.pop("blind")
                part |= {"blind_accuracy": own["accuracy"], "gain_interval": own["gain_interval"], **beside}
            by_dimension["none" if name is None else str(name)] = part
        mean = clustered_interval(correct, codes, strata=strata)
        macro = {"macro": mean.mean, "macro_interval": [mean.ci_low, mean.ci_high]}
    formats = float(parsed.formats.mean())
    return {
        **_accuracy(correct, codes),
        "clustered": cluster is not None,
        "chance": float(chances.mean()),
        **macro,
        "by_dimension": by_dimension,
        "unparsed": _unparsed(parsed),
        "format_rate": formats,
        "reward": ACCURACY_WEIGHT * float(correct.mean()) + FORMAT_WEIGHT * formats,
        **_groups(correct, chances, gold, codes, group),
        **(_without_control() if control is None else _beside_blind(correct, control, gold, chances, codes)),
        "blind_withheld": _withheld(blind, gold, codes, reasons) if blind is not None and reasons else None,
    }


def interval_figures(interval: ClusteredInterval) -> dict[str, Any]:
    """Returns an interval with the keys of a results file."""
    figures = interval.as_dict()
    return {
        "accuracy": figures["mean"],
        "interval": [figures["ci_low"], figures["ci_high"]],
        "interval_method": figures["method"],
        "standard_error": figures["standard_error"],
        "n": figures["n"],
        "clusters": figures["clusters"],
        "effective_n": figures["effective_n"],
    }


def _accuracy(correct: Numbers, codes: Codes) -> dict[str, Any]:
    return interval_figures(clustered_interval(correct, codes))


def _unparsed(parsed: ParsedBatch) -> dict[str, Any]:
    counts = np.bincount(parsed.reasons, minlength=len(REASONS))
    missing = int(counts[1:].sum())
    reasons = {reason: int(count) for reason, count in zip(REASONS[1:], counts[1:], strict=True) if count}
    return {"n": missing, "rate": missing / parsed.reasons.size, "reasons": reasons}


def _groups(
    correct: Numbers, chances: Numbers, gold: npt.NDArray[np.uint8], codes: Codes, group: Sequence[Any] | None
) -> dict[str, Any]:
    """Group accuracy: the share of groups of which all items are right.

    ``chance`` is for independent guesses; ``chance_by_assignment`` is for a text-only reader that assigns each letter
    of a group once (1/24 for four items).
    """
    rows = np.array([row for row, name in enumerate(group or ()) if name is not None and name != ""], np.int64)
    if group is None or rows.size == 0:
        return {"group_accuracy": None, "groups": None}
    numbers, count = cluster_codes([group[row] for row in rows])
    right = np.bincount(numbers, weights=1.0 - correct[rows], minlength=count) == 0
    sizes = np.bincount(numbers, minlength=count)
    guessed = np.exp(np.bincount(numbers, weights=np.log(chances[rows]), minlength=count))
    letters = np.bincount(np.unique(np.stack([numbers, gold[rows]]), axis=1)[0], minlength=count)
    # groups with as many items as options, in which each letter is the gold letter once
    complete = (letters == sizes) & np.isclose(np.bincount(numbers, weights=chances[rows], minlength=count), 1.0)
    assigned = np.where(complete, 1.0 / special.factorial(sizes), guessed)
    members = [
        np.unique(part) for part in np.split(codes[rows][np.argsort(numbers, kind="stable")], sizes.cumsum()[:-1])
    ]
    return {
        "group_accuracy": float(right.mean()),
        "groups": {
            "n": count,
            "items": int(rows.size),
            "interval": list(overlapping_interval(right, members)),
            "item_accuracy": float(correct[rows].mean()),
            "chance": float(guessed.mean()),
            "chance_by_assignment": float(assigned.mean()),
        },
    }


def blind_values(blind: ParsedBatch, gold: npt.NDArray[np.uint8], chances: Numbers) -> Numbers:
    """Returns (n,) values with the blind score b* as mean, at least chance: 1 if right, chance if unparsed, else 0."""
    values = np.where(blind.reasons > 0, chances, (blind.letters == gold).astype(np.float64))
    return values if values.mean() > chances.mean() else chances


def _beside_blind(
    correct: Numbers, blind: ParsedBatch, gold: npt.NDArray[np.uint8], chances: Numbers, codes: Codes
) -> dict[str, Any]:
    """Visual gain and leakage-adjusted accuracy over the blind score b*.

    b* = (right + unparsed / options) / n, never below chance. Gain = accuracy - b*, paired (the multi-modal gain of
    MMStar, Chen et al. 2024, arXiv:2403.20330); adjusted = (accuracy - b*) / (1 - b*), with a delta-method interval.
    """
    right, guessed = (blind.letters == gold).astype(np.float64), blind_values(blind, gold, chances)
    gain = paired_difference(correct, guessed, codes).as_dict()
    adjusted, interval = _adjusted(correct, guessed, codes)
    return {
        "blind": {
            **_accuracy(right, codes),
            "unparsed": _unparsed(blind),
            "guess_corrected": float(guessed.mean()),
            "gain_interval": [gain["ci_low"], gain["ci_high"]],
            "gain_standard_error": gain["standard_error"],
            "gain_p_value": gain["p_value"],
        },
        "visual_gain": gain["difference"],
        "leakage_adjusted_accuracy": adjusted,
        "leakage_adjusted_interval": interval,
    }


def _adjusted(correct: Numbers, guessed: Numbers, codes: Codes) -> tuple[float | None, list[float] | None]:
    """Returns (a - b) / (1 - b) and its delta-method interval; None if b is 1, or with one cluster."""
    accuracy, rest = float(correct.mean()), 1.0 - float(guessed.mean())
    if rest < 1e-12:
        return None, None
    value = 1.0 - (1.0 - accuracy) / rest
    count = int(np.count_nonzero(np.bincount(codes)))
    if count < 2:
        return value, None
    influence = correct / rest - guessed * (1.0 - accuracy) / rest**2
    half = float(special.stdtrit(count - 1, 0.975)) * clustered_standard_error(influence, codes, count)
    if half < 1e-12:  # no variance, such as all right: the interval of the accuracy on the adjusted scale
        mean = clustered_interval(correct, codes)
        return value, [1.0 - (1.0 - end) / rest for end in (mean.ci_low, mean.ci_high)]
    return value, [value - half, min(1.0, value + half)]


def _without_control() -> dict[str, None]:
    return dict.fromkeys(("blind", "visual_gain", "leakage_adjusted_accuracy", "leakage_adjusted_interval"))


def _refusals(blind: ParsedBatch | None) -> list[str]:
    rate = 0.0 if blind is None else float((blind.reasons > 0).mean())
    if rate <= MAX_BLIND_UNPARSED:
        return []
    return [
        f"{100 * rate:.1f}% of the blind responses have no readable letter (at most {100 * MAX_BLIND_UNPARSED:.0f}%)"
    ]


def _withheld(blind: ParsedBatch, gold: npt.NDArray[np.uint8], codes: Codes, reasons: Sequence[str]) -> dict[str, Any]:
    figures = _accuracy((blind.letters == gold).astype(np.float64), codes)
    return {"reasons": list(reasons), **figures, "unparsed": _unparsed(blind)}
