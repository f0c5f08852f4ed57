"""Step 1: captions into atomic features, each of which has to stand in the caption that it is taken from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from dataset_script.curate.asking.prompts import load_prompt, messages
from dataset_script.curate.asking.replies import BadReply
from dataset_script.curate.asking.role import Result, Role, Task
from dataset_script.curate.features.captions import PATH_VIEW, CaptionedPath
from dataset_script.curate.features.containment import instruction_in, stands_in, words
from scale_vqa_eval.schema import VIEWS

MAX_WORDS: Final = 12
MAX_FEATURES: Final = 60
SCALES: Final = (*VIEWS, PATH_VIEW)


@dataclass(frozen=True, slots=True)
class Feature:
    """One finding: which text states it, of which aspect, in the text's own words.

    Attributes:
        id: name within its path, such as ``low_mag-1``.
        scale: a view, or ``path`` for the text across scales.
        aspect: one of the names in the prompt.
        value: the phrase.
    """

    id: str
    scale: str
    aspect: str
    value: str


@dataclass(frozen=True)
class Decomposed:
    """The features of a path, and how many were rejected for which reason."""

    features: tuple[Feature, ...]
    rejected: dict[str, int]


def reply_schema() -> dict[str, Any]:
    """Returns the JSON schema of a reply."""
    fields = {
        "scale": {"type": "string", "enum": list(SCALES)},
        "aspect": {"type": "string", "enum": list(load_prompt("decompose")["aspects"])},
        "value": {"type": "string"},
    }
    item = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    features = {"type": "array", "items": item}
    return {
        "type": "object",
        "properties": {"features": features},
        "required": ["features"],
        "additionalProperties": False,
    }


def decompose_paths(paths: Sequence[CaptionedPath], role: Role, tries: int) -> list[Result[Decomposed]]:
    """Asks for the features of paths; a path whose captions hold an instruction is not sent to any model."""
    results: dict[str, Result[Decomposed]] = {}
    tasks = []
    for path in paths:
        found = next((hit for _, text in path.texts if (hit := instruction_in(text))), None)
        if found is not None:
            results[path.key] = Result(path.key, None, (("injection-suspected", found),))
        else:
            tasks.append(_task(path))
    results |= {result.label: result for result in role.solve(tasks, tries)}
    return [results[path.key] for path in paths]


def _task(path: CaptionedPath) -> Task[Decomposed]:
    prompt = load_prompt("decompose")
    data = {"aspects": prompt["aspects"], "captions": dict(path.texts)}
    return Task(path.key, messages(prompt["system"], data), lambda value: read_features(value, path))


def read_features(value: Mapping[str, Any], path: CaptionedPath) -> Decomposed:
    """Reads a reply; features that the captions do not bear out are left out and counted.

    Raises:
        BadReply: ``schema`` where the reply has another form; ``no-feature`` where none is left.
    """
    raw = value.get("features")
    if not isinstance(raw, list):
        raise BadReply("schema", f"features is {type(raw).__name__}, not a list")
    if len(raw) > MAX_FEATURES:
        raise BadReply("schema", f"{len(raw)} features, more than {MAX_FEATURES}")
    texts, aspects = dict(path.texts), frozenset(load_prompt("decompose")["aspects"])
    rejected: Counter[str] = Counter()
    kept: list[Feature] = []
    for item in raw:
        fields = item if isinstance(item, Mapping) else {}
        scale, aspect, phrase = (fields.get(name) for name in ("scale", "aspect", "value"))
        if not (isinstance(scale, str) and isinstance(aspect, str) and isinstance(phrase, str)):
            raise BadReply("schema", "a feature without the texts scale, aspect and value")
        phrase = " ".join(phrase.split()).strip(" .;,")
        same = (scale, aspect, tuple(words(phrase)))
        reason = _reason(scale, aspect, phrase, texts, aspects)
        if reason is None and any((one.scale, one.aspect, tuple(words(one.value))) == same for one in kept):
            reason = "repeated"
        if reason is not None:
            rejected[reason] += 1
            continue
        number = 1 + sum(one.scale == scale for one in kept)
        kept.append(Feature(f"{scale}-{number}", scale, aspect, phrase))
    if not kept:
        raise BadReply("no-feature", f"{len(raw)} features, rejected: {dict(rejected)}")
    return Decomposed(tuple(kept), dict(sorted(rejected.items())))


def _reason(scale: str, aspect: str, phrase: str, texts: Mapping[str, str], aspects: frozenset[str]) -> str | None:
    if scale not in texts:
        return "unknown-scale"
    if aspect not in aspects:
        return "unknown-aspect"
    if len(words(phrase)) > MAX_WORDS:
        return "too-long"
    return stands_in(phrase, texts[scale])


def as_row(path: CaptionedPath, result: Result[Decomposed]) -> dict[str, Any]:
    """Returns the line of ``features.jsonl`` of a path."""
    value = result.value
    return {
        "path": path.key,
        "features": [asdict(feature) for feature in value.features] if value else [],
        "rejected": value.rejected if value else {},
        "failed": [list(one) for one in result.failed],
        "lost": value is None,
    }
