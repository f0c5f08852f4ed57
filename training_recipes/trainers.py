"""What both recipes add to a TRL trainer: greedy validation by the metric, whole checkpoints, no foreign card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training_recipes.checkpoints import failed_save, fingerprint, load_weights, mark_whole
from training_recipes.validation import figures, greedy_answers, short, write_answers


class Recipe:
    """Mixed in before ``GRPOTrainer`` or ``SFTTrainer``.

    ``evaluate`` answers the validation rows greedily and scores them with ``scale_vqa_acc``, so that
    ``metric_for_best_model: accuracy``, ``load_best_model_at_end`` and early stopping work as in any trainer.

    Attributes:
        validation_tokens: most tokens of a validation answer.
        blind: train and validate without images.
    """

    validation_tokens: int = 1024
    blind: bool = False

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Returns and logs accuracy, reward, share of kept format and share unparsed, under ``eval_``."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        answers = greedy_answers(self, rows, self.validation_tokens, self.blind)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in short(figures(rows, answers)).items()}
        if self.is_world_process_zero():
            name = f"answers-{self.state.global_step:06d}.jsonl"
            write_answers(Path(self.args.output_dir, "validation", name), rows, answers)
        self._log_evaluation(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _log_evaluation(self: Any, metrics: dict[str, float]) -> None:
        """Logs without the table of training completions, which belongs to training steps."""
        table, was_training = getattr(self, "log_completions", False), self.model.training
        self.log_completions = False
        self.model.eval()
        self.log(dict(metrics))
        self.model.train(was_training)
        self.log_completions = table

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """Saves and marks a checkpoint; a save that fails leaves the earlier ones and says so."""
        folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                mark_whole(folder, self.trained, self.state.global_step)
        except Exception as error:
            if no_room(error):
                raise failed_save(folder, error) from error
            raise

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._loads_whole_models() and model is None:
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self: Any) -> None:
        if self._loads_whole_models():
            load_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()  # type: ignore[misc]

    def _loads_whole_models(self: Any) -> bool:
        """Adapters and sharded weights are the trainer's own business: their names are those in memory."""
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled or hasattr(self.model, "peft_config"))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes nothing: the trainer's own draft has no licence; cards are made from ``training_metadata.json``."""


def no_room(error: BaseException) -> bool:
    """Says whether an error is one of writing: an OSError, or what safetensors and torch make of one."""
    text = str(error)
    return isinstance(error, OSError) or any(
        sign in text for sign in ("os error", "No space left", "I/O error", "PytorchStreamWriter", "file write failed")
    )


def remember_trained(trainer: Any) -> dict[str, Any]:
    """Notes what is trained, before anything wraps it; returns it."""
    trainer.trained = fingerprint(trainer.model)
    found: dict[str, Any] = trainer.trained
    return found
