"""A question during curation: QuestionSpec (the request to a model) -> Candidate -> Question (released).

A model writes the text of a candidate and selects two features; code builds the options {a, a'} x {b, b'}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations, product
from typing import Any, Final

from dataset_script.curate.captions import PATH_VIEW, CaptionedPath, CaptionFeature, content
from dataset_script.curate.roles import load_prompt
from scale_vqa_eval.controls.exchange_group import geometry_problems
from scale_vqa_eval.errors import InputError, Problem
from scale_vqa_eval.questions import Question
from scale_vqa_eval.schema import MAGNIFICATION, QUESTION_TYPES, VIEWS

FeaturePair = tuple[CaptionFeature, CaptionFeature]
ValuePairs = tuple[tuple[str, str], tuple[str, str]]
UNCROSSED: Final = "other finding"
"""Aspect whose values are not used as options, because several may be true at once."""
SCALE_NAMES: Final = {**MAGNIFICATION, PATH_VIEW: "all views"}
COMBINATIONS: Final = ((0, 0), (0, 1), (1, 0), (1, 1))


def usable_features(features: Sequence[CaptionFeature], question_type: str) -> list[CaptionFeature]:
    """Returns the features that a question of a type may ask about, by aspect and scale."""
    scales = {"type_C": VIEWS[:2], "type_E": (*VIEWS, PATH_VIEW)}.get(question_type, VIEWS)
    return [one for one in features if one.aspect != UNCROSSED and one.scale in scales]


def pair_problem(
    first: CaptionFeature, second: CaptionFeature, question_type: str, usable: Sequence[CaptionFeature]
) -> str | None:
    """Returns why two features cannot be crossed in a question of a type, or None."""
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


def has_pair(features: Sequence[CaptionFeature], question_type: str) -> bool:
    """Returns whether any two of the features can be crossed in a question of a type."""
    pairs = combinations(features, 2)
    return any(pair_problem(first, second, question_type, features) is None for first, second in pairs)


@dataclass(frozen=True)
class QuestionSpec:
    """The request for a question.

    Attributes:
        id: row id.
        features: the features of the path.
        question_type: ``type_A`` to ``type_E``.
        form: id of a template, or ``free``.
        constraints: further sentences for the model.
        avoid: ids of features that must not be used again.
        version: how often the question has been rewritten.
        constraint: id of the last constraint, for the statistics.
        pair: first and second feature if an exchange group requires them, or None to leave the choice to the model.
    """

    id: str
    path: CaptionedPath
    features: tuple[CaptionFeature, ...]
    question_type: str
    form: str
    constraints: tuple[str, ...] = ()
    avoid: frozenset[str] = frozenset()
    version: int = 0
    constraint: str | None = None
    pair: FeaturePair | None = None

    def usable(self) -> list[CaptionFeature]:
        """Returns the features that the question may cross, including those to avoid if too few others are left."""
        if self.pair is not None:
            return list(self.pair)
        allowed = usable_features(self.features, self.question_type)
        left = [one for one in allowed if one.id not in self.avoid]
        return left if has_pair(left, self.question_type) else allowed

    def rewritten(self, constraint: str, sentences: Sequence[str], previous: Candidate | None) -> QuestionSpec:
        """Returns the spec of the next version, with a further constraint and without the features used so far."""
        used = {previous.first.id, previous.second.id} if previous is not None else set()
        return replace(
            self,
            constraints=tuple(dict.fromkeys((*self.constraints, *sentences))),
            avoid=self.avoid | used,
            version=self.version + 1,
            constraint=constraint,
            pair=None,
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question as a model wrote it, and its options once they are built.

    Attributes:
        id: row id.
        question_type: ``type_A`` to ``type_E``.
        form: id of a template, or ``free``.
        question: the text.
        first, second: two features of the path.
        contrasts: the wrong value that the model proposes for each, or an empty string.
        rationale: the model's; letter A means that both values are right, B only the first, C only the second, D none.
        version: how often the question has been rewritten.
        constraint: id of the constraint under which it was rewritten.
        values: a right and a wrong value of each feature; None before options are built.
        truth: index of the right value of each feature.
        order: option order, as indices into ``COMBINATIONS``.
        sources: origin of each wrong value: ``corpus`` (right on another path) or ``model``.
        group: name of its exchange group, or None.
    """

    id: str
    path: CaptionedPath
    question_type: str
    form: str
    question: str
    first: CaptionFeature
    second: CaptionFeature
    contrasts: tuple[str, str]
    rationale: str
    version: int = 0
    constraint: str | None = None
    values: ValuePairs | None = None
    truth: tuple[int, int] = (0, 0)
    order: tuple[int, ...] = (0, 1, 2, 3)
    sources: tuple[str, ...] = ()
    group: str | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The four combinations of the values, in option order."""
        assert self.values is not None
        template = load_prompt("generate")["types"][self.question_type]["option"]
        scales = {"first_scale": SCALE_NAMES[self.first.scale], "second_scale": SCALE_NAMES[self.second.scale]}
        texts = [
            template.format(first=without_capital(first), second=without_capital(second), **scales)
            for first, second in product(*self.values)
        ]
        return tuple(texts[number][0].upper() + texts[number][1:] for number in self.order)

    @property
    def answer(self) -> int:
        """Index of the right option."""
        return self.order.index(2 * self.truth[0] + self.truth[1])

    @property
    def same_geometry(self) -> bool:
        """Whether the options agree in number of words, overlaps, negations and letters."""
        return not geometry_problems(self.options, self.question)

    def to_question(self, rationale: str | None = None) -> Question:
        """Returns the question in its released form."""
        return Question(
            id=self.id,
            question=self.question,
            options=self.options,
            answer=self.answer,
            dimension=QUESTION_TYPES[self.question_type],
            slide=self.path.slide,
            patient=self.path.patient,
            path_id=self.path.path_id,
            rationale=rationale,
            group=self.group,
            split=self.path.split,
        )

    def as_row(self) -> dict[str, Any]:
        """Returns the fields for a JSON file; once options are built, those that the model wrote are in ``draft``."""
        row = {name: getattr(self, name) for name in _NAMES}
        row |= {"path": self.path.key, "first": asdict(self.first), "second": asdict(self.second)}
        written = {name: row.pop(name) for name in _NAMES[: _NAMES.index("values")]}
        return written if self.values is None else {"draft": written, **row}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], paths: Mapping[str, CaptionedPath]) -> Candidate:
        """Reverses ``as_row``; raises InputError if the path is no longer in the captions."""
        flat = {**row.get("draft", row), **{name: value for name, value in row.items() if name != "draft"}}
        path = paths.get(flat["path"])
        if path is None:
            found = "none: the captions have changed since"
            raise InputError(Problem(f"path {flat['path']}", "a path of the captions", found, "run all steps again"))
        flat |= {"path": path, "first": CaptionFeature(**flat["first"]), "second": CaptionFeature(**flat["second"])}
        flat |= {name: tuple(flat[name]) for name in ("contrasts", "truth", "order", "sources") if name in flat}
        if "values" in flat:
            flat["values"] = tuple(tuple(pair) for pair in flat["values"])
        return cls(**flat)


_NAMES: Final = tuple(field.name for field in fields(Candidate))


def without_capital(value: str) -> str:
    """Returns a finding for use within an option, without the capital of the start of a sentence.

    >>> without_capital("Compact stroma."), without_capital("CD3 positive cells"), without_capital("HER2")
    ('compact stroma', 'CD3 positive cells', 'HER2')
    """
    bare = value.strip(" .;,")
    head = bare.split(" ", 1)[0]
    return bare[0].lower() + bare[1:] if head[1:] == head[1:].lower() and not any(c.isdigit() for c in head) else bare
