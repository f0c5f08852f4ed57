"""GRPO on looking: a model learns where to zoom, in the environment of ``scale-vqa predict --zoom``.

    python training_recipes/grpo_zoom.py --config training_recipes/configs/zoom-cpu-tiny.yaml

The environment owns the reward: 0.8 for the right letter, 0.2 for evidence that was in view. docs/zoom.md has a run
that fits two processor cores, and its control: the same recipe with ``control: wrong-slide``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import write_json
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION
from scale_vqa_eval.zoom.environment import (
    TOOLS,
    Budget,
    ZoomEnvironment,
    ZoomQuestion,
    first_messages,
    read_zoom_questions,
    slide_files,
)
from training_recipes.arguments import RecipeArguments, parse
from training_recipes.run import constructing, report_errors
from training_recipes.tiny_model import make_tiny_qwen3
from training_recipes.trainer import load_model_files, set_model_loading


@dataclass
class ZoomArguments(RecipeArguments):
    """Settings of ``grpo_zoom.py`` beside those that it shares with the other recipes."""

    slides: str | None = field(default=None, metadata={"help": "Folder of the slide files."})
    kinds: list[str] | None = field(default=None, metadata={"help": "Kinds of question to train on; default all."})
    looks: int = field(default=4, metadata={"help": "Looks a question."})
    look_px: int = field(default=512, metadata={"help": "Pixels along the side of a field."})
    overview_px: int = field(default=1024, metadata={"help": "Pixels along the longer side of the overview."})
    control: str | None = field(default=None, metadata={"help": "wrong-slide or blind: the control of this recipe."})
    warm_up: int = field(default=0, metadata={"help": "Supervised steps of make_tiny_model, on looks at random."})
    prompt: str = field(default="zoom", metadata={"help": "Prompt id, or a YAML file of your own."})


def example(
    environment: ZoomEnvironment,
    prompt: Prompt,
    item: ZoomQuestion,
    others: Sequence[ZoomQuestion],
    rng: random.Random,
) -> list[dict[str, Any]]:
    """Returns an episode that looks at the evidence of another question of the slide, drawn at random.

    It teaches how to call, to name what is seen, and to answer by it; where to look is left to be learned.
    """

    def called(name: str, arguments: dict[str, Any], text: str = "") -> None:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages.append({"role": "assistant", "content": text, "tool_calls": [call]})
        messages.append({"role": "tool", "name": name, "content": getattr(environment, name)(**arguments)})

    messages = first_messages(prompt, item.question)
    messages[-1]["content"] += environment.reset(item.question.id)
    seen = rng.choice(others)
    for one in seen.evidence:
        left, top, right, bottom = one.boxes[0]
        x, y = round((left + right) / 2), round((top + bottom) / 2)
        called("look", {"x_um": x, "y_um": y, "view": MAGNIFICATION[one.view]})
    found = seen.question.options[seen.question.answer]
    options = item.question.options
    letter = LETTERS[options.index(found)] if found in options else rng.choice(LETTERS[: len(options)])
    called("answer", {"letter": letter}, f"{found}.")
    return [*messages, {"role": "assistant", "content": "Done."}]


def warm_up(folder: Path, questions: Sequence[ZoomQuestion], make: Callable[[], ZoomEnvironment], steps: int,
            prompt: Prompt, seed: int, batch: int = 8) -> None:  # fmt: skip
    """Teaches a small model the form of an episode; see ``example``. The model in ``folder`` is changed in place."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, padding_side="right")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()
    optimizer, rng, environment = torch.optim.AdamW(model.parameters(), lr=2e-3), random.Random(seed), make()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    head = processor.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    of_slide: dict[str, list[ZoomQuestion]] = {}
    for item in questions:
        of_slide.setdefault(item.slide, []).append(item)
    for step in range(steps):
        chosen = rng.choices(questions, k=batch)
        conversations = [example(environment, prompt, item, of_slide[item.slide], rng) for item in chosen]
        inputs = processor.apply_chat_template(
            conversations,
            tools=TOOLS,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )
        labels = torch.full_like(inputs["input_ids"], -100)
        for row, ids in enumerate(inputs["input_ids"].tolist()):
            starts = [n + len(head) for n in range(len(ids)) if ids[n : n + len(head)] == head]
            for start in starts:
                stop = ids.index(end, start) + 1
                labels[row, start:stop] = inputs["input_ids"][row, start:stop]
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(json.dumps({"warm_up": step, "loss": round(loss.item(), 4)}), flush=True)
    model.save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the YAML file and the command line say."""
    recipe, config, model_arguments = parse((ZoomArguments, GRPOConfig, ModelConfig), argv)
    slides = None if recipe.slides is None else Path(recipe.slides)
    questions, root = read_zoom_questions(recipe.data, recipe.train_split, slides)
    kinds = {item.question.dimension for item in questions}
    if unknown := set(recipe.kinds or ()) - kinds:
        expected = f"kinds of the data ({', '.join(sorted(map(str, kinds)))})"
        raise InputError(Problem("kinds", expected, ", ".join(sorted(unknown)), "correct the names"))
    questions = [item for item in questions if recipe.kinds is None or item.question.dimension in recipe.kinds]
    prompt, budget = load_prompt(recipe.prompt), Budget(recipe.looks, recipe.look_px, None, recipe.overview_px)
    by_id = {item.question.id: item for item in questions}
    make = partial(ZoomEnvironment, slide_files(root), by_id, budget, recipe.control, config.seed)
    model = Path(model_arguments.model_name_or_path or "")
    if recipe.make_tiny_model and not model.exists():
        staged = model.with_name(f"{model.name}.partial")
        examples = [example(make(), prompt, item, [item], random.Random(0)) for item in questions[:64]]
        corpus = [json.dumps(TOOLS), *(json.dumps(one, default=str) for one in examples)]
        make_tiny_qwen3(staged, corpus, config.seed)
        warm_up(staged, questions, make, recipe.warm_up, prompt, config.seed)
        staged.rename(model)
    processor, _ = load_model_files(recipe, config, model_arguments)
    config.remove_unused_columns = False  # the environment is reset by the question's id
    rows = [{"prompt": first_messages(prompt, item.question), "id": item.question.id} for item in questions]
    with constructing():
        trainer = GRPOTrainer(
            model=set_model_loading(config, model_arguments),
            reward_funcs=[],
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            peft_config=get_peft_config(model_arguments),
            environment_factory=make,
        )
    trainer.train(resume_from_checkpoint=recipe.resume or None)
    final = Path(config.output_dir, "final")
    trainer.save_model(str(final))
    processor.save_pretrained(str(final))
    record = {"recipe": vars(recipe), "questions": len(rows), "log": trainer.state.log_history}
    write_json(final / "zoom_training.json", json.loads(json.dumps(record, default=str)))


if __name__ == "__main__":
    report_errors(main)
