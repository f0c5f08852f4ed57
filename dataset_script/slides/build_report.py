"""The report of a build of slides: for the terminal, for ``build.json``, and for the dataset card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from dataset_script.slides.settings import GroundingSettings
from dataset_script.slides.shortcut_probe import ShortcutResult
from scale_vqa_eval.schema import MAGNIFICATION, MPP
from scale_vqa_eval.text import markdown

MAX_IN_CARD: Final = 200
"""Slides listed in the card; ``build.json`` has them all."""


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
        f"{report.questions} questions whose truth is the geometry of {_used(report)} slides; no expert was needed, "
        f"none has looked at them. Views at {scales} um per pixel, nothing padded. Paths a slide and kind: "
        f"{settings.paths_per_slide}; seed {settings.seed}; distractors from {distractors}, matched on mean "
        "colour, share of tissue and sharpness; split by patient.",
        "",
        "Questions come in exchange groups of four (`group`): the same four options, each the answer once, so a "
        "reader of the options alone is right on exactly one in four. File names in the image columns tell the "
        "centre of a field: do not show them to a model.",
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
            "trained on simple features of both can answer many of them. Report `origin` apart.",
        ]
    lines += [
        "",
        "| slide | patient | split | mm | questions | used otherwise than asked |",
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
    lines += ["", "The split of every patient is in `grounding/splits.csv`; `--splits` takes it, so that it stays."]
    if len(report.slides) > MAX_IN_CARD:
        lines += ["", f"{len(report.slides) - MAX_IN_CARD} more slides are listed in `grounding/build.json`."]
    return "\n".join(lines)


def _used(report: BuildReport) -> int:
    return sum(1 for use in report.slides if use.split)


def _counts(questions: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in questions.items())
