"""Step 1: captions into atomic features, each of which has to be grounded in the caption that it is taken from."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from dataset_script.curate.captions import SCALES, CaptionedPath, CaptionFeature
from dataset_script.curate.grounding import grounded_in, instruction_in, stems
from dataset_script.curate.roles import (
    BadReply,
    RoleClient,
    RoleTask,
    TaskResult,
    chat_messages,
    load_prompt,
    object_schema,
    outcomes,
)

MAX_WORDS: Final = 12
MAX_FEATURES: Final = 60


@dataclass(frozen=True)
class Decomposition:
    """The features of a path, and how many were rejected for which reason."""

    features: tuple[CaptionFeature, ...]
    rejected: dict[str, int]


def reply_schema() -> dict[str, Any]:
    """Returns the JSON schema of a reply."""
    fields = {
        "scale": {"type": "string", "enum": list(SCALES)},
        "aspect": {"type": "string", "enum": list(load_prompt("decompose")["aspects"])},
        "value": {"type": "string"},
    }
    return object_schema({"features": {"type": "array", "items": object_schema(fields)}})


def decompose_paths(
    paths: Sequence[CaptionedPath], client: RoleClient, tries: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Asks for the features of paths; a path whose captions contain an instruction is not sent to a model.

    Returns:
        The rows of ``features/<shard>.jsonl`` in order of the paths, and the report: counts, outcomes, lost paths.
    """
    prompt = load_prompt("decompose")
    results: dict[str, TaskResult[Decomposition]] = {}
    tasks = []
    for path in paths:
        found = next((hit for text in path.captions if (hit := instruction_in(text))), None)
        if found is not None:
            results[path.key] = TaskResult(path.key, None, (("injection-suspected", found),))
            continue
        data = {"aspects": prompt["aspects"], "captions": dict(path.texts)}
        read = functools.partial(read_features, path=path)
        tasks.append(RoleTask(path.key, chat_messages(prompt["system"], data), read))
    results |= {result.label: result for result in client.solve(tasks, tries)}
    ordered = [results[path.key] for path in paths]
    rejected: Counter[str] = Counter()
    for result in ordered:
        rejected.update(result.value.rejected if result.value else {})
    report = {
        "paths": len(ordered),
        "features": sum(len(result.value.features) for result in ordered if result.value),
        "rejected": dict(sorted(rejected.items())),
        "outcomes": outcomes(ordered),
        "lost": [[result.label, *result.failed[-1]] for result in ordered if result.value is None],
    }
    return [_row(result) for result in ordered], report


def _row(result: TaskResult[Decomposition]) -> dict[str, Any]:
    value = result.value
    return {
        "path": result.label,
        "features": [asdict(feature) for feature in value.features] if value else [],
        "rejected": value.rejected if value else {},
        "failed": [list(one) for one in result.failed],
        "lost": value is None,
    }


def read_features(value: Mapping[str, Any], path: CaptionedPath) -> Decomposition:
    """Reads a reply; features that the captions do not state are left out and counted.

    Raises:
        BadReply: ``schema`` if the reply has another form; ``no-feature`` if no feature is left.
    """
    raw = value.get("features")
    if not isinstance(raw, list):
        raise BadReply("schema", f"features is {type(raw).__name__}, not a list")
    if len(raw) > MAX_FEATURES:
        raise BadReply("schema", f"{len(raw)} features, more than {MAX_FEATURES}")
    rejected: Counter[str] = Counter()
    kept: dict[tuple[str, str, tuple[str, ...]], CaptionFeature] = {}
    for item in raw:
        fields = item if isinstance(item, Mapping) else {}
        scale, aspect, phrase = (fields.get(name) for name in ("scale", "aspect", "value"))
        if not (isinstance(scale, str) and isinstance(aspect, str) and isinstance(phrase, str)):
            raise BadReply("schema", "a feature without the texts scale, aspect and value")
        phrase = " ".join(phrase.split()).strip(" .;,")
        identity = (scale, aspect, stems(phrase))
        reason = _rejection(scale, aspect, phrase, path) or ("repeated" if identity in kept else None)
        if reason is not None:
            rejected[reason] += 1
            continue
        number = 1 + sum(one.scale == scale for one in kept.values())
        kept[identity] = CaptionFeature(f"{scale}-{number}", scale, aspect, phrase)
    if not kept:
        raise BadReply("no-feature", f"{len(raw)} features, rejected: {dict(rejected)}")
    return Decomposition(tuple(kept.values()), dict(sorted(rejected.items())))


def _rejection(scale: str, aspect: str, phrase: str, path: CaptionedPath) -> str | None:
    texts = dict(path.texts)
    if scale not in texts:
        return "unknown-scale"
    if aspect not in load_prompt("decompose")["aspects"]:
        return "unknown-aspect"
    if len(stems(phrase)) > MAX_WORDS:
        return "too-long"
    return grounded_in(phrase, texts[scale])
