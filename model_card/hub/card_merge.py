"""Merges a generated card with the one on the Hub: what a person wrote there stays.

A card is a set of parts: every key of its YAML, every config of ``configs`` and ``dataset_info``, the text before the
first heading, and every section under a second-level heading. The manifest of the last publication states how each
part was generated then. So, for each part:

- only one of the two cards has it: it is in the merged card (unless it is as generated then, and no longer generated);
- the remote's part is as generated then: nobody changed it, so the new one replaces it;
- otherwise somebody wrote it: it stays, word for word, and the plan names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from model_card.cards.check import by_config
from model_card.cards.text import dump_yaml
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.files import sha256_json
from scale_vqa_eval.release_folder.card import body, by_heading, head

_BY_CONFIG: Final = ("configs", "dataset_info")

CardPart = tuple[str, str]
"""("yaml", key), ("configs" or "dataset_info", config) or ("section", heading)."""


@dataclass(frozen=True)
class MergedCard:
    """A merged card.

    Attributes:
        text: what is published.
        kept: names of the parts that stay as on the Hub although the folder's differ.
        added: names of the parts that only the Hub has.
        generated: digest of every part of the folder's card, for the manifest.
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
        remote: the card on the Hub, or None.
        generated: name of a part -> digest of it as generated for the last publication; empty if unknown.
        replace: names of parts that the folder's card replaces in any case; ``card`` for all.

    Raises:
        InputError: if the YAML of one of the cards cannot be read, or ``replace`` names no part.
    """
    ours = _parts(local, "the folder's card")
    digests = {_name_of(part): _digest(value) for part, value in ours.items()}
    if remote is None or remote == local:
        return MergedCard(local, (), (), digests)
    theirs = _parts(remote, "the card on the Hub")
    known = {_name_of(part) for part in (*ours, *theirs)} | {"card"}
    if unknown := sorted(replace - known):
        expected = f"one of {', '.join(sorted(known))}"
        raise InputError(Problem("--replace", expected, ", ".join(unknown), "name a part that the plan names"))
    kept, added, merged = [], [], dict(ours)
    for part, value in theirs.items():
        name = _name_of(part)
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
    text = local if merged == ours else remote if merged == theirs else _written(merged, list(ours), list(theirs))
    return MergedCard(text, tuple(kept), tuple(added), digests)


def _name_of(part: CardPart) -> str:
    """Returns how a part is named to people: ``license``, ``dataset_info:default``, ``## Limits``."""
    group, key = part
    if group == "section":
        return f"## {key}" if key else "text before the first heading"
    return key if group == "yaml" else f"{group}:{key}"


def _parts(text: str, whose: str) -> dict[CardPart, Any]:
    try:
        front = head(text)
    except InputError as error:
        raise InputError([Problem(f"YAML of {whose}", e.expected, e.found, e.hint) for e in error.problems]) from None
    parts: dict[CardPart, Any] = {}
    for key, value in front.items():
        if key in _BY_CONFIG:
            parts |= {(key, config): entry for config, entry in by_config(value).items()}
        else:
            parts["yaml", str(key)] = value
    return parts | {("section", heading): section for heading, section in by_heading(body(text)).items()}


def _digest(value: Any) -> str:
    plain = json.loads(json.dumps(value.strip() if isinstance(value, str) else value, default=str))
    return sha256_json(plain)[:16]


def _written(parts: Mapping[CardPart, Any], ours: list[CardPart], theirs: list[CardPart]) -> str:
    """Joins parts: in the folder's order; what only the remote has goes after the part that it follows there."""
    order = list(ours)
    for index, part in enumerate(theirs):
        if part not in order:
            before = next((one for one in reversed(theirs[:index]) if one in order and one[0] == part[0]), None)
            order.insert(order.index(before) + 1 if before else len(order), part)
    front: dict[str, Any] = {}
    sections = []
    for part in (part for part in order if part in parts):
        if part[0] == "yaml":
            front[part[1]] = parts[part]
        elif part[0] in _BY_CONFIG:
            front.setdefault(part[0], []).append(parts[part])
        else:
            sections.append(parts[part].strip("\n"))
    if "configs" in front:
        front["configs"] = _one_default(front["configs"], {part[1] for part in ours if part[0] == "configs"})
    text = "\n\n".join(sections)
    return f"---\n{dump_yaml(front)}---\n\n{text}\n" if front else f"{text}\n"


def _one_default(configs: list[dict[str, Any]], ours: set[str]) -> list[dict[str, Any]]:
    """Leaves one default config: the folder's, where both cards have one."""
    defaults = [entry for entry in configs if entry.get("default")]
    if len(defaults) < 2:
        return configs
    chosen = next((entry for entry in defaults if str(entry.get("config_name")) in ours), defaults[0])
    return [
        entry if entry is chosen or not entry.get("default") else {k: v for k, v in entry.items() if k != "default"}
        for entry in configs
    ]
