"""Trains or continues, saves, validates, and writes ``training_metadata.json``, which a model card is made from."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.predict.backend import installed_versions
from training_recipes.arguments import RecipeArguments, check_disk
from training_recipes.checkpoints import (
    MarkCheckpoints,
    checkpoint_to_resume,
    disk_errors,
    fingerprint,
    remove_earlier,
)
from training_recipes.rows import PromptFormat
from training_recipes.selection import Candidates, ChosenRows, candidates, fitting, report_rows
from training_recipes.trainer import ENGINE_GREEDY, GREEDY, figures, greedy_answers, set_model_loading, write_answers

METADATA: Final = "training_metadata.json"
OTHERS_WAIT: Final = 5.0
"""Seconds that the first process has to report an error before the others do."""
_PACKAGES: Final = ("scale-vqa", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "deepspeed")


def report_errors(main: Callable[[], object]) -> None:
    """Calls ``main``; prints the problems of an ``InputError``, one line each, and exits 1.

    Of several processes the first reports, and its launcher ends the others. A problem that only another process
    finds, such as an image of its own share that cannot be decoded, is reported by that process.
    """
    try:
        main()
    except InputError as error:
        rank, who = os.environ.get("RANK", "0"), ""
        if rank != "0":
            time.sleep(OTHERS_WAIT)
            who = f"process {rank}: "
        for problem in error.problems:
            print(f"error: {who}{problem}", file=sys.stderr, flush=True)
        sys.exit(1)


def select_rows(
    recipe: RecipeArguments,
    config: Any,
    shape: PromptFormat,
    processor: Any,
    training: Callable[[], Candidates],
    bound: int | None,
) -> tuple[ChosenRows, ChosenRows | None]:
    """Returns the rows to train on and those to validate on, the latter None without a ``validation_split``."""
    # one process goes first: it fills the cache of `datasets` for the others
    with config.main_process_first(desc="choose the rows"):
        train, validation = fitting(training(), processor, recipe, bound, recipe.train_limit, config.seed), None
        if recipe.validation_split is not None:
            held_out = candidates(recipe, shape, recipe.validation_split, training=False)
            most, limit = recipe.max_prompt_length, recipe.validation_limit
            validation = fitting(held_out, processor, recipe, most, limit, config.seed)
    if config.process_index == 0:
        report_rows(train, config.output_dir, "train")
        if validation is not None:
            report_rows(validation, config.output_dir, "validation")
    return train, validation


def trainer_arguments(
    recipe: RecipeArguments, config: Any, model_arguments: Any, processor: Any, chosen: Sequence[ChosenRows | None]
) -> dict[str, Any]:
    """Returns what both recipes give to their trainer; ``chosen`` are the rows to train and to validate on."""
    from transformers import EarlyStoppingCallback
    from trl import get_peft_config

    train, validation = (None if one is None else one.rows for one in chosen)
    patience = recipe.early_stop_patience
    return {
        "model": set_model_loading(config, model_arguments),
        "args": config,
        "train_dataset": train,
        "eval_dataset": validation,
        "processing_class": processor,
        "peft_config": get_peft_config(model_arguments),
        "callbacks": [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)],
    }


@contextmanager
def constructing() -> Iterator[None]:
    """Turns what TRL, PEFT, transformers or a logger refuse while a trainer is made into one clear error."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        found = preview(" ".join(str(error).split()) or type(error).__name__, 300)
        hint = "correct the setting, or install what is missing; docs/training.md lists the options"
        raise InputError(Problem("settings", "a trainer that can be made of them", found, hint)) from error


def fit(
    trainer: Any,
    recipe: RecipeArguments,
    model_arguments: Any,
    shape: PromptFormat,
    train: ChosenRows,
    validation: ChosenRows | None,
) -> None:
    """Trains, saves to ``<output_dir>/final``, validates with images and without, and writes the metadata.

    Raises:
        InputError: if a checkpoint does not fit the model, or one cannot be written.
    """
    args, main_process, trained = trainer.args, trainer.is_world_process_zero(), fingerprint(trainer.model)
    trainer.blind = shape.blind
    trainer.add_callback(MarkCheckpoints(trained))
    if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 2:
        reduce_in_float32(trainer.accelerator.state.fsdp_plugin)
    elif trainer.is_deepspeed_enabled:
        trainer.accelerator.state.deepspeed_plugin.deepspeed_config["communication_data_type"] = "fp32"
    check_disk(trainer.model, args, trainer.is_fsdp_enabled and trainer.accelerator.mixed_precision != "no")
    checkpoint = None
    if recipe.resume:
        checkpoint = checkpoint_to_resume(args.output_dir, trained, main_process)
    elif recipe.overwrite and main_process:
        remove_earlier(args.output_dir)
    trainer.accelerator.wait_for_everyone()
    started = time.monotonic()
    with disk_errors(args.output_dir):
        trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - started

    final = Path(args.output_dir, "final")
    with disk_errors(args.output_dir, final):
        trainer.save_model(str(final))
        if main_process:
            trainer.processing_class.save_pretrained(str(final))
    record = metadata(trainer, recipe, model_arguments, shape, train, trained)
    record["validation_rows"] = len(validation.rows) if validation is not None else 0
    record |= {"seconds": round(seconds, 1), "resumed_from": checkpoint}
    record["final_validation"] = _validated(trainer, validation, shape) if validation is not None else None
    if main_process:
        for folder in (Path(args.output_dir), final):
            atomic_write(folder / METADATA, json.dumps(record, indent=2, default=str) + "\n")
            print(f"{folder / METADATA}: written", file=sys.stderr)


def reduce_in_float32(plugin: Any) -> None:
    """Makes FSDP2 reduce gradients in float32, as the paper's run does; accelerate would reduce in bfloat16."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32)


def _validated(trainer: Any, validation: ChosenRows, shape: PromptFormat) -> dict[str, Any]:
    """Returns the metric's figures of the trained model beside the same model blind; answers go to ``validation/``."""
    rows, tokens = validation.rows, trainer.validation_tokens
    seen = greedy_answers(trainer, rows, tokens, shape.blind)
    blind = None if shape.blind else greedy_answers(trainer, rows, tokens, blind=True)
    if trainer.is_world_process_zero():
        for name, answers in (("final", seen), ("final-blind", blind)):
            if answers is not None:
                write_answers(Path(trainer.args.output_dir, "validation", f"{name}.jsonl"), rows, answers)
    return figures(rows, seen, blind)


def metadata(
    trainer: Any,
    recipe: RecipeArguments,
    model_arguments: Any,
    shape: PromptFormat,
    train: ChosenRows,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """Returns the record of a run, flat but for ``log``, ``config``, ``recipe`` and ``versions``."""
    args, state = trainer.args, trainer.state
    conversations = getattr(recipe, "conversations", None)
    return {
        "method": "sft" if hasattr(recipe, "conversations") else "grpo",
        "base_model": model_arguments.model_name_or_path,
        "base_model_revision": model_arguments.model_revision,
        **trained,
        "lora": bool(model_arguments.use_peft),
        "data": conversations or recipe.data,
        "data_config": None if conversations else recipe.data_config,
        "train_split": "all" if conversations else recipe.train_split,
        "dimensions": None if conversations else recipe.dimensions,
        "views": [] if conversations else list(shape.views),
        "data_hash": train.digest,
        "train_rows": len(train.rows),
        "train_rows_left_out": len(train.left_out),
        "blind_training": shape.blind,
        "prompt_id": shape.prompt.id,
        "prompt_version": shape.prompt.version,
        "prompt_digest": shape.prompt.digest,
        "min_pixels": shape.bounds.minimum,
        "max_pixels": shape.bounds.maximum,
        "tokens_least": train.tokens[0],
        "tokens_most": train.tokens[1],
        "validation_split": recipe.validation_split,
        "validation_sampling": ENGINE_GREEDY if getattr(args, "use_vllm", False) else GREEDY,
        "template_opens_thoughts": trainer.opened,
        "steps": state.global_step,
        "epochs": state.epoch,
        "seed": args.seed,
        "learning_rate": args.learning_rate,
        "per_device_batch": args.per_device_train_batch_size,
        "gradient_accumulation": args.gradient_accumulation_steps,
        "world_size": trainer.accelerator.num_processes,
        "distributed": str(trainer.accelerator.distributed_type.value),
        "device": _device(),
        "host_cores": os.cpu_count(),
        "best_metric": state.best_metric,
        "best_checkpoint": state.best_model_checkpoint,
        "rewards": _last_rewards(state.log_history),
        "log": list(state.log_history),
        "config": {name: value for name, value in args.to_dict().items() if not name.endswith("hub_token")},
        "recipe": vars(recipe),
        "versions": {"python": platform.python_version()} | installed_versions(*_PACKAGES),
    }


def _last_rewards(history: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the last logged mean of each reward term and part."""
    found: dict[str, float] = {}
    for entry in history:
        for name, value in entry.items():
            is_part = name.startswith(("rewards/", "reference/", "strict/")) and not name.endswith("/std")
            if (is_part or name == "reward") and value is not None:
                found[name.removesuffix("/mean")] = value
    return found


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU ({platform.machine()})"
