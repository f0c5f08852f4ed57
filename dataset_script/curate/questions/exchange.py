"""Exchange sets: four template questions of one text, of four patients, in which each option is right once.

Left to a model's choice, two questions of one template seldom cross the same two aspects, and four with all
combinations of two values each hardly ever. So code looks for the sets in the features, before any question is
written: what a set joins is found together *and* apart in the split, so that neither finding gives the other away.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

from dataset_script.curate.features.containment import may_hold, words
from dataset_script.curate.features.decompose import SCALES, Feature
from dataset_script.curate.questions.drafts import Pair, pair_problem, usable_features

Key = tuple[str, ...]
Kind = tuple[str, str, str, str]
MAX_PAIRS: Final = 32
"""Pairs of a question that are looked at, those of the commonest values likelier: bounds memory."""
MAX_TRIES: Final = 400
"""Combinations of values that are tried for a question: bounds time, which is linear in the questions."""
MAX_VALUES: Final = 20
MAX_MEMBERS: Final = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """A template question that may join a set: row id, patient, captions, and the pairs of features it may cross."""

    id: str
    patient: str
    texts: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class ExchangeSet:
    """Row id and pair of the four members, by their combination: both first values, the first alone, the second, none.

    >>> red, blue = (Feature("low_mag-1", "low_mag", "stroma", value) for value in ("red", "blue"))
    >>> one, two = (Feature("mid_mag-1", "mid_mag", "nuclei", value) for value in ("one", "two"))
    >>> ExchangeSet((("a", (red, one)), ("b", (red, two)), ("c", (blue, one)), ("d", (blue, two)))).holds()
    True
    """

    members: tuple[tuple[str, Pair], ...]

    def pair_of(self, row: str) -> Pair:
        """Returns the first and the second feature of a member."""
        return dict(self.members)[row]

    def holds(self) -> bool:
        """Says whether the four pairs are the product of two values each, of the same scales and aspects."""
        pairs = [pair for _, pair in self.members]
        keys = [(_key(first), _key(second)) for first, second in pairs]
        (a, b), (_, d), (c, _), _ = keys
        product = [(a, b), (a, d), (c, b), (c, d)]
        return keys == product and len({_kind(pair) for pair in pairs}) == 1 and _apart(a, c) and _apart(b, d)


def recurring(rows: Iterable[Mapping[str, Any]], again: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Feature, ...]]:
    """Returns path key -> its features that another path states as well; the lines of the features are read twice.

    Those of the text across scales are all kept: a question of diagnosis has to rest on one.
    """
    counts: Counter[tuple[str, str, Key]] = Counter()
    for row in rows:
        counts.update({(one["scale"], one["aspect"], tuple(words(one["value"]))) for one in row["features"]})
    same: dict[tuple[str, str, str, str], Feature] = {}
    found = {}
    for row in again:
        kept = []
        for one in row["features"]:
            if one["scale"] not in SCALES[:3] or counts[one["scale"], one["aspect"], tuple(words(one["value"]))] > 1:
                feature = Feature(**one)
                kept.append(same.setdefault((feature.id, feature.scale, feature.aspect, feature.value), feature))
        found[row["path"]] = tuple(kept)
    return found


def crossable(features: Sequence[Feature], question_type: str) -> tuple[Pair, ...]:
    """Returns every pair of features that a question of a type may cross, the coarser view first."""
    usable = sorted(usable_features(features, question_type), key=lambda one: (SCALES.index(one.scale), one.aspect))
    return tuple(
        pair for pair in combinations(usable, 2) if pair_problem(pair[0], pair[1], question_type, usable) is None
    )


def find_sets(candidates: Sequence[Candidate], rng: random.Random) -> Iterator[ExchangeSet]:
    """Yields disjoint sets among the questions of one split and template, each question tried for a bounded time.

    Args:
        candidates: the questions; their order matters, as the generator's state does.
        rng: local generator.
    """
    board = _Board(candidates, rng)
    for place in rng.sample(range(len(candidates)), len(candidates)):
        found = board.set_with(place)
        if found is not None:
            yield found


class _Board:
    """Which questions have which pair of values, and which are taken."""

    def __init__(self, candidates: Sequence[Candidate], rng: random.Random) -> None:
        self.candidates, self.rng = candidates, rng
        self.keys: dict[str, Key] = {}
        self.held: dict[tuple[int, Key], bool] = {}
        self.taken: set[int] = set()
        self.pairs = [self._likely(pairs) for pairs in self._with_counts()]
        self.cells: dict[tuple[Kind, Key, Key], list[tuple[int, Pair]]] = defaultdict(list)
        self.firsts: dict[tuple[Kind, Key], dict[Key, None]] = defaultdict(dict)
        self.seconds: dict[tuple[Kind, Key], dict[Key, None]] = defaultdict(dict)
        for place, pairs in enumerate(self.pairs):
            for pair in pairs:
                kind, first, second = _kind(pair), self._key(pair[0]), self._key(pair[1])
                self.cells[kind, first, second].append((place, pair))
                self.firsts[kind, second][first] = None
                self.seconds[kind, first][second] = None

    def _key(self, feature: Feature) -> Key:
        if feature.value not in self.keys:
            self.keys[feature.value] = _key(feature)
        return self.keys[feature.value]

    def _with_counts(self) -> Iterator[list[tuple[int, Pair]]]:
        """Yields of each question its pairs that may recur, each with how many questions have its rarer value."""
        counts: Counter[tuple[str, str, Key]] = Counter()
        for candidate in self.candidates:
            ones = {one.id: one for pair in candidate.pairs for one in pair}
            counts.update({(one.scale, one.aspect, self._key(one)) for one in ones.values()})
        for candidate in self.candidates:
            rarer = [min(counts[one.scale, one.aspect, self._key(one)] for one in pair) for pair in candidate.pairs]
            yield [(count, pair) for count, pair in zip(rarer, candidate.pairs, strict=True) if count > 1]

    def _likely(self, pairs: list[tuple[int, Pair]]) -> list[Pair]:
        drawn = sorted(((count * self.rng.random(), place) for place, (count, _) in enumerate(pairs)), reverse=True)
        return [pairs[place][1] for _, place in drawn[:MAX_PAIRS]]

    def set_with(self, place: int) -> ExchangeSet | None:
        """Takes a set that holds a question, None where none was found."""
        tries = MAX_TRIES
        for pair in self.pairs[place] if place not in self.taken else ():
            kind, one, left = _kind(pair), self._key(pair[0]), self._key(pair[1])
            for other in self._some(self.firsts[kind, left], one):
                for right in self._some(self.seconds[kind, one], left):
                    tries -= 1
                    if tries < 0:
                        return None
                    if (kind, other, right) in self.cells:
                        found = self._four(place, pair, (kind, one, left), other, right)
                        if found is not None:
                            return found
        return None

    def _some(self, values: Mapping[Key, None], own: Key) -> list[Key]:
        some = [value for value in values if value != own and _apart(value, own)]
        return self.rng.sample(some, min(MAX_VALUES, len(some)))

    def _four(self, place: int, pair: Pair, cell: tuple[Kind, Key, Key], other: Key, right: Key) -> ExchangeSet | None:
        kind, one, left = cell
        product = ((one, left), (one, right), (other, left), (other, right))
        rows = [[(place, pair)]] + [self.cells[kind, *values] for values in product[1:]]
        fits = []
        for (first, second), members in zip(product, rows, strict=True):
            wrong = (other if first == one else one, right if second == left else left)
            fits.append(self._fitting(members, wrong))
        four = _of_four_patients(fits, self.candidates)
        if four is None:
            return None
        self.taken |= {number for number, _ in four}
        return ExchangeSet(tuple((self.candidates[number].id, pair) for number, pair in four))

    def _fitting(self, members: list[tuple[int, Pair]], wrong: tuple[Key, Key]) -> list[tuple[int, Pair]]:
        """Returns some members of a cell that are free, and of which no caption bears a wrong value out."""
        fits: list[tuple[int, Pair]] = []
        gone = 0
        for number, pair in members:
            if number in self.taken:
                gone += 1
            elif not any(self._holds(number, value) for value in wrong):
                fits.append((number, pair))
                if len(fits) == MAX_MEMBERS:
                    break
        if gone > MAX_MEMBERS:
            members[:] = [member for member in members if member[0] not in self.taken]
        return fits

    def _holds(self, number: int, value: Key) -> bool:
        if (number, value) not in self.held:
            self.held[number, value] = may_hold(" ".join(value), self.candidates[number].texts)
        return self.held[number, value]


def _of_four_patients(
    cells: Sequence[Sequence[tuple[int, Pair]]], candidates: Sequence[Candidate]
) -> list[tuple[int, Pair]] | None:
    """Returns one member of each cell, all of other patients, None where there are none: first fit, depth first."""

    def search(depth: int, seen: frozenset[str]) -> list[tuple[int, Pair]] | None:
        if depth == len(cells):
            return []
        for member in cells[depth]:
            name = candidates[member[0]].patient
            if name not in seen:
                rest = search(depth + 1, seen | {name})
                if rest is not None:
                    return [member, *rest]
        return None

    return search(0, frozenset())


def _key(feature: Feature) -> Key:
    return tuple(words(feature.value))


def _kind(pair: Pair) -> Kind:
    return pair[0].scale, pair[0].aspect, pair[1].scale, pair[1].aspect


def _apart(one: Key, other: Key) -> bool:
    """Says whether neither of two findings holds the other."""
    return not (set(one) <= set(other) or set(other) <= set(one))
