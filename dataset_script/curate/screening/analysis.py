"""Why a question leaks, in the words of the ``analyse`` role, and the constraint under which it is made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dataset_script.curate.asking.prompts import load_prompt, messages
from dataset_script.curate.asking.replies import BadReply, text_of
from dataset_script.curate.asking.role import Result, Role, Task
from dataset_script.curate.features.containment import content, instruction_in
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import LETTERS

UNEXPLAINED: Final = "unexplained"
SAID: Final = 600


@dataclass(frozen=True, slots=True)
class Leak:
    """A question that was read without images.

    Attributes:
        question: the question.
        readers: names of those who read it.
        said: what the adversaries that were right said.
        evidence: words and places that gave it away to fitted probes.
    """

    question: Question
    readers: tuple[str, ...]
    said: tuple[str, ...]
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cause:
    """What gave a question away, or why it got no options: name, one sentence, the constraint in the model's words."""

    name: str
    explanation: str
    constraint: str

    def sentences(self) -> tuple[str, ...]:
        """Returns the constraints for the next version: ours for the cause, and the model's."""
        prompt = load_prompt("analyse")
        ours = prompt["without_options"].get(self.name) or prompt["causes"][self.name]["constraint"]
        return (ours, self.constraint) if self.constraint else (ours,)


def reply_schema() -> dict[str, Any]:
    """Returns the JSON schema of a reply."""
    text = {"type": "string"}
    causes = {"type": "string", "enum": list(load_prompt("analyse")["causes"])}
    fields = {"cause": causes, "explanation": text, "constraint": text}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def analyse(leaks: Sequence[Leak], role: Role, tries: int) -> list[Result[Cause]]:
    """Asks why questions leak; one without a usable reply is ``unexplained`` and made again all the same."""
    results = role.solve([_task(leak) for leak in leaks], tries)
    return [
        result if result.value is not None else Result(result.label, Cause(UNEXPLAINED, "", ""), result.failed)
        for result in results
    ]


def _task(leak: Leak) -> Task[Cause]:
    prompt = load_prompt("analyse")
    question = leak.question
    data = {
        "causes": {name: about["meaning"] for name, about in prompt["causes"].items()},
        "question": question.question,
        "options": dict(zip(LETTERS, question.options, strict=False)),
        "right": question.letter,
        "readers": list(leak.readers),
        "what_they_said": [text[:SAID] for text in leak.said],
        "evidence": list(leak.evidence),
    }
    return Task(question.id, messages(prompt["system"], data), lambda value: read_cause(value, question))


def read_cause(value: Mapping[str, Any], question: Question) -> Cause:
    """Reads a reply; a constraint that names the right option, or reads as a prompt of its own, is not passed on.

    Raises:
        BadReply: ``schema``.
    """
    name = text_of(value, "cause", 100)
    if name not in load_prompt("analyse")["causes"]:
        raise BadReply("schema", f"{name!r} is none of the causes")
    explanation = text_of(value, "explanation", 1000, needed=False)
    constraint = text_of(value, "constraint", 400, needed=False)
    gold = content(question.options[question.answer])
    if instruction_in(constraint) or (gold and gold <= content(constraint)):
        constraint = ""
    return Cause(name, explanation, constraint)
