"""Prompts as versioned data: YAML files with an id, and a hash that goes into every predictions file.

The example inside a prompt names the letter A, as the published one does; whether that draws answers to A is seen in
the circular ablation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from scale_vqa_eval.errors import InputError, Problem, preview
from scale_vqa_eval.scale_vqa_acc.parsing import parse_response
from scale_vqa_eval.schema import LETTERS

FOLDER: Final = Path(__file__).parent / "prompts"
_FIELD = re.compile(r"\{(\w+)\}")
_PLACES: Final = {
    "user": {"question", "options"},
    "option": {"letter", "text"},
    "answer": {"letter"},
    "view_label": {"view", "magnification"},
    "option_label": {"letter"},
}
"""Template -> the fields that it has to name, or may (view_label)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What stands around a question.

    Attributes:
        id: name that a results file gives.
        version: counted up when the words change.
        provenance: where the words come from.
        user: text after the images; names ``{question}`` and ``{options}``.
        option: one option's line; names ``{letter}`` and ``{text}``.
        answer: what a complete answer looks like; the choices of constrained decoding are made of it.
        system: system message, None for none.
        view_label: text before each view, may name ``{view}`` and ``{magnification}``; None for none.
        option_label: text before each option image; names ``{letter}``.
        max_tokens: bound of an answer's length where the command gives none.
    """

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

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 over everything that a model sees (provenance is left out)."""
        seen = {name: value for name, value in asdict(self).items() if name not in ("provenance", "max_tokens")}
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]

    def text(self, question: str, options: Sequence[str]) -> str:
        """Returns the text of the user turn; it is the same whether images stand before it or not.

        >>> load_prompt("letter-only").text("Which {question}?", ["x", "y"]).splitlines()[:3]
        ['Which {question}?', 'A. x', 'B. y']
        """
        lines = [filled(self.option, letter=letter, text=text) for letter, text in zip(LETTERS, options, strict=False)]
        return filled(self.user, question=question, options="\n".join(lines))

    def choices(self, count: int) -> list[str]:
        """Returns the complete answers that constrained decoding allows for ``count`` options."""
        return [filled(self.answer, letter=letter) for letter in LETTERS[:count]]


def filled(template: str, **fields: str) -> str:
    """Fills a template in one pass, so that braces in a dataset's text stay what they are."""
    return _FIELD.sub(lambda match: fields.get(match[1], match[0]), template)


def prompt_ids() -> list[str]:
    """Returns the ids of the prompts that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_prompt(name: str) -> Prompt:
    """Returns a prompt by its id, or from a YAML file of one's own.

    Raises:
        InputError: where there is neither, or the file breaks the contract.
    """
    path = FOLDER / f"{name}.yaml" if name in prompt_ids() else Path(name)
    if not path.is_file():
        expected = f"a prompt id ({', '.join(prompt_ids())}) or a YAML file"
        raise InputError(Problem("prompt", expected, preview(name), "name one of those"))
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(Problem(str(path), "YAML in UTF-8", preview(str(error), 160), "fix the file")) from error
    problems = _problems(path, fields)
    if problems:
        raise InputError(problems)
    return Prompt(**fields)


def _problems(path: Path, fields: Any) -> list[Problem]:
    """Returns what is wrong with the fields of a prompt file."""
    known = Prompt.__dataclass_fields__
    hint = f"see {FOLDER.name}/published.yaml of the package"
    if not isinstance(fields, dict):
        return [Problem(str(path), "an object with the fields of a prompt", preview(fields), hint)]
    needed = ("id", "version", "provenance", "user", "option", "answer")
    problems = [Problem(str(path), f"the field {name}", "none", hint) for name in needed if name not in fields]
    problems += [
        Problem(str(path), f"fields {', '.join(known)}", preview(name), hint) for name in fields if name not in known
    ]
    for name, value in fields.items():
        kind: type = int if name in ("version", "max_tokens") else str
        if name in known and not (isinstance(value, kind) or (value is None and name in ("system", "view_label"))):
            problems.append(Problem(f"{path}, {name}", f"a value of type {kind.__name__}", preview(value), hint))
    if problems:
        return problems
    for name, places in _PLACES.items():
        named = set(_FIELD.findall(fields.get(name) or ""))
        missing = places - named if name in fields and name != "view_label" else set()
        if missing or named - places:
            found = ", ".join(sorted(named)) or "none"
            problems.append(Problem(f"{path}, {name}", f"the fields {', '.join(sorted(places))}", found, hint))
    # --structured allows these answers alone: unreadable ones would all be scored as wrong
    if not problems and parse_response(filled(fields["answer"], letter="B"), "reference", len(LETTERS)).letter != "B":
        expected = "an answer that scoring reads, such as <answer>{letter}</answer>"
        problems.append(Problem(f"{path}, answer", expected, preview(fields["answer"]), hint))
    return problems
