"""Step 2, the model's part: a question of a given type, and the two features of the path that its options cross."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from dataset_script.curate.asking.prompts import load_prompt, messages
from dataset_script.curate.asking.replies import BadReply, text_of
from dataset_script.curate.asking.role import Result, Role, Task
from dataset_script.curate.features.captions import PATH_VIEW, CaptionedPath
from dataset_script.curate.features.containment import content, instruction_in, words
from dataset_script.curate.features.decompose import Feature
from dataset_script.curate.questions.plan import template_text
from scale_vqa_eval.schema import MAGNIFICATION, VIEWS

Pair = tuple[Feature, Feature]
COARSE: Final = VIEWS[:2]
UNCROSSED: Final = "other finding"
"""Aspect whose values cannot be set against each other: both may be true."""
_SPEAKS_OF_TASK: Final = re.compile(
    r"\b(?:feature|finding|observation)s?[\s-]+lists?\b|\bcaptions?\b|\bJSON\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A question before it has options.

    Attributes:
        id: row id.
        path: key of its path.
        question_type: ``type_A`` to ``type_E``.
        form: id of a template, or ``free``.
        question: the text.
        first: feature that holds.
        second: feature that holds.
        contrasts: what the model named against them; empty where it named nothing of use.
        rationale: the model's, with A for both right, B the first alone, C the second alone, D neither.
        version: how often the question has been made again.
        constraint: id of the constraint under which it was made again.
    """

    id: str
    path: str
    question_type: str
    form: str
    question: str
    first: Feature
    second: Feature
    contrasts: tuple[str, str]
    rationale: str
    version: int = 0
    constraint: str | None = None

    def as_row(self) -> dict[str, Any]:
        """Returns plain values for a file."""
        return asdict(self)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Draft:
        """Reads what ``as_row`` gave."""
        first, second = (Feature(**row[name]) for name in ("first", "second"))
        return cls(**{**row, "first": first, "second": second, "contrasts": tuple(row["contrasts"])})


@dataclass(frozen=True)
class Order:
    """What is wanted: a question of a type on a path, in a form, under constraints.

    Attributes:
        id: row id.
        path: the path.
        features: its features.
        question_type: the type.
        form: id of a template, or ``free``.
        constraints: further sentences for the model.
        avoid: ids of features that are not to be used again.
        version: how often it has been made.
        constraint: id of the last constraint, for the statistics.
        pair: the first and the second feature, where an exchange set asks for these; None leaves both to the model.
    """

    id: str
    path: CaptionedPath
    features: tuple[Feature, ...]
    question_type: str
    form: str
    constraints: tuple[str, ...] = ()
    avoid: frozenset[str] = frozenset()
    version: int = 0
    constraint: str | None = None
    pair: Pair | None = None

    def usable(self) -> list[Feature]:
        """Returns the features that a question of this type may cross; those to avoid only where too few are left."""
        if self.pair is not None:
            return list(self.pair)
        allowed = usable_features(self.features, self.question_type)
        left = [one for one in allowed if one.id not in self.avoid]
        return left if _has_pair(left, self.question_type) else allowed


def usable_features(features: Sequence[Feature], question_type: str) -> list[Feature]:
    """Returns the features whose aspect and scale a question of a type may ask about."""
    allowed = [one for one in features if one.aspect != UNCROSSED]
    if question_type == "type_C":
        return [one for one in allowed if one.scale in COARSE]
    return allowed if question_type == "type_E" else [one for one in allowed if one.scale in VIEWS]


def reply_schema() -> dict[str, Any]:
    """Returns the JSON schema of a reply."""
    text = {"type": "string"}
    named = {"feature": text, "contrast": text}
    half = {"type": "object", "properties": named, "required": list(named), "additionalProperties": False}
    fields = {"question": text, "first": half, "second": half, "rationale": text}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def write_drafts(orders: Sequence[Order], role: Role, tries: int) -> list[Result[Draft]]:
    """Asks for drafts; an order whose path has no two features for its type fails as ``no-feature`` unasked."""
    results: dict[str, Result[Draft]] = {}
    tasks = []
    for order in orders:
        if _has_pair(order.usable(), order.question_type):
            tasks.append(_task(order))
        else:
            why = f"no two features that a question of {order.question_type} can join"
            results[order.id] = Result(order.id, None, (("no-feature", why),))
    results |= {result.label: result for result in role.solve(tasks, tries)}
    return [results[order.id] for order in orders]


def _task(order: Order) -> Task[Draft]:
    prompt = load_prompt("generate")
    about = prompt["types"][order.question_type]
    fixed = template_text(order.question_type, order.form)
    data: dict[str, Any] = {
        "question_type": f"{order.question_type}: {about['aim']}",
        "constraints": [*prompt["constraints"], about["constraint"], *_pair_named(order), *order.constraints],
        "question": fixed or "write one of your own",
        "features": [
            {"id": one.id, "scale": MAGNIFICATION.get(one.scale, one.scale), "aspect": one.aspect, "value": one.value}
            for one in order.usable()
        ],
    }
    across = dict(order.path.texts).get(PATH_VIEW)
    if order.question_type == "type_E" and across:
        data["text_across_scales"] = across
    if order.version:
        data["attempt"] = order.version + 1  # else a reply that was found wanting would come from the cache again
    return Task(order.id, messages(prompt["system"], data), lambda value: read_draft(value, order))


def _pair_named(order: Order) -> list[str]:
    if order.pair is None:
        return []
    first, second = order.pair
    return [load_prompt("generate")["pair"].format(first=first.id, second=second.id)]


def read_draft(value: Mapping[str, Any], order: Order) -> Draft:
    """Reads a reply and holds it against the rules of its type.

    Raises:
        BadReply: with the outcome that names what is wrong.
    """
    _no_options_of_its_own(value)
    halves = [value.get(name) for name in ("first", "second")]
    if not all(isinstance(half, Mapping) for half in halves):
        raise BadReply("schema", "first and second are objects with feature and contrast")
    known = {one.id: one for one in order.usable()}
    chosen, contrasts = [], []
    for half in halves:
        named = text_of(half, "feature", 200)
        if named not in known:
            raise BadReply("answer-no-option", f"{named!r} is none of the features that were given")
        chosen.append(known[named])
        contrasts.append(text_of(half, "contrast", 200, needed=False).strip(" .;,"))
    if order.pair is not None and tuple(chosen) != order.pair:
        raise BadReply("wrong-pair", f"the first is {order.pair[0].id} and the second {order.pair[1].id}")
    problem = pair_problem(chosen[0], chosen[1], order.question_type, list(known.values()))
    if problem is not None:
        raise BadReply("wrong-scales", problem)
    for one, contrast in zip(chosen, contrasts, strict=True):
        if contrast and words(contrast) == words(one.value):
            raise BadReply("identical-options", f"the contrast of {one.id} is the finding itself")
    fixed = template_text(order.question_type, order.form)
    question = fixed or text_of(value, "question", 600)
    if fixed is None:
        _check_question(question, chosen)
    rationale = text_of(value, "rationale", 1500)
    if _SPEAKS_OF_TASK.search(rationale):
        raise BadReply("feature-list", "the rationale speaks of the text that it was made from, not of the image")
    bad = [text for text in (question, rationale, *contrasts) if instruction_in(text)]
    if bad:
        raise BadReply("schema", f"a text that reads as an instruction: {instruction_in(bad[0])}")
    return Draft(
        order.id,
        order.path.key,
        order.question_type,
        order.form,
        question,
        chosen[0],
        chosen[1],
        (contrasts[0], contrasts[1]),
        rationale,
        order.version,
        order.constraint,
    )


def _no_options_of_its_own(value: Mapping[str, Any]) -> None:
    """Names what is wrong with a reply that brings options along: they are built by code, whatever it says."""
    raw = value.get("options")
    options = list(raw.values()) if isinstance(raw, Mapping) else raw
    if not isinstance(options, list) or not options:
        return
    texts = [" ".join(words(str(option))) for option in options]
    if len(set(texts)) < len(texts):
        raise BadReply("identical-options", f"{len(texts) - len(set(texts)) + 1} options of the reply are the same")
    answer = value.get("answer")
    letters = [str(key).upper() for key in raw] if isinstance(raw, Mapping) else list("ABCDEFGHIJ"[: len(texts)])
    if answer is not None and str(answer).strip().upper() not in letters:
        raise BadReply("answer-no-option", f"the answer {str(answer)[:40]!r} is none of {', '.join(letters)}")
    raise BadReply("schema", "options are built by the program: name two features instead")


def _check_question(question: str, chosen: Sequence[Feature]) -> None:
    if _SPEAKS_OF_TASK.search(question):
        raise BadReply("feature-list", "the question speaks of the text that it was made from, not of the image")
    asked = frozenset(words(question))
    for one in chosen:
        named = content(one.value) - content(one.aspect)
        if named & asked:
            raise BadReply("stem-names-answer", f"{', '.join(sorted(named & asked))} of {one.id}")


def pair_problem(first: Feature, second: Feature, question_type: str, usable: Sequence[Feature]) -> str | None:
    """Says why two features cannot be crossed in a question of a type, None where they can."""
    if first.id == second.id or first.aspect == second.aspect:
        return f"{first.id} and {second.id} are of one aspect"
    if content(first.value) <= content(second.value) or content(second.value) <= content(first.value):
        return f"{first.id} and {second.id} say the same"
    if question_type in ("type_A", "type_B", "type_D") and first.scale == second.scale:
        return f"{question_type} joins two views, {first.id} and {second.id} are of one"
    across = any(one.scale == PATH_VIEW for one in usable)
    if question_type == "type_E" and across and PATH_VIEW not in (first.scale, second.scale):
        return "type_E rests on the text across scales, and neither feature is of it"
    return None


def _has_pair(features: Sequence[Feature], question_type: str) -> bool:
    return any(
        pair_problem(first, second, question_type, features) is None
        for place, first in enumerate(features)
        for second in features[place + 1 :]
    )


def reordered(order: Order, constraint: str, sentences: Sequence[str], draft: Draft | None) -> Order:
    """Returns the order for another version of a question, under a tightened constraint and away from its features."""
    used = {draft.first.id, draft.second.id} if draft is not None else set()
    return replace(
        order,
        constraints=tuple(dict.fromkeys((*order.constraints, *sentences))),
        avoid=order.avoid | used,
        version=order.version + 1,
        constraint=constraint,
        pair=None,
    )
