"""The exam of ``predict --zoom`` as a task of Inspect (``inspect_ai``), with the same tools, texts and evidence."""

# mypy: disable-error-code="import-not-found, untyped-decorator, unused-ignore"
from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, Content, ContentImage, ContentText, GenerateConfig
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import Tool, ToolDef

from scale_vqa_eval.plugins.inspect_task import from_here, response_text
from scale_vqa_eval.predict.prompts import Prompt, load_prompt
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.scoring.score import questions_digest
from scale_vqa_eval.zoom.environment import TOOLS, Budget, ZoomEnvironment, call_tool, with_files
from scale_vqa_eval.zoom.questions import read_zoom_questions, slide_files


@task
def scale_vqa_zoom(
    data: str,
    split: str | None = "test",
    slides: str | None = None,
    looks: int = 8,
    look_px: int = 512,
    control: str | None = None,
    prompt: str = "zoom",
    seed: int = 42,
) -> Task:
    """A model chooses where to look on a slide; standard errors are clustered by patient.

    Args:
        data: folder or zoom.jsonl of `scale-vqa build zoom`.
        split: split to ask, or None for all splits.
        slides: folder of the slide files, or None for the folder ``slides`` beside the data.
        looks: maximum number of looks per question.
        look_px: side of a field in pixels.
        control: blind, wrong-slide, overview-only, random-walk or oracle-path, or None.
        prompt: prompt id, or a YAML file.
        seed: seed of the controls.

    Raises:
        InputError: if the data or the prompt is invalid.
    """
    words = load_prompt(from_here(prompt))
    questions, root = read_zoom_questions(from_here(data), split, Path(from_here(slides)) if slides else None)
    by_id, store = {item.question.id: item for item in questions}, slide_files(root)
    budget = Budget(looks, look_px)

    def make() -> ZoomEnvironment:
        return ZoomEnvironment(store, by_id, budget, control, seed)

    make()
    samples = [
        Sample(
            id=item.question.id,
            input=words.text(item.question.question, item.question.options),
            choices=list(item.question.options),
            target=item.question.letter,
            metadata={"patient": item.question.cluster, "dimension": item.question.dimension or "none"},
        )
        for item in questions
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"scale_vqa_zoom {split or 'all splits'}"),
        solver=_episodes(make, words),
        scorer=looked_and_answered(),
        config=GenerateConfig(temperature=0.0, max_tokens=words.max_tokens),
        metadata={
            "prompt_id": words.id,
            "prompt_version": words.version,
            "data_hash": questions_digest(item.question for item in questions),
            "ablation": control,
            "looks": looks,
            "look_px": look_px,
        },
    )


def _episodes(make: Callable[[], ZoomEnvironment], prompt: Prompt) -> Solver:
    """Runs one episode per sample, with a new environment."""

    @solver
    def choose_where_to_look() -> Solver:  # without arguments, because Inspect writes a solver's arguments to the log
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            environment = make()
            shown = _contents(environment, await asyncio.to_thread(environment.reset, str(state.sample_id)))
            state.messages = [ChatMessageUser(content=[ContentText(text=f"{state.input_text}\n"), *shown])]
            if prompt.system:
                state.messages.insert(0, ChatMessageSystem(content=prompt.system))
            state.tools = [_tool(environment, entry["function"]) for entry in TOOLS]
            for _ in range(environment.turns):
                state = await generate(state, tool_calls="single")
                if environment.letter is None and not state.output.message.tool_calls:
                    letter = parse_response(response_text(state.output.message)).letter
                    parts = environment.answer(letter) if letter else call_tool(environment, "none", {})
                    state.messages.append(ChatMessageUser(content=_contents(environment, parts)))
                if environment.letter is not None:
                    break
            state.store.set("zoom", environment.record | {"letter": environment.letter, "steps": environment.steps})
            return state

        return solve

    return choose_where_to_look()


def _tool(environment: ZoomEnvironment, function: Mapping[str, Any]) -> Tool:
    """Returns a tool of an environment; Inspect validates the arguments and reports errors to the model."""

    async def look(x_um: float, y_um: float, view: str) -> list[Content]:
        asked = {"x_um": x_um, "y_um": y_um, "view": view}
        return _contents(environment, await asyncio.to_thread(call_tool, environment, "look", asked))

    async def answer(letter: str) -> list[Content]:
        return _contents(environment, call_tool(environment, "answer", {"letter": letter}))

    described = {name: one.get("description", "") for name, one in function["parameters"]["properties"].items()}
    tool = look if function["name"] == "look" else answer
    made: Tool = ToolDef(tool, function["name"], function["description"], described, parallel=False).as_tool()
    return made


def _contents(environment: ZoomEnvironment, parts: Sequence[Mapping[str, Any]]) -> list[Content]:
    return [
        ContentText(text=part["text"])
        if content is None
        else ContentImage(image=f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}")
        for part, content in with_files(environment, parts)
    ]


@scorer(
    metrics={
        "right": [mean(), stderr(cluster="patient")],
        "evidence": [mean(), stderr(cluster="patient")],
        "looks": [mean()],
        "refused": [mean()],
    }
)
def looked_and_answered() -> Scorer:
    """Correct letter, evidence in view, looks and refused calls of an episode."""

    async def score(state: TaskState, target: Target) -> Score:
        record = state.store.get("zoom")
        value = {
            "right": float(record["letter"] == target.text),
            "evidence": float(bool(record["hit"])),
            "looks": float(record["looks"]),
            "refused": float(record["refused"]),
        }
        return Score(value=value, answer=record["letter"], metadata={"hit_at": record["hit_at"]})

    return score
