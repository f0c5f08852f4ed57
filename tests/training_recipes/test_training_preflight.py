"""Token counts before training: the same as the processor's, without decoding an image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from predict_release import picture
from tiny_llava import make_tiny_llava
from training_release import make_training_release, trained_rows

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import VIEWS
from training_recipes.arguments import RecipeArguments
from training_recipes.batches import encoded
from training_recipes.preflight import count_tokens, unfit_rows
from training_recipes.rationales import with_targets
from training_recipes.rows import load_rows, make_shape, shown_images, trainer_rows
from training_recipes.selection import select
from training_recipes.tiny_model import make_tiny_model


def processor_of(folder):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, padding_side="left")


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return processor_of(make_tiny_model(tmp_path_factory.mktemp("tiny") / "qwen"))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Rows whose images have many sizes and shapes."""
    sides = np.random.default_rng(0)

    def varied():
        for row in trained_rows(4):
            for view in VIEWS:
                if row.get(view):
                    width, height = (int(side) for side in sides.integers(20, 300, 2))
                    file = io.BytesIO()
                    Image.new("RGB", (width, height), (200, 100, 150)).save(file, "PNG")
                    row[view] = {"bytes": file.getvalue(), "path": f"{view}.png"}
            yield row

    folder = tmp_path_factory.mktemp("preflight") / "scale-vqa"
    return write_release(folder, {"default": {"train": varied()}}, {"default": "made for a test"})


def counted(release, shape, processor, config=None):
    rows = load_rows(str(release), config, "train")
    pictures = shown_images(rows, shape)
    return rows, pictures, count_tokens(rows, shape, processor, pictures)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_pixels": 60 * 60}, {"min_pixels": 90 * 90}, {"views": ["mid_mag"]}, {"blind": True}],
    ids=["as they are", "at most", "at least", "one view", "blind"],
)
def test_counts_are_those_of_the_processor(release, processor, options):
    shape = make_shape(**options)
    rows, _, lengths = counted(release, shape, processor)
    made = trainer_rows(rows, shape)
    real = [encoded(processor, [row], shape.blind)["input_ids"].shape[1] for row in made]
    assert lengths.prompt.tolist() == real
    assert (lengths.image == 0).all() == shape.blind


def test_another_architecture_is_counted_too(release, tmp_path):
    llava = processor_of(make_tiny_llava(tmp_path / "llava"))
    shape = make_shape()
    rows, _, lengths = counted(release, shape, llava)
    real = [encoded(llava, [row])["input_ids"].shape[1] for row in trainer_rows(rows, shape)]
    assert lengths.prompt.tolist() == real


def test_what_is_to_be_learnt_is_counted_as_the_trainer_joins_it(release, processor):
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    shape = make_shape()
    rows, _ = with_targets(load_rows(str(release), None, "train"), "repaired")
    lengths = count_tokens(rows, shape, processor, shown_images(rows, shape))
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    for place, row in enumerate(trainer_rows(rows, shape)):
        batch = collate([dict(row)])
        assert batch["input_ids"].shape[1] == lengths.total[place]
        assert int((batch["labels"] != -100).sum()) == lengths.completion[place]


def test_rows_over_the_bound_and_rows_without_images_are_named(release, processor):
    shape = make_shape(views=["high_mag"])
    rows, pictures, lengths = counted(release, shape, processor)
    bound = int(np.median(lengths.total))
    found = {row.id: row.reason for row in unfit_rows(rows, lengths, pictures, bound)}
    bare = [rows[place]["id"] for place, row in enumerate(pictures) if not row]
    long = [rows[place]["id"] for place in np.flatnonzero(lengths.total > bound)]
    assert bare and set(found) == {*bare, *long}
    assert all("none of the chosen views" in found[name] for name in bare)
    assert all(f"the bound is {bound}" in found[name] for name in long if name not in bare)


def test_images_are_not_decoded(processor, tmp_path):
    """A picture whose body is torn still has a size; only the longest row is put through the processor."""
    rows = list(trained_rows(2, side=112))
    for row in rows[5:]:
        row["question"] = "short"
        row["low_mag"] = {"bytes": picture(7)[:-200], "path": "torn.jpg"}
    rows[0]["question"] *= 20
    folder = write_release(tmp_path / "scale-vqa", {"default": {"train": rows}}, {"default": "made for a test"})
    shape = make_shape()
    loaded, _, lengths = counted(folder, shape, processor)
    assert (lengths.image[5:] == 3 * 16).all()
    with pytest.raises(InputError, match="a whole image"):
        trainer_rows(loaded, shape)[5]


def test_a_text_with_the_models_image_token_is_refused(processor, tmp_path):
    rows = list(trained_rows(1))
    rows[1]["question"] = "What does <|image_pad|> show?"
    folder = write_release(tmp_path / "scale-vqa", {"default": {"train": rows}}, {"default": "made for a test"})
    with pytest.raises(InputError, match=r"p0::type_B: expected 3 tokens <\|image_pad\|>, found 4"):
        counted(folder, make_shape(), processor)


def test_a_processor_that_counts_otherwise_is_found_out(release, processor, monkeypatch):
    real = type(processor)._get_num_multimodal_tokens

    def wrong(self, image_sizes=None, **options):
        found = real(self, image_sizes=image_sizes, **options)
        found.num_image_tokens = [count + 1 for count in found.num_image_tokens]
        return found

    monkeypatch.setattr(type(processor), "_get_num_multimodal_tokens", wrong)
    with pytest.raises(InputError, match="as the processor makes"):
        counted(release, make_shape(), processor)


def test_option_images_count(processor, tmp_path):
    folder = make_training_release(tmp_path / "scale-vqa")
    shape = make_shape(max_pixels=56 * 56)
    rows, _, lengths = counted(folder, shape, processor, "grounding")
    assert lengths.image.tolist() == [5 * 4] * len(rows)


def with_changes(folder, **changes):
    """Writes a release whose rows have other values in some columns."""
    rows = [{**row, **changes} for row in trained_rows(1)]
    return write_release(folder, {"default": {"train": rows}}, {"default": "made for a test"})


def image_of(width, height, kind, mode="RGB"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 100, 150)).convert(mode).save(file, kind)
    return {"bytes": file.getvalue(), "path": f"x.{kind.lower()}"}


def test_an_image_whose_decoder_takes_no_mapped_memory_is_counted(processor, tmp_path):
    folder = with_changes(tmp_path / "d", low_mag=image_of(61, 84, "TIFF", "CMYK"))
    rows, _, lengths = counted(folder, make_shape(), processor)
    batch = encoded(processor, [trainer_rows(rows, make_shape())[0]])
    assert lengths.prompt[0] == batch["input_ids"].shape[1]


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"low_mag": image_of(900, 2, "PNG")},
            r"p0::type_A: expected images that the model can take, found 900 x 2",
        ),
        ({"low_mag": {"bytes": b"hello", "path": "x"}}, r"low_mag: expected a whole image, found 5 bytes"),
        ({"question": "What moves <|video_pad|>?"}, r"p0::type_A: expected 0 tokens <\|video_pad\|>, found 1"),
        ({"id": "same"}, "an id of its own for every row, found 'same' 5 times"),
    ],
)
def test_rows_that_no_step_could_take_are_named_before_training(processor, tmp_path, changes, said):
    recipe = RecipeArguments(data=str(with_changes(tmp_path / "d", **changes)))
    with pytest.raises(InputError, match=said):
        select(recipe, make_shape(), processor, "train", None, 0, None)
