"""GRPO on Scale-VQA: rollouts with the images of each scale and the published reward.

    accelerate launch training_recipes/grpo.py --config training_recipes/configs/cpu-tiny.yaml

docs/training.md describes the options, the configurations for one GPU, eight GPUs and several nodes, and the
differences from the paper's run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from trl import GRPOConfig, GRPOTrainer, ModelConfig

from training_recipes.arguments import GRPOArguments, check_context, check_settings, check_step, parse
from training_recipes.rewards import reward_functions
from training_recipes.rows import prompt_format, with_processor_bounds
from training_recipes.run import constructing, fit, report_errors, select_rows, trainer_arguments
from training_recipes.selection import candidates
from training_recipes.trainer import RecipeTrainer, load_model_files, opens_thoughts


class ScaleVQAGRPOTrainer(RecipeTrainer, GRPOTrainer):
    """``GRPOTrainer`` with greedy validation by the metric."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs conversations as text, because W&B refuses a column whose parts have different fields."""
        for name in ("prompt", "completion"):
            logged = self._logs[name]
            self._logs[name] = type(logged)(map(as_text, logged), logged.maxlen)
        super().log(logs, start_time)


def as_text(conversation: Any) -> str:
    """Returns a conversation as one text, with ``[image]`` for an image.

    >>> as_text([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}])
    '[image]Which?'
    """
    if isinstance(conversation, str):
        return conversation
    contents = [message["content"] for message in conversation]
    return "\n\n".join(
        content if isinstance(content, str) else "".join(part.get("text") or "[image]" for part in content)
        for content in contents
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Trains with the settings of the YAML file and the command line."""
    recipe, config, model_arguments = parse((GRPOArguments, GRPOConfig, ModelConfig), argv)
    check_settings(recipe, config, model_arguments.model_name_or_path)
    has_prior = recipe.blind_prior is not None
    reward_functions(recipe.reward_terms, config.reward_weights, has_prior)  # checks them
    config.remove_unused_columns = False  # rewards need the columns

    # check the data before any weights are loaded
    processor, model_config = load_model_files(recipe, config, model_arguments)
    shape = prompt_format(recipe.prompt, recipe.views, recipe.min_pixels, recipe.max_pixels, recipe.blind)
    shape, opened = with_processor_bounds(shape, processor), opens_thoughts(processor)
    training = partial(candidates, recipe, shape, recipe.train_split, blind_prior=recipe.blind_prior)
    train, validation = select_rows(recipe, config, shape, processor, training, recipe.max_prompt_length)
    check_step(config, len(train.rows), train.location)
    check_context(model_config, train.tokens[1], config.max_completion_length)

    with constructing():
        trainer = ScaleVQAGRPOTrainer(
            reward_funcs=reward_functions(recipe.reward_terms, config.reward_weights, has_prior, opened),
            **trainer_arguments(recipe, config, model_arguments, processor, (train, validation)),
        )
    trainer.opened = opened
    trainer.validation_tokens = recipe.validation_tokens or config.max_completion_length
    fit(trainer, recipe, model_arguments, shape, train, validation)


if __name__ == "__main__":
    report_errors(main)
