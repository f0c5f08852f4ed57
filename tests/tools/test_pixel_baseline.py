from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixel_baseline import FEATURES, answer_by_pixels, best_match, image_features

from scale_vqa_eval.schema import ALL_DIMENSIONS


def texture(seed: int, side: int = 256) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (side // 4, side // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def test_features_have_one_shape_and_an_absent_view_is_zero() -> None:
    assert image_features(texture(0)).shape == (FEATURES,)
    assert not image_features(None).any()
    assert np.isfinite(image_features(Image.new("RGB", (5, 900)))).all()


def test_a_field_is_found_where_it_lies_and_not_elsewhere() -> None:
    wide = texture(1)
    inner = wide.crop((80, 100, 131, 151)).resize((255, 255), Image.Resampling.BICUBIC)
    stranger = texture(2).crop((80, 100, 131, 151)).resize((255, 255), Image.Resampling.BICUBIC)
    assert best_match(wide, inner, 5) > 0.95 > 0.6 > best_match(wide, stranger, 5)
    assert best_match(wide, Image.new("RGB", (255, 255)), 5) == -1
    assert best_match(wide, inner, 100) == -1


def row(kind: str, patient: str, answer: int, **columns: Any) -> dict[str, Any]:
    empty = {"low_mag": None, "mid_mag": None, "high_mag": None, "option_images": []}
    options = ["Image A", "Image B", "Image C", "Image D"]
    place = ALL_DIMENSIONS.index(kind)
    return {**empty, "options": options, "answer": answer, "patient_id": patient, "dimension": place, **columns}


def test_image_options_are_answered_by_geometry() -> None:
    rows = []
    for number in range(8):
        wide = texture(number)
        fields = [texture(100 + number * 4 + i) for i in range(4)]
        fields[number % 4] = wide.crop((64, 64, 115, 115)).resize((256, 256), Image.Resampling.BICUBIC)
        rows.append(row("zoom-in", f"p{number}", number % 4, mid_mag=wide, option_images=fields))
    assert answer_by_pixels(rows, ALL_DIMENSIONS) == [number % 4 for number in range(8)]


def test_text_options_are_learnt_from_colour_and_never_from_the_same_patient() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        red = bool(rng.integers(2))
        colour = (200, 80, 90) if red else (90, 80, 200)
        view = Image.fromarray(np.clip(np.array(colour) + rng.normal(0, 15, (64, 64, 3)), 0, 255).astype(np.uint8))
        texts = ["the field is red", "the field is blue"]
        answer = 0 if red else 1
        rows.append(row("Diagnosis", f"p{number % 12}", answer, options=texts, high_mag=view))
    picks = answer_by_pixels(rows, ALL_DIMENSIONS)
    assert np.mean([pick == item["answer"] for pick, item in zip(picks, rows, strict=True)]) > 0.95
    blind = [item | {"high_mag": None} for item in rows]
    blind_picks = answer_by_pixels(blind, ALL_DIMENSIONS)
    assert np.mean([pick == item["answer"] for pick, item in zip(blind_picks, rows, strict=True)]) < 0.7


def test_one_patient_cannot_be_cross_fitted() -> None:
    with pytest.raises(ValueError, match="one patient"):
        answer_by_pixels([row("Diagnosis", "p", 0, options=["a b", "c d"])] * 4, ALL_DIMENSIONS)
