"""What a phantom question asks can be seen: plain pixel features answer questions of slides new to them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("skia")
pytest.importorskip("sklearn")

from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from dataset_script.phantom.plan import ASKED, FEATURES
from dataset_script.phantom.slide import phantom_slides

SLIDES = 12
LOW_PIXELS = 320  # the middle of the 10x view is enough for these features, and quicker


def seen(image) -> np.ndarray:
    """Contrast at several scales, and histograms of colours and of their ratios."""
    pixels = np.asarray(image, float) / 255
    side = len(pixels)
    grey = pixels.mean(-1)
    spread = [grey.reshape(side // k, k, side // k, k).mean((1, 3)).std() for k in (1, 2, 4, 8, 16, 32)]
    logs = np.log(pixels + 0.02)
    values = [
        *((pixels[..., channel], (0, 1)) for channel in range(3)),
        (logs[..., 0] - logs[..., 2], (-0.8, 0.8)),
        (logs[..., 1] - logs[..., 0], (-1.5, 0.2)),
    ]
    return np.concatenate([spread, *(np.histogram(found, 12, span)[0] / grey.size for found, span in values)])


@pytest.fixture(scope="module")
def paths() -> list[tuple[str, object, dict[str, np.ndarray]]]:
    """(slide, plan, view -> features) of every path."""
    found = []
    for slide in phantom_slides(SLIDES, seed=11):
        for number, path in enumerate(slide.plan.paths):
            views = slide.views(number)
            low = views["low_mag"]
            images = {
                "low_mag": slide.read_region(low.x, low.y, low.mpp, LOW_PIXELS),
                "mid_mag": slide.view_image(views["mid_mag"], 512),
                "high_mag": slide.view_image(views["high_mag"], 512),
            }
            found.append((slide.name, path, {view: seen(image) for view, image in images.items()}))
    return found


def predicted(paths, feature: str) -> list[dict[str, float]]:
    """Value -> probability of a feature of each path, from other slides' paths."""
    inputs = np.array([views[FEATURES[feature].view] for _, _, views in paths])
    truth = [path.facts.value(feature) for _, path, _ in paths]
    forest = ExtraTreesClassifier(200, random_state=0)
    folds = GroupKFold(6).split(inputs, truth, [slide for slide, _, _ in paths])
    found = cross_val_predict(forest, inputs, truth, cv=list(folds), method="predict_proba")
    return [dict(zip(sorted(set(truth)), row, strict=True)) for row in found]


@pytest.mark.parametrize("question_type", ["type_C", "type_D", "type_E"])
def test_pixel_features_answer_questions_far_above_chance(paths, question_type):
    """Chance is 12 of 48 (25%); 23 or more happen by chance once in 2,000 times."""
    first, second = (predicted(paths, feature) for feature in ASKED[question_type])
    right = 0
    for number, (_, path, _) in enumerate(paths):
        group = next(group for group in path.groups if group.question_type == question_type)
        chosen = [
            max(values, key=lambda value: found[number].get(value, 0.0))
            for values, found in zip(group.values, (first, second), strict=True)
        ]
        right += chosen == [path.facts.value(feature) for feature in ASKED[question_type]]
    assert right >= 23, f"{right} of {len(paths)}"
