"""Columns of a release folder as ``datasets`` features."""

from __future__ import annotations

from datasets import ClassLabel, Features, Image, List, Value

from scale_vqa_eval.schema import ALL_DIMENSIONS, VIEWS


def row_features(images: bool = True) -> Features:
    """Returns the features of a row.

    Args:
        images: False for the ``text`` config, which has no image column.
    """
    columns = {
        "id": Value("string"),
        "question": Value("string"),
        "options": List(Value("string")),
        "answer": ClassLabel(names=list("ABCD")),
        "rationale": Value("string"),
    }
    if images:
        columns |= {view: Image() for view in VIEWS}
        columns["option_images"] = List(Image())
    columns |= {
        "dimension": ClassLabel(names=list(ALL_DIMENSIONS)),
        "wsi_name": Value("string"),
        "patient_id": Value("string"),
        "path_id": Value("string"),
        "source": Value("string"),
        "group": Value("string"),
    }
    return Features(columns)
