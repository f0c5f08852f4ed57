"""Prompts as versioned data, and the one way to build messages from a prompt, a question and its images.

A prompt is a YAML file with an id; a hash of what a model sees of it goes into every predictions file. The example
inside a prompt names the letter A, as the published one does; the circular ablation shows whether that draws answers
to A. ``card:MODEL`` reads the words that a model was published with from the user's copy of its card.
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
"""What ``--ablate guess`` adds to the user turn."""
CARD: Final = "card:"
_OLD_IDS: Final = {"published": DEFAULT_PROMPT}
"""Earlier id -> id; an earlier id still names its runs, so that they can be continued."""
_EXAMPLE: Final = f"see prompts/{DEFAULT_PROMPT}.yaml of the package"
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
    """Returns a prompt by its id, from a YAML file, or from a model's card (``card:`` and a folder or Hub id).

    Raises:
        InputError: where none exists, a field of the file is wrong, or the card has not one system prompt.
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
    """Returns the prompt that a model's card (README.md), or else its chat template, asks for.

    The system prompt is the text that asks for ``<answer>`` in a code block: a Python or JSON string (one that is
    called system, if there are several), or the block itself. Options are written as in the card's example
    (``(A) ...``), if it has one.
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
    """Returns the text of a file of a model folder or Hub repository (from the cache where offline), or None.

    Of ``options``, those that say which copy of a repository is meant are used (revision, cache_dir, ...).
    """
    path = Path(source, name)
    if not Path(source).exists():
        from huggingface_hub import hf_hub_download

        with suppress(OSError, ValueError):  # no such repository or file, or not reachable
            where = {key: value for key, value in (options or {}).items() if key in _COPY}
            path = Path(hf_hub_download(source, name, **where))
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def _texts(block: str) -> list[tuple[bool, str]]:
    """Returns (is called system, text) of the strings of Python or JSON code; of anything else the text itself."""
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
