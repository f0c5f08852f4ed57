"""The report of a build of slides, for the terminal, ``build.json`` and the dataset card, and its shortcut probe.

The probe asks whether options alone tell the answer: simple image measures, a classifier, folds by slide. The groups
of a build leave nothing to find; the probe shows it, and detects if something went wrong. A second reader compares
the mean colours of question and options: this is not a leak, but a model should do better.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dataset_script.slides.exchange_groups import GroundingGroup
from dataset_script.slides.plan import GroundingSettings
from scale_vqa_eval.schema import MAGNIFICATION, MPP
from scale_vqa_eval.text import markdown

MAX_GROUPS: Final = 2500
"""Groups of a kind that are probed; of more an even sample is taken, so that memory and time stay bounded."""
FOLDS: Final = 5
CHANCE: Final = 0.25

Values = NDArray[np.float64]

MAX_IN_CARD: Final = 200
"""Slides listed in the card; ``build.json`` has them all."""


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


@dataclass(frozen=True)
class SlideUse:
    """How one slide was used.

    Attributes:
        slide: its name.
        patient: its patient.
        split: its split, or None if it gave no question.
        size_mm: (width, height).
        questions: kind -> number.
        notes: how its use differs from what was asked.
    """

    slide: str
    patient: str
    split: str | None
    size_mm: tuple[float, float]
    questions: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class BuildReport:
    """Each slide's use, split sizes, kinds, probes and settings of a build."""

    slides: tuple[SlideUse, ...]
    splits: Mapping[str, int]
    kinds: Mapping[str, int]
    probes: tuple[ShortcutResult, ...]
    settings: GroundingSettings

    @property
    def questions(self) -> int:
        """All questions."""
        return sum(self.splits.values())

    def as_json(self) -> str:
        """Returns the report as JSON text."""
        plain: dict[str, Any] = {
            "questions": self.questions,
            "splits": dict(self.splits),
            "kinds": dict(self.kinds),
            "settings": asdict(self.settings),
            "probes": [asdict(probe) for probe in self.probes],
            "slides": [asdict(use) for use in self.slides],
        }
        return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def summary_lines(report: BuildReport) -> Iterator[str]:
    """Yields the report for the terminal: one line per slide, then the probes."""
    for use in report.slides:
        yield f"{use.slide}: {_counts(use.questions) or 'no question'}" + (f" ({use.split})" if use.split else "")
    for probe in report.probes:
        yield probe_line(probe)


def probe_line(probe: ShortcutResult) -> str:
    """Returns one line on what options alone tell, and what colour tells."""
    chance = f"95% interval of chance {probe.chance_low:.1%} to {probe.chance_high:.1%}"
    alone = "not probed (one cluster)" if probe.options_alone is None else f"{probe.options_alone:.1%} right"
    verdict = "; OPTIONS ALONE TELL" if probe.leaks else ""
    return (
        f"{probe.kind}: options alone {alone} ({chance}, n={probe.n}){verdict}; "
        f"nearest mean colour {probe.colour_match:.1%} right"
    )


def card_note(report: BuildReport) -> str:
    """Returns the card's Markdown on the ``grounding`` config."""
    settings = report.settings
    scales = ", ".join(f"{MAGNIFICATION[view]} = {MPP[view]:g}" for view in settings.views)
    distractors = "the same slide" if settings.distractors == "same-slide" else "other patients' slides of the split"
    lines = [
        f"{report.questions} questions whose answers follow from the geometry of {_used(report)} slides; no expert "
        f"has looked at them. Views at {scales} um per pixel, nothing padded. Questions per kind and slide: at most "
        f"{settings.paths_per_slide}; seed {settings.seed}; distractors from {distractors}, matched on mean "
        "colour, share of tissue and sharpness; split by patient.",
        "",
        "Questions come in exchange groups of four (`group`): the same four options, each the answer once, so a "
        "reader of the options alone is right on exactly one in four. File names in the image columns contain "
        "the centre of a field: do not show them to a model.",
        "",
        "| kind | questions | options alone | chance (95%) | nearest mean colour |",
        "|---|---|---|---|---|",
    ]
    for probe in report.probes:
        alone = "-" if probe.options_alone is None else f"{probe.options_alone:.1%}"
        chance = f"{probe.chance_low:.1%} to {probe.chance_high:.1%}"
        lines.append(f"| {probe.kind} | {report.kinds[probe.kind]} | {alone} | {chance} | {probe.colour_match:.1%} |")
    if report.kinds.get("origin"):
        lines += [
            "",
            "The right box of an `origin` question shows the same tissue as its 200x field, so a reader that is "
            "trained on simple features of both can answer many of them. Report `origin` separately.",
        ]
    lines += [
        "",
        "Of the other kinds, too, the shown field and the right option share tissue, which no choice of wrong options "
        "hides completely. Compare a model with readers of simple features on the same questions, not with chance "
        "alone.",
    ]
    lines += [
        "",
        "| slide | patient | split | mm | questions | differs from the settings |",
        "|---|---|---|---|---|---|",
    ]
    for use in report.slides[:MAX_IN_CARD]:
        size = f"{use.size_mm[0]:.2f} x {use.size_mm[1]:.2f}"
        cells = [
            use.slide,
            use.patient,
            use.split or "-",
            size,
            _counts(use.questions) or "none",
            "; ".join(use.notes),
        ]
        lines.append("| " + " | ".join(markdown(cell) for cell in cells) + " |")
    lines += ["", "The split of every patient is in `grounding/splits.csv`; give it to later builds with `--splits`."]
    if len(report.slides) > MAX_IN_CARD:
        lines += ["", f"{len(report.slides) - MAX_IN_CARD} more slides are listed in `grounding/build.json`."]
    return "\n".join(lines)


def _used(report: BuildReport) -> int:
    return sum(1 for use in report.slides if use.split)


def _counts(questions: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in questions.items())
