"""What a recipe's YAML may say beside the settings of TRL: data, prompt, images, checks, rewards, targets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.schema import VIEWS


@dataclass
class RecipeArguments:
    """Options that both recipes have; one line of help each is what ``--help`` shows."""

    data: str = field(default="scale-vqa", metadata={"help": "Release folder, Hub id, or the bare name."})
    data_config: str | None = field(default=None, metadata={"help": "Config of the data; its default where absent."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    train_limit: int | None = field(default=None, metadata={"help": "Train on so many rows, drawn by the seed."})
    dimensions: list[str] | None = field(default=None, metadata={"help": "Train on these; all if absent."})
    difficulty: str | None = field(default=None, metadata={"help": "File of training_recipes/difficulty.py."})
    views: list[str] = field(default_factory=lambda: list(VIEWS), metadata={"help": "Views to show, where there."})
    blind: bool = field(default=False, metadata={"help": "Train without any image: the control."})
    prompt: str = field(default="published", metadata={"help": "Prompt id, or a YAML file of one's own."})
    min_pixels: int | None = field(default=None, metadata={"help": "Least pixels of an image."})
    max_pixels: int | None = field(default=None, metadata={"help": "Most pixels of an image."})
    max_prompt_length: int | None = field(default=None, metadata={"help": "Most tokens of a prompt with its images."})
    unfit_rows: Literal["refuse", "drop"] = field(
        default="refuse", metadata={"help": "What to do about rows too long or without an image; they are named."}
    )
    validation_split: str | None = field(default=None, metadata={"help": "Split to validate on; none if absent."})
    validation_limit: int | None = field(default=200, metadata={"help": "Validate on so many, drawn by the seed."})
    validation_tokens: int | None = field(
        default=None, metadata={"help": "Most tokens of a validation answer; that of training where absent."}
    )
    early_stop_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many validations without a better metric_for_best_model."}
    )
    make_tiny_model: bool = field(
        default=False, metadata={"help": "Make a small random model at model_name_or_path if there is none."}
    )
    processes: int | None = field(
        default=None, metadata={"help": "Refuse to run in another number of processes: the batch depends on it."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the last whole checkpoint in output_dir."})
    overwrite: bool = field(default=False, metadata={"help": "Delete an earlier run's checkpoints, unless resuming."})

    def __post_init__(self) -> None:
        """Takes one name for a list of one: YAML's ``views: low_mag``."""
        for option in fields(self):
            if str(option.type).startswith("list") and isinstance(value := getattr(self, option.name), str):
                setattr(self, option.name, [value])


@dataclass
class GRPOArguments(RecipeArguments):
    """Options of ``grpo.py``."""

    reward_terms: list[str] = field(
        default_factory=lambda: ["reference"],
        metadata={"help": "Some of reference, strict, structure, visual_gain; reward_weights weighs them in order."},
    )
    blind_prior: str | None = field(
        default=None, metadata={"help": "Predictions without images (predict --ablate blind): what visual_gain needs."}
    )


@dataclass
class SFTArguments(RecipeArguments):
    """Options of ``sft.py``."""

    rationales: Literal["checked", "repaired", "none"] = field(
        default="checked",
        metadata={
            "help": "Learn rationales whose letter is right, also those that can be repaired, or letters alone."
        },
    )
    conversations: str | None = field(
        default=None, metadata={"help": "Train on a conversation file (messages and images) in place of data."}
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the conversation file's images."})


def parse(kinds: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parses the command line and the YAML named by ``--config`` into ``kinds``.

    Raises:
        InputError: where the file is none, names what no kind has, or values do not fit together, such as a batch
            that ``num_generations`` does not divide.
        SystemExit: 2, for a wrong use of the command line.
    """
    from trl import TrlParser
    from yaml import YAMLError

    given = list(sys.argv[1:] if argv is None else argv)
    location = given[given.index("--config") + 1] if "--config" in given[:-1] else "command line"
    parser = TrlParser(kinds)
    try:
        parsed: tuple[Any, ...] = parser.parse_args_and_config(args=given)
    except (ValueError, TypeError, OSError, YAMLError) as error:
        text = " ".join(str(error).split())
        hint = "correct the file or the command line; docs/training.md has the options"
        raise InputError(Problem(location, "settings that fit together", preview(text, 400), hint)) from error
    return parsed
