"""The environment: what a look shows, what is refused and counted, and that the same calls give the same bytes."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from zoom_exam import PLACES, make_exam

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.wsi import OpenSlideSource
from scale_vqa_eval.zoom.environment import Budget, ZoomEnvironment, call_tool
from scale_vqa_eval.zoom.questions import SlideStore, read_zoom_questions, slide_files


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_exam(tmp_path_factory.mktemp("exam"), slides=2)


def environment(data: Path, control: str | None = None, **budget: int) -> ZoomEnvironment:
    questions, root = read_zoom_questions(str(data), "test")
    by_id = {item.question.id: item for item in questions}
    return ZoomEnvironment(slide_files(root), by_id, Budget(**budget), control)


FIRST = "slide-0::p0::where"


def test_a_look_shows_the_field_of_the_slide_and_evidence_counts_at_its_scale(data: Path) -> None:
    zoom = environment(data, looks=4, px=256)
    parts = zoom.reset(FIRST)
    assert [part["type"] for part in parts] == ["image", "image", "text"]
    assert "1600 um wide and 1400 um high" in parts[-1]["text"]
    x, y = PLACES[0]
    image, text = zoom.look(x, y, "40x")
    with OpenSlideSource(data.parent / "slides" / "slide-0.tif") as source:
        expected = source.read_region(x, y, 2.5, 256)
    shown = image["image"].convert("RGB")
    assert shown.size == expected.size and "Looks left: 3" in text["text"]
    difference = [abs(a - b) for a, b in zip(shown.tobytes(), expected.tobytes(), strict=True)]
    assert sum(difference) / len(difference) < 4  # a JPEG of it
    assert zoom.record["hit"] is False, "the evidence is in the field, at too low a magnification"
    zoom.look(x, y, "200x")
    assert zoom.record["hit"] is True and zoom.record["hit_at"] == 2
    zoom.answer("a")
    assert zoom.get_reward() == 1.0 and zoom.letter == "A"


def test_fields_at_the_edge_are_moved_onto_the_slide(data: Path) -> None:
    zoom = environment(data, px=256)
    zoom.reset(FIRST)
    zoom.look(0, 1400, "200x")
    assert zoom.steps[-1]["box"] == (0, 1400 - 128, 128, 1400)
    zoom.look(800, 700, "10x")  # 256 px would be 2,560 um: the field is as large as the slide allows
    assert zoom.steps[-1]["px"] == 140


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("look", {"x_um": -1, "y_um": 5, "view": "10x"}),
        ("look", {"x_um": 5, "y_um": 1e9, "view": "10x"}),
        ("look", {"x_um": 10**400, "y_um": 5, "view": "10x"}),
        ("look", {"x_um": math.nan, "y_um": 5, "view": "10x"}),
        ("look", {"x_um": None, "y_um": [], "view": "10x"}),
        ("look", {"x_um": True, "y_um": 5, "view": "10x"}),
        ("look", {"x_um": 5, "y_um": 5, "view": "400x"}),
        ("look", {"x_um": 5, "y_um": 5, "view": {"a": 1}}),
        ("look", {"x_um": 5, "y_um": 5}),
        ("look", {"x_um": 5, "y_um": 5, "view": "10x", "self": 1}),
        ("look", "{"),
        ("look", "[" * 100_000),
        ("look", "null"),
        ("answer", {"letter": "E"}),
        ("answer", {"letter": 3}),
        ("answer", "\ud800"),
        ("zoom", {}),
        (None, None),
        ({"a": 1}, "1"),
    ],
    ids=range(19),
)
def test_bad_calls_are_answered_and_counted(data: Path, name: Any, arguments: Any) -> None:
    zoom = environment(data)
    zoom.reset(FIRST)
    (part,) = call_tool(zoom, name, arguments)
    assert part["text"].startswith("Refused: ")
    assert zoom.record["refused"] == 1 and zoom.record["looks"] == 0 and zoom.letter is None
    json.dumps(zoom.steps, allow_nan=False)


def test_budgets_of_looks_and_pixels_hold(data: Path) -> None:
    zoom = environment(data, looks=2, px=64, pixels=64**2 + 10)
    zoom.reset(FIRST)
    assert len(zoom.look(500, 500, "200x")) == 2
    assert "pixels" in zoom.look(500, 500, "200x")[0]["text"]
    assert zoom.record == {
        "slide": "slide-0.tif",
        "looks": 1,
        "pixels": 4096,
        "refused": 1,
        "hit": False,
        "hit_at": None,
    }
    zoom = environment(data, looks=1)
    zoom.reset(FIRST)
    zoom.look("500.5", "500", "40x")  # numbers as text are numbers
    assert "no look is left" in zoom.look(500, 500, "40x")[0]["text"]
    zoom.answer("(b)")
    assert zoom.letter == "B" and "answered already" in zoom.answer("C")[0]["text"]


def test_episodes_are_deterministic_independent_and_survive_a_pickle(data: Path) -> None:
    calls = [(400, 400, "200x"), (2000, 1, "10x"), (900, 700, "40x")]

    def played(zoom: ZoomEnvironment) -> list[Any]:
        zoom.reset(FIRST)
        for look in calls:
            zoom.look(*look)
        return [zoom.steps, zoom.images]

    first = environment(data)
    expected = played(first)
    first.reset("slide-1::p2::where")
    assert played(pickle.loads(pickle.dumps(first))) == expected == played(first) == played(environment(data))


def test_controls_hide_replace_or_make_the_looks(data: Path) -> None:
    plain, blind = environment(data), environment(data, "blind")
    assert [part for part in plain.reset(FIRST) if part["type"] == "text"] == blind.reset(FIRST)
    assert [part for part in plain.look(400, 400, "200x") if part["type"] == "text"] == blind.look(400, 400, "200x")
    assert blind.images == [] and blind.record["hit"] is None
    other = environment(data, "wrong-slide")
    other.reset(FIRST)
    other.look(400, 400, "200x")
    assert other.record["slide"] == "slide-1.tif" and other.record["hit"] is None
    assert other.images[1] == plain.images[1], "the image of the question stays"
    assert other.images[0] != plain.images[0] and other.images[2] != plain.images[2]
    overview = environment(data, "overview-only")
    overview.reset(FIRST)
    assert "no look is left" in overview.look(400, 400, "200x")[0]["text"]
    oracle = environment(data, "oracle-path")
    assert sum(part["type"] == "image" for part in oracle.reset(FIRST)) == 3 and oracle.record["hit"] is True
    walk = environment(data, "random-walk", looks=5)
    assert sum(part["type"] == "image" for part in walk.reset(FIRST)) == 7 and walk.record["looks"] == 5
    assert "no look is left" in walk.look(400, 400, "200x")[0]["text"]
    with pytest.raises(InputError, match="one of blind"):
        environment(data, "shuffled")


def test_memory_is_bounded(data: Path) -> None:
    root = data.parent / "slides"
    opened: list[str] = []

    def opening(name: str, mpp: float | None) -> OpenSlideSource:
        opened.append(name)
        return OpenSlideSource(root / name, mpp)

    store = SlideStore(opening, cache_bytes=200_000, slides=1)
    for step in range(60):
        name = f"slide-{step % 2}.tif"
        store.region(name, None, 300 + 10 * step, 500, 0.5, 256)
        assert store._size <= 200_000 and len(store._open) == 1
    assert len(opened) == 60


class Damaged:
    name, mpp, size = "damaged", 0.5, (4000, 4000)

    def thumbnail(self, max_px: int) -> Image.Image:
        return Image.new("RGB", (max_px, max_px))

    def read_region(self, x: float, y: float, mpp: float, size_px: int) -> Image.Image:
        from scale_vqa_eval.errors import Problem

        raise InputError(Problem("damaged, level 0", "pixels", "a torn tile", "scan it again"))


def test_a_damaged_part_is_an_observation(data: Path) -> None:
    questions, _ = read_zoom_questions(str(data), None)
    zoom = ZoomEnvironment(SlideStore(lambda name, mpp: Damaged()), {item.question.id: item for item in questions})
    zoom.reset(FIRST)
    assert "a torn tile" in zoom.look(500, 500, "200x")[0]["text"] and zoom.record["looks"] == 0


@pytest.mark.parametrize(
    ("change", "location", "expected"),
    [
        ({"zoom": None}, "zoom", "slide and evidence"),
        ({"zoom": {"slide": "../slide-0.tif"}}, "bad.jsonl", "a slide file below"),
        ({"zoom": {"slide": "absent.tif"}}, "bad.jsonl", "a slide file below"),
        ({"zoom": {"query": "/etc/passwd"}}, "query", "an image file below"),
        ({"zoom": {"evidence": []}}, "evidence", "at least 1"),
        ({"zoom": {"evidence": [{"view": "high_mag", "boxes": [[5, 0, 1, 9]]}]}}, "boxes", "left < right"),
        ({"zoom": {"evidence": [{"view": "20x", "boxes": [[0, 0, 1, 1]]}]}}, "view", "low_mag"),
        ({"zoom": {"looks": 3}}, "looks", "one of"),
    ],
    ids=("absent", "parent", "missing", "query", "empty", "box", "view", "unknown"),
)
def test_bad_rows_are_named(data: Path, tmp_path: Path, change: Any, location: str, expected: str) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    zoom = change["zoom"]
    rows[2]["zoom"] = zoom if zoom is None else rows[2]["zoom"] | zoom
    (data.parent / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as caught:
        read_zoom_questions(str(data.parent / "bad.jsonl"), None)
    problem = caught.value.problems[0]
    assert location in problem.location and expected in problem.expected
