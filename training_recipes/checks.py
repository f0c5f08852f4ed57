"""Checks before training: settings that need each other, the output folder, disk space, context and batch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import not_writable
from training_recipes.arguments import RecipeArguments
from training_recipes.checkpoints import bytes_of_checkpoint
from training_recipes.trainer import METRICS

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


def check_settings(recipe: RecipeArguments, config: Any, base: str | None = None) -> None:
    """Checks everything that can be known before anything is loaded.

    Raises:
        InputError: with every problem found.
    """
    problems = [
        *_numbers(recipe, config),
        *_validation(recipe, config),
        *_conversations(recipe),
        *_installed(config),
        *_output(recipe, config, base),
    ]
    if problems:
        raise InputError(problems)


def _numbers(recipe: RecipeArguments, config: Any) -> Iterator[Problem]:
    for name in _COUNTS:
        value = getattr(recipe, name, getattr(config, name, None))
        if value is not None and value < 1:
            yield Problem(name, "1 at least", str(value), "raise it, or leave it out")
    if (temperature := getattr(config, "temperature", 1.0)) <= 0:
        yield Problem("temperature", "more than 0", str(temperature), "raise it: identical rollouts teach nothing")
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
    """A conversation file brings its own prompts and images and has no dimensions: such settings would be ignored."""
    if getattr(recipe, "conversations", None) is None:
        return
    if recipe.image_root is None:  # type: ignore[attr-defined]
        yield Problem("image_root", "the folder of the conversations' images", "none", "name it")
    for name in ("dimensions", "difficulty", "blind", "blind_share"):
        if value := getattr(recipe, name):
            hint = f"leave {name} out, or train on rows of data"
            yield Problem(name, "none beside conversations", preview(value), hint)


def _installed(config: Any) -> Iterator[Problem]:
    """The trainer looks for these only when the first step begins, after everything was loaded."""
    from transformers.utils import is_liger_kernel_available
    from trl.import_utils import is_vllm_available

    if config.use_liger_kernel and not is_liger_kernel_available():
        yield Problem("use_liger_kernel", "liger-kernel", "none", "pip install liger-kernel, or leave it out")
    if getattr(config, "use_vllm", False):
        if not is_vllm_available():
            hint = "pip install 'scale-vqa[vllm]', or set use_vllm: false"
            yield Problem("use_vllm", "vLLM in a version that TRL supports", "none", hint)
        elif config.vllm_mode == "colocate" and config.device.type == "cpu":
            hint = "set use_vllm: false; vLLM accepts new weights on a GPU only"
            yield Problem("vllm_mode", "a GPU for colocate", "a CPU", hint)


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
        hint = "add --resume to continue, --overwrite to start again, or name another output_dir"
        yield Problem(config.output_dir, "no checkpoint of an earlier run", ", ".join(old), hint)
    if recipe.overwrite and not recipe.resume and base is not None:
        model = Path(base).resolve()
        if any(model.is_relative_to((folder / name).resolve()) for name in ("final", *old)):
            hint = "name another output_dir: overwrite would delete the model that this run starts from"
            yield Problem("model_name_or_path", f"a model outside of {folder}", preview(base), hint)


def check_step(config: Any, rows: int, location: str) -> None:
    """Checks that the rows fill one step of GRPO; TRL's sampler would drop an incomplete step and train on nothing.

    Raises:
        InputError: if there are fewer questions than one step has.
    """
    questions = config.generation_batch_size // config.num_generations
    if rows < questions:
        hint = "lower per_device_train_batch_size or gradient_accumulation_steps, or use more rows"
        raise InputError(Problem(location, f"{questions} questions at least, those of one step", str(rows), hint))


def check_context(model_config: Any, prompt: int, completion: int) -> None:
    """Checks that prompt and completion fit into the model's context.

    Raises:
        InputError: if they do not.
    """
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if context is not None and prompt + completion > context:
        found = f"{prompt} of the longest prompt and {completion} to write"
        hint = "lower max_pixels, max_prompt_length or max_completion_length"
        raise InputError(Problem("model context", f"at most {context} tokens", found, hint))


def check_disk(model: Any, config: Any, upcast: bool = False) -> None:
    """Checks that the disk has space for ``final`` and for the checkpoints that exist at one time.

    With ``save_total_limit`` k there are k + 1 for a moment, and one more if the best is kept; without it, one is
    assumed. ``upcast``: trained weights are saved as float32.

    Raises:
        InputError: if it has not, or the folder cannot be written.
    """
    weights, moments = bytes_of_checkpoint(model, upcast)
    limit, kept = config.save_total_limit or 0, 0
    if str(config.save_strategy.value) != "no":
        kept = 1 + max(limit, 2 if config.load_best_model_at_end and limit else 0)
    needed = weights + kept * (weights + (0 if config.save_only_model else moments))
    try:
        free = shutil.disk_usage(config.output_dir).free
    except OSError as error:
        raise InputError(not_writable(config.output_dir, error, "name another output_dir")) from error
    if free < needed:
        expected = f"{needed / 2**30:.2f} GiB free for checkpoints"
        hint = "free disk space, lower save_total_limit, or set save_only_model: true (cannot be resumed)"
        raise InputError(Problem(config.output_dir, expected, f"{free / 2**30:.2f} GiB", hint))
