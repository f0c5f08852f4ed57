"""Other model families: token counts, SFT and GRPO with tiny random models; families that TRL cannot train."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tiny_families import FAMILIES, make_mllama
from training_release import CPU, make_training_release
from transformers import AutoModelForImageTextToText, AutoProcessor

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.predict.command import predict
from training_recipes import grpo, sft
from training_recipes.rows import load_rows, prompt_format, with_processor_bounds
from training_recipes.selection import candidates_of, count_tokens
from training_recipes.trainer import encoded

pytestmark = pytest.mark.xdist_group("families")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_training_release(tmp_path_factory.mktemp("data") / "scale-vqa")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return FAMILIES[request.param](tmp_path_factory.mktemp("families") / request.param)


def test_tokens_are_counted_as_the_processor_makes_them(release, model):
    processor = AutoProcessor.from_pretrained(model, padding_side="left")
    shape = with_processor_bounds(prompt_format(max_pixels=4096), processor)
    given = candidates_of(load_rows(str(release), None, "train").select(range(6)), shape)
    real = [encoded(processor, [row])["input_ids"].shape[1] for row in given.rows.with_transform(given.transform)]
    assert count_tokens(given, processor).prompt.tolist() == real


def test_predict_answers_every_question(release, model, tmp_path):
    out = tmp_path / "seen.jsonl"
    options = ["--data", str(release), "--split", "val", "--model", str(model), "--out", str(out), "--max-tokens", "4"]
    result = CliRunner().invoke(predict, [*options, "--backend", "transformers", "--limit", "6"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 6 and {row["images"] for row in rows} <= {2, 3} and all(row["response"] for row in rows)


def test_a_family_names_the_layers_that_fsdp_wraps(model):
    loaded = AutoModelForImageTextToText.from_pretrained(model)
    names = {type(module).__name__ for module in loaded.modules()}
    assert loaded._no_split_modules and set(loaded._no_split_modules) & names


@pytest.mark.parametrize("recipe", [sft, grpo], ids=["sft", "grpo"])
def test_a_step_of_training_changes_the_weights_and_the_result_loads(release, model, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "out"
    options = ["--data", str(release), "--model_name_or_path", str(model), "--output_dir", str(out), *CPU]
    options += ["--max_steps", "1", "--learning_rate", "1e-3", "--save_strategy", "no", "--max_pixels", "4096"]
    options += ["--train_limit", "4", "--per_device_train_batch_size", "4", "--dtype", "float32"]
    if recipe is grpo:
        options += ["--num_generations", "4", "--max_completion_length", "6", "--beta", "0.01"]
    else:
        options += ["--rationales", "none", "--validation_split", "val", "--validation_limit", "2"]
        options += ["--validation_tokens", "4", "--per_device_eval_batch_size", "2"]
    recipe.main(options)
    record = json.loads((out / "training_metadata.json").read_text())
    assert record["steps"] == 1 and record["train_rows"] == 4
    AutoProcessor.from_pretrained(out / "final")
    before, after = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (model, out / "final"))
    pairs = zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    changed = any(bool((one != other).any()) for one, other in pairs)
    assert changed or recipe is grpo  # rollouts of a random model may all earn nothing: then there is no gradient


@pytest.mark.parametrize(
    "recipe, lost", [(grpo, "aspect_ratio_ids"), (sft, "cross_attention_mask")], ids=["grpo", "sft"]
)
def test_a_family_that_trl_cannot_train_is_refused_by_name(release, recipe, lost, tmp_path):
    folder = make_mllama(tmp_path / "mllama")
    options = [
        "--data",
        str(release),
        "--model_name_or_path",
        str(folder),
        "--output_dir",
        str(tmp_path / "out"),
        *CPU,
    ]
    with pytest.raises(InputError, match=f"MllamaProcessor returns .*{lost}.*, which TRL does not pass to the model"):
        recipe.main(options)
