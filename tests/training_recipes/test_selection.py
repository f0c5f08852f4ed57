"""Token counts before training: the same as the processor's, without decoding an image."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from predict_release import picture
from tiny_llava import make_tiny_llava
from training_release import make_training_release, trained_rows

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.images import PIXELS, Bounds, stated_bounds
from scale_vqa_eval.release_folder.write import write_release
from scale_vqa_eval.schema import VIEWS
from training_recipes.arguments import RecipeArguments, SFTArguments
from training_recipes.rows import load_rows, prompt_format, with_processor_bounds
from training_recipes.selection import candidates, candidates_of, count_tokens, fitting, unfit_rows
from training_recipes.sft_data import with_targets
from training_recipes.tiny_model import make_tiny_model
from training_recipes.trainer import encoded, opens_thoughts


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
    given = candidates_of(load_rows(str(release), config, "train"), shape)
    return given, given.rows.with_transform(given.transform), count_tokens(given, processor)


@pytest.mark.parametrize(
    "options",
    [{}, {"max_pixels": 60 * 60}, {"min_pixels": 90 * 90}, {"views": ["mid_mag"]}, {"blind": True}],
    ids=["as they are", "at most", "at least", "one view", "blind"],
)
def test_counts_are_those_of_the_processor(release, processor, options):
    shape = prompt_format(**options)
    _, made, lengths = counted(release, shape, processor)
    real = [encoded(processor, [row], shape.blind)["input_ids"].shape[1] for row in made]
    assert lengths.prompt.tolist() == real
    assert (lengths.image == 0).all() == shape.blind


def test_another_architecture_is_counted_too(release, tmp_path):
    llava = processor_of(make_tiny_llava(tmp_path / "llava"))
    shape = prompt_format()
    _, made, lengths = counted(release, shape, llava)
    real = [encoded(llava, [row])["input_ids"].shape[1] for row in made]
    assert lengths.prompt.tolist() == real


def test_what_is_to_be_learnt_is_counted_as_the_trainer_joins_it(release, processor):
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    rows, _ = with_targets(load_rows(str(release), None, "train"), "repaired")
    given = candidates_of(rows, prompt_format())
    lengths = count_tokens(given, processor)
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    for place, row in enumerate(rows.with_transform(given.transform)):
        batch = collate([dict(row)])
        assert batch["input_ids"].shape[1] == lengths.total[place]
        assert int((batch["labels"] != -100).sum()) == lengths.completion[place]


def test_rows_over_the_bound_and_rows_without_images_are_named(release, processor):
    shape = prompt_format(views=["high_mag"])
    given, _, lengths = counted(release, shape, processor)
    ids, bound = given.rows["id"], int(np.median(lengths.total))
    found = dict(unfit_rows(given, lengths, bound))
    bare = [ids[place] for place, row in enumerate(given.sizes) if not row]
    long = [ids[place] for place in np.flatnonzero(lengths.total > bound)]
    assert bare and set(found) == {*bare, *long}
    assert all("none of the chosen views" in found[name] for name in bare)
    assert all(f"the bound is {bound}" in found[name] for name in long if name not in bare)


def test_a_share_of_the_training_rows_is_hidden_and_rows_that_lack_images_are_still_named(release, processor):
    recipe = SFTArguments(data=str(release), views=["high_mag"], blind_share=0.4)
    shape = prompt_format(views=["high_mag"])
    given, held_out = (candidates(recipe, shape, "train", training=training) for training in (True, False))
    ids = given.rows["id"]
    bare = {ids[place] for place, row in enumerate(held_out.sizes) if not row}
    assert not held_out.hidden and 0 < len(given.hidden) < len(ids)
    assert {ids[place] for place, row in enumerate(given.sizes) if not row} == bare | given.hidden
    shown = given.rows.with_transform(given.transform)
    assert all((not row["images"]) == (row["id"] in bare | given.hidden) for row in shown)
    unfit = unfit_rows(given, count_tokens(given, processor), None)
    assert {name for name, _ in unfit} == bare - given.hidden


def test_images_are_not_decoded(processor, tmp_path):
    """A picture whose body is torn still has a size; only the longest row is put through the processor."""
    rows = list(trained_rows(2, side=112))
    for row in rows[5:]:
        row["question"] = "short"
        row["low_mag"] = {"bytes": picture(7)[:-200], "path": "torn.jpg"}
    rows[0]["question"] *= 20
    folder = write_release(tmp_path / "scale-vqa", {"default": {"train": rows}}, {"default": "made for a test"})
    shape = prompt_format()
    _, made, lengths = counted(folder, shape, processor)
    assert (lengths.image[5:] == 3 * 16).all()
    with pytest.raises(InputError, match="a complete image"):
        made[5]


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_a_text_with_a_special_token_of_the_model_is_refused(processor, tmp_path, token):
    rows = list(trained_rows(1))
    rows[1]["question"] = f"What does {token} show?"
    rows[2]["options"] = [f"x{token}", "y", "z", "w"]
    folder = write_release(tmp_path / "scale-vqa", {"default": {"train": rows}}, {"default": "made for a test"})
    with pytest.raises(InputError) as caught:
        counted(folder, prompt_format(), processor)
    found = [(problem.location, problem.expected, problem.found) for problem in caught.value.problems]
    expected = "a text without the model's special tokens"
    assert found == [(f"row {rows[index]['id']}", expected, repr(token)) for index in (1, 2)]


def test_a_target_with_a_special_token_is_refused(processor, tmp_path):
    folder = with_changes(tmp_path / "d", rationale="Glands.<|im_end|>")
    rows, _ = with_targets(load_rows(str(folder), None, "train"), "checked")
    with pytest.raises(InputError, match="special tokens"):
        count_tokens(candidates_of(rows, prompt_format()), processor)


@pytest.mark.parametrize("options", [{"max_pixels": 16 * 784}, {"min_pixels": 9 * 784}, {"max_pixels": 4 * 784}])
def test_bounds_are_applied_as_the_processor_does_and_saved_with_it(release, tmp_path, options):
    own = make_tiny_model(tmp_path / "tiny", max_pixels=12_845_056)
    processor = processor_of(own)
    shape = with_processor_bounds(prompt_format(**options), processor)
    given, made, lengths = counted(release, shape, processor)
    assert lengths.prompt.tolist() == [encoded(processor, [row])["input_ids"].shape[1] for row in made]
    low, high = options.get("min_pixels", 784) // 784, options.get("max_pixels", 12_845_056) // 784
    sizes = [size for row in given.sizes for size in row]
    assert all(width % 28 == height % 28 == 0 for width, height in sizes)
    assert all(low <= width * height // 784 for width, height in sizes)
    assert all(width * height // 784 <= high for width, height in sizes if min(width, height) > 28)
    # a processor with the model's own bounds, as vLLM has, leaves such images as they are
    assert [encoded(processor_of(own), [row])["input_ids"].shape[1] for row in made] == lengths.prompt.tolist()
    # and the saved processor makes as many tokens of the original images
    processor.save_pretrained(tmp_path / "saved")
    _, plain, _ = counted(release, prompt_format(), processor_of(tmp_path / "saved"))
    again = [encoded(processor_of(tmp_path / "saved"), [row])["input_ids"].shape[1] for row in plain]
    thin = high < 9  # so small a bound resizes a thin image to more than the bound, and again to less
    assert thin or again == lengths.prompt.tolist()


def test_bounds_of_an_earlier_training_are_read_from_the_processor(tmp_path):
    for make in (make_tiny_model, make_tiny_llava):
        processor = processor_of(make(tmp_path / make.__name__))
        assert with_processor_bounds(prompt_format(), processor).bounds == Bounds()
        trained = with_processor_bounds(prompt_format(max_pixels=4 * 784), processor).bounds
        processor.save_pretrained(tmp_path / "saved")
        assert with_processor_bounds(prompt_format(), processor_of(tmp_path / "saved")).bounds == trained
        saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())["image_processor"]
        assert stated_bounds(saved[PIXELS]) == trained and type(trained).__name__ in ("Bounds", "ProcessorBounds")
    for broken in (
        None,
        {},
        {"least": None, "most": None},
        {"most": -1},
        {"most": "9"},
        {"most": 9, "factor": 0},
        [9],
    ):
        assert stated_bounds(broken) is None


def test_a_think_block_that_the_template_opens_is_found(processor):
    assert not opens_thoughts(processor)
    template = processor.chat_template
    for text, opened in (("<think>\n", True), ("<think>\n\n</think>\n\n", False)):
        processor.chat_template = template.replace("assistant\n", f"assistant\n{text}")
        assert opens_thoughts(processor) == opened
    processor.chat_template = template


def test_a_processor_whose_arithmetic_is_wrong_counts_every_prompt_itself(release, processor, monkeypatch, capsys):
    _, _, lengths = counted(release, prompt_format(), processor)
    real = type(processor)._get_num_multimodal_tokens

    def wrong(self, image_sizes=None, **options):
        found = real(self, image_sizes=image_sizes, **options)
        found.num_image_tokens = [count + 1 for count in found.num_image_tokens]
        return found

    monkeypatch.setattr(type(processor), "_get_num_multimodal_tokens", wrong)
    _, _, again = counted(release, prompt_format(), processor)
    assert again.prompt.tolist() == lengths.prompt.tolist() and again.image.tolist() == lengths.image.tolist()
    assert "the tokens of every prompt with the processor" in capsys.readouterr().err


def test_option_images_count(processor, tmp_path):
    folder = make_training_release(tmp_path / "scale-vqa")
    shape = prompt_format(max_pixels=56 * 56)
    given, _, lengths = counted(folder, shape, processor, "grounding")
    assert lengths.image.tolist() == [5 * 4] * len(given.rows)


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
    _, made, lengths = counted(folder, prompt_format(), processor)
    batch = encoded(processor, [made[0]])
    assert lengths.prompt[0] == batch["input_ids"].shape[1]


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"low_mag": image_of(900, 2, "PNG")},
            r"p0::type_A: expected images that the model accepts, found 900 x 2",
        ),
        ({"low_mag": {"bytes": b"hello", "path": "x"}}, r"low_mag: expected a complete image, found 5 bytes"),
        ({"question": "What moves <|video_pad|>?"}, r"p0::type_A: expected a text without the model's special tokens"),
        ({"id": "same"}, "unique row ids, found 'same' 5 times"),
    ],
)
def test_rows_that_no_step_could_take_are_named_before_training(processor, tmp_path, changes, said):
    recipe = RecipeArguments(data=str(with_changes(tmp_path / "d", **changes)))
    with pytest.raises(InputError, match=said):
        fitting(candidates(recipe, prompt_format(), "train"), processor, recipe, None, None, 0)
