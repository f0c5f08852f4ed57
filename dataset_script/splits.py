"""Splits slides into train, val and test, by the paper's rule or with each patient in one split."""

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

    Slides are shuffled, then sorted by number of paths, descending (stable). Each is assigned to the split that brings
    the shares of paths nearest to ``ratios`` (sum of absolute differences); ties go to the split with fewer slides,
    then with fewer paths, then to train before val before test. If there are no paths, the shuffled list is cut by
    slide counts. Patients are ignored: two slides of a patient may be in two splits.

    Args:
        paths_by_slide: slide -> number of paths, in the order of the source file (the order matters).
        seed: seed of the shuffle; the release used 42.
        ratios: target shares of paths for train, val and test.

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
    """Returns the sum of absolute differences to ``ratios`` after ``added`` paths are assigned to ``split``."""
    projected = [count + added * (index == split) for index, count in enumerate(paths)]
    total = projected[0] + projected[1] + projected[2]
    if total == 0:
        return 0.0
    train, val, test = (abs(count / total - ratio) for count, ratio in zip(projected, ratios, strict=True))
    return train + val + test  # left to right; sum() rounds differently from Python 3.12 on, which would change ties


def patient_splits(
    paths_by_patient: Mapping[str, int],
    seed: int = 42,
    ratios: tuple[float, float, float] = RATIOS,
    fixed: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Splits patients so that none is in two splits; the default for new data.

    Patients with a fixed split keep it. The others, sorted by name, are shuffled, then sorted by number of paths,
    descending; each is assigned to the split that lacks the most paths. With at least three patients no split is
    empty; with fewer, train is filled first, then test. The order of the mapping does not matter.

    Args:
        paths_by_patient: patient -> number of paths.
        seed: seed of the shuffle, which orders patients with the same number of paths.
        ratios: target shares of paths for train, val and test.
        fixed: patient -> fixed split; patients without paths are ignored.

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
    # in the order in which they are filled if there are few patients
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
