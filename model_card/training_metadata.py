"""``training_metadata.json``: what a training run says of itself, as the model card reads it.

The recipes write it beside their weights; a run of another program may be described in a file with the same fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from model_card.checked_fields import Kinds, check_fields
from model_card.dataset_facts import read_fields
from scale_vqa_eval.errors import InputError, Problem

NEEDED: Final[Kinds] = {
    "method": str,
    "base_model": str,
    "data": str,
    "train_split": str,
    "train_rows": int,
    "prompt_id": str,
    "steps": int,
    "seconds": float,
    "seed": int,
    "learning_rate": float,
    "per_device_batch": int,
    "gradient_accumulation": int,
    "world_size": int,
    "device": str,
    "versions": dict,
}
"""Field -> kind of everything that the card needs; ``seconds`` is wall time, ``world_size`` the number of devices."""
OPTIONAL: Final[Kinds] = {
    "data_config": str,
    "data_hash": str,
    "base_model_revision": str,
    "lora": bool,
    "trained_parameters": int,
    "views": list,
    "blind_training": bool,
    "epochs": float,
    "config": dict,
}
SETTINGS: Final = (
    "optim",
    "lr_scheduler_type",
    "warmup_ratio",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "num_generations",
    "num_iterations",
    "beta",
    "epsilon",
    "epsilon_high",
    "loss_type",
    "scale_rewards",
    "temperature",
    "top_p",
    "max_completion_length",
    "max_length",
    "bf16",
    "fp16",
    "gradient_checkpointing",
)
"""Settings of the trainer that the card shows, of those that the run noted under ``config``."""


def read_training(path: Path, problems: list[Problem]) -> dict[str, Any]:
    """Reads a training run's metadata; what is missing or of another kind is added to ``problems``."""
    hint = "take the file that the recipe wrote beside its weights, or complete it"
    try:
        content = read_fields(path, set(), "a training run's metadata", hint)
    except InputError as error:
        problems.extend(error.problems)
        return {}
    check_fields(path, content, NEEDED, OPTIONAL, hint, problems)
    return content


def recipe_rows(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (name, value) of the recipe as the card shows it."""
    batch = training["per_device_batch"] * training["gradient_accumulation"] * training["world_size"]
    rows = [
        ("method", training["method"]),
        ("LoRA", {True: "yes", False: "no"}.get(training.get("lora"))),
        ("parameters trained", training.get("trained_parameters")),
        ("optimiser steps", training["steps"]),
        ("epochs", training.get("epochs")),
        (
            "batch",
            f"{batch} ({training['per_device_batch']} a device x {training['gradient_accumulation']} accumulated "
            f"x {training['world_size']} processes)",
        ),
        ("learning rate", training["learning_rate"]),
        ("seed", training["seed"]),
        *((name, (training.get("config") or {}).get(name)) for name in SETTINGS),
    ]
    return [(name, _shown(value)) for name, value in rows if value is not None]


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
