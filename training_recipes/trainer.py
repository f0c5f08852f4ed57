"""Extensions of TRL trainers shared by both recipes: loading of processor and model, validation, resuming."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, Final

import numpy as np

from scale_vqa_eval.errors import InputError, Problem, first_line
from scale_vqa_eval.files import atomic_write
from scale_vqa_eval.predict.backend import NEUTRAL
from scale_vqa_eval.predict.local_backends import REFUSALS, UNCHANGED, load_processor
from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import END_THINK, THINK, parse_batch
from scale_vqa_eval.scale_vqa_acc.summary import gold_codes, summarise
from scale_vqa_eval.text import restore_thoughts
from training_recipes.arguments import METRICS, RecipeArguments
from training_recipes.rows import questions_of
from training_recipes.tiny_model import make_tiny_model, teach_format

GREEDY: Final = {"do_sample": False, **UNCHANGED}
GREEDY_UNSET: Final = {"temperature": None, "top_p": None, "top_k": None}
"""Sampling values of a validation; all are set, so that a checkpoint's generation config has no effect."""
ENGINE_GREEDY: Final[dict[str, Any]] = {
    "temperature": 0.0,
    "top_p": 1.0,
    **NEUTRAL,
    "generation_kwargs": {},
    "structured_outputs_regex": None,
}
"""The same for the attributes of TRL's vLLM engine."""
ENGINE_ROWS: Final = 256
"""Rows per call of the engine, whose images are in memory together."""
Generate = Callable[[Sequence[Mapping[str, Any]]], Any]
"""Function from trainer rows to the token ids of their completions."""


class RecipeTrainer:
    """Mixin for ``GRPOTrainer`` and ``SFTTrainer``.

    ``evaluate`` answers the validation rows greedily and scores them with ``scale_vqa_acc``. Thus
    ``metric_for_best_model: accuracy``, ``load_best_model_at_end`` and early stopping work as usual.

    Attributes:
        validation_tokens: maximum tokens of a validation answer.
        blind: whether to train and validate without images.
        opened: whether the chat template opens the think block.
    """

    validation_tokens: int = 1024
    blind: bool = False
    opened: bool = False

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Returns and logs ``METRICS`` with the prefix ``eval_``."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        answers = greedy_answers(self, rows, self.validation_tokens, self.blind)
        full = figures(rows, answers)
        full["unparsed_rate"] = full["unparsed"]["rate"]
        metrics = {f"{metric_key_prefix}_{name}": float(full[name]) for name in METRICS}
        if self.is_world_process_zero():
            path = Path(self.args.output_dir, "validation", f"answers-{self.state.global_step:06d}.jsonl")
            write_answers(path, rows, answers)
        # do not log the table of completions, which is for training steps
        table, was_training = getattr(self, "log_completions", False), self.model.training
        self.log_completions = False
        self.model.eval()
        self.log(dict(metrics))
        self.model.train(was_training)
        self.log_completions = table
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._loads_complete_models() and model is None:
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self: Any) -> None:
        if self._loads_complete_models():
            load_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()  # type: ignore[misc]

    def _loads_complete_models(self: Any) -> bool:
        """Whether checkpoints are complete models; the trainer loads adapters and sharded weights correctly."""
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled or hasattr(self.model, "peft_config"))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Does nothing; ``scale-vqa card model`` writes the card."""


def load_weights(model: Any, folder: str | Path) -> None:
    """Loads all weights of a model from a checkpoint.

    A checkpoint of a vision-language model has the weight names of the published format, not those in memory. The
    trainer would load nothing and only warn.

    Raises:
        RuntimeError: if a weight is missing or unexpected.
    """
    loaded = type(model).from_pretrained(str(folder), dtype=model.dtype)
    model.load_state_dict(loaded.state_dict(), strict=True)


def encoded(processor: Any, rows: Sequence[Mapping[str, Any]], blind: bool = False) -> Any:
    """Returns the processor's inputs for the prompts of trainer rows, padded on the left.

    ``blind`` leaves out the images and their placeholders; the text is the same.
    """
    return processor.apply_chat_template(
        [_with_images(row, blind) for row in rows],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
    )


def _with_images(row: Mapping[str, Any], blind: bool) -> list[dict[str, Any]]:
    images = iter(row["images"])
    return [
        {
            "role": message["role"],
            "content": [
                part if part["type"] == "text" else {"type": "image", "image": next(images)}
                for part in message["content"]
                if part["type"] == "text" or not blind
            ],
        }
        for message in row["prompt"]
    ]


def greedy_answers(trainer: Any, rows: Any, tokens: int, blind: bool = False) -> list[str]:
    """Answers every row greedily; the rows are split over the processes, and every process gets all answers.

    A trainer with vLLM uses its engine with the current weights, any other its model.
    """
    from accelerate.utils import gather_object

    accelerator, processor = trainer.accelerator, trainer.processing_class
    mine = list(range(accelerator.process_index, len(rows), accelerator.num_processes))
    # with sharded weights all processes need the same number of steps: one with a row less repeats row 0
    asked = [*mine, 0][: math.ceil(len(rows) / accelerator.num_processes)]
    by_engine, found = getattr(trainer, "use_vllm", False), []
    size = ENGINE_ROWS if by_engine else trainer.args.per_device_eval_batch_size
    with (_engine if by_engine else _model)(trainer, tokens, blind) as generate:
        for start in range(0, len(asked), size):
            completions = generate([rows[index] for index in asked[start : start + size]])
            texts = processor.batch_decode(completions, skip_special_tokens=True)
            texts = [restore_thoughts(text) for text in texts] if trainer.opened else texts
            found += list(zip(mine[start : start + size], texts, strict=False))
    gathered = dict(gather_object(found))
    return [gathered[index] for index in range(len(rows))]


@contextmanager
def _model(trainer: Any, tokens: int, blind: bool) -> Iterator[Generate]:
    """Yields a function that generates with the trained model, gathered from its shards."""
    import torch
    from trl.models import unwrap_model_for_generation

    model, was_training = trainer.model_wrapped, trainer.model_wrapped.training
    settings = trainer.args.gradient_checkpointing_kwargs
    model.eval()
    with (
        unwrap_model_for_generation(model, trainer.accelerator, gradient_checkpointing_kwargs=settings) as unwrapped,
        torch.no_grad(),
    ):

        def generate(batch: Sequence[Mapping[str, Any]]) -> Any:
            inputs = encoded(trainer.processing_class, batch, blind).to(trainer.accelerator.device)
            output = unwrapped.generate(**inputs, max_new_tokens=tokens, **GREEDY, **GREEDY_UNSET)
            return output[:, inputs["input_ids"].shape[1] :]

        yield generate
    model.train(was_training)


@contextmanager
def _engine(trainer: Any, tokens: int, blind: bool) -> Iterator[Generate]:
    """Yields a function that generates with the vLLM engine of a GRPO trainer, with the same inputs as rollouts."""
    engine = trainer.vllm_generation
    greedy = {**ENGINE_GREEDY, "max_completion_length": tokens}
    rollouts = {name: getattr(engine, name) for name in greedy}
    engine.sync_weights()  # the best checkpoint may have been loaded since the last rollouts
    trainer._last_loaded_step = trainer.state.global_step

    def generate(batch: Sequence[Mapping[str, Any]]) -> Any:
        prompts, images, _ = trainer._tokenize_prompts([_with_images(row, blind) for row in batch])
        return engine.generate(prompts=prompts, images=images, num_generations=1)[1]

    try:
        vars(engine).update(greedy)
        yield generate
    finally:
        vars(engine).update(rollouts)


def figures(rows: Any, answers: Sequence[str], blind: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the scores of ``scale_vqa_acc`` for answers, and for blind answers beside them."""
    questions = questions_of(rows)
    counts = np.array([len(question.options) for question in questions])
    return summarise(
        parse_batch(list(answers), "reference", counts),
        gold_codes([question.answer for question in questions], counts),
        dimension=[question.dimension for question in questions] if "dimension" in rows.column_names else None,
        cluster=[question.cluster for question in questions],
        group=_complete_groups(questions),
        blind=None if blind is None else parse_batch(list(blind), "reference", counts),
        options=counts,
    )


def _complete_groups(questions: Sequence[Question]) -> list[str | None] | None:
    """Returns each question's exchange group, or None if there are no groups or some are not complete."""
    groups = [question.group for question in questions]
    sizes = Counter(group for group in groups if group)
    complete = all(sizes[question.group] == len(question.options) for question in questions if question.group)
    return groups if sizes and complete else None


def write_answers(path: Path, rows: Any, answers: Sequence[str]) -> None:
    """Writes answers as a predictions file for ``scale-vqa score``."""
    ids = rows.with_format(None)["id"]
    lines = [json.dumps({"id": name, "response": text}) + "\n" for name, text in zip(ids, answers, strict=True)]
    atomic_write(path, "".join(lines))


def load_model_files(recipe: RecipeArguments, config: Any, model_arguments: Any) -> tuple[Any, Any]:
    """Returns the processor and the configuration of the model to train.

    Raises:
        InputError: if the model does not exist, does not accept images, or cannot be trained by TRL.
    """
    name = model_arguments.model_name_or_path
    if not name:
        raise InputError(Problem("model_name_or_path", "a model folder or Hub id", "none", "name one"))
    if recipe.make_tiny_model:
        with config.main_process_first(desc="make the tiny model"):
            if not Path(name).exists():
                staged = Path(f"{name}.partial")  # a killed process must not leave an incomplete model
                teach_format(make_tiny_model(staged))
                staged.rename(name)
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        hint = f"merge it first: scale-vqa weights {name} --out FOLDER"
        raise InputError(Problem(f"model {name}", "a complete model", "a LoRA adapter", hint))
    source = {"revision": model_arguments.model_revision, "trust_remote_code": config.trust_remote_code}
    processor, kind = load_processor(name, source)
    _check_family(processor, f"model {name}", sft=hasattr(recipe, "conversations"))
    return processor, kind


def _check_family(processor: Any, location: str, sft: bool) -> None:
    """Checks with a blank image that TRL passes all inputs of the processor to the model.

    GRPO passes only the inputs that it knows. SFT passes all, but cannot extend an unknown input that has a value per
    token to the answer.
    """
    from PIL import Image
    from trl import GRPOTrainer

    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    try:
        inputs = encoded(processor, [{"prompt": prompt, "images": [Image.new("RGB", (112, 112))]}])
    except REFUSALS as error:
        hint = "name a model whose processor has a chat template for images"
        raise InputError(Problem(location, "a prompt with an image", first_line(error), hint)) from error
    known, length = signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters, inputs["input_ids"].shape[1]
    lost = [name for name in inputs if name not in known and (not sft or tuple(inputs[name].shape[1:2]) == (length,))]
    if lost:
        found = f"{type(processor).__name__} returns {', '.join(lost)}, which TRL does not pass to the model"
        hint = "train a model family of the table in docs/training.md"
        raise InputError(Problem(location, f"a model that TRL trains by {'SFT' if sft else 'GRPO'}", found, hint))


def opens_thoughts(processor: Any) -> bool:
    """Whether the chat template opens the think block, so that completions lack its opening tag."""
    user = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    prompt: str = processor.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    return prompt.rfind(THINK) > prompt.rfind(END_THINK)


def set_model_loading(config: Any, model_arguments: Any) -> str:
    """Sets ``model_init_kwargs``, with which TRL loads policy and reference model; returns the model's name.

    ``device_map`` is set only for quantised weights, because TRL places others itself.
    """
    from accelerate import PartialState
    from trl import get_quantization_config

    quantization = get_quantization_config(model_arguments)
    config.model_init_kwargs = (config.model_init_kwargs or {}) | {
        "revision": model_arguments.model_revision,
        "trust_remote_code": config.trust_remote_code,
        "dtype": model_arguments.dtype or "auto",
        "attn_implementation": model_arguments.attn_implementation,
        "device_map": None if quantization is None else {"": PartialState().local_process_index},
        **({} if quantization is None else {"quantization_config": quantization}),
    }
    name: str = model_arguments.model_name_or_path
    return name
