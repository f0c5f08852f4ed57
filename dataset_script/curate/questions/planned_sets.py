"""Which template questions are to form exchange sets, decided on the features of all paths before a model is asked.

The plan is kept (``sets.jsonl``): a later run, with paths that had failed before, adds sets among what is new and
leaves the others as they are, so that no question that was paid for is ordered in other words.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_script.curate.features.containment import may_hold, words
from dataset_script.curate.features.decompose import Feature
from dataset_script.curate.questions.exchange import Candidate, ExchangeSet, crossable, find_sets, recurring
from dataset_script.curate.questions.items import Place
from dataset_script.curate.questions.plan import FREE, PathPlan
from dataset_script.curate.work import WorkFolder, write_lines
from scale_vqa_eval.schema import row_id

Group = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Order:
    """A template question: its path, and the split, type and template that a set shares."""

    path: str
    group: Group


@dataclass(frozen=True, slots=True)
class _Planned:
    """A line of the file: group of a question, number of its set or None, and the ids of its two features."""

    group: Group
    number: int | None
    pair: tuple[str, str]


def plan_sets(
    work: WorkFolder,
    plans: Mapping[str, PathPlan],
    location: Mapping[str, Place],
    linked: Mapping[str, str],
    seed: int,
) -> list[ExchangeSet]:
    """Returns the exchange sets to be ordered, those of earlier runs first where they still stand.

    Args:
        work: the work folder, its features made.
        plans: path key -> split and forms.
        location: path key -> patient and captions.
        linked: patient -> the patient that stands for it in a set, because they share an image.
        seed: of the search.
    """
    file = work.root / "sets.jsonl"
    features = recurring(work.rows("features"), work.rows("features"))
    orders = _orders(features, plans, location)
    before = _read(file)
    sets = _standing(before, orders, features, location, linked)
    kept = {row for one in sets for row, _ in one.members}
    # one that was left alone stays alone: asked in other words, it would be paid for again
    closed = {
        row for row, old in before.items() if old.number is None and row in orders and orders[row].group == old.group
    }
    groups: dict[Group, list[str]] = defaultdict(list)
    for row, order in orders.items():
        if row not in kept and row not in closed:
            groups[order.group].append(row)
    for group, rows in sorted(groups.items()):
        candidates = []
        for row in sorted(rows):
            place = location[orders[row].path]
            pairs = crossable(features[orders[row].path], group[1])
            candidates.append(Candidate(row, linked.get(place.patient, place.patient), place.texts, pairs))
        sets += find_sets(candidates, random.Random(f"{seed}:sets:{group}"))
    _write(file, sets, orders)
    return sets


def _orders(
    features: Mapping[str, tuple[Feature, ...]], plans: Mapping[str, PathPlan], location: Mapping[str, Place]
) -> dict[str, _Order]:
    """Returns row id -> order of every template question of a path with features."""
    return {
        row_id(location[key].slide, location[key].path_id, question_type): _Order(
            key, (plan.split, question_type, form)
        )
        for key, plan in sorted(plans.items())
        if features.get(key)
        for question_type, form in plan.forms.items()
        if form != FREE
    }


def _read(file: Path) -> dict[str, _Planned]:
    if not file.is_file():
        return {}
    found = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            split, question_type, form = one["group"]
            first, second = one["pair"] or ("", "")
            found[one["row"]] = _Planned((split, question_type, form), one["set"], (first, second))
    return found


def _write(file: Path, sets: list[ExchangeSet], orders: Mapping[str, _Order]) -> None:
    pairs = {row: (number, pair) for number, one in enumerate(sets) for row, pair in one.members}
    write_lines(
        file,
        (
            {
                "row": row,
                "group": list(order.group),
                "set": pairs[row][0] if row in pairs else None,
                "pair": [one.id for one in pairs[row][1]] if row in pairs else None,
            }
            for row, order in _by_set(orders, pairs)
        ),
    )


def _by_set(
    orders: Mapping[str, _Order], pairs: Mapping[str, tuple[int, tuple[Feature, Feature]]]
) -> list[tuple[str, _Order]]:
    """Returns the members of sets first, in the order of their combinations, as they are read again."""
    return [(row, orders[row]) for row in pairs] + [(row, one) for row, one in orders.items() if row not in pairs]


def _standing(
    before: Mapping[str, _Planned],
    orders: Mapping[str, _Order],
    features: Mapping[str, tuple[Feature, ...]],
    location: Mapping[str, Place],
    linked: Mapping[str, str],
) -> list[ExchangeSet]:
    """Returns the sets of an earlier run whose questions, features and captions still allow them."""
    numbered: dict[int, list[str]] = defaultdict(list)
    for row, old in before.items():
        if old.number is not None:
            numbered[old.number].append(row)
    found = []
    for _, rows in sorted(numbered.items()):
        members = []
        for row in rows:
            order = orders.get(row)
            known = {one.id: one for one in features[order.path]} if order and order.group == before[row].group else {}
            first, second = (known.get(name) for name in before[row].pair)
            if first is not None and second is not None:
                members.append((row, (first, second)))
        one = ExchangeSet(tuple(members))
        places = [location[orders[row].path] for row, _ in members]
        patients = {linked.get(place.patient, place.patient) for place in places}
        if len(patients) == 4 and one.holds() and _fits(one, places):
            found.append(one)
    return found


def _fits(one: ExchangeSet, places: Sequence[Place]) -> bool:
    """Says whether no caption of a member bears a wrong value of its set out."""
    values = {feature.value for _, pair in one.members for feature in pair}
    return not any(
        may_hold(value, place.texts)
        for place, (_, pair) in zip(places, one.members, strict=True)
        for value in values
        if all(words(value) != words(own.value) for own in pair)
    )
