"""Which parts of a card were written by a command and which by hand: the marks, and headings outside of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from scale_vqa_eval.errors import InputError, Problem, preview

OPEN: Final = "<!-- section {name}: written by `scale-vqa card`; text of yours goes outside of the marks -->"
CLOSE: Final = "<!-- end of section {name} -->"
_SECTION: Final = re.compile(
    r"^(?:## [^\n]*\n\s*)?<!-- section (?P<name>[\w-]+): [^\n]* -->\n.*?^<!-- end of section (?P=name) -->$",
    re.DOTALL | re.MULTILINE,
)
_HEAD: Final = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n", re.DOTALL)


def marked_sections(text: str) -> dict[str, str]:
    """Returns name -> marked section in their order, with its marks and the heading that stands right before them."""
    return {found["name"]: found[0] for found in _SECTION.finditer(text)}


def head(text: str) -> dict[str, Any]:
    """Returns the YAML of a card; empty where it has none.

    Raises:
        InputError: where it is no YAML mapping.
    """
    found = _HEAD.match(text)
    try:
        content = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise InputError(Problem("the card", "YAML in its head", preview(str(error), 160), "fix the head")) from error
    if content is not None and not isinstance(content, dict):
        raise InputError(Problem("the card", "a YAML mapping in its head", preview(content), "fix the head"))
    return content or {}


def body(text: str) -> str:
    """Returns a card's text without its head."""
    found = _HEAD.match(text)
    return text[found.end() :] if found else text


def own_words(old: str, new: str) -> str:
    """Returns the sections of an earlier card that somebody wrote by hand: outside of marks, under headings of theirs.

    Marked sections are left out: they hold figures of rows that may have changed.

    Args:
        old: body of the earlier card.
        new: body of the card that takes its place; its headings are known.

    >>> own_words("# T\\n\\n## Columns\\nx\\n\\n## Thanks\\nTo all.\\n", "## Columns\\n")
    '## Thanks\\nTo all.'
    """
    known = set(_by_heading(new))
    kept = [text for heading, text in _by_heading(_SECTION.sub("", old)).items() if heading not in known]
    return "\n\n".join(kept)


def _by_heading(text: str) -> dict[str, str]:
    """Returns heading of the second level -> its section; what stands in fences is no heading."""
    found: dict[str, list[str]] = {}
    heading, fenced = "", False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not fenced:
            heading = line.strip()
        if heading:
            found.setdefault(heading, []).append(line)
    return {heading: "\n".join(lines).strip() for heading, lines in found.items()}


def kept_facts(old: Mapping[str, Any], written: Mapping[str, Any], placeholder: str) -> dict[str, Any]:
    """Returns the YAML keys of an earlier card that a new one lacks, and its licence where one was stated.

    Args:
        old: head of the earlier card.
        written: head of the new one.
        placeholder: the licence name that says that none was stated.
    """
    kept = {key: value for key, value in old.items() if key not in written}
    if old.get("license") and old.get("license_name") != placeholder:
        kept |= {key: old.get(key) for key in ("license", "license_name", "license_link")}
    return kept
