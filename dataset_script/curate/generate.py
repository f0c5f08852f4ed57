"""The model calls of steps 1 and 2: captions to features, and features to questions.

A feature must be grounded in the caption that it is taken from. A question has a given type and names two features of
its path, which code crosses in its options.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from dataset_script.curate.candidates import Candidate, FeaturePair, QuestionSpec, has_pair, pair_problem
from dataset_script.curate.captions import (
    PATH_VIEW,
    SCALES,
    CaptionedPath,
    CaptionFeature,
    content,
    grounded_in,
    instruction_in,
    stems,
)
from dataset_script.curate.roles import (
    BadReply,
    RoleClient,
    RoleTask,
    TaskResult,
    chat_messages,
    load_prompt,
    object_schema,
    outcomes,
    text_field,
)
from dataset_script.splits import patient_splits
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.schema import MAGNIFICATION, QUESTION_TYPES, row_id

MAX_WORDS: Final = 12
MAX_FEATURES: Final = 60


@dataclass(frozen=True)
class Decomposition:
    """The features of a path, and reason -> number of rejected ones."""

    features: tuple[CaptionFeature, ...]
    rejected: dict[str, int]


def features_schema() -> dict[str, Any]:
    """Returns the JSON schema of a reply of the ``decompose`` role."""
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
        The rows of ``features/<shard>.jsonl``, one per path, and the report: counts, outcomes, lost paths.
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
    rows = [
        {
            "path": result.label,
            "features": [asdict(feature) for feature in result.value.features] if result.value else [],
            "rejected": result.value.rejected if result.value else {},
            "failed": [list(one) for one in result.failed],
            "lost": result.value is None,
        }
        for result in ordered
    ]
    return rows, report


def read_features(value: Mapping[str, Any], path: CaptionedPath) -> Decomposition:
    """Reads a reply; features that the captions do not state are dropped and counted.

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


FREE: Final = "free"
_NAMES_THE_TASK: Final = re.compile(
    r"\b(?:feature|finding|observation)s?[\s-]+lists?\b|\bcaptions?\b|\bJSON\b", re.IGNORECASE
)


@dataclass(frozen=True)
class QuestionPlan:
    """The questions that each path gets.

    Attributes:
        paths: path key -> the path with its split.
        forms: path key -> question type -> id of a template, or ``free``.
        linked: patient -> the first of the patients who share an image with this one; only patients who share one.
    """

    paths: Mapping[str, CaptionedPath]
    forms: Mapping[str, Mapping[str, str]]
    linked: Mapping[str, str]

    @property
    def linked_groups(self) -> list[list[str]]:
        """The groups of patients who share a split because they share an image."""
        groups: dict[str, list[str]] = {}
        for patient, first in sorted(self.linked.items()):
            groups.setdefault(first, []).append(patient)
        return [members for _, members in sorted(groups.items())]


def plan_questions(paths: Sequence[CaptionedPath], seed: int, linked: Mapping[str, str]) -> QuestionPlan:
    """Assigns splits and forms: half of the questions of each split and type use one of two templates, equally often.

    The result does not depend on the order of the input.

    Args:
        paths: every path of the input.
        seed: seed of splits and forms.
        linked: patient -> patient with the same split, because they share an image.
    """
    together = {path.key: linked.get(path.patient, path.patient) for path in paths}
    splits = patient_splits(Counter(together.values()), seed)
    with_split = {path.key: replace(path, split=splits[together[path.key]]) for path in paths}
    keys: dict[str, list[str]] = {}
    for key in sorted(with_split):
        keys.setdefault(with_split[key].split, []).append(key)
    forms: dict[str, dict[str, str]] = {key: {} for key in with_split}
    for number, (question_type, about) in enumerate(load_prompt("generate")["types"].items()):
        names = [template["id"] for template in about["templates"]]
        cycle = [names[0], FREE, names[1], FREE]
        for split, members in sorted(keys.items()):
            order = members.copy()
            random.Random(f"{seed}:{split}:{question_type}").shuffle(order)
            for index, key in enumerate(order, number):  # types start at different forms, which evens out odd counts
                forms[key][question_type] = cycle[index % len(cycle)]
    assert all(set(found) == set(QUESTION_TYPES) for found in forms.values())
    return QuestionPlan(with_split, forms, linked)


def template_text(question_type: str, form: str) -> str | None:
    """Returns the question of a template, or None for a free question."""
    templates = load_prompt("generate")["types"][question_type]["templates"]
    return next((one["text"] for one in templates if one["id"] == form), None)


def specs_of(
    plan: QuestionPlan, keys: Sequence[str], features: Mapping[str, Any], pairs: Mapping[str, FeaturePair]
) -> list[QuestionSpec]:
    """Returns one spec per question type for each path; paths whose decomposition failed are skipped.

    Args:
        plan: the plan of all paths.
        keys: keys of the paths.
        features: path key -> its row of the decompose step.
        pairs: row id -> the two features of a question that is planned for an exchange group.

    Raises:
        InputError: if a path has not been decomposed.
    """
    specs = []
    for key in keys:
        if key not in features:
            expected, found = "features of the decompose step", "none: the captions have changed since"
            raise InputError(Problem(f"path {key}", expected, found, "run --step decompose"))
        if features[key]["lost"]:
            continue
        path, found_features = plan.paths[key], tuple(CaptionFeature(**one) for one in features[key]["features"])
        for question_type, form in plan.forms[key].items():
            row = row_id(path.slide, path.path_id, question_type)
            specs.append(QuestionSpec(row, path, found_features, question_type, form, pair=pairs.get(row)))
    return specs


def question_schema() -> dict[str, Any]:
    """Returns the JSON schema of a reply of the ``generate`` role."""
    text = {"type": "string"}
    half = object_schema({"feature": text, "contrast": text})
    return object_schema({"question": text, "first": half, "second": half, "rationale": text})


def write_candidates(specs: Sequence[QuestionSpec], client: RoleClient, tries: int) -> list[TaskResult[Candidate]]:
    """Asks for questions; a spec without two features that can be crossed fails as ``no-feature`` without a call."""
    results: dict[str, TaskResult[Candidate]] = {}
    tasks = []
    for spec in specs:
        if has_pair(spec.usable(), spec.question_type):
            tasks.append(RoleTask(spec.id, _request(spec), functools.partial(read_candidate, spec=spec)))
        else:
            why = f"no two features that a question of {spec.question_type} can join"
            results[spec.id] = TaskResult(spec.id, None, (("no-feature", why),))
    results |= {result.label: result for result in client.solve(tasks, tries)}
    return [results[spec.id] for spec in specs]


def _request(spec: QuestionSpec) -> tuple[Mapping[str, str], ...]:
    prompt = load_prompt("generate")
    about = prompt["types"][spec.question_type]
    named = [prompt["pair"].format(first=spec.pair[0].id, second=spec.pair[1].id)] if spec.pair else []
    data: dict[str, Any] = {
        "question_type": f"{spec.question_type}: {about['aim']}",
        "constraints": [*prompt["constraints"], about["constraint"], *named, *spec.constraints],
        "question": template_text(spec.question_type, spec.form) or "write one of your own",
        "features": [
            {"id": one.id, "scale": MAGNIFICATION.get(one.scale, one.scale), "aspect": one.aspect, "value": one.value}
            for one in spec.usable()
        ],
    }
    across = dict(spec.path.texts).get(PATH_VIEW)
    if spec.question_type == "type_E" and across:
        data["text_across_scales"] = across
    if spec.version:
        data["attempt"] = spec.version + 1  # a different request: the cache has the reply that was rejected
    return chat_messages(prompt["system"], data)


def read_candidate(value: Mapping[str, Any], spec: QuestionSpec) -> Candidate:
    """Reads a reply and checks it against the rules of its type; raises BadReply if it breaks one."""
    _check_no_options(value)
    halves = [value.get(name) for name in ("first", "second")]
    if not all(isinstance(half, Mapping) for half in halves):
        raise BadReply("schema", "first and second are objects with feature and contrast")
    known = {one.id: one for one in spec.usable()}
    chosen, contrasts = [], []
    for half in halves:
        named = text_field(half, "feature", 200)
        if named not in known:
            raise BadReply("answer-no-option", f"{named!r} is not one of the features that were given")
        chosen.append(known[named])
        contrasts.append(text_field(half, "contrast", 200, required=False).strip(" .;,"))
    first, second = chosen
    if spec.pair is not None and (first, second) != spec.pair:
        raise BadReply("wrong-pair", f"the first is {spec.pair[0].id} and the second {spec.pair[1].id}")
    problem = pair_problem(first, second, spec.question_type, list(known.values()))
    if problem is not None:
        raise BadReply("wrong-scales", problem)
    for one, contrast in zip(chosen, contrasts, strict=True):
        if contrast and stems(contrast) == stems(one.value):
            raise BadReply("identical-options", f"the contrast of {one.id} is the finding itself")
    fixed = template_text(spec.question_type, spec.form)
    question = fixed or text_field(value, "question", 600)
    if fixed is None:
        _check_question(question, chosen)
    rationale = text_field(value, "rationale", 1500)
    if _NAMES_THE_TASK.search(rationale):
        raise BadReply("feature-list", "the rationale refers to the text that it was made from, not to the image")
    found = next((hit for text in (question, rationale, *contrasts) if (hit := instruction_in(text))), None)
    if found is not None:
        raise BadReply("schema", f"a text that reads as an instruction: {found}")
    return Candidate(
        id=spec.id,
        path=spec.path,
        question_type=spec.question_type,
        form=spec.form,
        question=question,
        first=first,
        second=second,
        contrasts=(contrasts[0], contrasts[1]),
        rationale=rationale,
        version=spec.version,
        constraint=spec.constraint,
    )


def _check_no_options(value: Mapping[str, Any]) -> None:
    """Refuses a reply with options, which only code builds; the outcome names a defect of the options if any."""
    raw = value.get("options")
    options = list(raw.values()) if isinstance(raw, Mapping) else raw
    if not isinstance(options, list) or not options:
        return
    different = len({stems(str(option)) for option in options})
    if different < len(options):
        raise BadReply("identical-options", f"{len(options) - different + 1} options of the reply are the same")
    answer = value.get("answer")
    letters = [str(key).upper() for key in raw] if isinstance(raw, Mapping) else list("ABCDEFGHIJ"[: len(options)])
    if answer is not None and str(answer).strip().upper() not in letters:
        raise BadReply("answer-no-option", f"the answer {str(answer)[:40]!r} is not one of {', '.join(letters)}")
    raise BadReply("schema", "options are built by the program: name two features instead")


def _check_question(question: str, chosen: Sequence[CaptionFeature]) -> None:
    if _NAMES_THE_TASK.search(question):
        raise BadReply("feature-list", "the question refers to the text that it was made from, not to the image")
    for one in chosen:
        named = (content(one.value) - content(one.aspect)).intersection(stems(question))
        if named:
            raise BadReply("stem-names-answer", f"{', '.join(sorted(named))} of {one.id}")
