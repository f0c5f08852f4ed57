"""Scale-VQA as a task of Inspect (``inspect_ai``), with the messages of ``predict`` and the parsing rule of ``score``.

Images are read when a sample is run, so that only those of the samples in flight are in memory.
"""

# mypy: disable-error-code="import-not-found, untyped-decorator, unused-ignore"
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, get_args

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
)
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, grouped, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.predict import DEFAULT_PROMPT
from scale_vqa_eval.predict.backend import InferenceConfig, Sampling
from scale_vqa_eval.predict.images import Bounds
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.predict.requests import Request, VisualQuestion, read_visual_questions
from scale_vqa_eval.scale_vqa_acc.parsing import MODES, Mode, parse_response
from scale_vqa_eval.scoring.score import questions_digest
from scale_vqa_eval.text import restore_thoughts

NO_DIMENSION: Final = "none"


@task
def scale_vqa(
    data: str,
    split: str | None = "test",
    config: str | None = None,
    prompt: str = DEFAULT_PROMPT,
    blind: bool = False,
    mode: str = "reference",
    images: str | None = None,
    max_pixels: int | None = None,
    min_pixels: int | None = None,
) -> Task:
    """Scale-VQA: questions with views from low to high magnification; standard errors are clustered by patient.

    Args:
        data: release folder, Parquet file, Hub id, or question file, as for ``scale-vqa predict --data``.
        split: split to ask, or None for all splits.
        config: config of a release folder or Hub id, or None for its default.
        prompt: prompt id, YAML file, or ``card:MODEL``.
        blind: run the blind control, with the same text and no images.
        mode: parsing rule, ``reference`` or ``strict``.
        images: folder that the image paths of a question file are relative to, or None for the file's folder.
        max_pixels: maximum pixels (width x height) of an image, or None.
        min_pixels: minimum pixels of an image, or None.

    Raises:
        InputError: if the data, the prompt or an option is invalid.
    """
    if mode not in MODES:
        raise InputError(Problem("mode", f"one of {', '.join(get_args(Mode))}", repr(mode), "name one of those"))
    words = load_prompt(from_here(prompt))
    folder = None if images is None else Path(from_here(images))
    items, store = read_visual_questions(from_here(data), split, config, folder, blind)
    inference = InferenceConfig("", words, Sampling(words.max_tokens), Bounds(min_pixels, max_pixels), store)
    questions = [item.question for item in items]
    return Task(
        dataset=MemoryDataset([_sample(item, words) for item in items], name=f"scale_vqa {split or 'all splits'}"),
        setup=_with_images(inference, {item.question.id: item for item in items}),
        solver=generate(),
        scorer=answer_letter(mode),
        config=GenerateConfig(temperature=0.0, max_tokens=words.max_tokens),
        metadata={
            "prompt_id": words.id,
            "prompt_version": words.version,
            "prompt_digest": words.digest,
            "data_hash": questions_digest(questions),
            "ablation": "blind" if blind else None,
            "split": split,
            "config": config,
            "pixels": {"least": min_pixels, "most": max_pixels},
            "parsing": mode,
        },
    )


def _with_images(inference: InferenceConfig, items: dict[str, VisualQuestion]) -> Solver:
    """Replaces a sample's text by the messages of ``predict``: images from low to high, then the text."""

    @solver
    def images_first() -> Solver:  # without arguments, because Inspect writes a solver's arguments to the log
        async def solve(state: TaskState, _: Generate) -> TaskState:
            messages = inference.server_messages(Request(items[str(state.sample_id)]))
            state.messages = [_message(message) for message in messages]
            return state

        return solve

    return images_first()


@scorer(metrics=[accuracy(), stderr(cluster="patient"), grouped(accuracy(), "dimension", all=False)])
def answer_letter(mode: Mode = "reference") -> Scorer:
    """Correct if the letter is the gold letter; a response that cannot be parsed is wrong, with the reason."""

    async def score(state: TaskState, target: Target) -> Score:
        response = response_text(state.output.message) if state.output.choices else ""
        parsed = parse_response(response, mode, int(state.metadata["options"]))
        right = parsed.letter == target.text
        return Score(
            value=CORRECT if right else INCORRECT,
            answer=parsed.letter,
            explanation=response,
            metadata={"reason": parsed.reason},
        )

    return score


def response_text(message: ChatMessageAssistant) -> str:
    """Returns a response with its reasoning, as ``predict`` does.

    Inspect removes the reasoning from the text. It is put back at the beginning, before any text that preceded it.
    """
    if isinstance(message.content, str):
        return restore_thoughts(message.content)
    text = "".join(part.text for part in message.content if isinstance(part, ContentText))
    return restore_thoughts(
        text, "".join(part.reasoning for part in message.content if isinstance(part, ContentReasoning))
    )


def from_here(name: str) -> str:
    """Resolves a path relative to the user's working directory: Inspect calls a task in the folder of its file.

    Other names (a Hub id, a prompt id, an absolute path) are returned unchanged.
    """
    moved = Path.cwd() == Path(__file__).resolve().parent
    card = "card:" if name.startswith("card:") else ""
    meant = Path(os.environ.get("PWD", "."), name.removeprefix(card))
    return f"{card}{meant}" if moved and meant.exists() else name


def _sample(item: VisualQuestion, prompt: Prompt) -> Sample:
    question = item.question
    return Sample(
        id=question.id,
        input=prompt.text(question.question, question.options),
        choices=list(question.options),
        target=question.letter,
        metadata={
            "patient": question.cluster,
            "dimension": question.dimension or NO_DIMENSION,
            "options": len(question.options),
            "views": [view.column for view in item.views],
        },
    )


def _message(message: dict[str, Any]) -> ChatMessage:
    """Converts a chat completions message to Inspect's format."""
    if message["role"] == "system":
        return ChatMessageSystem(content=message["content"][0]["text"])
    parts: list[Content] = [
        ContentText(text=part["text"]) if part["type"] == "text" else ContentImage(image=part["image_url"]["url"])
        for part in message["content"]
    ]
    return ChatMessageUser(content=parts)
