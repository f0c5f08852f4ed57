"""The steps that both recipes share: choose the rows, train or go on, save, validate, leave a record."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scale_vqa_eval.errors import InputError, Problem, preview
from training_recipes.arguments import RecipeArguments
from training_recipes.checkpoints import checkpoint_to_resume, failed_save, last_whole, remove_earlier
from training_recipes.metadata import last_rewards, metadata, write_metadata
from training_recipes.rows import Shape
from training_recipes.selection import Selection, select, tell
from training_recipes.trainers import no_room
from training_recipes.validation import figures, greedy_answers, write_answers


def select_both(
    recipe: RecipeArguments, config: Any, shape: Shape, processor: Any, training_rows: Callable[[], Selection]
) -> tuple[Selection, Selection | None]:
    """Returns the rows to train and to validate on, the latter None without a ``validation_split``.

    One process goes first: it fills the cache of ``datasets`` for the others.
    """
    with config.main_process_first(desc="choose the rows"):
        train, validation = training_rows(), None
        if recipe.validation_split is not None:
            validation = select(
                recipe,
                shape,
                processor,
                recipe.validation_split,
                recipe.validation_limit,
                config.seed,
                recipe.max_prompt_length,
                training=False,
            )
    if config.process_index == 0:
        tell(train, config.output_dir, "train")
        if validation is not None:
            tell(validation, config.output_dir, "validation")
    return train, validation


def callbacks(recipe: RecipeArguments) -> list[Any]:
    """Returns the callbacks that a recipe asks for."""
    from transformers import EarlyStoppingCallback

    patience = recipe.early_stop_patience
    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


@contextmanager
def constructing() -> Iterator[None]:
    """Makes one line of what TRL, PEFT or a logger refuse while a trainer is made: settings they cannot use.

    Raises:
        InputError: for their ValueError, ImportError or RuntimeError.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, ImportError, RuntimeError) as error:
        found = preview(" ".join(str(error).split()) or type(error).__name__, 300)
        hint = "correct the setting, or install what is missing; docs/training.md has the options"
        raise InputError(Problem("settings", "a trainer that can be made of them", found, hint)) from error


def fit(
    method: str,
    trainer: Any,
    recipe: RecipeArguments,
    model_arguments: Any,
    shape: Shape,
    train: Selection,
    validation: Selection | None,
) -> None:
    """Trains, saves to ``<output_dir>/final``, validates with images and without, and writes the record.

    Raises:
        InputError: where a checkpoint to go on from does not fit, or one cannot be written.
    """
    args, first = trainer.args, trainer.is_world_process_zero()
    checkpoint = None
    if recipe.resume:
        checkpoint = checkpoint_to_resume(args.output_dir, trainer.trained, first)
    elif recipe.overwrite and first:
        remove_earlier(args.output_dir)
    trainer.accelerator.wait_for_everyone()
    started = time.monotonic()
    with _room_for_tables(args.output_dir):
        trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - started

    final = Path(args.output_dir, "final")
    try:
        trainer.save_model(str(final))
        if first:
            trainer.processing_class.save_pretrained(str(final))
    except Exception as error:
        if no_room(error):
            raise failed_save(final, error) from error
        raise
    record = metadata(method, trainer, recipe, model_arguments, shape, train, validation, seconds)
    record["resumed_from"] = checkpoint
    record["rewards"] = last_rewards(trainer.state.log_history)
    record["final_validation"] = _final(trainer, validation, shape) if validation is not None else None
    if first:
        write_metadata(args.output_dir, record)
        write_metadata(final, record)


@contextmanager
def _room_for_tables(output_dir: str) -> Iterator[None]:
    """Makes one line of a disk that fills up between checkpoints, when completions or answers are written.

    Raises:
        InputError: naming the checkpoint that is whole.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        before = last_whole(output_dir)
        kept = f"{before.name} is whole" if before is not None else "there is no checkpoint yet"
        hint = f"free room and run the same command with --resume; {kept}"
        raise InputError(Problem(output_dir, "room to write", str(error.strerror), hint)) from error


def _final(trainer: Any, validation: Selection, shape: Shape) -> dict[str, Any]:
    """Returns the metric's figures of the trained model on the validation rows, beside the same model blind.

    The answers go to ``validation/final.jsonl`` and ``validation/final-blind.jsonl``.
    """
    seen = greedy_answers(trainer, validation.rows, trainer.validation_tokens, shape.blind)
    blind = None if shape.blind else greedy_answers(trainer, validation.rows, trainer.validation_tokens, blind=True)
    if trainer.is_world_process_zero():
        for name, answers in (("final", seen), ("final-blind", blind)):
            if answers is not None:
                write_answers(Path(trainer.args.output_dir, "validation", f"{name}.jsonl"), validation.rows, answers)
    return figures(validation.rows, seen, blind)
