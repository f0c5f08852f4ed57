"""What is asked: images in scale order, wherever they lie, and what each ablation takes away."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from predict_release import make_release, picture, rows

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.backend import InferenceConfig, Sampling, largest_request
from scale_vqa_eval.predict.images import (
    Bounds,
    EncodedImages,
    HubImages,
    ImageRef,
    ImageSource,
    data_uri,
    decode_image,
    images_digest,
)
from scale_vqa_eval.predict.prompts import load_prompt
from scale_vqa_eval.predict.requests import Request, VisualQuestion, ablated, read_visual_questions, requests_by_path
from scale_vqa_eval.questions import Question

VIEWS = ["low_mag", "mid_mag", "high_mag"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_release(tmp_path_factory.mktemp("data") / "scale-vqa")


def digest_of(items: list[VisualQuestion], source: ImageSource) -> str | None:
    return images_digest([(item.question.id, image) for item in items for image in item.images], source)[0]


def test_views_come_in_scale_order_and_only_those_that_exist(release: Path) -> None:
    items, store = read_visual_questions(str(release), "test", None, None, blind=False)
    given_rows = list(rows())
    assert [item.question.id for item in items] == [row["id"] for row in given_rows]
    for item, row in zip(items, given_rows, strict=True):
        assert [view.column for view in item.views] == [view for view in VIEWS if view in row]
        assert [store.read(view) for view in item.views] == [row[view]["bytes"] for view in VIEWS if view in row]


def test_questions_of_a_path_stand_together(release: Path) -> None:
    items, _ = read_visual_questions(str(release), "test", None, None, blind=False)
    paths = requests_by_path(items[::2] + items[1::2], circular=False)
    assert [len(path) for path in paths] == [5] * 6
    assert all(len({ask.item.path for ask in path}) == 1 for path in paths)


def test_every_container_gives_the_same_images(release: Path, tmp_path: Path) -> None:
    items, store = read_visual_questions(str(release), "test", None, None, blind=False)
    digest = digest_of(items, store)
    shard = next((release / "default").glob("*.parquet"))
    alone, its_store = read_visual_questions(str(shard), None, None, None, blind=False)
    assert digest_of(alone, its_store) == digest
    assert digest_of(items, HubImages(str(release), "test", "default")) == digest
    shuffled = pq.read_table(shard)
    half = tmp_path / "half.parquet"
    pq.write_table(shuffled.append_column("split", [["a", "b"] * 15]), half)
    kept, half_store = read_visual_questions(str(half), "b", None, None, blind=False)
    assert [half_store.read(item.views[0]) for item in kept] == [store.read(item.views[0]) for item in items[1::2]]


def test_image_paths_of_a_json_file_stay_inside_of_their_folder(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.jpg").write_bytes(picture(1))
    (tmp_path / "secret.jpg").write_bytes(picture(2))
    row = {"question": "?", "options": ["x", "y"], "answer": "A", "image_path": {"mid_mag": "a.jpg", "high_mag": None}}
    file = tmp_path / "root" / "q.json"
    file.write_text(json.dumps([row]))
    items, store = read_visual_questions(str(file), None, None, None, blind=False)
    assert store.read(items[0].views[0]) == picture(1)
    with pytest.raises(InputError, match="2 image files, found none") as caught:
        file.write_text(json.dumps([row | {"image_path": {"low_mag": "x.jpg", "mid_mag": "y.jpg"}}]))
        read_visual_questions(str(file), None, None, None, blind=False)
    assert len(caught.value.problems) == 1
    for bad in ("../secret.jpg", str(tmp_path / "secret.jpg"), "gone.jpg"):
        file.write_text(json.dumps([row | {"image_path": {"mid_mag": bad}}]))
        with pytest.raises(InputError, match="mid_mag"):
            read_visual_questions(str(file), None, None, None, blind=False)
        assert read_visual_questions(str(file), None, None, None, blind=True)[0][0].views == ()


def test_option_images_follow_the_views_each_after_its_letter(release: Path) -> None:
    items, _ = read_visual_questions(str(release), "test", "grounding", None, blind=False)
    parts = Request(items[0], 1).content(load_prompt("published"))
    preview = [part if isinstance(part, str) else (part.column, part.option) for part in parts]
    places = [("option_images", place) for place in (1, 2, 3, 0)]
    assert preview[:-1] == [
        ("mid_mag", None),
        *(x for pair in zip(["A.", "B.", "C.", "D."], places, strict=True) for x in pair),
    ]
    assert preview[-1].endswith("A. field A\nB. field B\nC. field C\nD. field D")
    blind, _ = ablated(items, "blind", 0)
    assert Request(blind[0]).content(load_prompt("published")) == [
        Request(items[0]).content(load_prompt("published"))[-1]
    ]


@pytest.mark.parametrize(("name", "view"), [("no-low", "low_mag"), ("no-mid", "mid_mag"), ("no-high", "high_mag")])
def test_one_view_is_left_out_and_who_never_had_it_is_counted(release: Path, name: str, view: str) -> None:
    items, _ = read_visual_questions(str(release), "test", None, None, blind=False)
    kept, notes = ablated(items, name, 0)
    for before, after in zip(items, kept, strict=True):
        assert list(after.views) == [picture for picture in before.views if picture.column != view]
    assert notes == (["10 of 30 questions have no high_mag and are asked unchanged"] if name == "no-high" else [])


@given(st.lists(st.integers(1, 6), min_size=2, max_size=8), st.integers(0, 99))
def test_shuffled_images_are_another_patients(sizes: list[int], seed: int) -> None:
    items = [
        VisualQuestion(
            Question(f"{patient}-{path}-{number}", "?", ("x", "y"), 0, patient=str(patient)),
            (ImageRef(row, "low_mag"),),
            (),
            f"{patient}-{path}",
        )
        for row, (patient, path) in enumerate((p, i) for p, size in enumerate(sizes) for i in range(size))
        for number in range(2)
    ]
    owner = {item.views[0]: item for item in items}
    mixed, notes = ablated(items, "shuffled", seed)
    assert ablated(items, "shuffled", seed)[0] == mixed
    donors: dict[str, set[str]] = {}
    for before, after in zip(items, mixed, strict=True):
        donor = owner[after.views[0]]
        assert donor.question.cluster != before.question.cluster and after.question == before.question
        donors.setdefault(before.path, set()).add(donor.path)
    assert all(len(found) == 1 for found in donors.values())
    if 2 * max(sizes) <= sum(sizes):
        assert not notes and max(Counter(next(iter(found)) for found in donors.values()).values()) == 1


def test_shuffled_needs_a_second_patient(release: Path) -> None:
    items, _ = read_visual_questions(str(release), "test", None, None, blind=False)
    with pytest.raises(InputError, match="two patients"):
        ablated(items[:5], "shuffled", 0)


@given(st.integers(2, 8), st.data())
def test_every_turn_shows_every_option_and_keeps_the_gold(count: int, data: st.DataObject) -> None:
    answer = data.draw(st.integers(0, count - 1))
    question = Question("q", "?", tuple(f"text {i}" for i in range(count)), answer)
    asks = requests_by_path([VisualQuestion(question, (), (), "p")], circular=True)[0]
    assert [ask.rotation for ask in asks] == list(range(count))
    assert all(ask.options[ask.gold] == f"text {answer}" for ask in asks)
    assert {ask.options[0] for ask in asks} == set(question.options)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 90_000))
def test_bounds_hold(width: int, height: int, bound: int) -> None:
    small, tall = Bounds(maximum=bound).size(width, height)
    assert small * tall <= max(bound, small, tall)
    large, wide = Bounds(minimum=bound).size(width, height)
    assert large * wide >= bound


def test_originals_are_sent_as_they_are_and_others_lossless() -> None:
    jpeg, tiff = picture(3), picture(3, kind="TIFF")
    assert data_uri(jpeg, "x", Bounds()).startswith("data:image/jpeg;base64,/9j")
    assert data_uri(tiff, "x", Bounds()).startswith("data:image/png;base64,")
    assert data_uri(jpeg, "x", Bounds(maximum=100)).startswith("data:image/png")
    assert decode_image(jpeg, "x", Bounds(maximum=100)).size == (10, 10)
    for broken in (b"", b"GIF89a", jpeg[: len(jpeg) // 2]):
        with pytest.raises(InputError, match="row 7"):
            decode_image(broken, "row 7", Bounds())


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def test_an_image_is_turned_as_its_exif_says_as_servers_and_datasets_turn_it() -> None:
    upright = Image.open(io.BytesIO(picture(3))).resize((40, 20))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = saved(upright, "JPEG", exif=exif)
    seen = decode_image(content, "x", Bounds())
    assert seen.size == (20, 40)
    assert (np.asarray(seen) == np.asarray(datasets.Image().decode_example({"bytes": content, "path": None}))).all()
    sent = Image.open(io.BytesIO(base64.b64decode(data_uri(content, "x", Bounds()).split(",")[1])))
    assert not sent.getexif() and (np.asarray(sent) == np.asarray(seen)).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_sixteen_bits_keeps_its_shades(kind: str) -> None:
    shades = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    content = saved(Image.fromarray(shades), kind)
    assert (np.asarray(decode_image(content, "x", Bounds()))[..., 0].ravel() == np.arange(256)).all()
    with pytest.raises(InputError, match="32 bits a pixel"):
        decode_image(saved(Image.fromarray(shades.astype(np.float32)), "TIFF"), "x", Bounds())


def test_a_file_that_is_not_an_image_is_named_by_its_first_bytes() -> None:
    with pytest.raises(InputError, match="18 bytes that begin with b'<html>not found<'") as error:
        decode_image(b"<html>not found</h", "x", Bounds())
    assert " at 0x" not in str(error.value)


def test_images_encoded_last_are_kept_within_a_bound() -> None:
    small = data_uri(picture(1, 16), "x", Bounds())
    kept = EncodedImages(limit=3 * len(small))
    for seed in (1, 2, 1, 3, 4, 1):
        assert kept.uri(picture(seed, 16), "x", Bounds()) == data_uri(picture(seed, 16), "x", Bounds())
        assert sum(map(len, kept._kept.values())) == kept._size <= kept.limit
    assert kept.uri(picture(1, 16), "x", Bounds(maximum=100)) != small, "other bounds are another image"


def test_a_check_begins_with_the_largest_of_the_questions_with_most_images(tmp_path: Path) -> None:
    def row(number: int, sides: dict[str, int], text: str) -> dict[str, Any]:
        names = {}
        for view, side in sides.items():
            names[view] = f"{number}_{view}.png"
            (tmp_path / names[view]).write_bytes(saved(Image.new("RGB", (side, side)), "PNG"))
        return {"id": f"q{number}", "question": text, "options": ["x", "y"], "answer": "A", "image_path": names}

    two = {"low_mag": 900, "mid_mag": 900}
    three = dict.fromkeys(VIEWS, 100)
    rows = [row(0, two, "long " * 50), row(1, three, "long " * 40), row(2, three | {"mid_mag": 300}, "short")]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    items, store = read_visual_questions(str(tmp_path / "q.json"), None, None, None, blind=False)
    paths = requests_by_path(items, circular=False)

    def first(bounds: Bounds) -> str:
        return largest_request(
            paths, InferenceConfig("m", load_prompt("published"), Sampling(8), bounds, store)
        ).item.question.id

    assert first(Bounds()) == "q2"
    assert first(Bounds(maximum=5000)) == "q1", "where the bounds make all alike, the longest text"


@pytest.mark.parametrize("column", [[b"x"] * 2, ["a.jpg"] * 2, [{"bytes": b"x"}] * 2])
def test_a_parquet_file_with_images_of_another_kind_is_one_clear_error(tmp_path: Path, column: list[Any]) -> None:
    file = tmp_path / "q.parquet"
    text = {"question": ["?", "!"], "options": [["x", "y"]] * 2, "answer": ["A", "B"]}
    pq.write_table(pa.table({**text, "mid_mag": column}), file)
    with pytest.raises(InputError, match=r"q.parquet, mid_mag: expected images as .bytes, path.*Image feature"):
        read_visual_questions(str(file), None, None, None, blind=False)
    assert len(read_visual_questions(str(file), None, None, None, blind=True)[0]) == 2


def test_a_release_without_images_is_refused_unless_asked_blind(release: Path, tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps([{"question": "?", "options": ["x", "y"], "answer": "A"}]))
    with pytest.raises(InputError, match="--ablate blind"):
        read_visual_questions(str(file), None, None, None, blind=False)
    assert len(read_visual_questions(str(file), None, None, None, blind=True)[0]) == 1
    with pytest.raises(InputError, match="a split that it has"):
        read_visual_questions(str(release), "val", None, None, blind=False)
