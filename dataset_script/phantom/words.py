"""The words of phantom questions: question wordings, option templates, and the sign by which each fact shows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

WORDINGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "type_A": (
            "Which layout of the infiltrate in the 10x view belongs to which inflammatory cells in the 200x view?",
            "The infiltrate is looked at twice: its layout at 10x, its cells at 200x. What is seen?",
            "Which pair describes the inflammation of this path, far away and close up?",
        ),
        "type_B": (
            "The 10x view raises the suspicion of active growth. What do the two finer views add?",
            "Active growth is suspected at 10x. Which finding beside it at 40x, and which verdict at 200x, hold here?",
            "Do the finer scales bear out a suspicion of active growth, and how do the blood vessels look?",
        ),
        "type_C": (
            "Where in the 10x view does the 40x field lie, with regard to the large focus and the tissue's outline?",
            "The 10x view shows one large focus in a piece of tissue. Which place in it does the 40x view show?",
            "Find the 40x field in the 10x view. Which statement on its place is right?",
        ),
        "type_D": (
            "Which pairing of the large focus in the 10x view and the connective tissue in the 40x view holds?",
            "What fills the large focus at 10x, and what is the tissue between epithelium like at 40x?",
            "Two findings of two scales explain the tone of this tissue. Which pairing is it?",
        ),
        "type_E": (
            "In phantom slides the pattern of the epithelium at 10x gives the type, and its nuclei at 200x the grade: "
            "small and alike for the lower, large and irregular for the higher. Which diagnosis fits?",
            "Which phantom diagnosis follows from the epithelium's pattern (10x) and from whether its nuclei (200x) "
            "are small and alike, the lower grade, or large and irregular, the higher?",
            "Take all views together. Which type, by pattern at 10x, and which grade, by how large and irregular "
            "epithelial nuclei are at 200x, does the phantom show?",
        ),
    }
)
"""Question type -> wordings; none of them contains a word that tells options apart."""

OPTION_TEMPLATES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "type_A": "{first} infiltrate at 10x, {second} at 200x",
        "type_B": "{first} vessels at 40x, suspicion {second} at 200x",
        "type_C": "{first} the focus, at the tissue {second}",
        "type_D": "{first} in the focus at 10x, {second} stroma at 40x",
        "type_E": "{first} type, grade {second}",
    }
)

SIGNS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "growth": {
            "glandular": "epithelium forms glands, each round one lumen",
            "sheetlike": "epithelium forms solid nests without lumens",
            "sievelike": "epithelium forms nests that several round holes pierce",
        },
        "focus": {
            "necrosis": "the large focus is pale, smudged and without glands: necrotic debris",
            "adipose": "the large focus is a net of clear cells: adipose lobules",
            "fibrosis": "the large focus is dense, pink and wavy: fibrous bundles",
            "haematoma": "the large focus is red throughout: fresh haematoma",
        },
        "infiltrate": {
            "nodular": "dark inflammatory cells gather in rounded nodules",
            "diffuse": "inflammatory cells fill the stroma everywhere",
            "minimal": "there are few inflammatory cells and no nodule of them",
        },
        "site": {
            "touching": "a part of the large focus lies in the field",
            "avoiding": "the field keeps clear of the large focus",
        },
        "depth": {
            "margin": "the field holds the margin of the tissue and bare glass",
            "centre": "the field lies within the tissue, without bare glass",
        },
        "stroma": {
            "compact": "the stroma is compact, its fibres close together",
            "swollen": "the stroma is swollen, thin strands with clear spaces between them",
        },
        "vessels": {
            "congested": "vessels are congested, round and full of red cells",
            "collapsed": "vessels are collapsed slits in thick walls",
        },
        "cells": {
            "lymphocytes": "the inflammatory cells are lymphocytes: round dark nuclei, hardly any cytoplasm",
            "neutrophils": "the inflammatory cells are neutrophils: several small lobes in pale cytoplasm",
            "eosinophils": "the inflammatory cells are eosinophils: two lobes in red granular cytoplasm",
        },
        "nuclei": {
            "uniform": "epithelial nuclei are small and alike: grade one",
            "bizarre": "epithelial nuclei are large, dark and irregular: grade two",
        },
        "mitoses": {
            "many": "many mitoses lie in the epithelium",
            "zero": "there is no mitosis in the epithelium",
        },
    }
)
"""Feature -> value -> how it shows, as a clause."""
