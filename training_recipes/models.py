"""Loads the model to train and its processor, and says in time what cannot be trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from training_recipes.arguments import RecipeArguments
from training_recipes.tiny_model import make_tiny_model, teach_format


def load_processor(recipe: RecipeArguments, config: Any, model_arguments: Any) -> Any:
    """Returns the processor of a vision-language model, padding on the left.

    Raises:
        InputError: where there is no such model, it reads no images, or its folder has no processor.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    name = model_arguments.model_name_or_path
    if not name:
        raise InputError(Problem("model_name_or_path", "a model folder or Hub id", "none", "name one"))
    if recipe.make_tiny_model:
        with config.main_process_first(desc="make the tiny model"):
            if not Path(name).exists():
                staged = Path(f"{name}.partial")  # killed half-way, it leaves no model that looks whole
                teach_format(make_tiny_model(staged))
                staged.rename(name)
    location, source = f"model {name}", _source(model_arguments)
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        hint = f"merge it first: scale-vqa weights {name} --out FOLDER"
        raise InputError(Problem(location, "a whole model", "a LoRA adapter", hint))
    try:
        kind = AutoConfig.from_pretrained(name, **source)
    except (OSError, ValueError, KeyError) as error:
        hint = "name a model folder, or a Hub id that this machine can reach or has in its cache"
        raise InputError(Problem(location, "a model that can be loaded", _first_line(error), hint)) from error
    if type(kind) not in AutoModelForImageTextToText._model_mapping:
        hint = "name a vision-language model, such as Qwen2.5-VL"
        raise InputError(Problem(location, "a model that reads images", f"{kind.model_type}, which reads none", hint))
    try:
        processor = AutoProcessor.from_pretrained(name, padding_side="left", **source)
    except (OSError, ValueError, ImportError) as error:
        hint = "complete the model's folder; `scale-vqa doctor` tells what is installed"
        raise InputError(Problem(location, "a processor", _first_line(error), hint)) from error
    if getattr(processor, "image_processor", None) is None:
        hint = "complete the model's folder: processor_config.json or preprocessor_config.json"
        raise InputError(Problem(location, "a processor for images", type(processor).__name__, hint))
    return processor


def load_model(model_arguments: Any) -> Any:
    """Returns the model's weights in the type that ``dtype`` says, for the trainer to place.

    Raises:
        InputError: where the weights cannot be loaded.
    """
    from accelerate import PartialState
    from transformers import AutoModelForImageTextToText
    from trl import get_quantization_config

    settings: dict[str, Any] = {"dtype": model_arguments.dtype or "auto"}
    if model_arguments.attn_implementation:
        settings["attn_implementation"] = model_arguments.attn_implementation
    quantization = get_quantization_config(model_arguments)
    if quantization is not None:
        settings |= {"quantization_config": quantization, "device_map": {"": PartialState().local_process_index}}
    name = model_arguments.model_name_or_path
    try:
        return AutoModelForImageTextToText.from_pretrained(name, **settings, **_source(model_arguments))
    except (OSError, ValueError, ImportError) as error:
        hint = "complete the model's folder, or change dtype or attn_implementation"
        raise InputError(Problem(f"model {name}", "weights that can be loaded", _first_line(error), hint)) from error


def _source(model_arguments: Any) -> dict[str, Any]:
    return {"revision": model_arguments.model_revision}


def check_context(model_config: Any, prompt: int, completion: int) -> None:
    """Checks that prompt and completion fit into the model.

    Raises:
        InputError: where they do not.
    """
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if context is not None and prompt + completion > context:
        found = f"{prompt} of the longest prompt and {completion} to write"
        hint = "lower max_pixels, max_prompt_length or max_completion_length"
        raise InputError(Problem("model context", f"at most {context} tokens", found, hint))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return preview(text.splitlines()[0] if text else type(error).__name__, 200)
