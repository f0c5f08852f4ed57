"""Turns parsed answers into the figures of a score: accuracy with its interval, by dimension, by group, beside blind.

Every figure is a plain Python number, so that a summary can be written as JSON; what is undefined is None.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .clustered import Codes, clopper_pearson, cluster_codes, clustered_interval, paired_difference
from .parsing import ACCURACY_WEIGHT, FORMAT_WEIGHT, REASONS, ParsedBatch

Numbers = npt.NDArray[np.float64]


def gold_codes(references: Sequence[Any], options: int | npt.NDArray[np.int64] = 26) -> npt.NDArray[np.uint8]:
    """Returns the ASCII code of each gold letter.

    Args:
        references: letters (either case) or 0-based class indices.
        options: number of options, one for all or one per item.

    Raises:
        ValueError: where a reference is neither, or lies beyond the options; the first one is named.

    >>> gold_codes(["A", "d", 1]).tobytes()
    b'ADB'
    """
    codes = _gold_indices(references)
    wrong = np.flatnonzero((codes < 0) | (codes >= options))
    if wrong.size:
        place = int(wrong[0])
        count = int(np.broadcast_to(options, codes.shape)[place])
        raise ValueError(
            f"reference {place} must be one of the letters A-{chr(64 + count)} or an index 0-{count - 1}, "
            f"got {references[place]!r}"
        )
    return (codes + ord("A")).astype(np.uint8)


def _gold_indices(references: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Returns 0-based indices; negative where a reference is neither letter nor index."""
    array = np.asarray(references) if isinstance(references, np.ndarray) else None
    if array is None and all(type(item) is int for item in references[:1]):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            array = np.asarray(references)
    if array is not None and array.dtype.kind in "iu":
        return array.astype(np.int64)
    with contextlib.suppress(TypeError, UnicodeEncodeError):
        joined = "".join(references).encode("ascii")
        if len(joined) == len(references) and min(map(len, references), default=1) == 1:
            upper = np.frombuffer(joined, np.uint8) & 0xDF
            return np.where(upper >= ord("A"), upper.astype(np.int64) - ord("A"), -1)
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
) -> dict[str, Any]:
    """Summarises n answers.

    Args:
        parsed: the answers of n responses.
        gold: (n,) ASCII codes of the gold letters.
        dimension: (n,) name of the dimension of each item.
        cluster: (n,) patient or slide of each item; without it every item is a cluster of its own.
        group: (n,) exchange group of each item, None outside of one.
        blind: answers of the same model to the same items without images.
        options: number of options, one for all or one per item.

    Returns:
        The figures that ``docs/metric.md`` explains.

    Raises:
        ValueError: where there is no item or the lengths differ.
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
    blind_correct = None if blind is None else (blind.letters == gold).astype(np.float64)
    by_dimension = {} if dimension is None else _by_dimension(parsed, correct, codes, dimension, blind_correct)
    macro = float(np.mean([part["accuracy"] for part in by_dimension.values()])) if by_dimension else None
    formats = float(parsed.formats.mean())
    chances = 1.0 / np.broadcast_to(np.asarray(options, dtype=np.float64), (size,))
    return {
        **_accuracy(correct, codes),
        "clustered": cluster is not None,
        "chance": float(chances.mean()),
        "macro": macro,
        "by_dimension": by_dimension,
        "unparsed": _unparsed(parsed),
        "format_rate": formats,
        "reward": ACCURACY_WEIGHT * float(correct.mean()) + FORMAT_WEIGHT * formats,
        **_groups(correct, chances, group),
        **_beside_blind(correct, blind_correct, blind, codes),
    }


def _accuracy(correct: Numbers, codes: Codes) -> dict[str, Any]:
    figures = clustered_interval(correct, codes).as_dict()
    return {
        "accuracy": figures["mean"],
        "interval": [figures["ci_low"], figures["ci_high"]],
        "interval_method": figures["method"],
        "standard_error": figures["standard_error"],
        "n": figures["n"],
        "clusters": figures["clusters"],
        "effective_n": figures["effective_n"],
    }


def _unparsed(parsed: ParsedBatch) -> dict[str, Any]:
    counts = np.bincount(parsed.reasons, minlength=len(REASONS))
    missing = int(counts[1:].sum())
    reasons = {reason: int(count) for reason, count in zip(REASONS[1:], counts[1:], strict=True) if count}
    return {"n": missing, "rate": missing / parsed.reasons.size, "reasons": reasons}


def _by_dimension(
    parsed: ParsedBatch, correct: Numbers, codes: Codes, dimension: Sequence[Any], blind: Numbers | None
) -> dict[str, dict[str, Any]]:
    names = list(dict.fromkeys(dimension))
    index = {name: place for place, name in enumerate(names)}
    places = np.fromiter(map(index.__getitem__, dimension), np.int64, len(dimension))
    table = {}
    for place, name in enumerate(names):
        rows = np.flatnonzero(places == place)
        part = ParsedBatch(parsed.letters[rows], parsed.reasons[rows], parsed.formats[rows])
        figures = _accuracy(correct[rows], codes[rows])
        figures["unparsed"] = _unparsed(part)
        if blind is not None:
            figures["blind_accuracy"] = float(blind[rows].mean())
            figures["visual_gain"] = figures["accuracy"] - figures["blind_accuracy"]
        table["none" if name is None else str(name)] = figures
    return table


def _groups(correct: Numbers, chances: Numbers, group: Sequence[Any] | None) -> dict[str, Any]:
    """Group accuracy: a group is right where all of its items are.

    The interval takes groups as independent (Clopper-Pearson); groups that share patients are not quite.
    """
    rows = np.array([place for place, name in enumerate(group or ()) if name is not None and name != ""], np.int64)
    if group is None or rows.size == 0:
        return {"group_accuracy": None, "groups": None}
    codes, count = cluster_codes([group[place] for place in rows])
    right = np.bincount(codes, weights=1.0 - correct[rows], minlength=count) == 0
    guessed = np.exp(np.bincount(codes, weights=np.log(chances[rows]), minlength=count))
    share = float(right.mean())
    return {
        "group_accuracy": share,
        "groups": {
            "n": count,
            "items": int(rows.size),
            "interval": list(clopper_pearson(share, count)),
            "item_accuracy": float(correct[rows].mean()),
            "chance": float(guessed.mean()),
        },
    }


def _beside_blind(
    correct: Numbers, blind_correct: Numbers | None, blind: ParsedBatch | None, codes: Codes
) -> dict[str, Any]:
    """Visual gain (accuracy - blind accuracy, paired) and leakage-adjusted accuracy (acc - blind) / (1 - blind)."""
    if blind is None or blind_correct is None:
        return {"blind": None, "visual_gain": None, "leakage_adjusted_accuracy": None}
    gain = paired_difference(correct, blind_correct, codes).as_dict()
    accuracy, without = float(correct.mean()), float(blind_correct.mean())
    return {
        "blind": {
            **_accuracy(blind_correct, codes),
            "unparsed": _unparsed(blind),
            "gain_interval": [gain["ci_low"], gain["ci_high"]],
            "gain_standard_error": gain["standard_error"],
            "gain_p_value": gain["p_value"],
        },
        "visual_gain": gain["difference"],
        "leakage_adjusted_accuracy": (accuracy - without) / (1.0 - without) if without < 1.0 else None,
    }
