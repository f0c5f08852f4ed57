"""Step 2, our part: options of drafts, in exchange sets where four paths allow one, else each drawn for itself."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import combinations, permutations

from dataset_script.curate.features.containment import content, may_hold, words
from dataset_script.curate.features.decompose import Feature
from dataset_script.curate.questions.contrasts import ContrastPool, contrast_pool
from dataset_script.curate.questions.drafts import Draft
from dataset_script.curate.questions.items import Item, Place, with_order
from dataset_script.curate.questions.plan import FREE

REDRAWS = 12
Key = tuple[str, ...]


@dataclass(frozen=True)
class Assembly:
    """Items, and row id -> why a draft got no options: ``too-common`` or ``no-contrast``."""

    items: list[Item]
    refused: dict[str, str]


def assemble(
    drafts: Sequence[Draft], places: Mapping[str, Place], seed: int, known: Sequence[Item] = (), sets: bool = True
) -> Assembly:
    """Gives drafts their options.

    Args:
        drafts: drafts without options.
        places: path key -> where it belongs.
        seed: of everything drawn.
        known: items that have theirs: they stay, and their findings count in the pools.
        sets: make exchange sets of the template questions among ``drafts``.
    """
    made = exchange_items(drafts, places, seed) if sets else []
    grouped = {item.id for item in made}
    everyone = [*(item.draft for item in known), *drafts]
    findings: dict[tuple[str, str], list[str]] = defaultdict(list)
    for draft in sorted(everyone, key=lambda one: one.id):
        for feature in (draft.first, draft.second):
            findings[draft.question_type, feature.aspect].append(feature.value)
    pools = {key: contrast_pool(found, f"{seed}:{key}") for key, found in findings.items()}
    refused: dict[str, str] = {}
    set_texts = {(item.draft.question, item.options) for item in (*known, *made) if item.group is not None}
    for draft in drafts:
        if draft.id not in grouped:
            item = _single(draft, places[draft.path], pools, seed, set_texts)
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
) -> Item | str:
    rng = random.Random(f"{seed}:{draft.id}:{draft.version}")
    pairs, sources = [], []
    for feature, named in zip((draft.first, draft.second), draft.contrasts, strict=True):
        pool = pools[draft.question_type, feature.aspect]
        others = (draft.first, draft.second)
        found = _contrast(feature, named, pool, place, others, rng)
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
    feature: Feature, named: str, pool: ContrastPool, place: Place, pair: Sequence[Feature], rng: random.Random
) -> tuple[str, str] | None:
    """Returns the wrong value and its source; what the captions of the path bear out is no wrong value."""
    refused: list[str] = []
    for _ in range(REDRAWS):
        drawn = pool.draw(feature.value, rng, refused)
        if drawn is None:
            break
        if _is_wrong(drawn, place, pair):
            return drawn, "corpus"
        refused.append(drawn)
    useful = [value for value in pool.others(feature.value) if value not in refused]
    if useful:
        return None  # given back as too common: a word of the model's own would unbalance it again
    usable = named and content(named) and words(named) != words(feature.value) and _is_wrong(named, place, pair)
    return (named, "model") if usable else None


def _is_wrong(value: str, place: Place, pair: Sequence[Feature]) -> bool:
    """Says whether nothing in a path's texts bears a finding out, and it is not one of the pair itself."""
    return not may_hold(value, place.texts) and all(words(value) != words(one.value) for one in pair)


def exchange_items(drafts: Iterable[Draft], places: Mapping[str, Place], seed: int) -> list[Item]:
    """Makes exchange sets: four template questions of one text, of four patients, whose findings are all four
    combinations of two pairs. The text of the four is one, so that any reader of it is right on exactly one.
    """
    alike: dict[tuple[str, ...], list[Draft]] = defaultdict(list)
    for draft in drafts:
        if draft.form != FREE:
            first, second = draft.first, draft.second
            split = places[draft.path].split
            alike[split, draft.form, first.scale, first.aspect, second.scale, second.aspect].append(draft)
    made: list[Item] = []
    for key, members in sorted(alike.items()):
        rng = random.Random(f"{seed}:{key}")
        members = sorted(members, key=lambda one: one.id)
        rng.shuffle(members)
        for number, (four, pairs) in enumerate(_sets(members, lambda one: places[one.path].patient), 1):
            order = rng.sample(range(4), 4)
            name = "set-" + "-".join(part.replace(" ", "_") for part in key) + f"-{number:04d}"
            made += _members(four, pairs, order, name, places)
    return made


Pairs = tuple[tuple[str, str], tuple[str, str]]


def _members(
    four: Sequence[Draft], pairs: Pairs, order: Sequence[int], name: str, places: Mapping[str, Place]
) -> list[Item]:
    if any(
        may_hold(value, places[draft.path].texts)
        for draft in four
        for pair, own in zip(pairs, (draft.first, draft.second), strict=True)
        for value in pair
        if words(value) != words(own.value)
    ):
        return []
    a, b, c, d = order
    compared = [[words(value) for value in pair] for pair in pairs]
    return [
        Item(
            draft,
            places[draft.path],
            pairs,
            (compared[0].index(words(draft.first.value)), compared[1].index(words(draft.second.value))),
            (a, b, c, d),
            ("corpus", "corpus"),
            name,
        )
        for draft in four
    ]


def _sets(members: Sequence[Draft], patient: Callable[[Draft], str]) -> Iterable[tuple[list[Draft], Pairs]]:
    """Yields disjoint fours whose findings are the product of two pairs, each of another patient."""
    cells: dict[tuple[Key, Key], list[Draft]] = defaultdict(list)
    seconds: dict[Key, set[Key]] = defaultdict(set)
    for draft in members:
        first, second = tuple(words(draft.first.value)), tuple(words(draft.second.value))
        cells[first, second].append(draft)
        seconds[first].add(second)
    several = sorted(first for first, found in seconds.items() if len(found) > 1)
    for one, other in combinations(several, 2):
        if _one_holds_the_other(one, other):
            continue
        for left, right in combinations(sorted(seconds[one] & seconds[other]), 2):
            wanted = [cells[cell] for cell in ((one, left), (one, right), (other, left), (other, right))]
            while not _one_holds_the_other(left, right):
                four = _of_four_patients(wanted, patient)
                if four is None:
                    break
                for cell, draft in zip(wanted, four, strict=True):
                    cell.remove(draft)
                yield four, ((four[0].first.value, four[2].first.value), (four[0].second.value, four[1].second.value))


def _one_holds_the_other(one: Key, other: Key) -> bool:
    return set(one) <= set(other) or set(other) <= set(one)


def _of_four_patients(cells: Sequence[Sequence[Draft]], patient: Callable[[Draft], str]) -> list[Draft] | None:
    """Returns one draft of each cell, all of other patients, None where there are none: first fit, depth first."""

    def search(place: int, taken: frozenset[str]) -> list[Draft] | None:
        if place == len(cells):
            return []
        for draft in cells[place]:
            name = patient(draft)
            if name not in taken:
                rest = search(place + 1, taken | {name})
                if rest is not None:
                    return [draft, *rest]
        return None

    return search(0, frozenset())
