"""Greedy answers of the model in training, with images and without, scored by the metric ``scale_vqa_acc``."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from scale_vqa_eval.questions import Question
from scale_vqa_eval.scale_vqa_acc.parsing import parse_batch
from scale_vqa_eval.scale_vqa_acc.summary import gold_codes, summarise
from training_recipes.batches import encoded
from training_recipes.rows import labels, question_of, texts

METRICS: Final = ("accuracy", "reward", "format_rate", "unparsed_rate")
"""What a validation during training logs, under ``eval_``."""


def greedy_answers(trainer: Any, rows: Any, tokens: int, blind: bool = False) -> list[str]:
    """Answers every row greedily, the rows dealt out over the processes; every process gets all answers.

    Args:
        trainer: a trainer whose model generates; its per-device evaluation batch size is used.
        rows: trainer rows.
        tokens: most new tokens.
        blind: leave the images out; the text stays the same.
    """
    import torch
    from accelerate.utils import gather_object
    from trl.models import unwrap_model_for_generation

    accelerator, processor, model = trainer.accelerator, trainer.processing_class, trainer.model_wrapped
    size, world = trainer.args.per_device_eval_batch_size, accelerator.num_processes
    mine = list(range(accelerator.process_index, len(rows), world))
    # sharded weights are gathered in step, so every process generates equally often: one without rows repeats one
    turns = math.ceil(math.ceil(len(rows) / world) / size)
    was_training, found = model.training, []
    model.eval()
    settings = {"max_new_tokens": tokens, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    with (
        unwrap_model_for_generation(
            model, accelerator, gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs
        ) as unwrapped,
        torch.no_grad(),
    ):
        for turn in range(turns):
            places = mine[turn * size : (turn + 1) * size]
            inputs = encoded(processor, [rows[place] for place in places or [0]], blind).to(accelerator.device)
            output = unwrapped.generate(**inputs, **settings)
            texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            found += list(zip(places, texts, strict=False))
    model.train(was_training)
    gathered = dict(gather_object(found))
    return [gathered[place] for place in range(len(rows))]


def figures(rows: Any, answers: Sequence[str], blind: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns what ``scale_vqa_acc`` says of the answers: accuracy, interval, by dimension, beside blind ones."""
    held = rows.with_format(None)
    names = labels(held, "dimension") if "dimension" in held.column_names else None
    questions = [question_of(row, names) for row in texts(held)]
    counts = np.array([len(question.options) for question in questions])
    return summarise(
        parse_batch(list(answers), "reference", counts),
        gold_codes([question.answer for question in questions], counts),
        dimension=[question.dimension for question in questions] if names else None,
        cluster=[question.cluster for question in questions],
        group=_whole_groups(questions),
        blind=None if blind is None else parse_batch(list(blind), "reference", counts),
        options=counts,
    )


def _whole_groups(questions: Sequence[Question]) -> list[str | None] | None:
    """Returns each question's exchange group; None without groups, or where ``validation_limit`` tore one.

    A group has one question for each of its options; a part of one is right too easily.
    """
    groups = [question.group for question in questions]
    sizes = Counter(group for group in groups if group)
    whole = all(sizes[question.group] == len(question.options) for question in questions if question.group)
    return groups if sizes and whole else None


def short(full: dict[str, Any]) -> dict[str, float]:
    """Returns the figures that a training log keeps."""
    return {name: float(full["unparsed"]["rate"] if name == "unparsed_rate" else full[name]) for name in METRICS}


def write_answers(path: Path, rows: Any, answers: Sequence[str]) -> None:
    """Writes the answers as a predictions file that ``scale-vqa score`` and people can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = rows.with_format(None)["id"]
    lines = [json.dumps({"id": name, "response": text}) + "\n" for name, text in zip(ids, answers, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
