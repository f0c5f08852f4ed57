"""Supervised fine-tuning on Scale-VQA: rationales with checked letters, or the released conversations.

    accelerate launch training_recipes/sft.py --config training_recipes/configs/sft-cpu-tiny.yaml

docs/training.md has the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trl import ModelConfig, SFTConfig, SFTTrainer

from training_recipes.arguments import SFTArguments, check_context, check_settings, parse
from training_recipes.rows import prompt_format, with_processor_bounds
from training_recipes.run import constructing, fit, report_errors, select_rows, trainer_arguments
from training_recipes.selection import candidates
from training_recipes.sft_data import conversation_candidates, with_targets
from training_recipes.trainer import RecipeTrainer, load_model_files


class ScaleVQASFTTrainer(RecipeTrainer, SFTTrainer):
    """``SFTTrainer`` with greedy validation by the metric."""


def main(argv: Sequence[str] | None = None) -> None:
    """Trains with the settings of the YAML file and the command line."""
    recipe, config, model_arguments = parse((SFTArguments, SFTConfig, ModelConfig), argv)
    check_settings(recipe, config, model_arguments.model_name_or_path)
    config.remove_unused_columns = False
    config.completion_only_loss = True
    # the trainer would truncate rows, including image tokens and the answer; too long rows are found before
    bound, config.max_length = config.max_length, None

    processor, model_config = load_model_files(recipe, config, model_arguments)
    shape = prompt_format(recipe.prompt, recipe.views, recipe.min_pixels, recipe.max_pixels, recipe.blind)
    shape = with_processor_bounds(shape, processor)
    if recipe.conversations is not None:
        training = partial(conversation_candidates, recipe, shape)
    else:
        targets = partial(with_targets, policy=recipe.rationales)
        training = partial(candidates, recipe, shape, recipe.train_split, targets=targets)
    train, validation = select_rows(recipe, config, shape, processor, training, bound)
    check_context(model_config, train.tokens[1], 0)

    with constructing():
        arguments = trainer_arguments(recipe, config, model_arguments, processor, (train, validation))
        trainer = ScaleVQASFTTrainer(**arguments)
    trainer.validation_tokens = recipe.validation_tokens or shape.prompt.max_tokens
    fit(trainer, recipe, model_arguments, shape, train, validation)


if __name__ == "__main__":
    report_errors(main)
