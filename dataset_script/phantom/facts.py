"""What can be true of a path through a synthetic slide: features, their values and words, read from ``facts.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import yaml

_CONTENT: Final[dict[str, Any]] = yaml.safe_load(files(__package__).joinpath("facts.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class PhantomFeature:
    """A feature: the view that shows it, and value -> phrase in options."""

    name: str
    view: str
    phrases: Mapping[str, str]


FEATURES: Final[Mapping[str, PhantomFeature]] = {
    name: PhantomFeature(name, entry["view"], {value: words["phrase"] for value, words in entry["values"].items()})
    for name, entry in _CONTENT["features"].items()
}
SIGNS: Final[Mapping[str, Mapping[str, str]]] = {
    name: {value: words["sign"] for value, words in entry["values"].items()}
    for name, entry in _CONTENT["features"].items()
}
"""Feature -> value -> clause that says how it shows."""
ASKED: Final[Mapping[str, tuple[str, str]]] = {
    kind: (asked["features"][0], asked["features"][1]) for kind, asked in _CONTENT["questions"].items()
}
"""Question type -> the two features that its options cross."""
OPTION_TEMPLATES: Final[Mapping[str, str]] = {kind: asked["option"] for kind, asked in _CONTENT["questions"].items()}
WORDINGS: Final[Mapping[str, tuple[str, ...]]] = {
    kind: tuple(asked["wordings"]) for kind, asked in _CONTENT["questions"].items()
}
"""Question type -> wordings of the question."""


@dataclass(frozen=True)
class Facts:
    """The truth of one path: the value of every feature.

    Raises:
        ValueError: where a value is not one of its feature's.
    """

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
