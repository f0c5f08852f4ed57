"""GRPO on Scale-VQA: rollouts with the images of each scale, rewarded by the published rule.

    accelerate launch training_recipes/grpo.py --config training_recipes/configs/cpu-tiny.yaml

docs/training.md has the options, the configurations for one GPU, eight and several nodes, and what this port changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from training_recipes.arguments import GRPOArguments, parse
from training_recipes.batches import as_text
from training_recipes.checkpoints import check_room
from training_recipes.launch import reported
from training_recipes.models import check_context, load_model, load_processor
from training_recipes.preconditions import check_launch, check_step
from training_recipes.reward_terms import reward_functions
from training_recipes.rows import make_shape
from training_recipes.run import callbacks, constructing, fit, select_both
from training_recipes.selection import select
from training_recipes.trainers import Recipe, remember_trained


class ScaleVQAGRPOTrainer(Recipe, GRPOTrainer):
    """``GRPOTrainer`` with greedy validation by the metric."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, conversations in the table as text: W&B refuses a column whose parts have different fields."""
        for name in ("prompt", "completion"):
            told = self._logs[name]
            self._logs[name] = type(told)(map(as_text, told), told.maxlen)
        super().log(logs, start_time)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the YAML and the command line say."""
    recipe, config, model_arguments = parse((GRPOArguments, GRPOConfig, ModelConfig), argv)
    check_launch(recipe, config, model_arguments)
    rewards = reward_functions(recipe.reward_terms, config.reward_weights, recipe.blind_prior is not None)
    config.remove_unused_columns = False  # rewards need the columns

    # data first: what is wrong with it is known before any weight is loaded
    processor = load_processor(recipe, config, model_arguments)
    shape = make_shape(recipe.prompt, recipe.views, recipe.min_pixels, recipe.max_pixels, recipe.blind)
    training_rows = partial(
        select,
        recipe,
        shape,
        processor,
        recipe.train_split,
        recipe.train_limit,
        config.seed,
        recipe.max_prompt_length,
        blind_prior=recipe.blind_prior,
    )
    train, validation = select_both(recipe, config, shape, processor, training_rows)

    check_step(config, len(train.rows), train.location)
    model = load_model(model_arguments)
    check_context(model.config, train.tokens[1], config.max_completion_length)
    with constructing():
        trainer = ScaleVQAGRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=config,
            train_dataset=train.rows,
            eval_dataset=validation.rows if validation is not None else None,
            processing_class=processor,
            peft_config=get_peft_config(model_arguments),
            callbacks=callbacks(recipe),
        )
    trainer.validation_tokens = recipe.validation_tokens or config.max_completion_length
    trainer.blind = shape.blind
    remember_trained(trainer)
    check_room(trainer.model, config)
    fit("grpo", trainer, recipe, model_arguments, shape, train, validation)


if __name__ == "__main__":
    reported(main)
