"""Supervised fine-tuning on Scale-VQA: rationales whose letters were checked, or the released conversations.

    accelerate launch training_recipes/sft.py --config training_recipes/configs/sft-cpu-tiny.yaml

docs/training.md has the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from training_recipes.arguments import SFTArguments, parse
from training_recipes.checkpoints import check_room
from training_recipes.conversation_rows import select_conversations
from training_recipes.launch import reported
from training_recipes.models import check_context, load_model, load_processor
from training_recipes.preconditions import check_launch
from training_recipes.rationales import with_targets
from training_recipes.rows import make_shape
from training_recipes.run import callbacks, constructing, fit, select_both
from training_recipes.selection import select
from training_recipes.trainers import Recipe, remember_trained


class ScaleVQASFTTrainer(Recipe, SFTTrainer):
    """``SFTTrainer`` with greedy validation by the metric."""


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the YAML and the command line say."""
    recipe, config, model_arguments = parse((SFTArguments, SFTConfig, ModelConfig), argv)
    check_launch(recipe, config, model_arguments)
    config.remove_unused_columns = False
    config.completion_only_loss = True  # the prompt is not to be learnt
    # the trainer would cut a row at max_length, image tokens and answer alike: rows too long are refused before
    bound, config.max_length = config.max_length, None

    processor = load_processor(recipe, config, model_arguments)
    shape = make_shape(recipe.prompt, recipe.views, recipe.min_pixels, recipe.max_pixels, recipe.blind)
    if recipe.conversations is not None:
        training_rows = partial(select_conversations, recipe, shape, processor, config.seed, bound)
    else:
        targets = partial(with_targets, policy=recipe.rationales)
        split, limit = recipe.train_split, recipe.train_limit
        training_rows = partial(select, recipe, shape, processor, split, limit, config.seed, bound, targets)
    train, validation = select_both(recipe, config, shape, processor, training_rows)

    model = load_model(model_arguments)
    check_context(model.config, train.tokens[1], 0)
    with constructing():
        trainer = ScaleVQASFTTrainer(
            model=model,
            args=config,
            train_dataset=train.rows,
            eval_dataset=validation.rows if validation is not None else None,
            processing_class=processor,
            peft_config=get_peft_config(model_arguments),
            callbacks=callbacks(recipe),
        )
    trainer.validation_tokens = recipe.validation_tokens or shape.prompt.max_tokens
    trainer.blind = shape.blind
    remember_trained(trainer)
    check_room(trainer.model, config)
    fit("sft", trainer, recipe, model_arguments, shape, train, validation)


if __name__ == "__main__":
    reported(main)
