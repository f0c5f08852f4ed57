"""Exchange groups: four template questions with one text, of four patients, in which each option is right once.

If models chose the features, two questions of a template would seldom cross the same two aspects, and four questions
would hardly ever have all combinations of two values each. So code searches for groups in the features before any
question is written. The findings of a group occur together *and* apart in the split, so that neither gives the other
away.

The plan is kept in ``sets.jsonl``. A later run with further paths adds groups among the new questions and keeps the
existing ones, so that no paid question is requested again in other words.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any, Final

from dataset_script.curate.candidates import (
    Candidate,
    FeaturePair,
    ValuePairs,
    pair_problem,
    usable_features,
)
from dataset_script.curate.captions import PATH_VIEW, SCALES, CaptionFeature, may_hold, stems
from dataset_script.curate.generate import FREE, QuestionPlan
from dataset_script.curate.work import WorkFolder, read_lines, write_lines
from scale_vqa_eval.controls.exchange_group import GROUP_SIZE, ExchangeGroup
from scale_vqa_eval.schema import row_id

Stems = tuple[str, ...]
PairKind = tuple[str, str, str, str]
"""Scale and aspect of the first feature, scale and aspect of the second."""
PlannedGroup = ExchangeGroup[tuple[str, FeaturePair]]
"""Members are (row id, features), in this order: both first values, only the first one, only the second one, none."""
MAX_PAIRS: Final = 32
"""Maximum number of feature pairs per question, preferably of common values; limits memory."""
MAX_TRIES: Final = 400
"""Maximum number of value combinations per question; keeps the time linear in the number of questions."""
MAX_VALUES: Final = 20
MAX_MEMBERS: Final = 8


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A template question that may join a group: row id, patient, captions, and possible feature pairs."""

    id: str
    patient: str
    texts: tuple[str, ...]
    pairs: tuple[FeaturePair, ...]


def is_product(group: PlannedGroup) -> bool:
    """Returns whether the four pairs are the product of two values each, with the same scales and aspects.

    >>> red, blue = (CaptionFeature("low_mag-1", "low_mag", "stroma", value) for value in ("red", "blue"))
    >>> one, two = (CaptionFeature("mid_mag-1", "mid_mag", "nuclei", value) for value in ("one", "two"))
    >>> members = (("a", (red, one)), ("b", (red, two)), ("c", (blue, one)), ("d", (blue, two)))
    >>> is_product(ExchangeGroup("a", members))
    True
    """
    if len(group.members) != GROUP_SIZE:
        return False
    pairs = [pair for _, pair in group.members]
    keys = [(stems(first.value), stems(second.value)) for first, second in pairs]
    (a, b), (_, d), (c, _), _ = keys
    product = [(a, b), (a, d), (c, b), (c, d)]
    return keys == product and len({_kind(pair) for pair in pairs}) == 1 and _distinct(a, c) and _distinct(b, d)


def recurring(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[CaptionFeature]]:
    """Returns path key -> its features that another path states as well.

    Features of the text across scales are all kept, because a question of diagnosis needs one.
    """
    same: dict[CaptionFeature, CaptionFeature] = {}
    found: dict[str, list[CaptionFeature]] = {}
    for row in rows:
        features = [CaptionFeature(**one) for one in row["features"]]
        found[row["path"]] = [same.setdefault(one, one) for one in features]
    counts = Counter(one for features in found.values() for one in {_identity(feature) for feature in features})
    return {
        key: [one for one in features if one.scale == PATH_VIEW or counts[_identity(one)] > 1]
        for key, features in found.items()
    }


def _identity(feature: CaptionFeature) -> tuple[str, str, Stems]:
    return feature.scale, feature.aspect, stems(feature.value)


def crossable(features: Sequence[CaptionFeature], question_type: str) -> tuple[FeaturePair, ...]:
    """Returns the pairs of features that a question of a type may cross, the coarser view first."""
    usable = sorted(usable_features(features, question_type), key=lambda one: (SCALES.index(one.scale), one.aspect))
    return tuple(
        pair for pair in combinations(usable, 2) if pair_problem(pair[0], pair[1], question_type, usable) is None
    )


def plan_groups(work: WorkFolder, plan: QuestionPlan, seed: int) -> list[PlannedGroup]:
    """Returns the exchange groups to write questions for, starting with the valid groups of earlier runs.

    Args:
        work: the work folder; the decompose step must be complete.
        plan: splits, forms and linked patients.
        seed: random seed of the search.
    """
    file = work.root / "sets.jsonl"
    features = recurring(work.rows("features"))
    kinds: dict[str, tuple[str, list[str]]] = {}  # row id -> path key, and (split, type, template) shared by a group
    for key, forms in sorted(plan.forms.items()):
        path = plan.paths[key]
        for question_type, form in forms.items():
            if form != FREE and features.get(key):
                row = row_id(path.slide, path.path_id, question_type)
                kinds[row] = (key, [path.split, question_type, form])
    before = {line["row"]: line for line in read_lines(file)} if file.is_file() else {}
    before = {row: line for row, line in before.items() if row in kinds and line["group"] == kinds[row][1]}
    groups = _still_valid(before, kinds, features, plan)
    # a question that was written outside of groups stays outside: a new request would be paid again
    closed = {row for row, line in before.items() if line["set"] is None}
    closed |= {row for group in groups for row, _ in group.members}
    by_kind: dict[tuple[str, ...], list[OpenQuestion]] = defaultdict(list)
    for row, (key, kind) in sorted(kinds.items()):
        if row not in closed:
            pairs, path = crossable(features[key], kind[1]), plan.paths[key]
            patient = plan.linked.get(path.patient, path.patient)
            by_kind[tuple(kind)].append(OpenQuestion(row, patient, path.captions, pairs))
    for kind_key, questions in sorted(by_kind.items()):
        groups += find_groups(questions, random.Random(f"{seed}:sets:{kind_key}"))
    members = {row: (number, pair) for number, group in enumerate(groups) for row, pair in group.members}
    lines = [
        {"row": row, "group": kinds[row][1], "set": number, "pair": [one.id for one in pair]}
        for row, (number, pair) in members.items()
    ]
    rest = [row for row in kinds if row not in members]
    write_lines(file, [*lines, *({"row": row, "group": kinds[row][1], "set": None, "pair": None} for row in rest)])
    return groups


def _still_valid(
    before: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, tuple[str, list[str]]],
    features: Mapping[str, Sequence[CaptionFeature]],
    plan: QuestionPlan,
) -> list[PlannedGroup]:
    """Returns the groups of an earlier run that the questions, features and captions still allow."""
    numbered: dict[int, list[tuple[str, FeaturePair]]] = defaultdict(list)
    for row, line in before.items():
        known = {one.id: one for one in features[kinds[row][0]]}
        pair = [known.get(name) for name in line["pair"] or ()]
        if line["set"] is not None and pair[0] is not None and pair[1] is not None:
            numbered[line["set"]].append((row, (pair[0], pair[1])))
    found = []
    for _, members in sorted(numbered.items()):
        group = ExchangeGroup(members[0][0], tuple(members))
        paths = [plan.paths[kinds[row][0]] for row, _ in members]
        patients = {plan.linked.get(path.patient, path.patient) for path in paths}
        if len(patients) == GROUP_SIZE and is_product(group):
            values = {feature.value for _, pair in members for feature in pair}
            stated = any(
                may_hold(value, path.captions)
                for path, (_, pair) in zip(paths, members, strict=True)
                for value in values
                if all(stems(value) != stems(own.value) for own in pair)
            )
            if not stated:
                found.append(group)
    return found


def find_groups(questions: Sequence[OpenQuestion], rng: random.Random) -> Iterator[PlannedGroup]:
    """Yields disjoint groups among the questions of one split and template, within a limited time per question.

    The result depends on the order of ``questions`` and on the state of ``rng``.
    """
    search = _GroupSearch(questions, rng)
    for number in rng.sample(range(len(questions)), len(questions)):
        found = search.group_with(number)
        if found is not None:
            yield found


class _GroupSearch:
    """Index of the questions by pair of values, and the questions that are taken."""

    def __init__(self, questions: Sequence[OpenQuestion], rng: random.Random) -> None:
        self.questions, self.rng = questions, rng
        self.stated: dict[tuple[int, Stems], bool] = {}
        self.taken: set[int] = set()
        self.pairs = [self._sampled(pairs) for pairs in self._with_counts()]
        self.cells: dict[tuple[PairKind, Stems, Stems], list[tuple[int, FeaturePair]]] = defaultdict(list)
        self.firsts: dict[tuple[PairKind, Stems], dict[Stems, None]] = defaultdict(dict)
        self.seconds: dict[tuple[PairKind, Stems], dict[Stems, None]] = defaultdict(dict)
        for number, pairs in enumerate(self.pairs):
            for pair in pairs:
                kind, first, second = _kind(pair), stems(pair[0].value), stems(pair[1].value)
                self.cells[kind, first, second].append((number, pair))
                self.firsts[kind, second][first] = None
                self.seconds[kind, first][second] = None

    def _with_counts(self) -> Iterator[list[tuple[int, FeaturePair]]]:
        """Yields for each question the pairs whose values recur, with the count of the rarer value."""
        counts: Counter[tuple[str, str, Stems]] = Counter()
        for question in self.questions:
            ones = {one.id: one for pair in question.pairs for one in pair}
            counts.update({_identity(one) for one in ones.values()})
        for question in self.questions:
            rarer = [min(counts[_identity(one)] for one in pair) for pair in question.pairs]
            yield [(count, pair) for count, pair in zip(rarer, question.pairs, strict=True) if count > 1]

    def _sampled(self, pairs: list[tuple[int, FeaturePair]]) -> list[FeaturePair]:
        drawn = sorted(((count * self.rng.random(), index) for index, (count, _) in enumerate(pairs)), reverse=True)
        return [pairs[index][1] for _, index in drawn[:MAX_PAIRS]]

    def group_with(self, number: int) -> PlannedGroup | None:
        """Returns a group with the given question and marks its members as taken, or returns None."""
        tries = MAX_TRIES
        for pair in self.pairs[number] if number not in self.taken else ():
            kind, a, b = _kind(pair), stems(pair[0].value), stems(pair[1].value)
            for c in self._some(self.firsts[kind, b], a):
                for d in self._some(self.seconds[kind, a], b):
                    tries -= 1
                    if tries < 0:
                        return None
                    if (kind, c, d) in self.cells:
                        found = self._group(number, pair, kind, (a, b), (c, d))
                        if found is not None:
                            return found
        return None

    def _some(self, values: Mapping[Stems, None], own: Stems) -> list[Stems]:
        some = [value for value in values if value != own and _distinct(value, own)]
        return self.rng.sample(some, min(MAX_VALUES, len(some)))

    def _group(
        self, number: int, pair: FeaturePair, kind: PairKind, own: tuple[Stems, Stems], other: tuple[Stems, Stems]
    ) -> PlannedGroup | None:
        (a, b), (c, d) = own, other
        cells = [[(number, pair)], self.cells[kind, a, d], self.cells[kind, c, b], self.cells[kind, c, d]]
        wrong = ((c, d), (c, b), (a, d), (a, b))  # the two values that are wrong for each member
        fitting = [self._fitting(members, values) for members, values in zip(cells, wrong, strict=True)]
        chosen = self._of_four_patients(fitting, frozenset())
        if chosen is None:
            return None
        self.taken |= {index for index, _ in chosen}
        members = tuple((self.questions[index].id, found) for index, found in chosen)
        return ExchangeGroup(members[0][0], members)

    def _fitting(
        self, members: list[tuple[int, FeaturePair]], wrong: tuple[Stems, Stems]
    ) -> list[tuple[int, FeaturePair]]:
        """Returns up to ``MAX_MEMBERS`` free members of a cell whose captions do not state a wrong value."""
        fits: list[tuple[int, FeaturePair]] = []
        taken = 0
        for index, pair in members:
            if index in self.taken:
                taken += 1
            elif not any(self._states(index, value) for value in wrong):
                fits.append((index, pair))
                if len(fits) == MAX_MEMBERS:
                    break
        if taken > MAX_MEMBERS:
            members[:] = [member for member in members if member[0] not in self.taken]
        return fits

    def _states(self, index: int, value: Stems) -> bool:
        if (index, value) not in self.stated:
            self.stated[index, value] = may_hold(" ".join(value), self.questions[index].texts)
        return self.stated[index, value]

    def _of_four_patients(
        self, cells: Sequence[Sequence[tuple[int, FeaturePair]]], seen: frozenset[str]
    ) -> list[tuple[int, FeaturePair]] | None:
        """Returns one member of each cell, from distinct patients, or None (depth-first search)."""
        if not cells:
            return []
        for member in cells[0]:
            patient = self.questions[member[0]].patient
            rest = None if patient in seen else self._of_four_patients(cells[1:], seen | {patient})
            if rest is not None:
                return [member, *rest]
        return None


def _kind(pair: FeaturePair) -> PairKind:
    return pair[0].scale, pair[0].aspect, pair[1].scale, pair[1].aspect


def _distinct(left: Stems, right: Stems) -> bool:
    """Returns whether neither of two findings contains the other."""
    return not (set(left) <= set(right) or set(right) <= set(left))


def group_candidates(
    written: Sequence[Candidate], seed: int, planned: Sequence[PlannedGroup], linked: Mapping[str, str]
) -> list[Candidate]:
    """Returns the candidates of exchange groups with their options; the four of a group have one text.

    A planned group is used if its four questions were written as planned; the others are searched for more groups.

    Args:
        written: candidates without options.
        seed: random seed of the search and the option orders.
        planned: groups that the questions were written for.
        linked: patient -> patient that counts as the same in a group, because they share an image.
    """
    by_id = {one.id: one for one in written if one.form != FREE}
    by_kind: dict[tuple[str, ...], list[PlannedGroup]] = defaultdict(list)
    rest = dict(by_id)
    for group in planned:
        members = [(by_id.get(row), pair) for row, pair in group.members]
        if all(one is not None and (one.first, one.second) == pair for one, pair in members):
            by_kind[_text_kind(by_id[group.members[0][0]])].append(group)
            for row, _ in group.members:
                del rest[row]
    open_questions: dict[tuple[str, ...], list[OpenQuestion]] = defaultdict(list)
    for _, one in sorted(rest.items()):
        patient = linked.get(one.path.patient, one.path.patient)
        question = OpenQuestion(one.id, patient, one.path.captions, ((one.first, one.second),))
        open_questions[_text_kind(one)].append(question)
    built: list[Candidate] = []
    for kind in sorted(by_kind.keys() | open_questions.keys()):
        rng = random.Random(f"{seed}:{kind}")
        found = (*by_kind[kind], *find_groups(open_questions[kind], rng))
        groups = [sorted((by_id[row] for row, _ in one.members), key=lambda one: one.id) for one in found]
        used: set[tuple[ValuePairs, tuple[int, ...]]] = set()
        # nothing here may depend on which item has which facts: a reader who knows the seed can draw the orders again
        for number, four in enumerate(sorted(groups, key=lambda some: some[0].id), 1):
            name = "set-" + "-".join(part.replace(" ", "_") for part in kind) + f"-{number:04d}"
            spelled = [{stems(one.first.value): one.first.value for one in four}]
            spelled.append({stems(one.second.value): one.second.value for one in four})
            (a, c), (b, d) = (sorted(values) for values in spelled)
            values = ((spelled[0][a], spelled[0][c]), (spelled[1][b], spelled[1][d]))
            # groups with the same findings get different option orders as long as there are any
            orders = [order for order in permutations(range(4)) if (values, order) not in used]
            order = rng.choice(orders or list(permutations(range(4))))
            used.add((values, order))
            common: dict[str, Any] = {"values": values, "order": order, "sources": ("corpus", "corpus"), "group": name}
            truths = [(int(stems(one.first.value) == c), int(stems(one.second.value) == d)) for one in four]
            built += [replace(one, truth=truth, **common) for one, truth in zip(four, truths, strict=True)]
    return built


def _text_kind(one: Candidate) -> tuple[str, ...]:
    return one.path.split, one.form, one.first.scale, one.first.aspect, one.second.scale, one.second.aspect
