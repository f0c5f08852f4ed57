"""`tools/real_tissue.py`: slides are held out, and options of other slides tell nothing by themselves."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from real_tissue import (
    Features,
    colour_words,
    cross_slide,
    differences,
    held_out_slides,
    interval,
    nearest_by_words,
    ranked,
    short_rows,
)


def cell(name: str, colour: tuple[int, int, int]) -> dict:
    file = io.BytesIO()
    Image.new("RGB", (84, 84), colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": name}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Questions of eight slides, each of a colour of its own: the field looks like the right option."""
    made, random = [], np.random.default_rng(0)
    for slide in range(8):
        for number in range(6):
            colours = [tuple(int(value) for value in random.integers(30, 225, 3)) for _ in range(4)]
            answer = number % 4
            name = f"slide-{slide}::{number}"
            options = [cell(f"{name}-{index}", colour) for index, colour in enumerate(colours)]
            row = {"id": name, "wsi_name": f"slide-{slide}", "answer": answer, "group": f"{slide}-{number // 4}"}
            made.append(row | {"mid_mag": cell(name, colours[answer]), "option_images": options})
    return made


def test_each_option_of_a_cross_slide_group_is_right_once(rows):
    made = cross_slide(rows, 0, 2)
    groups = [made[start : start + 4] for start in range(0, len(made), 4)]
    assert len(made) == 2 * len(rows) and len({row["id"] for row in made}) == len(made)
    for group in groups:
        assert [row["answer"] for row in group] == [0, 1, 2, 3]
        assert len({row["wsi_name"] for row in group}) == 4
        assert all(row["option_images"] == group[0]["option_images"] for row in group)
        assert [row["option_images"][row["answer"]]["path"].split("::")[0] for row in group] == [
            row["wsi_name"] for row in group
        ]


def test_folds_share_no_slide(rows):
    folds = [held_out_slides(rows, fold) for fold in (0, 1)]
    assert [len(fold) for fold in folds] == [4, 4] and not folds[0] & folds[1]


def test_a_fitted_reader_finds_the_option_that_looks_like_the_field(rows):
    inputs, gold = differences(rows, Features("colour"))
    right = ranked(inputs[:24], gold[:24], inputs[24:]) == gold[24:]
    assert right.mean() > 0.9
    accuracy, low, high = interval(right, [row["group"] for row in rows[24:]])
    assert low <= accuracy <= high <= 100


def test_short_rows_say_the_colours_and_not_the_answer(rows):
    words = colour_words(rows)
    first, row = next(short_rows(rows, words)), rows[0]
    assert first["rationale"].startswith(words(row["mid_mag"]) + "; A ")
    assert (first["options"], first["answer"], first["low_mag"]) == (list("ABCD"), "ABCD"[row["answer"]], None)
    assert Image.open(io.BytesIO(first["option_images"][0]["bytes"])).size == (84, 84)


def test_nearest_by_words():
    said = "dark rose; A pale rose, B dark rose, C dark blue, D dark rose"
    assert [nearest_by_words(said, answer) for answer in range(4)] == [0, 0.5, 0, 0.5]
    assert nearest_by_words("dark rose; A pale", 0) == 0
