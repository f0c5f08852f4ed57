"""Loads the processor of the model to train, and tells TRL how to load its weights."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, first_line
from scale_vqa_eval.predict.transformers_backend import REFUSALS, load_processor
from scale_vqa_eval.scale_vqa_acc.parsing import END_THINK, THINK
from training_recipes.arguments import RecipeArguments
from training_recipes.tiny_model import make_tiny_model, teach_format
from training_recipes.trainer import encoded


def load_model_files(recipe: RecipeArguments, config: Any, model_arguments: Any) -> tuple[Any, Any]:
    """Returns the processor and the configuration of the model to train.

    Raises:
        InputError: if there is no such model, it reads no images, or TRL cannot train it.
    """
    name = model_arguments.model_name_or_path
    if not name:
        raise InputError(Problem("model_name_or_path", "a model folder or Hub id", "none", "name one"))
    if recipe.make_tiny_model:
        with config.main_process_first(desc="make the tiny model"):
            if not Path(name).exists():
                staged = Path(f"{name}.partial")  # a killed process leaves no model that looks complete
                teach_format(make_tiny_model(staged))
                staged.rename(name)
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        hint = f"merge it first: scale-vqa weights {name} --out FOLDER"
        raise InputError(Problem(f"model {name}", "a complete model", "a LoRA adapter", hint))
    source = {"revision": model_arguments.model_revision, "trust_remote_code": config.trust_remote_code}
    processor, kind = load_processor(name, source)
    _check_family(processor, f"model {name}", sft=hasattr(recipe, "conversations"))
    return processor, kind


def _check_family(processor: Any, location: str, sft: bool) -> None:
    """Checks with a blank image that TRL passes on what the processor makes of a prompt.

    GRPO passes on the inputs that it names, and nothing else. SFT passes on all, but knows no other input with a value
    per token, which it would have to continue for the answer.
    """
    from PIL import Image
    from trl import GRPOTrainer

    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    try:
        inputs = encoded(processor, [{"prompt": prompt, "images": [Image.new("RGB", (112, 112))]}])
    except REFUSALS as error:
        hint = "name a model whose processor has a chat template for images"
        raise InputError(Problem(location, "a prompt with an image", first_line(error), hint)) from error
    known, length = signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters, inputs["input_ids"].shape[1]
    lost = [name for name in inputs if name not in known and (not sft or tuple(inputs[name].shape[1:2]) == (length,))]
    if lost:
        found = f"{type(processor).__name__} makes {', '.join(lost)}, which TRL does not pass to the model"
        hint = "train a family of the table in docs/training.md"
        raise InputError(Problem(location, f"a model that TRL trains by {'SFT' if sft else 'GRPO'}", found, hint))


def opens_thoughts(processor: Any) -> bool:
    """Tells whether the chat template itself opens the think block, so that completions lack its opening tag."""
    user = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    prompt: str = processor.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    return prompt.rfind(THINK) > prompt.rfind(END_THINK)


def set_model_loading(config: Any, model_arguments: Any) -> str:
    """Sets how TRL loads the weights, and returns the model's name.

    TRL loads policy and reference model by the same settings, so that revision and trust in code agree. It places
    weights itself: ``device_map`` is for quantised ones only.
    """
    from accelerate import PartialState
    from trl import get_quantization_config

    quantization = get_quantization_config(model_arguments)
    config.model_init_kwargs = (config.model_init_kwargs or {}) | {
        "revision": model_arguments.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "dtype": model_arguments.dtype or "auto",
        "attn_implementation": model_arguments.attn_implementation,
        "device_map": None if quantization is None else {"": PartialState().local_process_index},
        **({} if quantization is None else {"quantization_config": quantization}),
    }
    name: str = model_arguments.model_name_or_path
    return name
