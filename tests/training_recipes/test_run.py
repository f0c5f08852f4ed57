"""Runs of the recipes with a tiny model: they train, go on where they were, and stop in time where input is wrong."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner
from training_release import CPU, make_training_release

from model_card.weights import prepare_weights
from scale_vqa_eval.errors import InputError
from training_recipes import arguments, grpo, sft, trainer
from training_recipes.run import MARK, last_complete
from training_recipes.tiny_model import make_tiny_model, teach_format

pytestmark = [pytest.mark.xdist_group("training"), pytest.mark.usefixtures("one_thread")]


RECIPES = Path(grpo.__file__).parent
SMALL = ("--max_pixels", "3136", "--learning_rate", "1e-3", "--lr_scheduler_type", "constant", "--logging_steps", "1")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_training_release(tmp_path_factory.mktemp("data") / "scale-vqa")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that can form an answer and guesses its letter."""
    return teach_format(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def run(release, model, tmp_path, monkeypatch):
    """Runs a recipe in this process, in a folder of its own; returns its output folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def go(recipe, *more, out="out", data=release, base=model):
        batch = ("--num_generations", "4", "--per_device_train_batch_size", "8", "--max_completion_length", "24")
        batch += ("--per_device_eval_batch_size", "4", "--num_generations_eval", "1")
        options = ["--data", str(data), "--model_name_or_path", str(base), "--output_dir", out, *CPU, *SMALL]
        recipe.main([*options, *(batch if recipe is grpo else ()), *more])
        return Path(out)

    return go


def record(out):
    return json.loads((out / "training_metadata.json").read_text())


def weights(folder):
    from safetensors.torch import load_file

    return {name: weight for path in Path(folder).glob("*.safetensors") for name, weight in load_file(path).items()}


def same(one, other):
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


VALIDATED = ("--validation_split", "val", "--validation_limit", "6", "--validation_tokens", "24")


def test_grpo_trains_validates_and_leaves_a_record(run, model):
    out = run(
        grpo,
        *("--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "2", "--save_steps", "2"),
        *("--metric_for_best_model", "accuracy", "--load_best_model_at_end", "true", "--early_stop_patience", "9"),
        *("--log_completions", "true", "--report_to", "tensorboard", "--reward_terms", "reference", "structure"),
        *("--reward_weights", "1.0", "0.1", *VALIDATED),
    )
    told = record(out)
    assert (told["method"], told["steps"], told["world_size"], told["train_rows"]) == ("grpo", 4, 1, 30)
    assert not same(weights(model), weights(out / "checkpoint-4"))
    assert {"rewards/reference", "rewards/structure", "reference/accuracy", "reference/format"} <= told[
        "rewards"
    ].keys()
    evaluated = [entry for entry in told["log"] if "eval_accuracy" in entry]
    assert [entry["step"] for entry in evaluated] == [2, 4]
    assert told["best_metric"] == max(entry["eval_accuracy"] for entry in evaluated)
    final = told["final_validation"]
    assert final["n"] == 6 and final["blind"]["n"] == 6
    assert final["visual_gain"] == pytest.approx(final["accuracy"] - final["blind"]["accuracy"])
    # the best checkpoint's weights are those of the final model
    assert same(weights(told["best_checkpoint"]), weights(out / "final"))
    table = sorted((out / "completions").glob("*.parquet"))
    import pyarrow.parquet as pq

    assert len(table) == 4 and {"completion", "reference", "reference_letter", "gold", "id"} <= set(
        pq.read_schema(table[0]).names
    )
    assert list((out / "runs").rglob("events.out.tfevents*"))
    prompt = pq.read_table(table[0])["prompt"][0].as_py()
    assert prompt.count("[image]") in (2, 3) and "What joins the scales" in prompt
    lines = (out / "validation" / "answers-000004.jsonl").read_text().splitlines()
    assert len(lines) == 6 and {"id", "response"} == json.loads(lines[0]).keys()
    assert len((out / "validation" / "final-blind.jsonl").read_text().splitlines()) == 6
    assert (out / "validation" / "final.jsonl").is_file()
    assert not list(out.rglob("README.md"))  # a draft card without a licence is no card


class EngineDouble:
    """In place of vLLM's engine, which takes no weights on a CPU: its interface in TRL, around transformers."""

    calls: ClassVar = []

    def __init__(self, model, accelerator, processing_class, **settings):
        vars(self).update(settings, model=model, processor=processing_class, weights=None)
        type(self).calls = []

    def sync_weights(self):
        self.weights = {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def generate(self, prompts, images, num_generations, profiler=None):
        import torch

        self.calls.append({"rows": len(prompts), **{name: getattr(self, name) for name in trainer.ENGINE_GREEDY}})
        assert all(bool((self.weights[name] == weight).all()) for name, weight in self.model.state_dict().items())
        shown, completions, training = images or [None] * len(prompts), [], self.model.training
        self.model.eval()
        for ids, pictures in zip(prompts, shown, strict=True):
            inputs = {"input_ids": torch.tensor([ids])}
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.processor.image_token_id).int()
            if pictures:
                inputs |= self.processor.image_processor(images=pictures, return_tensors="pt")
            drawn = {"do_sample": self.temperature > 0, "repetition_penalty": self.repetition_penalty}
            out = self.model.generate(**inputs, **drawn, max_new_tokens=self.max_completion_length, top_k=0)
            completions.append(out[0, len(ids) :].tolist())
        self.model.train(training)
        return prompts, completions, [[[0.0] for _ in ids] for ids in completions], None


def test_validation_with_vllm_is_by_the_engine_of_rollouts_and_greedy(run, monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", EngineDouble)
    monkeypatch.setattr(importlib.import_module("trl.import_utils"), "is_vllm_available", lambda: True)
    steps = ("--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "no", *VALIDATED)
    engine = ("--use_vllm", "true", "--vllm_mode", "server", "--vllm_importance_sampling_correction", "false")
    drawn = ("--repetition_penalty", "1.2", "--temperature", "0.9")
    out = run(grpo, *steps, *engine, *drawn)
    greedy = [call for call in EngineDouble.calls if call["temperature"] == 0]
    rollouts = [call for call in EngineDouble.calls if call["temperature"] != 0]
    assert [call["rows"] for call in greedy] == [6, 6, 6, 6]  # two validations, the final one, and the blind one
    assert all(call == {"rows": 6, **trainer.ENGINE_GREEDY} for call in greedy)
    assert rollouts and all((call["temperature"], call["repetition_penalty"]) == (0.9, 1.2) for call in rollouts)
    assert record(out)["validation_sampling"] == trainer.ENGINE_GREEDY
    # the model itself gives the same answers, with images and blind
    again = run(
        grpo, "--max_steps", "1", "--learning_rate", "0", *VALIDATED, base=(out / "final").resolve(), out="again"
    )
    for name in ("final.jsonl", "final-blind.jsonl"):
        assert (out / "validation" / name).read_text() == (again / "validation" / name).read_text()


def test_an_interrupted_run_goes_on_to_the_same_weights(run):
    steps = ("--save_steps", "2", "--save_strategy", "steps")
    whole = run(grpo, "--max_steps", "4", *steps, out="whole")
    run(grpo, "--max_steps", "2", *steps, out="parts")
    torn = Path("parts/checkpoint-3")
    shutil.copytree("parts/checkpoint-2", torn)
    (torn / MARK).unlink()
    parts = run(grpo, "--max_steps", "4", *steps, "--resume", out="parts")
    assert same(weights(whole / "final"), weights(parts / "final"))
    assert not same(weights(parts / "checkpoint-2"), weights(parts / "checkpoint-4"))
    assert record(parts)["resumed_from"] == "parts/checkpoint-2" and not torn.exists()


def test_lora_is_merged_into_a_folder_that_predict_loads(run, release, model, tmp_path):
    from scale_vqa_eval.predict.command import predict

    lora = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--save_steps", "1")
    out = run(sft, *lora, "--max_steps", "2", "--rationales", "repaired", "--unfit_rows", "drop")
    run(sft, *lora, "--max_steps", "3", "--rationales", "repaired", "--resume")
    told = record(out)
    assert told["lora"] and told["resumed_from"] == "out/checkpoint-2"
    merged = prepare_weights(out / "final", tmp_path / "merged").folder
    assert weights(merged).keys() == weights(model).keys()
    changed = [name for name, weight in weights(merged).items() if bool((weight != weights(model)[name]).any())]
    assert changed and all("q_proj" in name or "v_proj" in name for name in changed)
    asked = ["--data", str(release), "--split", "val", "--backend", "transformers", "--model", str(merged)]
    done = CliRunner().invoke(predict, [*asked, "--max-tokens", "24", "--limit", "3", "--out", "seen.jsonl"])
    assert done.exit_code in (0, 1), done.output
    lines = Path("seen.jsonl").read_text().splitlines()
    bounds = {"least": 784, "most": 3136, "factor": 28}  # of training: no option was given
    assert len(lines) == 3 and json.loads(lines[0])["provenance"]["pixels"] == bounds
    assert json.loads(lines[0])["provenance"]["other_sampling"]["repetition_penalty"] == 1.0
    assert f"pixel bounds of training, from the model's processor: {bounds}, used" in done.output
    asked += ["--max-pixels", "1568", "--max-tokens", "24", "--limit", "1", "--out", "other.jsonl"]
    assert "not used" in CliRunner().invoke(predict, asked).output
    with pytest.raises(InputError, match="a new folder"):
        prepare_weights(out / "final", tmp_path / "merged")


def test_the_published_lora_trains_attention_and_merger_and_leaves_the_vision_tower(run, model, tmp_path):
    lora = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "k_proj", "v_proj", "o_proj")
    out = run(sft, *lora, "--lora_modules_to_save", "merger", "--max_steps", "2", "--rationales", "none")
    merged = weights(prepare_weights(out / "final", tmp_path / "merged").folder)
    before = weights(model)
    changed = {name for name in before if bool((before[name] != merged[name]).any())}
    parts = {
        part for part in ("merger", "q_proj", "k_proj", "v_proj", "o_proj") if any(part in name for name in changed)
    }
    assert parts == {"merger", "q_proj", "k_proj", "v_proj", "o_proj"}
    assert all("merger" in name for name in changed if "visual" in name)


def test_policy_and_reference_are_loaded_by_the_same_settings(run, model, monkeypatch):
    from trl.trainer import grpo_trainer

    seen, real = [], grpo_trainer.create_model_from_path

    def load(name, **settings):
        seen.append((str(name), settings.get("revision"), settings.get("trust_remote_code"), settings.get("dtype")))
        return real(name, **settings)

    monkeypatch.setattr(grpo_trainer, "create_model_from_path", load)
    options = ("--model_revision", "abc", "--dtype", "float32", "--beta", "0.01", "--save_strategy", "no")
    out = run(grpo, *options, "--max_steps", "1", "--max_pixels", "1568")
    assert seen == [(str(model), "abc", False, "float32")] * 2
    # and the bounds of pixels are saved with the processor
    for folder in (out / "final",):
        size = json.loads((folder / "processor_config.json").read_text())["image_processor"]["size"]
        assert size["longest_edge"] == 1568


def test_a_checkpoints_generation_config_does_not_change_validation(run, model, tmp_path):
    from transformers import GenerationConfig

    other = shutil.copytree(model, tmp_path / "penalised")
    penalised = GenerationConfig.from_pretrained(other)
    penalised.update(repetition_penalty=9.0, no_repeat_ngram_size=1, do_sample=True, temperature=3.0)
    penalised.save_pretrained(other)
    options = ("--max_steps", "1", "--learning_rate", "0", "--rationales", "none", "--save_strategy", "no", *VALIDATED)
    texts = [
        (run(sft, *options, out=str(tmp_path / name), base=base) / "validation" / "final.jsonl").read_text()
        for name, base in (("one", model), ("two", other))
    ]
    assert texts[0] == texts[1]
    assert record(tmp_path / "one")["validation_sampling"]["repetition_penalty"] == 1.0


def test_sft_learns_what_it_is_shown(run):
    out = run(sft, "--max_steps", "12", "--rationales", "none", "--per_device_train_batch_size", "4", *VALIDATED)
    losses = [entry["loss"] for entry in record(out)["log"] if "loss" in entry]
    assert losses[-1] < losses[0]
    assert record(out)["final_validation"]["format_rate"] == 1.0


def test_sft_reads_released_conversations(run, tmp_path, capsys):
    from conversation_files import conversation, written
    from predict_release import picture

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(picture(3, 56))
    row = conversation("/data/of/them/a.jpg", user="<image>What is seen?\\n\nThink.")
    file = written(tmp_path, *[row] * 4)
    out = run(sft, "--conversations", str(file), "--image_root", "images", "--max_steps", "1")
    told = record(out)
    assert told["train_rows"] == 4
    assert (told["data"], told["train_split"], told["views"]) == (str(file), "all", [])
    assert "line break in 4 conversations" in capsys.readouterr().err


def test_blind_training_shows_no_image(run):
    out = run(grpo, "--max_steps", "1", "--blind", "--save_strategy", "no", *VALIDATED)
    assert record(out)["blind_training"] and record(out)["final_validation"]["blind"] is None


def test_a_share_of_the_training_rows_is_shown_without_images(run):
    held_out = ("--validation_split", "val", "--validation_tokens", "24")
    out = run(sft, "--max_steps", "2", "--blind_share", "0.5", "--per_device_train_batch_size", "16", *held_out)
    told = record(out)
    assert told["recipe"]["blind_share"] == 0.5 and told["steps"] == 2
    assert told["final_validation"]["blind"]["n"] == 10  # validation rows keep their images


def test_grounding_questions_train_too(run):
    out = run(grpo, "--data_config", "grounding", "--max_steps", "1", "--save_strategy", "no")
    assert record(out)["train_rows"] == 3


def test_training_stops_early_where_validation_does_not_improve(run):
    out = run(
        grpo,
        *("--max_steps", "9", "--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "no"),
        *("--metric_for_best_model", "accuracy", "--early_stop_patience", "2", "--learning_rate", "0", *VALIDATED),
    )
    assert record(out)["steps"] == 3


def test_a_save_that_fails_leaves_the_checkpoint_before_it(run):
    steps = ("--save_steps", "1", "--save_total_limit", "1")
    out = run(grpo, "--max_steps", "1", *steps)
    kept = weights(out / "checkpoint-1")
    with full_disk(), pytest.raises(InputError, match="checkpoint-1 is complete"):
        run(grpo, "--max_steps", "2", *steps, "--resume")
    assert last_complete(out) == out / "checkpoint-1" and not (out / "checkpoint-2").exists()
    assert same(kept, weights(out / "checkpoint-1"))
    run(grpo, "--max_steps", "2", *steps, "--resume")
    assert record(out)["steps"] == 2


@contextlib.contextmanager
def full_disk(most=100_000):
    """Lets no file grow over ``most`` bytes, as a full disk would not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_after_the_last_step_is_one_error(run):
    with full_disk(), pytest.raises(InputError, match=r"final: expected a writable disk"):
        run(sft, "--max_steps", "1", "--rationales", "none", "--save_strategy", "no")
    assert not Path("out/final").exists()


def test_a_disk_that_fills_up_between_checkpoints_is_one_error(run, monkeypatch):
    steps = ("--save_steps", "1", "--rationales", "none")
    run(sft, *steps, "--max_steps", "1")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trainer, "write_answers", full)
    validated = ("--eval_strategy", "steps", "--eval_steps", "1", *VALIDATED)
    with pytest.raises(InputError, match=r"a writable disk, found .*checkpoint-1 is complete"):
        run(sft, *steps, *validated, "--max_steps", "2", "--resume")


def test_a_disk_too_small_is_told_before_the_first_step(run, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(arguments.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="GiB free for checkpoints"):
        run(grpo, "--max_steps", "1", "--save_strategy", "steps")


def test_a_checkpoint_of_another_architecture_is_refused(run, tmp_path):
    run(grpo, "--max_steps", "1", "--save_steps", "1")
    other = make_tiny_model(tmp_path / "other", text={"hidden_size": 32, "num_attention_heads": 1})
    with pytest.raises(InputError, match="checkpoint-1, trained_parameters"):
        run(grpo, "--max_steps", "2", "--resume", base=other)


def test_a_text_only_model_is_refused(run, tmp_path):
    from transformers import Qwen2Config

    Qwen2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="qwen2, which does not"):
        run(grpo, base=tmp_path / "text")


@pytest.mark.parametrize(
    "options, said",
    [
        (("--num_generations", "3"), "divisible by"),
        (("--data_config", "text"), "found none"),
        (("--train_split", "test"), "found train, val"),
        (("--processes", "2"), "expected 2, found 1 running"),
        (("--max_prompt_length", "60"), "the bound is 60"),
        (("--views", "high_mag"), "none of the chosen views has an image"),
        (("--max_completion_length", "9000"), "at most 4096 tokens"),
        (("--early_stop_patience", "2"), "a validation_split and an eval_strategy"),
        (("--metric_for_best_model", "loss"), "accuracy, reward, format_rate, unparsed_rate"),
        (("--reward_terms", "visual_gain"), "predict --ablate blind"),
        (("--model_name_or_path", "nowhere"), "a model that can be loaded"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--train_limit", "1"), "expected at least 2 questions, those of one step, found 1"),
        (("--train_limit", "0"), "train_limit: expected at least 1"),
        (("--max_pixels", "-4"), "max_pixels: expected at least 1"),
        (("--temperature", "0"), "temperature: expected more than 0"),
        (("--eval_strategy", "steps", "--eval_steps", "1"), "eval_strategy: expected a validation_split"),
        (("--use_peft", "--lora_target_modules", "nope"), "Target modules nope not found"),
        (("--report_to", "nobody"), "nobody is not supported"),
        (("--use_liger_kernel", "true"), "use_liger_kernel: expected liger-kernel"),
        (("--use_vllm", "true"), "use_vllm: expected vLLM|vllm_mode: expected a GPU"),
    ],
)
def test_wrong_input_is_one_clear_error(run, options, said):
    with pytest.raises(InputError, match=said):
        run(grpo, *options)
    assert not list(Path("out").glob("checkpoint-*"))


@pytest.mark.parametrize("place", ["file", "file/out"])
def test_an_output_folder_that_cannot_be_is_told_at_once(run, place):
    Path("file").write_text("x")
    with pytest.raises(InputError, match="a folder that can be written"):
        run(grpo, out=place)


def test_an_option_that_conversations_would_ignore_is_refused(run):
    with pytest.raises(InputError, match="2 problems:\ndimensions: expected none together with conversations"):
        run(sft, "--conversations", "c.json", "--image_root", ".", "--blind", "--dimensions", "Diagnosis")


def test_yaml_may_name_one_view_without_brackets(run):
    Path("mine.yaml").write_text("views: low_mag\nmax_steps: 1\nsave_strategy: 'no'\n")
    assert record(run(grpo, "--config", "mine.yaml"))["views"] == ["low_mag"]


def test_the_model_that_a_run_starts_from_is_neither_overwritten_nor_an_adapter(run):
    lora = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--rationales", "none")
    out = run(sft, *lora, "--max_steps", "1", "--save_strategy", "no")
    assert (out / "final" / "adapter_config.json").is_file()
    with pytest.raises(InputError, match="overwrite would delete the model"):
        run(grpo, "--overwrite", base=out / "final")
    with pytest.raises(InputError, match="merge it first"):
        run(grpo, out="other", base=out / "final")


def test_an_unknown_setting_of_a_file_is_named(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("num_generation: 4\n")
    with pytest.raises(InputError, match="num_generation"):
        run(grpo, "--config", "mine.yaml")


def test_an_earlier_run_is_neither_mixed_nor_lost(run):
    out = run(sft, "--max_steps", "1", "--rationales", "none", "--save_steps", "1")
    with pytest.raises(InputError, match="no checkpoint of an earlier run"):
        run(sft, "--max_steps", "1", "--rationales", "none")
    assert (out / "checkpoint-1").is_dir()
    run(sft, "--max_steps", "2", "--rationales", "none", "--save_steps", "2", "--overwrite")
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]


def test_the_rows_left_out_are_written_down(run, capsys):
    out = run(sft, "--max_steps", "1", "--rationales", "checked", "--save_strategy", "no")
    lines = [json.loads(line) for line in (out / "left_out_train.jsonl").read_text().splitlines()]
    assert len(lines) == record(out)["train_rows_left_out"] == 18
    assert lines[0]["id"] in capsys.readouterr().err


def launched(release, tmp_path, *options, processes=1, report_to="[tensorboard]"):
    """Types the command of the documentation, from a folder of its own."""
    given = (RECIPES / "configs/cpu-tiny.yaml").read_text()
    (tmp_path / "cpu-tiny.yaml").write_text(given.replace("report_to: [tensorboard]", f"report_to: {report_to}"))
    flags = [f"--config_file={RECIPES / 'configs/accelerate/cpu-2.yaml'}"] if processes == 2 else []
    program = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(RECIPES / "grpo.py")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    env |= {"SCALE_VQA_PATH": str(release), "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(
        [*program, "--config", "cpu-tiny.yaml", *options],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return record(tmp_path / "outputs" / "grpo-cpu-tiny")


def test_the_command_as_typed_trains_by_the_bare_name_and_logs_offline(release, tmp_path):
    pytest.importorskip("wandb")
    told = launched(release, tmp_path, report_to="[tensorboard, wandb]")
    assert (told["data"], told["steps"], told["world_size"]) == ("scale-vqa", 4, 1)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_two_processes_are_really_two(release, model, tmp_path):
    told = launched(release, tmp_path, "--model_name_or_path", str(model), "--processes", "2", processes=2)
    assert told["world_size"] == 2 and told["steps"] == 4
    tokens = [entry["num_tokens"] for entry in told["log"] if "num_tokens" in entry]
    assert told["config"]["generation_batch_size"] == 16 and tokens == sorted(tokens)
