"""Step 2, our part: options of drafts, in exchange sets where four paths allow one, else each drawn for itself."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import permutations

from dataset_script.curate.features.containment import content, may_hold, words
from dataset_script.curate.features.decompose import Feature
from dataset_script.curate.questions.companions import Companion
from dataset_script.curate.questions.contrasts import ContrastPool, contrast_pool
from dataset_script.curate.questions.drafts import Draft
from dataset_script.curate.questions.exchange import Candidate, ExchangeSet, find_sets
from dataset_script.curate.questions.items import COMBINATIONS, Item, Place, with_order
from dataset_script.curate.questions.plan import FREE

REDRAWS = 12


@dataclass(frozen=True)
class Assembly:
    """Items, and row id -> why a draft got no options: ``too-common``, ``no-contrast`` or ``go-together``."""

    items: list[Item]
    refused: dict[str, str]


def assemble(
    drafts: Sequence[Draft],
    places: Mapping[str, Place],
    seed: int,
    known: Sequence[Item] = (),
    sets: bool = True,
    planned: Sequence[ExchangeSet] = (),
    linked: Mapping[str, str] | None = None,
    apart: Set[Companion] = frozenset(),
) -> Assembly:
    """Gives drafts their options.

    Args:
        drafts: drafts without options.
        places: path key -> where it belongs.
        seed: of everything drawn.
        known: items that have theirs: they stay, and their findings count in the pools.
        sets: make exchange sets of the template questions among ``drafts``.
        planned: the sets that the drafts were ordered for.
        linked: patient -> the patient that stands for it in a set, because they share an image.
        apart: findings that are not crossed with an aspect outside of sets, because they imply one of its findings.

    The findings of exchange sets are in no pool: each is right there as often as wrong already, and what the others
    show has to be balanced among themselves.
    """
    made = exchange_items(drafts, places, seed, planned, linked or {}) if sets else []
    grouped = {item.id for item in made}
    refused = {one.id: "go-together" for one in drafts if one.id not in grouped and _go_together(one, apart)}
    free = [draft for draft in drafts if draft.id not in grouped and draft.id not in refused]
    single = [*(item.draft for item in known if item.group is None), *free]
    findings: dict[tuple[str, str], list[str]] = defaultdict(list)
    for draft in sorted(single, key=lambda one: one.id):
        for feature in (draft.first, draft.second):
            findings[draft.question_type, feature.aspect].append(feature.value)
    pools = {key: contrast_pool(found, f"{seed}:{key}") for key, found in findings.items()}
    set_texts = {(item.draft.question, item.options) for item in (*known, *made) if item.group is not None}
    for draft in free:
        item = _single(draft, places[draft.path], pools, seed, set_texts, apart)
        if isinstance(item, str):
            refused[draft.id] = item
        else:
            made.append(item)
    return Assembly(sorted(made, key=lambda one: one.id), refused)


def _single(
    draft: Draft,
    place: Place,
    pools: Mapping[tuple[str, str], ContrastPool],
    seed: int,
    set_texts: Set[tuple[str, tuple[str, ...]]],
    apart: Set[Companion],
) -> Item | str:
    rng = random.Random(f"{seed}:{draft.id}:{draft.version}")
    pairs, sources = [], []
    turns = ((draft.first, draft.second), (draft.second, draft.first))
    for (feature, other), named in zip(turns, draft.contrasts, strict=True):
        pool = pools[draft.question_type, feature.aspect]
        found = _contrast(feature, other, named, pool, place, apart, rng)
        if found is None:
            return "too-common" if pool.others(feature.value) else "no-contrast"
        contrast, source = found
        sources.append(source)
        pairs.append((feature.value, contrast))
    item = Item(draft, place, (pairs[0], pairs[1]), (0, 0), (0, 1, 2, 3), (sources[0], sources[1]))
    orders = [with_order(item, order) for order in permutations(range(4))]
    rng.shuffle(orders)
    # a question that had the very text of an exchange set would make it one of five, and no set
    return next((one for one in orders if (draft.question, one.options) not in set_texts), orders[0])


def _contrast(
    feature: Feature,
    other: Feature,
    named: str,
    pool: ContrastPool,
    place: Place,
    apart: Set[Companion],
    rng: random.Random,
) -> tuple[str, str] | None:
    """Returns the wrong value and its source; what the captions of the path bear out is no wrong value."""

    def fits(value: str) -> bool:
        wrong = not may_hold(value, place.texts) and all(words(value) != words(one.value) for one in (feature, other))
        return wrong and not _implies(feature.aspect, value, other, apart)

    refused: list[str] = []
    for _ in range(REDRAWS):
        drawn = pool.draw(feature.value, rng, refused)
        if drawn is None:
            break
        if fits(drawn):
            return drawn, "corpus"
        refused.append(drawn)
    useful = [value for value in pool.others(feature.value) if value not in refused]
    if useful:
        return None  # given back as too common: a word of the model's own would unbalance it again
    usable = named and content(named) and words(named) != words(feature.value) and fits(named)
    return (named, "model") if usable else None


def _implies(aspect: str, value: str, other: Feature, apart: Set[Companion]) -> bool:
    return ((aspect, tuple(words(value))), other.aspect) in apart


def _go_together(draft: Draft, apart: Set[Companion]) -> bool:
    first, second = draft.first, draft.second
    return _implies(first.aspect, first.value, second, apart) or _implies(second.aspect, second.value, first, apart)


def exchange_items(
    drafts: Sequence[Draft],
    places: Mapping[str, Place],
    seed: int,
    planned: Sequence[ExchangeSet],
    linked: Mapping[str, str],
) -> list[Item]:
    """Makes exchange sets: four template questions of one text, of four patients, whose findings are all four
    combinations of two pairs. The text of the four is one, so that any reader of it is right on exactly one.

    Sets that were planned stand where their four drafts came; of what else is there, more are made.
    """
    of_templates = {draft.id: draft for draft in drafts if draft.form != FREE}
    by_kind: dict[tuple[str, ...], list[ExchangeSet]] = defaultdict(list)
    for one in planned:
        four = [of_templates.get(row) for row, _ in one.members]
        if all(draft is not None and (draft.first, draft.second) == one.pair_of(draft.id) for draft in four):
            by_kind[_kind(of_templates[one.members[0][0]], places)].append(one)
            for row, _ in one.members:
                del of_templates[row]
    drafts_of = {draft.id: draft for draft in drafts}
    alike: dict[tuple[str, ...], list[Draft]] = defaultdict(list)
    for draft in of_templates.values():
        alike[_kind(draft, places)].append(draft)
    made: list[Item] = []
    for kind in sorted(by_kind.keys() | alike.keys()):
        rng = random.Random(f"{seed}:{kind}")
        members = sorted(alike[kind], key=lambda one: one.id)
        candidates = []
        for one in members:
            place = places[one.path]
            patient = linked.get(place.patient, place.patient)
            candidates.append(Candidate(one.id, patient, place.texts, ((one.first, one.second),)))
        found = [*sorted(by_kind[kind], key=lambda one: one.members[0][0]), *find_sets(candidates, rng)]
        used: set[tuple[Pairs, tuple[int, ...]]] = set()
        for number, four in enumerate(found, 1):
            name = "set-" + "-".join(part.replace(" ", "_") for part in kind) + f"-{number:04d}"
            made += _members([drafts_of[row] for row, _ in four.members], name, places, rng, used)
    return made


Pairs = tuple[tuple[str, str], tuple[str, str]]


def _kind(draft: Draft, places: Mapping[str, Place]) -> tuple[str, ...]:
    first, second = draft.first, draft.second
    return places[draft.path].split, draft.form, first.scale, first.aspect, second.scale, second.aspect


def _members(
    four: Sequence[Draft],
    name: str,
    places: Mapping[str, Place],
    rng: random.Random,
    used: set[tuple[Pairs, tuple[int, ...]]],
) -> list[Item]:
    """Gives four drafts one text; two sets of the same findings get other orders as long as there are some."""
    pairs = (four[0].first.value, four[2].first.value), (four[0].second.value, four[1].second.value)
    orders = [order for order in permutations(range(4)) if (pairs, order) not in used]
    a, b, c, d = rng.choice(orders or list(permutations(range(4))))
    used.add((pairs, (a, b, c, d)))
    return [
        Item(draft, places[draft.path], pairs, COMBINATIONS[at], (a, b, c, d), ("corpus", "corpus"), name)
        for at, draft in enumerate(four)
    ]
