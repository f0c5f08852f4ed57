"""Probes that are fitted to nothing: a letter, a length, the centre of the options, overlap, negation."""

from __future__ import annotations

import numpy as np

from scale_vqa_eval.audit.layout import FloatArray, OptionLayout
from scale_vqa_eval.audit.options_geometry import COLUMN
from scale_vqa_eval.audit.probe import ProbeResult, padded
from scale_vqa_eval.schema import LETTERS

# probe -> (family, feature, sign): the option with the most (+1) or the least (-1) of the feature
RULES = {
    "longest": ("length", "characters", 1),
    "shortest": ("length", "characters", -1),
    "medoid": ("similarity", "mean similarity to the others by tokens", 1),
    "anti-medoid": ("similarity", "mean similarity to the others by tokens", -1),
    "question overlap": ("overlap", "tokens shared with the stem", 1),
    "most negated": ("negation", "negations", 1),
    "least negated": ("negation", "negations", -1),
}
FAMILIES = ("position", "length", "similarity", "overlap", "negation")


def untrained_probes(layout: OptionLayout, geometry: FloatArray, families: tuple[str, ...]) -> list[ProbeResult]:
    """Returns the untrained probes of the wanted families.

    Args:
        layout: where each question's options stand.
        geometry: (N, f) options geometry.
        families: some of ``FAMILIES``.
    """
    found = always_letter(layout) if "position" in families else []
    for name, (family, feature, sign) in RULES.items():
        if family in families:
            found.append(ProbeResult(name, family, False, padded(sign * geometry[:, COLUMN[feature]], layout.counts)))
    return found


def always_letter(layout: OptionLayout) -> list[ProbeResult]:
    """One probe a letter that at least half of the questions have; a question without it is guessed evenly."""
    width = int(np.median(layout.counts))
    letters = np.arange(len(layout.owner)) - layout.starts[layout.owner]
    return [
        ProbeResult(f"always {LETTERS[number]}", "position", False, padded(letters == number, layout.counts))
        for number in range(width)
    ]
