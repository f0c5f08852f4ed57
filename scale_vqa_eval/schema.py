"""Constants of Scale-VQA's question rows: dimensions, views, letters, configs and ids.

Source: Phan et al., "Enhancing Pathological VLMs with Cross-scale Reasoning" (MICCAI 2026, arXiv:2606.17412) for the
five dimensions and three views; PathScale-R1 (arXiv:2607.23794) for the idea of grounding questions.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Final

DATASET_NAME: Final = "scale-vqa"
METRIC_NAME: Final = "scale_vqa_acc"
METRIC_FOLDER: Final = Path(__file__).parent / METRIC_NAME
"""Folder of the `evaluate` metric, which is copied to a Space."""

LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

QUESTION_TYPES: Final[dict[str, str]] = {
    "type_A": "Correspondence",
    "type_B": "Confirmation",
    "type_C": "Localization",
    "type_D": "Explanation",
    "type_E": "Diagnosis",
}
"""Authors' question type -> reasoning dimension."""

GROUNDING_KINDS: Final[tuple[str, ...]] = ("zoom-in", "zoom-out", "origin", "bridge")
"""Kinds of grounding question; each is a dimension of the ``grounding`` config."""

ANTICIPATION: Final = "anticipation"
"""The fifth kind of grounding question, with its own config: its gold answer comes from a text, not from geometry."""

DIMENSIONS: Final[tuple[str, ...]] = tuple(QUESTION_TYPES.values())
ALL_DIMENSIONS: Final[tuple[str, ...]] = (*DIMENSIONS, *GROUNDING_KINDS, ANTICIPATION)
"""Names of the ``dimension`` ClassLabel; the same in every config, so that configs can be concatenated."""

VIEWS: Final[tuple[str, ...]] = ("low_mag", "mid_mag", "high_mag")
"""Image columns from low to high magnification; their scales are in ``MPP`` and ``MAGNIFICATION``."""

MPP: Final[dict[str, float]] = {"low_mag": 10.0, "mid_mag": 2.5, "high_mag": 0.5}
"""Nominal scale of each view in um per pixel."""

MAGNIFICATION: Final[dict[str, str]] = {"low_mag": "10x", "mid_mag": "40x", "high_mag": "200x"}

CONFIGS: Final[dict[str, str]] = {
    "default": "the benchmark as released",
    "block_exchange": "groups of four with the same text; on average a text-only reader of the whole file is at 25%",
    "exchange": "groups of four with the same text; text-only accuracy on items asked one by one is exactly 25%",
    "screened": "questions that remain after pruning by text-only probes",
    "grounding": "questions made from slide geometry, options are images",
    "anticipation": "a view and a description of what a higher scale shows, options are images",
    "phantom": "synthetic slides with known truth, for tests, teaching and learning curves only",
    "text": "the questions without images",
    "hub": "each question as one text and one composed image, for Inspect's tasks on the Hub",
}
"""Configs of a release folder -> description."""

_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?![A-Z0-9])", re.IGNORECASE)


def row_id(wsi_name: str, path_id: str, question_type: str, number: int = 0) -> str:
    """Returns the row id, ``wsi_name::path_id::question_type``, with ``::n`` if ``number`` is not 0.

    >>> row_id("S", "p1", "type_A"), row_id("S", "p1", "zoom-in", 2)
    ('S::p1::type_A', 'S::p1::zoom-in::2')
    """
    base = f"{wsi_name}::{path_id}::{question_type}"
    return base if number == 0 else f"{base}::{number}"


def patient_of(wsi_name: str) -> str:
    """Returns the patient of a slide: the first 12 characters of a TCGA barcode, else the slide's name.

    It is an assumption that every other slide comes from a different patient. Names are normalised (NFC).

    >>> patient_of("TCGA-HT-A616-01Z-00-DX1"), patient_of("01K46JNMVW0MT1HZQ89SNSKBSH")
    ('TCGA-HT-A616', '01K46JNMVW0MT1HZQ89SNSKBSH')
    """
    return wsi_name[:12].upper() if _TCGA.match(wsi_name) else unicodedata.normalize("NFC", wsi_name)
