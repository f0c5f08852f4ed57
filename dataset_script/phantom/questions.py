"""Questions of a path from its facts, and captions for each of its views."""

from __future__ import annotations

from dataclasses import dataclass

from dataset_script.phantom.facts import ASKED, FEATURES
from dataset_script.phantom.plan import GroupPlan, PathPlan, SlidePlan
from dataset_script.phantom.words import OPTION_TEMPLATES, SIGNS, WORDINGS
from scale_vqa_eval.controls.factorial_options import crossed_options
from scale_vqa_eval.schema import LETTERS, MAGNIFICATION, QUESTION_TYPES, VIEWS, row_id


@dataclass(frozen=True)
class PhantomQuestion:
    """A question of a path in the terms of a release row, images left aside."""

    id: str
    question: str
    options: tuple[str, str, str, str]
    answer: str
    rationale: str
    dimension: str
    group: str


def path_questions(slide: SlidePlan, path: PathPlan) -> list[PhantomQuestion]:
    """Returns the questions of a path, one a question type, in the order of the types."""
    return [_question(slide, path, group) for group in path.groups]


def _question(slide: SlidePlan, path: PathPlan, group: GroupPlan) -> PhantomQuestion:
    first, second = (FEATURES[name] for name in ASKED[group.question_type])
    wordings = WORDINGS[group.question_type]
    question = wordings[group.wording % len(wordings)]
    values = group.values
    built = crossed_options(
        first=(first.phrases[values[0][0]], first.phrases[values[0][1]]),
        second=(second.phrases[values[1][0]], second.phrases[values[1][1]]),
        truth=(values[0].index(path.facts.value(first.name)), values[1].index(path.facts.value(second.name))),
        order=group.order,
        template=OPTION_TEMPLATES[group.question_type],
        question=question,
    )
    return PhantomQuestion(
        id=row_id(slide.name, path.path_id, group.question_type),
        question=question,
        options=built.options,
        answer=LETTERS[built.answer],
        rationale=" ".join(_sentence(path, name) for name in (first.name, second.name)),
        dimension=QUESTION_TYPES[group.question_type],
        group=group.id,
    )


def _sentence(path: PathPlan, feature: str) -> str:
    sign = SIGNS[feature][path.facts.value(feature)]
    return f"At {MAGNIFICATION[FEATURES[feature].view]} {sign}."


def captions(path: PathPlan) -> dict[str, str]:
    """Returns view -> what the view shows, from the scene graph; without ``high_mag`` where the path has none."""
    texts = {}
    for view in VIEWS:
        if view == "high_mag" and not path.has_high:
            continue
        clauses = [SIGNS[name][path.facts.value(name)] for name, feature in FEATURES.items() if feature.view == view]
        texts[view] = ". ".join(clause[0].upper() + clause[1:] for clause in clauses) + "."
    return texts
