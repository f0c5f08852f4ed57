"""Settings of the recipes in addition to TRL's, and checks before training: settings, disk space, context length."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import not_writable
from scale_vqa_eval.predict import DEFAULT_PROMPT, PROMPT_HELP
from scale_vqa_eval.schema import VIEWS


@dataclass
class RecipeArguments:
    """Settings of both recipes."""

    data: str = field(default="scale-vqa", metadata={"help": "Release folder, Hub id, or scale-vqa."})
    data_config: str | None = field(default=None, metadata={"help": "Config of the data; by default its default."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    train_limit: int | None = field(
        default=None, metadata={"help": "Maximum number of training rows, sampled by seed."}
    )
    dimensions: list[str] | None = field(default=None, metadata={"help": "Dimensions to train on; default all."})
    difficulty: str | None = field(default=None, metadata={"help": "File written by training_recipes/difficulty.py."})
    views: list[str] = field(default_factory=lambda: list(VIEWS), metadata={"help": "Views to use, if they exist."})
    blind: bool = field(default=False, metadata={"help": "Train without images (text-only control)."})
    prompt: str = field(default=DEFAULT_PROMPT, metadata={"help": PROMPT_HELP})
    min_pixels: int | None = field(default=None, metadata={"help": "Minimum pixels of an image."})
    max_pixels: int | None = field(default=None, metadata={"help": "Maximum pixels of an image."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Maximum tokens of a prompt with images."})
    unfit_rows: Literal["refuse", "drop"] = field(
        default="refuse", metadata={"help": "Rows that are too long or lack an image: stop, or drop them."}
    )
    validation_split: str | None = field(default=None, metadata={"help": "Split to validate on; default none."})
    validation_limit: int | None = field(default=200, metadata={"help": "Maximum number of validation rows."})
    validation_tokens: int | None = field(
        default=None, metadata={"help": "Maximum tokens of a validation answer; default that of training."}
    )
    early_stop_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many validations without a better metric_for_best_model."}
    )
    make_tiny_model: bool = field(
        default=False, metadata={"help": "Create a small random model at model_name_or_path if it does not exist."}
    )
    processes: int | None = field(
        default=None, metadata={"help": "Required number of processes, because the batch size depends on it."}
    )
    resume: bool = field(default=False, metadata={"help": "Continue from the last complete checkpoint."})
    overwrite: bool = field(default=False, metadata={"help": "Delete an earlier run's checkpoints, unless resuming."})

    def __post_init__(self) -> None:
        """Accepts a single name for a list, such as ``views: low_mag``."""
        for option in fields(self):
            if str(option.type).startswith("list") and isinstance(value := getattr(self, option.name), str):
                setattr(self, option.name, [value])


@dataclass
class GRPOArguments(RecipeArguments):
    """Settings of ``grpo.py``."""

    reward_terms: list[str] = field(
        default_factory=lambda: ["reference"],
        metadata={"help": "reference, strict, structure, visual_gain; reward_weights has their weights."},
    )
    blind_prior: str | None = field(
        default=None, metadata={"help": "Predictions without images (predict --ablate blind) for visual_gain."}
    )


@dataclass
class SFTArguments(RecipeArguments):
    """Settings of ``sft.py``."""

    rationales: Literal["checked", "repaired", "none", "mended"] = field(
        default="checked",
        metadata={
            "help": "Rationales to learn: with the right letter, also repaired ones, or none (only the letter)."
        },
    )
    conversations: str | None = field(
        default=None, metadata={"help": "Train on a conversation file (messages and images) instead of data."}
    )
    blind_share: float = field(
        default=0.0,
        metadata={"help": "Share of training rows without images, so that the model can also answer blind."},
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the conversation file's images."})

    def __post_init__(self) -> None:
        """Accepts ``mended``, the old name of ``repaired``."""
        super().__post_init__()
        if self.rationales == "mended":
            self.rationales = "repaired"


def parse(kinds: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parses the command line and the YAML file of ``--config`` into one object of each class.

    Raises:
        InputError: if the file is missing, a setting is unknown, or values contradict each other.
        SystemExit: with code 2, if the command line is wrong.
    """
    from trl import TrlParser
    from yaml import YAMLError

    given = list(sys.argv[1:] if argv is None else argv)
    location = given[given.index("--config") + 1] if "--config" in given[:-1] else "command line"
    try:
        return tuple(TrlParser(kinds).parse_args_and_config(args=given))
    except (ValueError, TypeError, OSError, YAMLError) as error:
        text = " ".join(str(error).split())
        hint = "correct the file or the command line; docs/training.md lists the options"
        raise InputError(Problem(location, "valid settings", preview(text, 400), hint)) from error


METRICS: Final = ("accuracy", "reward", "format_rate", "unparsed_rate")
"""Metrics that a validation during training logs, with the prefix ``eval_``."""
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
    """Checks the settings before anything is loaded.

    Raises:
        InputError: listing all problems.
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
            yield Problem(name, "at least 1", str(value), "raise it, or leave it out")
    if (temperature := getattr(config, "temperature", 1.0)) <= 0:
        hint = "raise it: GRPO learns nothing from identical rollouts"
        yield Problem("temperature", "more than 0", str(temperature), hint)
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
    """Refuses settings that do not apply to a conversation file."""
    if getattr(recipe, "conversations", None) is None:
        return
    if recipe.image_root is None:  # type: ignore[attr-defined]
        yield Problem("image_root", "the folder of the conversations' images", "none", "name it")
    for name in ("dimensions", "difficulty", "blind", "blind_share"):
        if value := getattr(recipe, name):
            hint = f"leave {name} out, or train on rows of data"
            yield Problem(name, "none together with conversations", preview(value), hint)


def _installed(config: Any) -> Iterator[Problem]:
    """Checks for optional packages, which the trainer imports only after loading the model."""
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
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "a read-only folder"
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
    """Checks that the rows fill one step of GRPO, because TRL drops an incomplete step.

    Raises:
        InputError: if there are too few rows.
    """
    questions = config.generation_batch_size // config.num_generations
    if rows < questions:
        hint = "lower per_device_train_batch_size or gradient_accumulation_steps, or use more rows"
        raise InputError(Problem(location, f"at least {questions} questions, those of one step", str(rows), hint))


def check_context(model_config: Any, prompt: int, completion: int) -> None:
    """Raises InputError if ``prompt`` + ``completion`` tokens exceed the model's context."""
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if context is not None and prompt + completion > context:
        found = f"{prompt} of the longest prompt and {completion} to generate"
        hint = "lower max_pixels, max_prompt_length or max_completion_length"
        raise InputError(Problem("model context", f"at most {context} tokens", found, hint))


def stored_numbers(weight: Any) -> int:
    """Returns the number of elements of a weight, which is in ``ds_numel`` if DeepSpeed has sharded it."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def bytes_of_checkpoint(model: Any, upcast: bool = False) -> tuple[int, int]:
    """Returns the bytes of the saved weights (all, or the adapter) and of AdamW's two moments.

    ``upcast`` counts trained weights as float32, their dtype under FSDP2 with mixed precision.
    """
    saved, moments = 0, 0
    for weight in model.parameters():
        size = stored_numbers(weight) * (4 if upcast and weight.requires_grad else weight.element_size())
        moments += 2 * size if weight.requires_grad else 0
        saved += size if weight.requires_grad or not hasattr(model, "peft_config") else 0
    return saved, moments


def check_disk(model: Any, config: Any, upcast: bool = False) -> None:
    """Checks that the disk has space for ``final`` and for all checkpoints that exist at the same time.

    With ``save_total_limit`` k, up to k + 1 exist, and one more if the best is kept; without it, one is assumed.
    ``upcast``: whether trained weights are saved as float32.

    Raises:
        InputError: if there is too little space, or the folder cannot be written.
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
