"""Data checks: what two splits share is found, what they do not share is not, and a broken image is named."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from scale_vqa_eval.audit.defects import letter_balance
from scale_vqa_eval.audit.overlap import find_overlap, near_pairs, pairs_within, perceptual_hashes
from scale_vqa_eval.questions import Question
from scale_vqa_eval.release_folder.write import write_release


def field_of_view(seed: int, size: int = 256) -> Image.Image:
    """A smooth pink-and-violet texture, another for each seed."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    blobs = gaussian_filter(noise, 9) + 0.3 * gaussian_filter(noise.T, 3)
    blobs = (blobs - blobs.min()) / np.ptp(blobs)
    colour = np.array([235, 180, 215]) - blobs[..., None] * np.array([120, 130, 60])
    return Image.fromarray(colour.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def row(number: int, slide: str, image: bytes | None, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "question": f"What is seen in field {number}?",
        "options": ["gland", "vessel", "nerve", f"fold {number}"],
        "answer": "ABCD"[number % 4],
        "dimension": "Localization",
        "wsi_name": slide,
        "patient_id": slide,
        "path_id": f"path {number}",
        "low_mag": None if image is None else {"bytes": image, "path": "low.png"},
        **changes,
    }


def release(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    return write_release(folder / "scale-vqa", {"default": splits}, {})


def overlap(folder: Path, **splits: list[dict[str, Any]]) -> dict[str, Any]:
    report = find_overlap(release(folder, **splits), progress=False)
    json.dumps(report, allow_nan=False)
    return report


def test_splits_that_share_nothing_come_out_clean(tmp_path: Path) -> None:
    train = [row(n, f"s{n}", encoded(field_of_view(n))) for n in range(6)]
    test = [row(n, f"s{n}", encoded(field_of_view(n))) for n in range(6, 10)]
    report = overlap(tmp_path, train=train, test=test)
    assert report["leaks"] == []
    assert report["splits"] == {"train": 6, "test": 4}
    assert report["images"]["images"] == report["images"]["distinct"] == 10
    assert report["images"]["near"]["same_slide"] == report["images"]["near"]["other_slide"] == 0
    assert report["nulls"]["views"] == {"low_mag": 0, "mid_mag": 10, "high_mag": 10}


def test_everything_that_two_splits_share_is_named(tmp_path: Path) -> None:
    same = encoded(field_of_view(0))
    stored_anew = encoded(field_of_view(0), "PNG", compress_level=1)
    assert same != stored_anew
    train = [row(0, "slide A", same), row(1, "slide B", encoded(field_of_view(1)))]
    test = [
        row(2, "slide A", stored_anew, path_id="path 0"),
        row(3, "slide C", None, question="what is seen in FIELD 1", options=["vessel.", "Gland", "nerve", "fold 1"]),
    ]
    report = overlap(tmp_path, train=train, test=test)
    assert report["leaks"] == [
        "1 patient(s) in more than one split",
        "1 slide(s) in more than one split",
        "1 path(s) in more than one split",
        "1 question text(s) with the same options in more than one split",
        "1 image(s), pixel by pixel, in more than one split",
    ]
    assert report["patients"]["examples"] == [{"name": "slide A", "questions": {"test": 1, "train": 1}}]
    assert [place["id"] for place in report["images"]["exact"]["examples"][0]] == ["q0", "q2"]
    assert [place["id"] for place in report["texts"]["examples"][0]["rows"]] == ["q1", "q3"]


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "re-encoded": lambda image: encoded(image, "JPEG", quality=40),
    "smaller": lambda image: encoded(image.resize((100, 100), Image.Resampling.BICUBIC)),
    "larger": lambda image: encoded(image.resize((430, 430), Image.Resampling.LANCZOS)),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.08)),
    "darker": lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.75)),
    "more colour": lambda image: encoded(ImageEnhance.Color(image).enhance(1.4)),
}


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_in_another_split_is_near(tmp_path: Path, change: str) -> None:
    train = [row(n, f"s{n}", encoded(field_of_view(n))) for n in range(12)]
    test = [row(12 + n, f"t{n}", COPIES[change](field_of_view(n))) for n in range(4)]
    report = overlap(tmp_path, train=train, test=test)
    near = report["images"]["near"]
    assert (near["across_splits"], near["other_slide"], near["same_slide"]) == (4, 0, 0)
    assert {tuple(place["id"] for place in example["places"]) for example in near["examples"]} == {
        (f"q{n}", f"q{12 + n}") for n in range(4)
    }
    assert report["leaks"] == ["4 pair(s) of near-duplicate images across splits"]


def test_near_images_of_one_slide_and_split_are_told_apart_from_leaks(tmp_path: Path) -> None:
    image = field_of_view(0)
    rows = [row(0, "s", encoded(image)), row(1, "s", encoded(image, "JPEG")), row(2, "t", COPIES["smaller"](image))]
    near = overlap(tmp_path, test=rows)["images"]["near"]
    assert (near["across_splits"], near["other_slide"], near["same_slide"]) == (0, 2, 1)


def png_of_zeros(side: int) -> bytes:
    return encoded(Image.new("1", (side, side)))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda: png_of_zeros(8000), "decompression bomb"),
        (lambda: png_of_zeros(20000), "decompression bomb"),
        (lambda: encoded(field_of_view(0), "JPEG")[:3000], "truncated"),
        (lambda: b"not an image", "not an image of a known format: 12 bytes, b'not an i' first"),
        (lambda: b"", "not an image of a known format: 0 bytes"),
    ],
    ids=["bomb", "larger bomb", "truncated", "text", "empty"],
)
def test_a_broken_image_is_named_and_the_rest_is_compared(
    tmp_path: Path, broken: Callable[[], bytes], reason: str
) -> None:
    rows = [row(0, "s", encoded(field_of_view(0))), row(1, "t", broken()), row(2, "u", encoded(field_of_view(0)))]
    images = overlap(tmp_path, test=rows)["images"]
    ((name),) = images["unreadable"]
    assert (name["id"], name["view"]) == ("q1", "low_mag")
    assert reason in name["reason"]
    assert images["exact"]["other_slide"] == 1


def test_blank_images_are_counted_as_flat_and_are_near_to_nothing(tmp_path: Path) -> None:
    rows = [row(n, f"s{n}", encoded(Image.new("RGB", (64, 64), (240 + n, 240, 240)))) for n in range(4)]
    images = overlap(tmp_path, test=rows)["images"]
    assert images["flat"] == 4
    assert images["near"]["other_slide"] == 0


def test_lists_of_option_images_are_looked_at(tmp_path: Path) -> None:
    pictures = [{"bytes": encoded(field_of_view(n)), "path": "o.png"} for n in range(4)]
    rows = [row(n, f"s{n}", None, option_images=pictures) for n in range(2)]
    folder = write_release(tmp_path / "scale-vqa", {"grounding": {"test": rows}}, {})
    images = find_overlap(folder, "grounding", progress=False)["images"]
    assert images["by_view"]["option_images 4"] == 2
    assert images["exact"]["other_slide"] == 4


def test_images_of_a_hub_dataset_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    pictures = [{"bytes": encoded(field_of_view(n)), "path": "o.png"} for n in range(4)]
    train = [row(n, f"s{n}", encoded(field_of_view(9 + n)), option_images=pictures) for n in range(2)]
    test = [row(2, "s2", COPIES["darker"](field_of_view(9)), path_id="p")]
    folder, load = release(tmp_path, train=train, test=test), datasets.load_dataset
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *args, **options: load(str(folder), *args, **options))
    report = find_overlap("org/scale-vqa", "default", progress=False)
    assert report["splits"] == {"train": 2, "test": 1}
    assert report["images"] == find_overlap(folder, progress=False)["images"]
    assert report["images"]["near"]["across_splits"] == 1
    assert report["images"]["exact"]["other_slide"] == 4


def test_files_without_images_say_so_and_missing_columns_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps([{"question": "Why?", "options": ["a", "b"], "answer": "A"}] * 2))
    report = find_overlap(file)
    assert report["images"] is None
    assert any("No images were compared" in note for note in report["notes"])
    assert any("one split only" in note for note in report["notes"])
    assert any("2 of 2 questions have no patient" in note for note in report["notes"])
    assert report["texts"]["within_split"] == 1


def test_splits_named_in_a_column_of_one_file_are_compared(tmp_path: Path) -> None:
    rows = [
        {"question": "Why?", "options": ["a", "b"], "answer": "A", "split": "train", "patient": "P1"},
        {"question": "How?", "options": ["c", "d"], "answer": "B", "split": "test", "patient": "P1"},
    ]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert find_overlap(file)["leaks"] == ["1 patient(s) in more than one split"]


def test_the_text_of_an_exchange_set_tells_nothing_and_is_no_duplicate(tmp_path: Path) -> None:
    text: Mapping[str, Any] = {"question": "Which?", "options": ["a", "b", "c", "d"]}
    train = [row(n, f"s{n}", None, **text) for n in range(4)]
    test = [row(n, f"s{n}", None, **text) for n in range(4, 12)]
    report = overlap(tmp_path / "balanced", train=train, test=test)
    assert report["texts"] == {
        "across_splits": 0,
        "within_split": 0,
        "other_answer": 0,
        "exchange_sets": 1,
        "examples": [],
    }
    assert report["leaks"] == []
    texts = overlap(tmp_path / "loose", train=train, test=test[:-1])["texts"]
    assert (texts["across_splits"], texts["other_answer"], texts["exchange_sets"]) == (1, 1, 0)
    assert [place["split"] for place in texts["examples"][0]["rows"]] == ["train", "test", "train", "train"]
    texts = overlap(tmp_path / "alone", test=test[:3])["texts"]
    assert (texts["within_split"], texts["other_answer"]) == (1, 1)


def test_letters_that_are_balanced_pass_and_letters_that_are_not_fail() -> None:
    def lettered(answers: list[int], dimension: str, options: int = 4) -> list[Question]:
        texts = tuple(f"o{n}" for n in range(options))
        return [Question(f"{dimension}{n}", "Q?", texts, answer, dimension) for n, answer in enumerate(answers)]

    even = lettered([n % 4 for n in range(80)], "Diagnosis")
    skewed = lettered([0] * 50 + [1] * 10 + [2] * 10 + [3] * 10, "Explanation")
    rows = {row["dimension"]: row for row in letter_balance([*even, *skewed])}
    assert rows["Diagnosis"]["p"] == pytest.approx(1.0)
    assert rows["Explanation"]["p_holm"] < 1e-6
    assert rows["Explanation"]["counts"] == {"A": 50, "B": 10, "C": 10, "D": 10}
    mixed = lettered([0, 1] * 30, "two", 2) + lettered([0, 1, 2] * 20, "three", 3)
    assert {row["dimension"]: row for row in letter_balance(mixed)}[None]["p"] == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 400), st.integers(0, 12))
def test_the_search_finds_exactly_the_pairs_that_all_comparisons_find(seed: int, count: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for target in range(count // 2):  # plant relatives at every distance around the limit
        flips = rng.choice(64, rng.integers(0, bits + 4), replace=False)
        hashes[target] = hashes[count // 2 + target] ^ np.uint64(sum(1 << int(flip) for flip in flips))
    first, second, distance = pairs_within(hashes, bits)
    table = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.nonzero(np.triu(table <= bits, 1))
    assert (first.tolist(), second.tolist()) == (expected[0].tolist(), expected[1].tolist())
    assert distance.tolist() == table[expected].tolist()


def test_crowded_hashes_are_searched_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    from scale_vqa_eval.audit import overlap

    monkeypatch.setattr(overlap, "_CANDIDATES_AT_ONCE", 50)
    first, _, distance = pairs_within(np.zeros(40, dtype=np.uint64), 3)
    assert len(first) == 40 * 39 // 2
    assert distance.max() == 0


@pytest.mark.slow
def test_real_tissue_copies_are_found_and_other_fields_are_not(shared: Path) -> None:
    import openslide

    fields: list[Image.Image] = []
    for path in sorted((shared / "slides").glob("*.tif")):
        with openslide.OpenSlide(path) as slide:
            for x in (600, 2600, 4600):
                field = slide.read_region((x, 2 * x // 3), 0, (512, 512)).convert("RGB")
                fields += [field] if perceptual_hashes(field) else []  # blank glass is compared with nothing
    assert len(fields) >= 25
    copies = [Image.open(io.BytesIO(COPIES[change](field))) for change in COPIES for field in fields]
    hashes = [perceptual_hashes(image) for image in [*fields, *copies]]
    kept = [(index, pair) for index, pair in enumerate(hashes) if pair]
    coarse = np.array([pair[0] for _, pair in kept], dtype=np.uint64)
    fine = np.frombuffer(b"".join(pair[1] for _, pair in kept), dtype=np.uint8).reshape(-1, 32)
    first, second, _ = near_pairs(coarse, fine)
    source = np.array([index % len(fields) for index, _ in kept])
    found = {(kept[a][0], kept[b][0]) for a, b in zip(first, second, strict=True) if kept[a][0] < len(fields)}
    wanted = {(n % len(fields), n) for n in range(len(fields), len(hashes))}
    assert len(wanted & found) >= 0.98 * len(wanted)
    assert (source[first] == source[second]).all(), "two different fields were taken for one"
