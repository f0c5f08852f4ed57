"""Splits of slides into train, val and test: the paper's rule, and ours, which keeps a patient in one split."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping
from typing import Final

SPLITS: Final = ("train", "val", "test")
RATIOS: Final = (0.7, 0.1, 0.2)
SPLIT_TABLE: Final = "splits.csv"
"""Name of the split table, in the folder of a config."""


def reference_splits(
    paths_by_slide: Mapping[str, int], seed: int = 42, ratios: tuple[float, float, float] = RATIOS
) -> dict[str, str]:
    """Splits slides as the authors did, bit-exact given the same order of slides.

    Slides are shuffled, then sorted by number of paths, descending (stable); each goes to the split for which the
    shares of the paths given out so far are nearest to ``ratios`` (sum of absolute distances), ties to the split with
    fewer slides, then fewer paths, then train before val before test. Without any path, the shuffled list is cut by
    slide counts. It knows nothing of patients: two slides of one patient may end in two splits.

    Args:
        paths_by_slide: slide -> number of paths, in the order of the source file (the order matters).
        seed: of the shuffle; the release used 42.
        ratios: wanted shares of paths for train, val, test.

    Returns:
        slide -> split.

    Source: the published split rule of Scale-VQA (arXiv:2606.17412 and its code release).
    """
    slides = list(paths_by_slide)
    random.Random(seed).shuffle(slides)
    if not any(paths_by_slide.values()):
        ends = [int(len(slides) * ratios[0]), int(len(slides) * ratios[0]) + int(len(slides) * ratios[1])]
        return {slide: SPLITS[(index >= ends[0]) + (index >= ends[1])] for index, slide in enumerate(slides)}
    slides.sort(key=lambda slide: paths_by_slide[slide], reverse=True)
    paths, members = [0, 0, 0], [0, 0, 0]
    splits: dict[str, str] = {}
    for slide in slides:
        count = paths_by_slide[slide]
        target = min(
            range(3),
            key=lambda split: (_distance(paths, split, count, ratios), members[split], paths[split], split),
        )
        splits[slide] = SPLITS[target]
        paths[target] += count
        members[target] += 1
    return splits


def _distance(paths: list[int], split: int, added: int, ratios: tuple[float, float, float]) -> float:
    """Summed absolute distance of the path shares to ``ratios`` once ``added`` paths have gone to ``split``."""
    projected = [count + added * (index == split) for index, count in enumerate(paths)]
    total = projected[0] + projected[1] + projected[2]
    if total == 0:
        return 0.0
    train, val, test = (abs(count / total - ratio) for count, ratio in zip(projected, ratios, strict=True))
    return train + val + test  # left to right: sum() rounds otherwise from Python 3.12 on, and ties would break anew


def patient_splits(
    paths_by_patient: Mapping[str, int],
    seed: int = 42,
    ratios: tuple[float, float, float] = RATIOS,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Splits patients so that none is in two splits; the default for new data.

    Patients that have a split keep it. The others, sorted by name, are shuffled under the seed, then sorted by number
    of paths, descending; each goes to the split that lacks most of its wanted share of all paths. With at least three
    patients no split stays empty, with fewer the first go to train, then test. The order of the mapping does not
    matter.

    Args:
        paths_by_patient: patient -> number of paths.
        seed: of the shuffle among patients with equally many paths.
        ratios: wanted shares of paths for train, val, test.
        fixed: patient -> split of patients that have one; those without paths do not count.

    Returns:
        patient -> split.
    """
    splits = {patient: split for patient, split in (fixed or {}).items() if patient in paths_by_patient}
    patients = sorted(paths_by_patient.keys() - splits.keys())
    random.Random(seed).shuffle(patients)
    patients.sort(key=lambda patient: paths_by_patient[patient], reverse=True)
    total = sum(paths_by_patient.values()) or len(patients)
    paths: list[float] = [0, 0, 0]
    for patient, split in splits.items():
        paths[SPLITS.index(split)] += paths_by_patient[patient]
    # in the order in which they are served when patients run short
    empty = [split for split in (0, 2, 1) if SPLITS[split] not in splits.values()][: len(patients)]
    for index, patient in enumerate(patients):
        left = len(patients) - index
        choices = empty if left <= len(empty) else range(3)
        target = max(choices, key=lambda split: (ratios[split] * total - paths[split], -split))
        splits[patient] = SPLITS[target]
        paths[target] += paths_by_patient[patient] or (1 if not any(paths_by_patient.values()) else 0)
        if target in empty:
            empty.remove(target)
    return splits


def split_table(split_of: Mapping[str, str]) -> bytes:
    """Returns patient -> split as CSV with these two columns."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("patient", "split"), *sorted(split_of.items())])
    return text.getvalue().encode()
