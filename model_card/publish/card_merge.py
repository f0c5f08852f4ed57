"""Merges a generated card with the one that is on the Hub: what a person wrote there stays.

A card is a set of parts: every key of its YAML, every config of ``configs`` and ``dataset_info``, the text before the
first heading, and every section under a second-level heading. The manifest of the last publication says how each part
was generated then. So, for each part:

- only one of the two has it: it is in the merged card (unless it is as generated then, and no longer generated);
- the remote's part is as generated then: nobody touched it, the new one takes its place;
- otherwise somebody wrote it: it stays, word for word, and the plan names it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from scale_vqa_eval.errors import InputError, Problem, preview

_BY_CONFIG: Final = ("configs", "dataset_info")
_FRONT: Final = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)

Part = tuple[str, str]
"""("yaml", key), ("configs" or "dataset_info", config) or ("section", heading)."""


@dataclass(frozen=True)
class MergedCard:
    """A merged card.

    Attributes:
        text: what is published.
        kept: names of the parts that stay as the remote has them although the folder's are others.
        added: names of the parts that only the remote has.
        generated: digest of every part as the folder has it, for the manifest.
    """

    text: str
    kept: tuple[str, ...]
    added: tuple[str, ...]
    generated: dict[str, str]


def merge_cards(
    local: str, remote: str | None, generated: Mapping[str, str], replace: frozenset[str] = frozenset()
) -> MergedCard:
    """Returns the card to publish.

    Args:
        local: the folder's card.
        remote: the card on the Hub; None where there is none.
        generated: name of a part -> digest of it as it was generated for the last publication; empty if unknown.
        replace: names of parts that the folder's take the place of in any case; ``card`` for all.

    Raises:
        InputError: where the YAML of one of the cards cannot be read, or ``replace`` names no part.
    """
    ours = _parts(local, "the folder's card")
    digests = {name_of(part): _digest(value) for part, value in ours.items()}
    if remote is None or remote == local:
        return MergedCard(local, (), (), digests)
    theirs = _parts(remote, "the card on the Hub")
    known = {name_of(part) for part in (*ours, *theirs)} | {"card"}
    if unknown := sorted(replace - known):
        expected = f"one of {', '.join(sorted(known))}"
        raise InputError(Problem("--replace", expected, ", ".join(unknown), "name a part that the plan names"))
    kept, added, merged = [], [], dict(ours)
    for part, value in theirs.items():
        name = name_of(part)
        as_generated = generated.get(name) == _digest(value)
        if name in replace or "card" in replace:
            continue
        if part not in ours:
            if not as_generated or part[0] in _BY_CONFIG:
                merged[part] = value
                added.append(name)
        elif _digest(value) != digests[name] and not as_generated:
            merged[part] = value
            kept.append(name)
    if merged == ours:
        return MergedCard(local, (), (), digests)
    if merged == theirs:
        return MergedCard(remote, tuple(kept), tuple(added), digests)
    return MergedCard(_written(merged, list(ours), list(theirs)), tuple(kept), tuple(added), digests)


def name_of(part: Part) -> str:
    """Returns how a part is named to people: ``license``, ``dataset_info:default``, ``## Limits``."""
    group, key = part
    if group == "section":
        return f"## {key}" if key else "text before the first heading"
    return key if group == "yaml" else f"{group}:{key}"


def card_metadata(text: str) -> dict[str, Any]:
    """Returns the YAML of a card."""
    return _front(text, "the card")[0]


def dataset_info_of(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns config -> its ``dataset_info``."""
    return {config: entry for config, entry in _entries(metadata.get("dataset_info")).items()}


def _parts(text: str, whose: str) -> dict[Part, Any]:
    front, body = _front(text, whose)
    parts: dict[Part, Any] = {}
    for key, value in front.items():
        if key in _BY_CONFIG:
            parts |= {(key, config): entry for config, entry in _entries(value).items()}
        else:
            parts["yaml", str(key)] = value
    return parts | {("section", heading): section for heading, section in _sections(body).items()}


def _front(text: str, whose: str) -> tuple[dict[str, Any], str]:
    match = _FRONT.match(text)
    if match is None:
        return {}, text
    try:
        front = yaml.safe_load(match.group(1)) or {}
    except yaml.YAMLError as error:
        found = preview(str(error).replace("\n", " "), 120)
        raise InputError(Problem(f"YAML of {whose}", "YAML that can be read", found, "fix it")) from None
    if not isinstance(front, dict):
        raise InputError(Problem(f"YAML of {whose}", "keys and values", type(front).__name__, "fix it"))
    return front, text[match.end() :]


def _entries(value: Any) -> dict[str, dict[str, Any]]:
    """Configs by name; ``dataset_info`` of a single config may be a mapping instead of a list."""
    listed = value if isinstance(value, list) else [value] if isinstance(value, dict) else []
    return {str(entry.get("config_name", "default")): entry for entry in listed if isinstance(entry, dict)}


def _sections(body: str) -> dict[str, str]:
    """Text under each second-level heading, in order; headings inside of fenced code are none.

    A fence that is left open is closed: in Markdown it runs to the end, and would swallow what is put after it.
    """
    sections: dict[str, list[str]] = {"": []}
    heading, fence = "", ""
    for line in body.splitlines(keepends=True):
        opening = re.match(r" {0,3}(`{3,}(?!.*`)|~{3,})", line)
        closing = re.match(r" {0,3}(`{3,}|~{3,})\s*$", line)
        if opening and not fence:
            fence = opening.group(1)
        elif fence and closing and closing.group(1).startswith(fence):
            fence = ""
        if not fence and (found := re.match(r"##\s+(.+?)\s*#*\s*$", line)):
            heading, number = found.group(1), 1
            while heading in sections:
                number += 1
                heading = f"{found.group(1)} ({number})"
            sections[heading] = []
        sections[heading].append(line)
    if fence:
        sections[heading] = ["".join(sections[heading]).rstrip("\n"), f"\n{fence}\n"]
    return {heading: "".join(lines) for heading, lines in sections.items() if "".join(lines).strip()}


def _digest(value: Any) -> str:
    plain = value.strip() if isinstance(value, str) else value
    text = json.dumps(plain, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _written(parts: Mapping[Part, Any], ours: list[Part], theirs: list[Part]) -> str:
    """Puts parts together: the folder's order, what only the remote has after what it follows there."""
    front: dict[str, Any] = {}
    order = _ordered(ours, theirs)
    for part in (part for part in order if part in parts):
        if part[0] == "yaml":
            front[part[1]] = parts[part]
        elif part[0] in _BY_CONFIG:
            front.setdefault(part[0], []).append(parts[part])
    if "configs" in front:
        front["configs"] = _one_default(front["configs"], {part[1] for part in ours if part[0] == "configs"})
    dumped = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10_000)
    sections = [parts[part].strip("\n") for part in order if part[0] == "section" and part in parts]
    body = "\n\n".join(sections)
    return f"---\n{dumped}---\n\n{body}\n" if front else f"{body}\n"


def _ordered(ours: list[Part], theirs: list[Part]) -> list[Part]:
    order = list(ours)
    for place, part in enumerate(theirs):
        if part in order:
            continue
        before = next((other for other in reversed(theirs[:place]) if other in order and other[0] == part[0]), None)
        order.insert(order.index(before) + 1 if before else len(order), part)
    return order


def _one_default(configs: list[dict[str, Any]], ours: set[str]) -> list[dict[str, Any]]:
    """Two configs may not both be the default: the folder's is where both claim it."""
    defaults = [entry for entry in configs if entry.get("default")]
    if len(defaults) < 2:
        return configs
    chosen = next((entry for entry in defaults if str(entry.get("config_name")) in ours), defaults[0])
    return [
        entry if entry is chosen or not entry.get("default") else {k: v for k, v in entry.items() if k != "default"}
        for entry in configs
    ]
