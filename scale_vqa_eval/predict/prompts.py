"""Prompts as versioned YAML files, and the construction of messages.

A hash of everything that a model sees of its prompt is recorded in every predictions file. The example in a prompt
uses the letter A, as the published prompt does; the circular ablation shows whether this biases answers towards A.
``card:MODEL`` reads the prompt that a model was published with from the user's copy of its card.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

from scale_vqa_eval.errors import InputError, Problem, preview, validated
from scale_vqa_eval.files import parse_yaml, sha256_json
from scale_vqa_eval.predict import DEFAULT_PROMPT
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import LETTERS

T = TypeVar("T")

FOLDER: Final = Path(__file__).parent / "prompts"
GUESS: Final = "No image is shown. Choose the option that you find most likely from the text alone; always choose one."
"""Added to the user message by ``--ablate guess``."""
CARD: Final = "card:"
_OLD_IDS: Final = {"published": DEFAULT_PROMPT}
"""Former id -> id; runs under the former id can be continued."""
_EXAMPLE: Final = f"see prompts/{DEFAULT_PROMPT}.yaml of the package"
_FIELD = re.compile(r"\{(\w+)\}")
_TEMPLATE_FIELDS: Final = {
    "user": {"question", "options"},
    "option": {"letter", "text"},
    "answer": {"letter"},
    "view_label": {"view", "magnification"},
    "option_label": {"letter"},
}
"""Template -> its fields, which are required except in ``view_label``."""


class Prompt(BaseModel):
    """A prompt template.

    Attributes:
        id: name in results.
        version: incremented when the text changes.
        provenance: source of the text.
        user: text after the images, with the fields ``{question}`` and ``{options}``.
        option: line of an option, with the fields ``{letter}`` and ``{text}``.
        answer: a complete answer, to which constrained decoding is restricted; with the field ``{letter}``.
        system: system message, or None.
        view_label: text before each view, with the optional fields ``{view}`` and ``{magnification}``, or None.
        option_label: text before each option image, with the field ``{letter}``.
        max_tokens: default maximum length of an answer.
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
        # with --structured, all answers would be scored as wrong
        if not problems and parse_response(self.choices(2)[1], "reference", 2).letter != "B":
            expected = "an answer that can be parsed, such as <answer>{letter}</answer>"
            problems.append(Problem("answer", expected, preview(self.answer), _EXAMPLE))
        if problems:
            raise InputError(problems)
        return self

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over everything that a model sees."""
        return sha256_json(self.model_dump(exclude={"provenance", "max_tokens"}))[:16]

    def guessing(self) -> Prompt:
        """Returns the prompt with the additional instruction to guess without an image."""
        return self.model_copy(update={"id": f"{self.id}-guess", "user": f"{self.user}\n\n{GUESS}"})

    def text(self, question: str, options: Sequence[str]) -> str:
        """Returns the text of the user message, which is the same with and without images.

        >>> load_prompt("letter-only").text("Which {question}?", ["x", "y"]).splitlines()[:3]
        ['Which {question}?', 'A. x', 'B. y']
        """
        lines = [filled(self.option, letter=letter, text=text) for letter, text in zip(LETTERS, options, strict=False)]
        return filled(self.user, question=question, options="\n".join(lines))

    def choices(self, count: int) -> list[str]:
        """Returns the complete answers for ``count`` options, for constrained decoding."""
        return [filled(self.answer, letter=letter) for letter in LETTERS[:count]]


def build_messages(
    prompt: Prompt, parts: Iterable[str | T], image: Callable[[T], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns chat messages: the prompt's system message, if any, and the user message.

    ``parts`` are the texts and images of the user message; ``image`` returns the content part of an image.
    """
    content = [{"type": "text", "text": part} if isinstance(part, str) else image(part) for part in parts]
    user = {"role": "user", "content": content}
    if not prompt.system:
        return [user]
    return [{"role": "system", "content": [{"type": "text", "text": prompt.system}]}, user]


def filled(template: str, **fields: str) -> str:
    """Fills a template in one pass, so that braces in the inserted texts are not interpreted."""
    return _FIELD.sub(lambda match: fields.get(match[1], match[0]), template)


def prompt_ids() -> list[str]:
    """Returns the ids of the prompts in this package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_prompt(name: str) -> Prompt:
    """Loads a prompt by its id, from a YAML file, or from a model's card (``card:`` and a folder or Hub id).

    Raises:
        InputError: if it does not exist, a field of the file is invalid, or the card does not have exactly one system
            prompt.
    """
    if name.startswith(CARD):
        return _card_prompt(name.removeprefix(CARD))
    if name in _OLD_IDS:
        return load_prompt(_OLD_IDS[name]).model_copy(update={"id": name})
    path = FOLDER / f"{name}.yaml" if name in prompt_ids() else Path(name)
    if not path.is_file():
        expected = f"a prompt id ({', '.join(prompt_ids())}), a YAML file, or {CARD}MODEL"
        raise InputError(Problem("prompt", expected, preview(name), "name one of those"))
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(Problem(str(path), "YAML in UTF-8", preview(str(error), 160), "fix the file")) from error
    return validated(Prompt, parse_yaml(text, str(path)), str(path))


_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(.*?)^ {0,3}\1", re.MULTILINE | re.DOTALL)
_COPY: Final = ("revision", "token", "cache_dir", "local_files_only")
_QUOTED: Final = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"")
_OPTION_LINE: Final = re.compile(r"^(\(?)A([).:]+) .*\n\1B\2 ", re.MULTILINE)


def _card_prompt(source: str) -> Prompt:
    """Returns the prompt in a model's card (README.md), or else in its chat template.

    The system prompt is the text with ``<answer>`` in a code block: a Python or JSON string (the one named system, if
    there are several), or the block itself. Options are formatted as in the card's example (``(A) ...``), if any.
    """
    card = model_file(source, "README.md")
    found = [text for _, block in _FENCE.findall(card or "") for text in _texts(block)]
    asking = [(named, text) for named, text in found if "<answer>" in text]
    if not asking:
        quoted = _QUOTED.findall(model_file(source, "chat_template.jinja") or "")
        texts = [re.sub(r"<\|\w+\|>(?:system\n)?", "", text) for part in quoted for _, text in _texts(part)]
        asking = [(True, text.strip()) for text in texts if "<answer>" in text]
    systems = {text for named, text in asking if named} or {text for _, text in asking}
    if len(systems) != 1:
        expected = "one system prompt that asks for <answer> in README.md or chat_template.jinja"
        reason = "no README.md" if card is None and not systems else f"{len(systems)} of them"
        hint = "name a model folder or Hub id whose card has one, or write it into a YAML file"
        raise InputError(Problem(f"{CARD}{source}", expected, reason, hint))
    option = next((line for _, text in found if (line := _OPTION_LINE.search(text))), None)
    return Prompt(
        id=f"{CARD}{Path(source).resolve().name if Path(source).exists() else source}",
        version=1,
        provenance=f"Read from the card or the chat template of {source}.",
        system=systems.pop(),
        user="{question}\n{options}",
        option="{letter}. {text}" if option is None else f"{option[1]}{{letter}}{option[2]} {{text}}",
        answer="<answer>{letter}</answer>",
    )


def model_file(source: str, name: str, options: Mapping[str, Any] | None = None) -> str | None:
    """Returns the text of a file in a model folder or Hub repository (or its local cache), or None.

    Of ``options``, those that select a copy of the repository are used (revision, cache_dir, ...).
    """
    path = Path(source, name)
    if not Path(source).exists():
        from huggingface_hub import hf_hub_download

        with suppress(OSError, ValueError):  # the repository or file does not exist, or cannot be reached
            where = {key: value for key, value in (options or {}).items() if key in _COPY}
            path = Path(hf_hub_download(source, name, **where))
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _texts(block: str) -> list[tuple[bool, str]]:
    """Returns pairs (is named system, text) for the strings in Python or JSON code, or for another text as a whole."""
    try:
        nodes = list(ast.walk(ast.parse(block.strip())))
    except (SyntaxError, ValueError, RecursionError):
        return [(False, block.strip())]
    system: set[ast.AST] = set()
    for node in nodes:
        targets = " ".join(map(ast.unparse, node.targets)) if isinstance(node, ast.Assign) else ""
        role = isinstance(node, ast.Dict) and any(getattr(value, "value", None) == "system" for value in node.values)
        system |= set(ast.walk(node)) if role or "system" in targets.lower() else set()
    strings = [(node, node.value) for node in nodes if isinstance(node, ast.Constant)]
    return [(node in system, text) for node, text in strings if isinstance(text, str)]
