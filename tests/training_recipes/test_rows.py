"""Trainer rows: what is asked in training is what ``predict`` asks."""

from __future__ import annotations

import pickle

import pytest
from predict_release import picture
from training_release import make_training_release

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.images import ImageRef
from scale_vqa_eval.predict.requests import Request, read_visual_questions
from scale_vqa_eval.release_folder.write import write_release
from training_recipes.rows import load_rows, prompt_format, shown_images, trainer_row


def trainer_rows(rows, shape):
    return rows.with_transform(trainer_row(rows, shape))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_training_release(tmp_path_factory.mktemp("rows") / "scale-vqa")


def asked(row):
    return [part.get("text", "image") for part in row["prompt"][-1]["content"]]


def test_a_trainer_row_asks_what_predict_asks(release):
    items, _ = read_visual_questions(str(release), "train", None, None, blind=False)
    shape = prompt_format()
    rows = trainer_rows(load_rows(str(release), None, "train"), shape)
    assert len(rows) == len(items) == 30
    for row, item in zip(rows, items, strict=True):
        said = ["image" if isinstance(part, ImageRef) else part for part in Request(item).content(shape.prompt)]
        assert asked(row) == said
        assert row["prompt"][0]["content"][0]["text"] == shape.prompt.system
        assert (row["id"], row["answer"]) == (item.question.id, item.question.letter)
        assert row["views"] == [view.column for view in item.views]
        assert len(row["images"]) == len(item.views)
    assert {len(row["images"]) for row in rows} == {2, 3}


@pytest.mark.parametrize("views, most", [(["low_mag", "mid_mag", "high_mag"], 3), (["high_mag", "low_mag"], 2)])
def test_views_are_shown_in_scale_order_where_they_exist(release, views, most):
    loaded = load_rows(str(release), None, "train")
    shape = prompt_format(views=views)
    rows = trainer_rows(loaded, shape)
    assert max(len(row["images"]) for row in rows) == most
    there = [[image.column for image, _ in row] for row in shown_images(loaded, shape)]
    assert [row["views"] for row in rows] == there
    assert all(row == sorted(row, key=["low_mag", "mid_mag", "high_mag"].index) for row in there)


def test_blind_rows_keep_the_text(release):
    loaded = load_rows(str(release), None, "train")
    seen, blind = trainer_rows(loaded, prompt_format()), trainer_rows(loaded, prompt_format(blind=True))
    for one, other in zip(seen, blind, strict=True):
        assert other["images"] == []
        assert asked(other) == [part for part in asked(one) if part != "image"]


def test_option_images_stand_after_their_letters(release):
    row = trainer_rows(load_rows(str(release), "grounding", "train"), prompt_format())[0]
    assert asked(row)[:9] == ["image", "A.", "image", "B.", "image", "C.", "image", "D.", "image"]
    assert len(row["images"]) == 5 and row["views"] == ["mid_mag"]


def test_images_are_brought_inside_the_bounds(release):
    rows = trainer_rows(load_rows(str(release), None, "train"), prompt_format(max_pixels=28 * 28))
    assert {image.size for row in rows for image in row["images"]} == {(28, 28)}


def test_the_transform_can_be_sent_to_another_process(release):
    rows = trainer_rows(load_rows(str(release), None, "train"), prompt_format())
    transform = pickle.loads(pickle.dumps(rows.format["format_kwargs"]["transform"]))
    batch = load_rows(str(release), None, "train")[:2]
    assert transform(batch)["id"] == [rows[0]["id"], rows[1]["id"]]


def test_dimensions_are_kept_by_name(release):
    def load(*dimensions):
        return load_rows(str(release), None, "train", dimensions)

    kept = trainer_rows(load("Diagnosis", "Localization"), prompt_format())
    assert [row["dimension"] for row in kept].count("Diagnosis") == 6 and len(kept) == 12
    with pytest.raises(InputError, match="some of Correspondence"):
        load("diagnosis")
    with pytest.raises(InputError, match="rows of Confirmation, Correspondence"):
        load("bridge")


@pytest.mark.slow
def test_the_bare_name_gives_the_rows_of_the_folder_it_stands_for(release, fresh_python):
    code = "from training_recipes.rows import load_rows; print(len(load_rows('scale-vqa', None, 'train')))"
    done = fresh_python(code, SCALE_VQA_PATH=str(release))
    assert done.stdout.split() == ["30"], done.stderr


@pytest.mark.parametrize(
    "data, config, split, said",
    [
        ("{release}", None, "test", "found train, val"),
        ("{release}", "screened", "train", "screened"),
        ("{release}/nothing", None, "train", "release folder"),
    ],
)
def test_what_is_not_there_is_named(release, data, config, split, said):
    with pytest.raises(InputError, match=said):
        load_rows(data.format(release=release), config, split)


def test_wrong_views_and_bounds_are_refused():
    with pytest.raises(InputError, match="low_mag, mid_mag, high_mag, found 'low'"):
        prompt_format(views=["low"])
    with pytest.raises(InputError, match="at most max_pixels"):
        prompt_format(min_pixels=200, max_pixels=100)


def test_a_row_does_not_open_files_of_this_machine(tmp_path):
    """An image cell may name a path; only embedded bytes are read."""
    import pyarrow.parquet as pq

    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(1))
    folder = write_release(
        tmp_path / "scale-vqa",
        {"default": {"train": [{**row, "low_mag": {"bytes": picture(2), "path": "x.jpg"}} for row in one_row()]}},
        {"default": "made for a test"},
    )
    file = next(folder.glob("default/*.parquet"))
    table = pq.read_table(file)
    place = table.column_names.index("low_mag")
    import pyarrow as pa

    cell = pa.array([{"bytes": None, "path": str(secret)}], type=table.schema.field("low_mag").type)
    pq.write_table(table.set_column(place, table.schema.field("low_mag"), cell), file)
    rows = trainer_rows(load_rows(str(folder), None, "train"), prompt_format())
    with pytest.raises(InputError, match="an embedded image"):
        rows[0]


def one_row():
    from training_release import trained_rows

    return [next(trained_rows(1))]
