"""Asks whether options alone tell the answer: simple image measures, a classifier, folds by slide.

The groups of a build leave nothing to find (``groups``); the probe is there to show it, and to find out where
something has gone wrong. Beside it stands a reader who compares mean colours of question and options: no leak, but
what a model should be better than.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dataset_script.slides.exchange_groups import GroundingGroup

MAX_GROUPS: Final = 2500
"""Groups of a kind that are probed; of more an even sample is taken, so that memory and time stay bounded."""
FOLDS: Final = 5
CHANCE: Final = 0.25

Values = NDArray[np.float64]


@dataclass(frozen=True)
class OptionTable:
    """Measures of the options of some questions.

    Attributes:
        options: (questions, 4, measures).
        queries: (questions, measures) of the image asked about.
        gold: (questions,) 0-based.
        clusters: (questions,) unit of the folds: the slide; the group where groups span slides or there is one slide.
    """

    options: Values
    queries: Values
    gold: NDArray[np.intp]
    clusters: NDArray[np.str_]


@dataclass(frozen=True)
class ShortcutResult:
    """How often a reader is right, beside what chance allows.

    Attributes:
        kind: kind of question.
        n: questions.
        options_alone: share right of the probe that sees the options alone; None if there is only one fold.
        chance_low: lower end of the 95% interval of chance (binomial).
        chance_high: its upper end.
        colour_match: share right of the reader who takes the option whose mean colour is nearest.
    """

    kind: str
    n: int
    options_alone: float | None
    chance_low: float
    chance_high: float
    colour_match: float

    @property
    def leaks(self) -> bool:
        """Whether options alone do better than chance allows."""
        return self.options_alone is not None and self.options_alone > self.chance_high


def option_table(groups: Sequence[GroundingGroup]) -> OptionTable:
    """Collects the measures of groups; every member is asked about once.

    An origin question's options are positions in one view: their measures are those of the box, and where it lies.
    """
    options, queries, clusters = [], [], []
    slides = [{member.slide for member in group.members} for group in groups]
    by_group = len(set().union(*slides)) == 1 or any(len(names) > 1 for names in slides)
    for group in groups:
        measures = np.array(group.measures())
        if group.kind == "origin":
            context = group.members[0].fields.context
            assert context is not None
            positions = np.array(
                [(member.target.x - context.x, member.target.y - context.y) for member in group.members]
            )
            measures = np.hstack([measures, positions / context.side, np.abs(positions).max(axis=1, keepdims=True)])
        options += [measures] * len(group.members)
        queries += group.query_measures()
        clusters += [group.name if by_group else group.members[0].slide] * len(group.members)
    gold = np.tile(np.arange(4), len(options) // 4)
    return OptionTable(np.array(options), np.array(queries), gold, np.array(clusters))


def probe_options(kind: str, table: OptionTable, seed: int) -> ShortcutResult:
    """Runs the probe and the colour-matching reader on a table of options."""
    from scipy.stats import binom

    n = len(table.gold)
    low, high = binom.interval(0.95, n, CHANCE)
    distance = np.linalg.norm(table.options[:, :, :3] - table.queries[:, None, :3], axis=2)
    colour = float(np.mean(distance.argmin(axis=1) == table.gold))
    right = probe_right(table, seed)
    alone = None if right is None else float(np.mean(right))
    return ShortcutResult(kind, n, alone, low / n, high / n, colour)


def probe_right(table: OptionTable, seed: int) -> NDArray[np.bool_] | None:
    """Returns for every question whether the cross-fitted probe is right; None if all come from one cluster.

    A forest and a logistic model vote on each option's measures as they are, less the question's mean, and ranked.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    clusters = np.unique(table.clusters)
    if len(clusters) < 2:
        return None
    n, options, measures = table.options.shape
    centred = table.options - table.options.mean(axis=1, keepdims=True)
    ranked = table.options.argsort(axis=1).argsort(axis=1)
    features = np.concatenate([table.options, centred, ranked], axis=2).reshape(n * options, 3 * measures)
    gold = (np.arange(options) == table.gold[:, None]).ravel()
    votes = np.zeros((n, options))
    for train, test in GroupKFold(min(FOLDS, len(clusters))).split(votes, groups=table.clusters):
        seen, unseen = (np.flatnonzero(np.repeat(np.isin(np.arange(n), part), options)) for part in (train, test))
        for model in (
            RandomForestClassifier(100, min_samples_leaf=5, random_state=seed),
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        ):
            model.fit(features[seen], gold[seen])
            chances = model.predict_proba(features[unseen])[:, 1].reshape(-1, options)
            votes[test] += chances / chances.sum(axis=1, keepdims=True)
    return np.asarray(votes.argmax(axis=1) == table.gold)


def probe_groups(groups: Iterable[GroundingGroup], seed: int) -> list[ShortcutResult]:
    """Probes the groups of a build kind by kind, an even sample of them where there are very many."""
    kept: dict[str, list[GroundingGroup]] = {}
    seen: dict[str, int] = {}
    step: dict[str, int] = {}
    for group in groups:
        members = kept.setdefault(group.kind, [])
        if seen.setdefault(group.kind, 0) % step.setdefault(group.kind, 1) == 0:
            members.append(group)
        seen[group.kind] += 1
        if len(members) > MAX_GROUPS:
            kept[group.kind] = members[::2]
            step[group.kind] *= 2
    return [probe_options(kind, option_table(members), seed) for kind, members in kept.items()]
