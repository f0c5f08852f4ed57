"""Loads the processor of the model to train, and tells TRL how to load its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.scale_vqa_acc.parsing import END_THINK, THINK
from training_recipes.arguments import RecipeArguments
from training_recipes.tiny_model import make_tiny_model, teach_format


def load_processor(recipe: RecipeArguments, config: Any, model_arguments: Any) -> tuple[Any, Any]:
    """Returns the processor (padding on the left) and the configuration of a vision-language model.

    Raises:
        InputError: if there is no such model, it reads no images, or its folder has no processor.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoProcessor

    name = model_arguments.model_name_or_path
    if not name:
        raise InputError(Problem("model_name_or_path", "a model folder or Hub id", "none", "name one"))
    if recipe.make_tiny_model:
        with config.main_process_first(desc="make the tiny model"):
            if not Path(name).exists():
                staged = Path(f"{name}.partial")  # a killed process leaves no model that looks complete
                teach_format(make_tiny_model(staged))
                staged.rename(name)
    location = f"model {name}"
    source = {"revision": model_arguments.model_revision, "trust_remote_code": config.trust_remote_code}
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        hint = f"merge it first: scale-vqa weights {name} --out FOLDER"
        raise InputError(Problem(location, "a complete model", "a LoRA adapter", hint))
    try:
        kind = AutoConfig.from_pretrained(name, **source)
    except (OSError, ValueError, KeyError) as error:
        hint = "name a model folder, or a Hub id that this machine can reach or has in its cache"
        raise InputError(Problem(location, "a model that can be loaded", first_line(error), hint)) from error
    own_code = "AutoModelForImageTextToText" in (getattr(kind, "auto_map", None) or {})
    if type(kind) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not own_code:
        hint = "name a vision-language model, such as Qwen2.5-VL"
        raise InputError(Problem(location, "a model that reads images", f"{kind.model_type}, which reads none", hint))
    try:
        processor = AutoProcessor.from_pretrained(name, padding_side="left", **source)
    except (OSError, ValueError, ImportError) as error:
        hint = "complete the model's folder; `scale-vqa doctor` lists what is installed"
        raise InputError(Problem(location, "a processor", first_line(error), hint)) from error
    if getattr(processor, "image_processor", None) is None:
        hint = "complete the model's folder: processor_config.json or preprocessor_config.json"
        raise InputError(Problem(location, "a processor for images", type(processor).__name__, hint))
    return processor, kind


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


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, shortened."""
    text = str(error).strip()
    return preview(text.splitlines()[0] if text else type(error).__name__, 200)
