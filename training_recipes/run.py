"""Trains or resumes, marks complete checkpoints, saves, validates, and writes ``training_metadata.json``.

The model card is made from that file. A checkpoint without a mark is never resumed. Older checkpoints are deleted only
after a newer one is complete. A full disk gives one clear error.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback

from scale_vqa_eval.errors import InputError, Problem, first_line, preview
from scale_vqa_eval.files import atomic_write, sha256_json, write_json
from scale_vqa_eval.predict.backend import installed_versions
from training_recipes.arguments import RecipeArguments, check_disk, stored_numbers
from training_recipes.rows import PromptFormat
from training_recipes.selection import Candidates, ChosenRows, candidates, fitting, report_rows
from training_recipes.trainer import ENGINE_GREEDY, GREEDY, figures, greedy_answers, set_model_loading, write_answers

MARK: Final = "scale_vqa_checkpoint.json"
"""File that is written last into a complete checkpoint."""
_DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)
_DISK_MESSAGES: Final = ("os error", "No space left", "I/O error", "PytorchStreamWriter", "file write failed")
"""Parts of the messages of safetensors and torch for an OSError."""


class MarkCheckpoints(TrainerCallback):
    """Marks a checkpoint as complete after all processes have saved; ``trained`` is the model's ``fingerprint``."""

    def __init__(self, trained: dict[str, Any]) -> None:
        self.trained = trained

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        if args.should_save:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            write_json(folder / MARK, {"step": state.global_step, **self.trained})


def fingerprint(model: Any) -> dict[str, Any]:
    """Returns class and shapes of the trained weights, which must agree to resume from a checkpoint."""
    # a weight that DeepSpeed has sharded is empty, and has its shape in ds_shape
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    shapes = sorted((name, list(getattr(weight, "ds_shape", weight.shape))) for name, weight in trained.items())
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return {
        "architecture": type(inner).__name__,
        "trained_parameters": sum(stored_numbers(weight) for weight in trained.values()),
        "shapes_sha256": sha256_json(shapes),
    }


def last_complete(output_dir: str | Path) -> Path | None:
    """Returns the latest complete checkpoint, or None."""
    return next((path for path in reversed(_checkpoints(output_dir)) if (path / MARK).is_file()), None)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    steps = {path: path.name.rpartition("-")[2] for path in Path(output_dir).glob("checkpoint-*")}
    return sorted(steps, key=lambda path: int(steps[path]) if steps[path].isdigit() else -1)


def remove_incomplete(output_dir: str | Path) -> list[Path]:
    """Removes incomplete checkpoints and returns their paths."""
    incomplete = [path for path in _checkpoints(output_dir) if not (path / MARK).is_file()]
    for path in incomplete:
        shutil.rmtree(path, ignore_errors=True)
    return incomplete


def checkpoint_to_resume(output_dir: str | Path, trained: dict[str, Any], main_process: bool = True) -> str | None:
    """Returns the checkpoint to resume from, or None; removes and reports incomplete ones.

    Raises:
        InputError: if the checkpoint has another architecture or other trained weights than the model.
    """
    for path in remove_incomplete(output_dir) if main_process else ():
        print(f"{path}: removed; it is incomplete, because its save was interrupted", file=sys.stderr)
    found = last_complete(output_dir)
    if found is None:
        return None
    saved = json.loads((found / MARK).read_text(encoding="utf-8"))
    for name, value in trained.items():
        if saved.get(name) != value:
            hint = "resume with the model and LoRA settings of that run, or name another output_dir"
            raise InputError(Problem(f"{found}, {name}", preview(value), preview(saved.get(name)), hint))
    return str(found)


def remove_earlier(output_dir: str | Path) -> None:
    """Removes the checkpoints, tables of completions and validation answers of an earlier run."""
    folder = Path(output_dir)
    for path in [*_checkpoints(folder), folder / "final"]:
        if path.is_dir():
            print(f"{path}: removed, because overwrite is set", file=sys.stderr)
            shutil.rmtree(path)
    # only the files: the trainer has already created the folder of its tables
    for path in [*folder.glob("completions/completions_*.parquet"), *folder.glob("validation/answers-*.jsonl")]:
        path.unlink()


@contextmanager
def disk_errors(output_dir: str | Path, folder: Path | None = None) -> Iterator[None]:
    """Context manager: replaces a disk error by an InputError, and removes incomplete files.

    Args:
        output_dir: output folder of the run.
        folder: folder that is being written, or None for checkpoints.

    Raises:
        InputError: with the latest complete checkpoint.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = str(error).strip()
        known = error.errno in _DISK_ERRORS if isinstance(error, OSError) else any(m in text for m in _DISK_MESSAGES)
        if not known:
            raise
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        incomplete, complete = remove_incomplete(output_dir), last_complete(output_dir)
        kept = f"{complete.name} is complete" if complete is not None else "there is no earlier checkpoint"
        location, hint = (
            folder or [output_dir, *incomplete][-1],
            f"free disk space and run again with --resume; {kept}",
        )
        raise InputError(Problem(str(location), "a writable disk", first_line(error), hint)) from error


METADATA: Final = "training_metadata.json"
OTHERS_WAIT: Final = 5.0
"""Seconds that the other processes wait before they report an error, so that the first can report it."""
_PACKAGES: Final = ("scale-vqa", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "deepspeed")


def report_errors(main: Callable[[], object]) -> None:
    """Calls ``main``; prints the problems of an ``InputError``, one per line, and exits with 1.

    With several processes, the first reports and the launcher stops the others. Another process reports only a problem
    that the first does not have, such as an unreadable image among its own rows.
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
    """Returns the training rows, and the validation rows or None."""
    # the main process fills the cache of `datasets` for the others
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
    """Returns the trainer arguments that both recipes share; ``chosen`` are training and validation rows."""
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
    """Context manager: replaces an error of TRL, PEFT, transformers or a logger by an InputError."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        found = preview(" ".join(str(error).split()) or type(error).__name__, 300)
        hint = "correct the setting, or install what is missing; docs/training.md lists the options"
        raise InputError(Problem("settings", "settings that the trainer accepts", found, hint)) from error


def fit(
    trainer: Any,
    recipe: RecipeArguments,
    model_arguments: Any,
    shape: PromptFormat,
    train: ChosenRows,
    validation: ChosenRows | None,
) -> None:
    """Trains, saves to ``<output_dir>/final``, validates with and without images, and writes the metadata.

    Raises:
        InputError: if the checkpoint to resume does not fit the model, or a checkpoint cannot be written.
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
    """Sets FSDP2 to reduce gradients in float32, as in the paper's run; accelerate's default is bfloat16."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32)


def _validated(trainer: Any, validation: ChosenRows, shape: PromptFormat) -> dict[str, Any]:
    """Returns the scores of the trained model with and without images; writes its answers to ``validation/``."""
    rows, tokens = validation.rows, trainer.validation_tokens
    answers = greedy_answers(trainer, rows, tokens, shape.blind)
    blind = None if shape.blind else greedy_answers(trainer, rows, tokens, blind=True)
    if trainer.is_world_process_zero():
        for name, texts in (("final", answers), ("final-blind", blind)):
            if texts is not None:
                write_answers(Path(trainer.args.output_dir, "validation", f"{name}.jsonl"), rows, texts)
    return figures(rows, answers, blind)


def metadata(
    trainer: Any,
    recipe: RecipeArguments,
    model_arguments: Any,
    shape: PromptFormat,
    train: ChosenRows,
    trained: dict[str, Any],
) -> dict[str, Any]:
    """Returns the content of ``training_metadata.json``."""
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
