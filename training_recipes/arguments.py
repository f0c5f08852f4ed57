"""Settings of a recipe beside those of TRL: data, prompt, images, checks, rewards and targets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.predict import DEFAULT_PROMPT, PROMPT_HELP
from scale_vqa_eval.schema import VIEWS


@dataclass
class RecipeArguments:
    """Settings of both recipes; ``--help`` shows their lines."""

    data: str = field(default="scale-vqa", metadata={"help": "Release folder, Hub id, or the bare name."})
    data_config: str | None = field(default=None, metadata={"help": "Config of the data; its default if not given."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    train_limit: int | None = field(default=None, metadata={"help": "Train on at most so many rows, drawn by seed."})
    dimensions: list[str] | None = field(default=None, metadata={"help": "Train on these dimensions; default all."})
    difficulty: str | None = field(default=None, metadata={"help": "File written by training_recipes/difficulty.py."})
    views: list[str] = field(default_factory=lambda: list(VIEWS), metadata={"help": "Views to show, if they exist."})
    blind: bool = field(default=False, metadata={"help": "Train without images (text-only control)."})
    prompt: str = field(default=DEFAULT_PROMPT, metadata={"help": PROMPT_HELP})
    min_pixels: int | None = field(default=None, metadata={"help": "Minimum pixels of an image."})
    max_pixels: int | None = field(default=None, metadata={"help": "Maximum pixels of an image."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Maximum tokens of a prompt with images."})
    unfit_rows: Literal["refuse", "drop"] = field(
        default="refuse", metadata={"help": "Rows that are too long or lack an image: stop, or leave them out."}
    )
    validation_split: str | None = field(default=None, metadata={"help": "Split to validate on; default none."})
    validation_limit: int | None = field(default=200, metadata={"help": "Validate on at most so many, drawn by seed."})
    validation_tokens: int | None = field(
        default=None, metadata={"help": "Maximum tokens of a validation answer; default that of training."}
    )
    early_stop_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many validations without a better metric_for_best_model."}
    )
    make_tiny_model: bool = field(
        default=False, metadata={"help": "Make a small random model at model_name_or_path if there is none."}
    )
    processes: int | None = field(
        default=None, metadata={"help": "Refuse another number of processes: the batch size depends on it."}
    )
    resume: bool = field(default=False, metadata={"help": "Continue from the last complete checkpoint."})
    overwrite: bool = field(default=False, metadata={"help": "Delete an earlier run's checkpoints, unless resuming."})

    def __post_init__(self) -> None:
        """Accepts one name for a list of one, as in YAML's ``views: low_mag``."""
        for option in fields(self):
            if str(option.type).startswith("list") and isinstance(value := getattr(self, option.name), str):
                setattr(self, option.name, [value])


@dataclass
class GRPOArguments(RecipeArguments):
    """Settings of ``grpo.py``."""

    reward_terms: list[str] = field(
        default_factory=lambda: ["reference"],
        metadata={"help": "reference, strict, structure, visual_gain; reward_weights weighs them in order."},
    )
    blind_prior: str | None = field(
        default=None, metadata={"help": "Predictions without images (predict --ablate blind) for visual_gain."}
    )


@dataclass
class SFTArguments(RecipeArguments):
    """Settings of ``sft.py``."""

    rationales: Literal["checked", "repaired", "none", "mended"] = field(
        default="checked",
        metadata={"help": "Rationales with the right letter, also repaired ones, or the letter alone (none)."},
    )
    conversations: str | None = field(
        default=None, metadata={"help": "Train on a conversation file (messages and images) instead of data."}
    )
    blind_share: float = field(
        default=0.0,
        metadata={"help": "Show no image for this share of the training rows, so that a blind control can be read."},
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the conversation file's images."})

    def __post_init__(self) -> None:
        """Reads the old name of ``repaired``."""
        super().__post_init__()
        if self.rationales == "mended":
            self.rationales = "repaired"


def parse(kinds: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parses the command line and the YAML file of ``--config`` into one object of each kind.

    Raises:
        InputError: if the file is missing, names an unknown setting, or the values do not fit together.
        SystemExit: 2, for wrong use of the command line.
    """
    from trl import TrlParser
    from yaml import YAMLError

    given = list(sys.argv[1:] if argv is None else argv)
    location = given[given.index("--config") + 1] if "--config" in given[:-1] else "command line"
    try:
        parsed: tuple[Any, ...] = TrlParser(kinds).parse_args_and_config(args=given)
    except (ValueError, TypeError, OSError, YAMLError) as error:
        text = " ".join(str(error).split())
        hint = "correct the file or the command line; docs/training.md lists the options"
        raise InputError(Problem(location, "settings that fit together", preview(text, 400), hint)) from error
    return parsed
