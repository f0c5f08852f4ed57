"""Every configuration is what TRL and accelerate read, and the paper's run has the paper's values."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from trl import GRPOConfig, ModelConfig, SFTConfig
from trl.scripts.vllm_serve import ScriptArguments, build_command

from scale_vqa_eval.errors import InputError
from training_recipes import arguments
from training_recipes.arguments import GRPOArguments, SFTArguments, check_context, parse
from training_recipes.grpo_zoom import ZoomArguments
from training_recipes.rewards import reward_functions
from training_recipes.rows import prompt_format
from training_recipes.run import reduce_in_float32

CONFIGS = Path(arguments.__file__).parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))
LAUNCHES = sorted((CONFIGS / "accelerate").glob("*.yaml"))


def parsed(path, *more):
    """Parses a configuration as its recipe does, on a machine without a GPU."""
    own = {"sft": (SFTArguments, SFTConfig), "zoom": (ZoomArguments, GRPOConfig)}
    kinds = own.get(path.stem.split("-")[0], (GRPOArguments, GRPOConfig))
    return parse((*kinds, ModelConfig), ["--config", str(path), "--use_cpu", "true", *more])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_constructed_and_every_value_is_taken(path):
    recipe, config, model = parsed(path)
    written = yaml.safe_load(path.read_text())
    for name, value in written.items():
        if name == "use_cpu":
            continue
        holder = next(part for part in (recipe, config, model) if hasattr(part, name))
        taken = getattr(holder, name)
        taken = getattr(taken, "value", taken)
        assert taken == value or name in ("lora_target_modules", "model_name_or_path"), name
    if isinstance(recipe, ZoomArguments):
        return
    prompt_format(recipe.prompt, recipe.views, recipe.min_pixels, recipe.max_pixels)
    if isinstance(recipe, GRPOArguments):
        reward_functions(recipe.reward_terms, config.reward_weights, recipe.blind_prior is not None)


@pytest.mark.parametrize("name, world", [("paper-8gpu", 8), ("paper-8gpu-bf16", 8), ("multinode", 16)])
def test_a_step_of_the_papers_run_is_32_questions_of_5_rollouts(name, world, monkeypatch):
    monkeypatch.setattr(GRPOConfig, "world_size", property(lambda self: world))
    recipe, config, _ = parsed(CONFIGS / f"{name}.yaml")
    assert recipe.processes == world
    assert config.generation_batch_size == 160 and config.generation_batch_size % config.num_generations == 0
    assert config.generation_batch_size // config.num_generations == 32
    step = config.per_device_train_batch_size * world * config.gradient_accumulation_steps
    assert step == 160  # every rollout is used once, in one update


PUBLISHED = yaml.safe_load(Path(__file__).with_name("paper_values.yaml").read_text())


@pytest.mark.parametrize(
    "name, tables",
    [
        ("paper-8gpu", ("grpo", "grpo_8gpu")),
        ("paper-8gpu-bf16", ("grpo", "grpo_8gpu", "grpo_bf16")),
        ("multinode", ("grpo",)),
        ("sft-lora", ("sft",)),
    ],
)
def test_a_configuration_of_the_paper_has_the_published_values(name, tables):
    path = CONFIGS / f"{name}.yaml"
    written, parts = yaml.safe_load(path.read_text()), parsed(path)
    for table in tables:
        for setting, published in PUBLISHED[table].items():
            assert setting in written, f"{setting} is left to a default of TRL"
            taken = next(getattr(part, setting) for part in parts if hasattr(part, setting))
            assert getattr(taken, "value", taken) == published["value"], setting
            assert published["source"]


def test_the_same_algorithm_runs_on_one_node_and_on_two():
    one, two = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("paper-8gpu", "multinode"))
    layout = {"processes", "per_device_train_batch_size", "per_device_eval_batch_size", "output_dir"}
    differing = {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}
    correction = "vllm_importance_sampling_correction"
    assert {name for name in differing if name == correction or not name.startswith("vllm_")} <= layout


def test_a_divergence_from_the_paper_is_stated_beside_its_value():
    text = (CONFIGS / "paper-8gpu.yaml").read_text()
    assert "NOT the paper's: it trains bfloat16 weights" in text and "tune it again" in text
    assert "data_parallel_size" not in (CONFIGS / "multinode.yaml").read_text()  # TRL: an error for dense models


def test_the_servers_launch_has_what_the_pinned_trl_needs():
    text = (CONFIGS / "multinode.yaml").read_text().replace("\\\n#", " ")
    given = shlex.split(next(line for line in text.splitlines() if "vllm serve" in line).removeprefix("#"))
    needed = build_command(ScriptArguments(model="m"))
    flags = needed[needed.index("--weight-transfer-config") :]
    assert given[0] == "VLLM_SERVER_DEV_MODE=1" and [part for part in given if part in flags] == flags


def test_generation_by_a_server_and_on_the_same_gpus_are_both_configured():
    assert parsed(CONFIGS / "multinode.yaml")[1].vllm_mode == "server"
    assert parsed(CONFIGS / "multinode.yaml", "--vllm_mode", "colocate")[1].vllm_mode == "colocate"
    for name in ("paper-8gpu", "paper-8gpu-bf16", "1gpu-lora"):
        recipe, config, _ = parsed(CONFIGS / f"{name}.yaml")
        assert config.use_vllm and config.vllm_mode == "colocate"
        assert config.vllm_max_model_length >= recipe.max_prompt_length + config.max_completion_length


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_reads_a_launch_configuration(path):
    config = load_config_from_file(str(path))
    nodes, processes = config.num_machines, config.num_processes
    assert {"cpu-2": (1, 2)}.get(path.stem, (2, 16) if "2nodes" in path.stem else (1, 8)) == (nodes, processes)
    kind = config.distributed_type.value
    assert kind == {"cpu": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[path.stem.split("-")[0]]


def test_fsdp_leaves_the_layers_to_wrap_to_the_model_family():
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    for path in LAUNCHES:
        assert "fsdp_transformer_layer_cls_to_wrap" not in load_config_from_file(str(path)).fsdp_config
    wrapped = modeling.Qwen2_5_VLForConditionalGeneration._no_split_modules
    assert wrapped and all(hasattr(modeling, name) for name in wrapped)


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_fsdp_reduces_gradients_in_float32(precision):
    import torch
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    if precision != "no":
        plugin.set_mixed_precision(precision)
    reduce_in_float32(plugin)
    assert plugin.mixed_precision_policy.reduce_dtype == torch.float32
    assert plugin.mixed_precision_policy.param_dtype == (torch.bfloat16 if precision == "bf16" else None)


def test_values_that_do_not_fit_together_are_named_with_the_file():
    with pytest.raises(InputError, match=r"paper-8gpu\.yaml.*divisible"):
        parsed(CONFIGS / "paper-8gpu.yaml", "--num_generations", "7")


def test_a_wrong_use_of_the_command_line_exits_2():
    with pytest.raises(SystemExit) as stopped:
        parsed(CONFIGS / "cpu-tiny.yaml", "--unfit_rows", "guess")
    assert stopped.value.code == 2


def test_a_row_longer_than_the_context_is_refused():
    from transformers import Qwen2_5_VLConfig

    small = Qwen2_5_VLConfig(text_config={"max_position_embeddings": 512})
    check_context(small, 256, 256)
    with pytest.raises(InputError, match="at most 512 tokens"):
        check_context(small, 257, 256)
