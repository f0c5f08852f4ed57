"""Writes ``training_metadata.json``: what was trained on what, how, where, and what came of it; flat, for a card."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from training_recipes.arguments import RecipeArguments
from training_recipes.rows import Shape
from training_recipes.selection import Selection

NAME: Final = "training_metadata.json"
_PACKAGES: Final = ("scale-vqa", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "deepspeed")


def metadata(
    method: str,
    trainer: Any,
    recipe: RecipeArguments,
    model_arguments: Any,
    shape: Shape,
    train: Selection,
    validation: Selection | None,
    seconds: float,
) -> dict[str, Any]:
    """Returns the record of a finished run, but for its final validation.

    Args:
        method: ``grpo`` or ``sft``.
        trainer: after training.
        recipe: as parsed.
        model_arguments: as parsed.
        shape: how rows were asked.
        train: what was trained on.
        validation: what was validated on, None for nothing.
        seconds: wall time of training.
    """
    args = trainer.args
    return {
        "method": method,
        "base_model": model_arguments.model_name_or_path,
        "base_model_revision": model_arguments.model_revision,
        **trainer.trained,
        "lora": bool(model_arguments.use_peft),
        **_trained_on(recipe, shape),
        "data_hash": train.digest,
        "train_rows": len(train.rows),
        "train_rows_left_out": len(train.left_out),
        "blind_training": shape.blind,
        "prompt_id": shape.prompt.id,
        "prompt_version": shape.prompt.version,
        "prompt_digest": shape.prompt.digest,
        "min_pixels": recipe.min_pixels,
        "max_pixels": recipe.max_pixels,
        "tokens_least": train.tokens[0],
        "tokens_most": train.tokens[1],
        "validation_split": recipe.validation_split,
        "validation_rows": len(validation.rows) if validation is not None else 0,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "seconds": round(seconds, 1),
        "seed": args.seed,
        "learning_rate": args.learning_rate,
        "per_device_batch": args.per_device_train_batch_size,
        "gradient_accumulation": args.gradient_accumulation_steps,
        "world_size": trainer.accelerator.num_processes,
        "distributed": str(trainer.accelerator.distributed_type.value),
        "device": _device(),
        "host_cores": os.cpu_count(),
        "best_metric": trainer.state.best_metric,
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "log": [entry for entry in trainer.state.log_history],
        "config": _settings(args),
        "recipe": vars(recipe),
        "versions": versions(),
    }


def _trained_on(recipe: RecipeArguments, shape: Shape) -> dict[str, Any]:
    """Returns which data, split and views; a conversation file stands for all of them."""
    conversations = getattr(recipe, "conversations", None)
    if conversations is not None:
        return {"data": conversations, "data_config": None, "train_split": "all", "dimensions": None, "views": []}
    return {
        "data": recipe.data,
        "data_config": recipe.data_config,
        "train_split": recipe.train_split,
        "dimensions": recipe.dimensions,
        "views": list(shape.views),
    }


def last_rewards(history: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the last logged mean of each reward term and part."""
    found: dict[str, float] = {}
    for entry in history:
        for name, value in entry.items():
            is_part = name.startswith(("rewards/", "reference/", "strict/")) and not name.endswith("/std")
            if (is_part or name == "reward") and value is not None:
                found[name.removesuffix("/mean")] = value
    return found


def versions() -> dict[str, str]:
    """Returns the versions of what took part and is installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_metadata(folder: str | Path, content: dict[str, Any]) -> Path:
    """Writes the record into a folder in one rename."""
    path = Path(folder, NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(path)
    print(f"{path}: written", file=sys.stderr)
    return path


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU ({platform.machine()})"


def _settings(args: Any) -> dict[str, Any]:
    """Returns the trainer's settings; tokens of services are left out."""
    content = {name: value for name, value in args.to_dict().items() if not name.endswith("hub_token")}
    plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return plain
