"""Prompts as versioned data, and the one way to build messages from a prompt, a question and its images.

A prompt is a YAML file with an id; a hash of what a model sees of it goes into every predictions file. The example
inside a prompt names the letter A, as the published one does; the circular ablation shows whether that draws answers
to A.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from scale_vqa_eval.errors import InputError, Problem, preview, validated
from scale_vqa_eval.files import parse_yaml, sha256_json
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import LETTERS

T = TypeVar("T")

FOLDER: Final = Path(__file__).parent / "prompts"
GUESS: Final = "No image is shown. Choose the option that you find most likely from the text alone; always choose one."
"""What ``--ablate guess`` adds to the user turn."""
_EXAMPLE: Final = "see prompts/published.yaml of the package"
_FIELD = re.compile(r"\{(\w+)\}")
_TEMPLATE_FIELDS: Final = {
    "user": {"question", "options"},
    "option": {"letter", "text"},
    "answer": {"letter"},
    "view_label": {"view", "magnification"},
    "option_label": {"letter"},
}
"""Template -> the fields that it must name, or may name (view_label)."""


class Prompt(BaseModel):
    """The text around a question.

    Attributes:
        id: its name in results.
        version: increased when the words change.
        provenance: where the words come from.
        user: text after the images; names ``{question}`` and ``{options}``.
        option: the line of one option; names ``{letter}`` and ``{text}``.
        answer: a complete answer; constrained decoding allows these alone.
        system: system message or None.
        view_label: text before each view, may name ``{view}`` and ``{magnification}``; or None.
        option_label: text before each option image; names ``{letter}``.
        max_tokens: maximum length of an answer where the command gives none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    version: int
    provenance: str
    user: str
    option: str
    answer: str
    system: str | None = None
    view_label: str | None = None
    option_label: str = "{letter}."
    max_tokens: int = 4096

    @model_validator(mode="after")
    def _check_templates(self) -> Self:
        problems = []
        for name, fields in _TEMPLATE_FIELDS.items():
            named = set(_FIELD.findall(getattr(self, name) or ""))
            missing = set() if name == "view_label" else fields - named
            if missing or named - fields:
                found = ", ".join(sorted(named)) or "none"
                problems.append(Problem(name, f"the fields {', '.join(sorted(fields))}", found, _EXAMPLE))
        # --structured allows these answers alone: unreadable ones would all be scored as wrong
        if not problems and parse_response(self.choices(2)[1], "reference", 2).letter != "B":
            expected = "an answer that scoring reads, such as <answer>{letter}</answer>"
            problems.append(Problem("answer", expected, preview(self.answer), _EXAMPLE))
        if problems:
            raise InputError(problems)
        return self

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over everything that a model sees (provenance is left out)."""
        return sha256_json(self.model_dump(exclude={"provenance", "max_tokens"}))[:16]

    def guessing(self) -> Prompt:
        """Returns the prompt that also tells the model that no image is shown and that it has to guess."""
        return self.model_copy(update={"id": f"{self.id}-guess", "user": f"{self.user}\n\n{GUESS}"})

    def text(self, question: str, options: Sequence[str]) -> str:
        """Returns the text of the user turn; it is the same with and without images before it.

        >>> load_prompt("letter-only").text("Which {question}?", ["x", "y"]).splitlines()[:3]
        ['Which {question}?', 'A. x', 'B. y']
        """
        lines = [filled(self.option, letter=letter, text=text) for letter, text in zip(LETTERS, options, strict=False)]
        return filled(self.user, question=question, options="\n".join(lines))

    def choices(self, count: int) -> list[str]:
        """Returns the complete answers that constrained decoding allows for ``count`` options."""
        return [filled(self.answer, letter=letter) for letter in LETTERS[:count]]


def build_messages(
    prompt: Prompt, parts: Iterable[str | T], image: Callable[[T], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns chat messages: the system message, if any, and the user turn.

    Args:
        prompt: its system message is used.
        parts: texts and images of the user turn, in order.
        image: returns the content part of an image, in the form that the reader expects.
    """
    content = [{"type": "text", "text": part} if isinstance(part, str) else image(part) for part in parts]
    user = {"role": "user", "content": content}
    if not prompt.system:
        return [user]
    return [{"role": "system", "content": [{"type": "text", "text": prompt.system}]}, user]


def filled(template: str, **fields: str) -> str:
    """Fills a template in one pass, so that braces in a dataset's text stay as they are."""
    return _FIELD.sub(lambda match: fields.get(match[1], match[0]), template)


def prompt_ids() -> list[str]:
    """Returns the ids of the prompts in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_prompt(name: str) -> Prompt:
    """Returns a prompt by its id, or from a YAML file.

    Raises:
        InputError: where neither exists, or a field of the file is wrong.
    """
    path = FOLDER / f"{name}.yaml" if name in prompt_ids() else Path(name)
    if not path.is_file():
        expected = f"a prompt id ({', '.join(prompt_ids())}) or a YAML file"
        raise InputError(Problem("prompt", expected, preview(name), "name one of those"))
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(Problem(str(path), "YAML in UTF-8", preview(str(error), 160), "fix the file")) from error
    return validated(Prompt, parse_yaml(text, str(path)), str(path))
