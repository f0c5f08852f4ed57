r"""The released conversations: image paths of another machine, and a literal backslash-n."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversation_files import conversation, written
from hypothesis import given, settings
from hypothesis import strategies as st
from predict_release import picture

from scale_vqa_eval.errors import InputError
from training_recipes.sft_data import read_conversations, remapped


@pytest.fixture
def root(tmp_path):
    for name in ("S1/rois/10_1_2.jpg", "S1/rois/40_1_2.jpg", "S2/rois/10_1_2.jpg"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(1, 28))
    (tmp_path / "secret.jpg").write_bytes(picture(2, 28))
    (tmp_path / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    return tmp_path / "images"


def test_paths_of_another_machine_are_found_below_the_root(root):
    assert remapped("/home/them/data/S1/rois/40_1_2.jpg", root) == root / "S1/rois/40_1_2.jpg"
    assert remapped("S2/rois/10_1_2.jpg", root) == root / "S2/rois/10_1_2.jpg"
    assert remapped("C:\\data\\S1\\rois\\10_1_2.jpg", root) == root / "S1/rois/10_1_2.jpg"
    assert remapped("/home/them/S3/rois/10_1_2.jpg", root) is None


@pytest.mark.parametrize("text", ["/x/../../secret.jpg", "../secret.jpg", "/x/link.jpg", "/", "", ".."])
def test_no_path_leaves_the_root(root, text):
    assert remapped(text, root) is None
    assert remapped(str(root.parent / "secret.jpg"), root) is None


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["..", ".", "S1", "rois", "10_1_2.jpg", "/", "link.jpg", "secret.jpg"]), max_size=7))
def test_what_is_found_lies_below_the_root(tmp_path_factory, parts):
    base = Path(tmp_path_factory.getbasetemp()) / "remapped"
    root = base / "images"
    if not base.exists():
        (root / "S1" / "rois").mkdir(parents=True)
        (root / "S1" / "rois" / "10_1_2.jpg").write_bytes(b"x")
        (base / "secret.jpg").write_bytes(b"x")
        (root / "link.jpg").symlink_to(base / "secret.jpg")
    found = remapped("/".join(parts), root.resolve())
    assert found is None or found == (root / "S1" / "rois" / "10_1_2.jpg").resolve()


def test_image_places_become_parts(root, tmp_path):
    file = written(
        tmp_path, conversation("/a/S1/rois/10_1_2.jpg", "/a/S1/rois/40_1_2.jpg", user="<image>\n<image>\n\nWhich?")
    )
    row = read_conversations(file, root)[0][0]
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "image", "text"]
    assert row["messages"][0]["content"][2]["text"] == "Which?"
    assert [Path(file).name for file in row["files"]] == ["10_1_2.jpg", "40_1_2.jpg"]


def test_literal_line_breaks_are_repaired_and_counted(root, tmp_path):
    file = written(
        tmp_path,
        conversation("/a/S1/rois/10_1_2.jpg", user="<image>One.\\n\nTwo.\\nThree"),
        conversation("/a/S1/rois/10_1_2.jpg", answer="where \\nu > 3"),
        conversation("/a/S1/rois/10_1_2.jpg"),
    )
    rows, *counts = read_conversations(file, root)
    assert counts == [1, 1]
    assert rows[0]["messages"][0]["content"][1]["text"] == "One.\n\nTwo.\nThree"
    assert rows[1]["target"] == "where \\nu > 3"


def test_sharegpt_names_are_read(root, tmp_path):
    turns = [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", "value": "A"}]
    file = written(tmp_path, {"conversations": turns, "images": ["S1/rois/10_1_2.jpg"]})
    assert read_conversations(file, root)[0][0]["target"] == "A"


def test_every_row_that_breaks_the_layout_is_named(root, tmp_path):
    file = written(
        tmp_path,
        conversation("/a/S9/rois/10_1_2.jpg"),
        conversation("/a/S1/rois/10_1_2.jpg", user="Which?"),
        {"messages": [{"role": "user", "content": "x"}], "images": []},
        "text",
    )
    with pytest.raises(InputError) as caught:
        read_conversations(file, root)
    said = str(caught.value)
    assert "row 1: expected an image below" in said and "row 2: expected 1 placeholders <image>" in said
    assert "row 3: expected messages" in said and "row 4: expected messages" in said


@pytest.mark.parametrize("content", ["{}", "[]", "[", "null"])
def test_what_is_no_conversation_file_is_refused(root, tmp_path, content):
    path = tmp_path / "sft.json"
    path.write_text(content)
    with pytest.raises(InputError, match="conversation"):
        read_conversations(path, root)


@pytest.mark.slow
@pytest.mark.real_data
def test_the_released_file_is_read_whole(shared, tmp_path):
    file = shared / "scale_vqa" / "sft_val.json"
    released = json.loads(file.read_text())
    for row in released:
        for image in row["images"]:
            place = tmp_path / "images" / "/".join(image.split("/")[-3:])
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    rows, repaired, _ = read_conversations(file, tmp_path / "images")
    assert len(rows) == len(released) == repaired
    assert not any("\\n" in part.get("text", "") for row in rows for part in row["messages"][0]["content"])
    with pytest.raises(InputError, match="more missing"):
        read_conversations(file, shared / "LICENSES")
