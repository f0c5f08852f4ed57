"""What can be true of a path through a phantom slide: features, their values, and the words for them.

A feature is something that one scale shows. All phrases of a feature have as many words and as many letters, so that
options made from them do not differ in length. Words are those of histology; what they name here is drawn, not grown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from scale_vqa_eval.schema import QUESTION_TYPES


@dataclass(frozen=True)
class Feature:
    """A feature: the view that shows it, and value -> phrase."""

    name: str
    view: str
    phrases: Mapping[str, str]


FEATURES: Final[Mapping[str, Feature]] = MappingProxyType(
    {
        name: Feature(name, view, MappingProxyType(phrases))
        for name, view, phrases in (
            ("growth", "low_mag", {"glandular": "glandular", "sheetlike": "sheetlike", "sievelike": "sievelike"}),
            (
                "focus",
                "low_mag",
                {
                    "necrosis": "necrotic debris",
                    "adipose": "adipose lobules",
                    "fibrosis": "fibrous bundles",
                    "haematoma": "fresh haematoma",
                },
            ),
            ("infiltrate", "low_mag", {"nodular": "nodular", "diffuse": "diffuse", "minimal": "minimal"}),
            ("site", "mid_mag", {"touching": "touching", "avoiding": "avoiding"}),
            ("depth", "mid_mag", {"margin": "margin", "centre": "centre"}),
            ("stroma", "mid_mag", {"compact": "compact", "swollen": "swollen"}),
            ("vessels", "mid_mag", {"congested": "congested", "collapsed": "collapsed"}),
            (
                "cells",
                "high_mag",
                {"lymphocytes": "lymphocytes", "neutrophils": "neutrophils", "eosinophils": "eosinophils"},
            ),
            ("nuclei", "high_mag", {"uniform": "one", "bizarre": "two"}),
            ("mitoses", "high_mag", {"many": "confirmed, mitoses present", "zero": "disproved, mitoses missing"}),
        )
    }
)

ASKED: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "type_A": ("infiltrate", "cells"),
        "type_B": ("vessels", "mitoses"),
        "type_C": ("site", "depth"),
        "type_D": ("focus", "stroma"),
        "type_E": ("growth", "nuclei"),
    }
)
"""Question type -> the two features that its options cross. Each feature is asked by one type alone."""

assert tuple(ASKED) == tuple(QUESTION_TYPES)
assert sorted(name for pair in ASKED.values() for name in pair) == sorted(FEATURES)


@dataclass(frozen=True)
class Facts:
    """The truth of one path: the value of every feature."""

    growth: str
    focus: str
    infiltrate: str
    site: str
    depth: str
    stroma: str
    vessels: str
    cells: str
    nuclei: str
    mitoses: str

    def __post_init__(self) -> None:
        for name, feature in FEATURES.items():
            if (value := getattr(self, name)) not in feature.phrases:
                raise ValueError(f"{name} must be one of {', '.join(feature.phrases)}, not {value!r}")

    def value(self, feature: str) -> str:
        """Returns the value of a feature by its name."""
        return str(getattr(self, feature))
