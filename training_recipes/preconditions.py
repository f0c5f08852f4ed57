"""What can be known to be wrong before anything is loaded: numbers, settings that need each other, the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from training_recipes.arguments import RecipeArguments
from training_recipes.validation import METRICS

_COUNTS: Final = (
    "train_limit",
    "validation_limit",
    "validation_tokens",
    "max_prompt_length",
    "min_pixels",
    "max_pixels",
    "early_stop_patience",
    "max_length",
    "max_completion_length",
)
_NOT_OF_CONVERSATIONS: Final = ("dimensions", "difficulty", "blind")


def check_launch(recipe: RecipeArguments, config: Any, model_arguments: Any = None) -> None:
    """Checks what can be known before anything is loaded.

    Raises:
        InputError: for a number below one, another number of processes than asked for, a validation or an early stop
            that has nothing to look at, options that a conversation file has no use for, generation by vLLM where it
            cannot run, or an output folder that cannot be written or holds another run.
    """
    problems = [
        *_numbers(recipe, config),
        *_processes(recipe, config),
        *_validation(recipe, config),
        *_conversations(recipe),
        *_generation(config),
        *_kernels(config),
        *_output(recipe, config, getattr(model_arguments, "model_name_or_path", None)),
    ]
    if problems:
        raise InputError(problems)


def _numbers(recipe: RecipeArguments, config: Any) -> Iterator[Problem]:
    for name in _COUNTS:
        value = getattr(recipe, name, getattr(config, name, None))
        if value is not None and value < 1:
            yield Problem(name, "1 at least", str(value), "raise it, or leave it out")
    temperature = getattr(config, "temperature", None)
    if temperature is not None and temperature <= 0:
        hint = "raise it: rollouts that are all the same have nothing to learn from"
        yield Problem("temperature", "more than 0", str(temperature), hint)


def _processes(recipe: RecipeArguments, config: Any) -> Iterator[Problem]:
    if recipe.processes is not None and recipe.processes != config.world_size:
        hint = f"launch {recipe.processes} (docs/training.md has the command), or change processes and the batch sizes"
        yield Problem("processes", str(recipe.processes), f"{config.world_size} running", hint)


def _validation(recipe: RecipeArguments, config: Any) -> Iterator[Problem]:
    validates, metric = str(config.eval_strategy.value) != "no", config.metric_for_best_model
    if validates and recipe.validation_split is None:
        yield Problem("eval_strategy", "a validation_split", "none", "name one, or set eval_strategy: 'no'")
    if metric is not None and metric.removeprefix("eval_") not in METRICS:
        yield Problem("metric_for_best_model", f"one of {', '.join(METRICS)}", preview(metric), "name one of them")
    if recipe.early_stop_patience is not None:
        if recipe.validation_split is None or not validates:
            expected = "a validation_split and an eval_strategy"
            yield Problem("early_stop_patience", expected, "none", "add them, or leave it out")
        if metric is None:
            hint = "add metric_for_best_model: accuracy"
            yield Problem("early_stop_patience", "metric_for_best_model", "none", hint)


def _conversations(recipe: RecipeArguments) -> Iterator[Problem]:
    """A conversation file has its own prompts and images, and no dimensions: what asks for others would be ignored."""
    file = getattr(recipe, "conversations", None)
    if file is None:
        return
    if recipe.image_root is None:  # type: ignore[attr-defined]
        yield Problem("image_root", "the folder of the conversations' images", "none", "name it")
    for name in _NOT_OF_CONVERSATIONS:
        value = getattr(recipe, name)
        if value:
            hint = f"leave {name} out, or train on rows of data"
            yield Problem(name, "none beside conversations", preview(value), hint)


def _generation(config: Any) -> Iterator[Problem]:
    if not getattr(config, "use_vllm", False):
        return
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        hint = "pip install 'scale-vqa[vllm]', or set use_vllm: false"
        yield Problem("use_vllm", "vLLM in a version that TRL supports", "none", hint)
    elif config.vllm_mode == "colocate" and config.device.type == "cpu":
        hint = "set use_vllm: false; vLLM takes new weights on a GPU only"
        yield Problem("vllm_mode", "a GPU for colocate", "a CPU", hint)


def _kernels(config: Any) -> Iterator[Problem]:
    """The trainer looks for these when the first step begins, after everything was loaded."""
    from transformers.utils import is_liger_kernel_available

    if config.use_liger_kernel and not is_liger_kernel_available():
        yield Problem("use_liger_kernel", "liger-kernel", "none", "pip install liger-kernel, or leave it out")


def _output(recipe: RecipeArguments, config: Any, base: str | None) -> Iterator[Problem]:
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "one that is read-only"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    if reason is not None:
        yield Problem(str(folder), "a folder that can be written", reason, "name another output_dir")
        return
    old = sorted(path.name for path in folder.glob("checkpoint-*"))
    if old and not recipe.resume and not recipe.overwrite:
        hint = "add --resume to go on, --overwrite to start anew, or name another output_dir"
        yield Problem(config.output_dir, "no checkpoint of an earlier run", ", ".join(old), hint)
    removed = ("final", *old)
    if recipe.overwrite and not recipe.resume and base is not None:
        place = Path(base).resolve()
        if any(place.is_relative_to((folder / name).resolve()) for name in removed):
            hint = "name another output_dir: overwrite would delete the model that this run starts from"
            yield Problem("model_name_or_path", f"a model outside of {folder}", preview(base), hint)


def check_step(config: Any, rows: int, location: str) -> None:
    """Checks that the rows fill one step of GRPO: its sampler leaves out what does not, and would train on nothing.

    Raises:
        InputError: where they do not.
    """
    questions = config.generation_batch_size // config.num_generations
    if rows < questions:
        hint = "lower per_device_train_batch_size or gradient_accumulation_steps, or take more rows"
        raise InputError(Problem(location, f"{questions} questions at least, those of one step", str(rows), hint))
