"""The private methods of TRL and transformers that the recipes use; a release that changes one fails here by name."""

from __future__ import annotations

import inspect

import pytest
from transformers import Trainer
from trl import GRPOTrainer, SFTTrainer
from trl.generation.vllm_generation import VLLMGeneration

from training_recipes.grpo import ScaleVQAGRPOTrainer
from training_recipes.sft import ScaleVQASFTTrainer
from training_recipes.trainer import ENGINE_GREEDY, RecipeTrainer

OVERRIDDEN = {
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_load_best_model": ("self",),
    "evaluate": ("self", "eval_dataset", "ignore_keys", "metric_key_prefix"),
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_has_the_parameters_of_the_original(name):
    assert tuple(inspect.signature(getattr(Trainer, name)).parameters) == OVERRIDDEN[name]
    assert tuple(inspect.signature(getattr(RecipeTrainer, name)).parameters) == OVERRIDDEN[name]
    for ours, theirs in ((ScaleVQAGRPOTrainer, GRPOTrainer), (ScaleVQASFTTrainer, SFTTrainer)):
        assert getattr(ours, name) is getattr(RecipeTrainer, name)
        assert name not in vars(theirs) or name == "evaluate", f"TRL overrides {name} now: call it"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_transformers_still_calls_an_overridden_method(name):
    assert f"self.{name}(" in inspect.getsource(Trainer)


def test_every_private_method_of_the_mixin_is_listed():
    overridden = {name for name in vars(RecipeTrainer) if name.startswith("_") and hasattr(Trainer, name)}
    own = {name for name in overridden if getattr(RecipeTrainer, name) is not getattr(object, name, None)}
    assert {name for name in own if not name.startswith("__")} == {"_load_from_checkpoint", "_load_best_model"}


def test_trl_keeps_the_table_of_completions_in_logs():
    source = inspect.getsource(GRPOTrainer)
    assert 'self._logs["prompt"].extend' in source and 'self._logs["completion"].extend' in source
    assert '"prompt": deque(maxlen=' in source and '"completion": deque(maxlen=' in source


def test_validation_finds_the_engine_of_rollouts():
    generate = inspect.signature(VLLMGeneration.generate).parameters
    assert tuple(generate)[:4] == ("self", "prompts", "images", "num_generations")
    assert "return prompt_ids, completion_ids, logprobs, logprob_token_ids" in inspect.getsource(VLLMGeneration)
    assert tuple(inspect.signature(VLLMGeneration.sync_weights).parameters) == ("self",)
    built = inspect.getsource(VLLMGeneration.__init__)
    for name in (*ENGINE_GREEDY, "max_completion_length"):  # read from the engine at each call, not fixed at its start
        assert f"self.{name} = " in built and f"self.{name}" in inspect.getsource(VLLMGeneration.generate), name
    source = inspect.getsource(GRPOTrainer)
    assert "self.vllm_generation = VLLMGeneration(" in source and "self.use_vllm = args.use_vllm" in source
    assert "if self.state.global_step != self._last_loaded_step:" in source
    assert tuple(inspect.signature(GRPOTrainer._tokenize_prompts).parameters) == ("self", "prompts")
    assert "return prompt_ids, images, multimodal_fields" in inspect.getsource(GRPOTrainer._tokenize_prompts)


def test_processors_count_image_tokens_by_the_name_that_the_preflight_calls():
    from transformers import Qwen2_5_VLProcessor

    assert "image_sizes" in inspect.signature(Qwen2_5_VLProcessor._get_num_multimodal_tokens).parameters
