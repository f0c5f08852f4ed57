"""GRPO on looking: a model learns where to zoom, in the environment of ``scale-vqa predict --zoom``.

    python training_recipes/grpo_zoom.py --config training_recipes/configs/zoom-cpu-tiny.yaml

The environment owns the reward: 0.8 for the right letter, 0.2 for evidence that was in view. docs/zoom.md has a run
that fits two processor cores, and its control: the same recipe with ``control: wrong-slide``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from datasets import Dataset
from PIL import Image, ImageOps
from trl import GRPOConfig, GRPOTrainer, ModelConfig, get_peft_config

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import write_json
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION
from scale_vqa_eval.wsi import SlideSource
from scale_vqa_eval.zoom.environment import TOOLS, Budget, ZoomEnvironment, first_messages
from scale_vqa_eval.zoom.questions import BoxUm, SlideStore, ZoomQuestion, read_zoom_questions, slide_files
from training_recipes.arguments import RecipeArguments, parse
from training_recipes.learn.data import ROTATIONS
from training_recipes.run import constructing, report_errors
from training_recipes.tiny_model import make_tiny_qwen3
from training_recipes.trainer import load_model_files, set_model_loading

SIDES: Final = (("left", "right"), ("upper", "lower"))
SIGHTS: Final = 32
"""Images a supervised step."""
EPISODES: Final = 16
"""Episodes a supervised step."""


@dataclass
class ZoomArguments(RecipeArguments):
    """Settings of ``grpo_zoom.py`` beside those that it shares with the other recipes."""

    slides: str | None = field(default=None, metadata={"help": "Folder of the slide files."})
    kinds: list[str] | None = field(default=None, metadata={"help": "Kinds of question to train on; default all."})
    looks: int = field(default=4, metadata={"help": "Looks a question."})
    look_px: int = field(default=512, metadata={"help": "Pixels along the side of a field."})
    overview_px: int = field(default=1024, metadata={"help": "Pixels along the longer side of the overview."})
    control: str | None = field(default=None, metadata={"help": "wrong-slide or blind: the control of this recipe."})
    warm_up: list[int] = field(
        default_factory=list, metadata={"help": "Supervised steps of make_tiny_model; one number for each cycle."}
    )
    warm_up_seeing: int = field(default=0, metadata={"help": "Steps before those: an image and what it shows."})
    evidence_share: list[float] = field(
        default_factory=lambda: [1.0],
        metadata={"help": "Share of each cycle's episodes that look at the evidence; others look at one corner."},
    )
    prompt: str = field(default="zoom", metadata={"help": "Prompt id, or a YAML file of your own."})


@dataclass(frozen=True)
class MirroredSlide:
    """A ``scale_vqa_eval.wsi.SlideSource`` that shows another one mirrored; ``ways`` is x, y or xy."""

    source: SlideSource
    ways: str

    @property
    def mpp(self) -> float:
        """um per pixel of level 0."""
        return self.source.mpp

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of level 0 in pixels."""
        return self.source.size

    def read_region(self, center_x_um: float, center_y_um: float, mpp: float, size_px: int) -> Image.Image:
        """Returns a field as RGB."""
        width, height = (side * self.mpp for side in self.size)
        x = width - center_x_um if "x" in self.ways else center_x_um
        y = height - center_y_um if "y" in self.ways else center_y_um
        return self._mirrored(self.source.read_region(x, y, mpp, size_px))

    def thumbnail(self, max_px: int) -> Image.Image:
        """Returns the slide as RGB."""
        return self._mirrored(self.source.thumbnail(max_px))

    def _mirrored(self, image: Image.Image) -> Image.Image:
        image = ImageOps.mirror(image) if "x" in self.ways else image
        return ImageOps.flip(image) if "y" in self.ways else image


def _open_mirrored(root: Path, name: str, mpp: float | None) -> SlideSource:
    ways, _, file = name.partition("|")
    return MirroredSlide(slide_files(root).open_slide(file, mpp), ways)


def with_mirrored(questions: Sequence[ZoomQuestion], root: Path) -> tuple[list[ZoomQuestion], SlideStore]:
    """Returns every question on its slide as it is and mirrored in three ways, and those slides."""
    found = []
    for item in questions:
        extent = slide_files(root).facts(item.slide, item.mpp)[1]
        for ways in ("", "x", "y", "xy"):
            evidence = tuple(
                replace(one, boxes=tuple(_mirrored_box(box, extent, ways) for box in one.boxes))
                for one in item.evidence
            )
            question = replace(item.question, id=f"{item.question.id}|{ways}")
            found.append(replace(item, question=question, slide=f"{ways}|{item.slide}", evidence=evidence))
    return found, SlideStore(partial(_open_mirrored, root), slides=64)


def names_side(item: ZoomQuestion) -> bool:
    """Returns whether the text of a question says where, so that it does not hold on the slide mirrored."""
    text = f"{item.question.question} {item.question.options}"
    return any(word in text for word in (*SIDES[0], *SIDES[1], " um"))


def _mirrored_box(box: BoxUm, extent: tuple[float, float], ways: str) -> BoxUm:
    left, top, right, bottom = box
    if "x" in ways:
        left, right = extent[0] - right, extent[0] - left
    if "y" in ways:
        top, bottom = extent[1] - bottom, extent[1] - top
    return left, top, right, bottom


def _looked_at(item: ZoomQuestion, environment: ZoomEnvironment) -> str:
    """Returns the quarter of the slide in which the evidence of a question lies."""
    *_, width, height = environment.steps[0]["box"]
    left, top, right, bottom = item.evidence[0].boxes[0]
    return f"{SIDES[1][top + bottom > height]} {SIDES[0][left + right > width]}"


def _looks(
    item: ZoomQuestion, environment: ZoomEnvironment, rng: random.Random
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yields call and result of looks at the evidence of a question; fields are rotated at random."""
    for one in item.evidence:
        left, top, right, bottom = one.boxes[0]
        x, y = (
            200 * round(((low + high) / 2 + rng.uniform(-0.2, 0.2) * (high - low)) / 200)
            for low, high in ((left, right), (top, bottom))
        )
        asked = {"x_um": int(x), "y_um": int(y), "view": MAGNIFICATION[one.view]}
        shown = environment.look(**asked)
        for part in shown:
            if "image" in part and (way := rng.choice(ROTATIONS)) is not None:
                part["image"] = part["image"].transpose(way)
        yield asked, shown


def sight(
    environment: ZoomEnvironment, item: ZoomQuestion, place: ZoomQuestion, rng: random.Random
) -> list[dict[str, Any]]:
    """Returns a field of ``place`` and the finding that it shows; of a slide, the quarter that ``item`` is about."""
    image = next(part for part in environment.reset(item.question.id) if part["type"] == "image")
    said = _looked_at(item, environment)
    if names_side(item) or rng.random() < 0.5:
        *_, (_, shown) = _looks(place, environment, rng)
        image, said = shown[0], place.question.options[place.question.answer]
    return [{"role": "user", "content": [image]}, {"role": "assistant", "content": said}]


def example(
    environment: ZoomEnvironment, prompt: Prompt, item: ZoomQuestion, place: ZoomQuestion, rng: random.Random
) -> list[dict[str, Any]]:
    """Returns an episode that says where the evidence of ``item`` lies, looks at that of ``place``, and answers by it.

    It teaches how to call, to name what is seen, and to answer by it; ``demonstrated`` chooses ``place``.
    """

    def called(name: str, arguments: dict[str, Any], text: str, shown: list[dict[str, Any]]) -> None:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        messages.append({"role": "assistant", "content": text, "tool_calls": [call]})
        messages.append({"role": "tool", "name": name, "content": shown})

    messages = first_messages(prompt, item.question)
    messages[-1]["content"] += environment.reset(item.question.id)
    said, options = _looked_at(item, environment), item.question.options
    for asked, shown in _looks(place, environment, rng):
        called("look", asked, said, shown)
        said = place.question.options[place.question.answer]
    letter = LETTERS[options.index(said)] if said in options else rng.choice(LETTERS[: len(options)])
    called("answer", {"letter": letter}, said, environment.answer(letter))
    return [*messages, {"role": "assistant", "content": "Done."}]


def demonstrated(item: ZoomQuestion, places: Sequence[ZoomQuestion], share: float, rng: random.Random) -> ZoomQuestion:
    """Returns where an episode of the warm-up looks: at its own evidence, or else at one fixed corner of the slide.

    Args:
        item: what is asked.
        places: questions of the same slide; the corner is that of the evidence nearest to the upper left.
        share: of the episodes that look at the evidence of ``item``.
        rng: draws which.
    """
    if rng.random() < share:
        return item
    return min(places, key=lambda one: sum(one.evidence[0].boxes[0][:2]))


def texts_of(messages: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields all texts and calls of a conversation, for the tokenizer."""
    for message in messages:
        content = message["content"]
        yield content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
        yield from (json.dumps(call["function"]) for call in message.get("tool_calls", ()))


def warm_up(
    folder: Path,
    questions: Sequence[ZoomQuestion],
    places: Sequence[ZoomQuestion],
    make: Callable[[], ZoomEnvironment],
    steps: tuple[int, int],
    prompt: Prompt,
    share: float,
    seed: int,
    rate: float = 1.5e-3,
) -> None:
    """Teaches a small model to see (``sight``), then the form of an episode (``example``); changes it in place.

    Args:
        folder: the model.
        questions: what is asked.
        places: questions whose evidence is looked at, each place of a slide as often.
        make: makes an environment of both.
        steps: optimizer steps of both parts.
        prompt: the words.
        share: of ``demonstrated``.
        seed: of the episodes.
        rate: greatest learning rate.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, padding_side="right")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=sum(steps) + 1, pct_start=0.1)
    rng, environment = random.Random(seed), make()
    head = processor.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    of_slide: dict[str, dict[Any, ZoomQuestion]] = {}
    for item in places:
        of_slide.setdefault(item.slide, {})[item.evidence] = item
    for step in range(sum(steps)):
        seeing = step < steps[0]
        conversations = []
        for item in rng.choices(questions, k=SIGHTS if seeing else EPISODES):
            found = list(of_slide[item.slide].values())
            if seeing:
                conversations.append(sight(environment, item, rng.choice(found), rng))
            else:
                place = demonstrated(item, found, share, rng)
                conversations.append(example(environment, prompt, item, place, rng))
        inputs = processor.apply_chat_template(
            conversations,
            tools=None if seeing else TOOLS,
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
        if step % 10 == 0:
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
    places, store = with_mirrored(questions, root)
    asked = recipe.kinds or kinds
    questions = [
        one for one in places if one.question.dimension in asked and (one.slide.startswith("|") or not names_side(one))
    ]
    prompt, budget = load_prompt(recipe.prompt), Budget(recipe.looks, recipe.look_px, None, recipe.overview_px)
    by_id = {item.question.id: item for item in places}
    make = partial(ZoomEnvironment, store, by_id, budget, recipe.control, config.seed)
    model = Path(model_arguments.model_name_or_path or "")
    if recipe.make_tiny_model and not model.exists():
        staged = model.with_name(f"{model.name}.partial")
        seen = partial(ZoomEnvironment, store, by_id, budget, None, config.seed)
        examples = [example(seen(), prompt, item, item, random.Random(0)) for item in questions[:64]]
        corpus = [*map(json.dumps, TOOLS), *(part for one in examples for part in texts_of(one))]
        make_tiny_qwen3(staged, corpus, config.seed, vocabulary=1200, gain=1.0)
        for cycle, steps in enumerate(recipe.warm_up):
            both = (0 if cycle else recipe.warm_up_seeing, steps)
            share = recipe.evidence_share[min(cycle, len(recipe.evidence_share) - 1)]
            warm_up(staged, questions, places, seen, both, prompt, share, config.seed + cycle)
        staged.rename(model)
    if config.max_steps == 0:  # the warm-up alone
        return
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
