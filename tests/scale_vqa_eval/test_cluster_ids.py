"""What identifies a question, a slide or a patient is a text or a number of the data, never an object's address."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, List, Sequence, Value
from PIL import Image as Picture

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question, read_questions

COUNT = 6
PLAIN = {
    "id": Value("string"),
    "question": Value("string"),
    "options": List(Value("string")),
    "answer": Value("string"),
}


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Picture.fromarray(np.full((4, 4, 3), number, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def from_hub(tmp_path: Path, features: dict[str, Any], value: Any) -> list[Question]:
    """Reads rows as those of a Hub id: ``load_dataset`` is pointed at a local folder, the rest is as released."""
    rows = [
        {"id": f"q{number}", "question": f"Which {number}?", "options": ["x", "y"], "answer": "A", **value(number)}
        for number in range(COUNT)
    ]
    (tmp_path / "d").mkdir()
    Dataset.from_list(rows, features=Features({**PLAIN, **features})).to_parquet(tmp_path / "d" / "test.parquet")
    load = datasets.load_dataset
    with mock.patch.object(
        datasets, "load_dataset", lambda name, *args, **kwargs: load(str(tmp_path / "d"), *args, **kwargs)
    ):
        return read_questions("org/some-vqa")


@pytest.mark.parametrize("name", ["image", "image_path", "slide", "case", "patient_id", "picture"])
@pytest.mark.parametrize("form", ["one", "list", "old list", "struct"])
def test_an_image_is_no_patient(tmp_path: Path, name: str, form: str) -> None:
    kind, wrap = {
        "one": (Image(), lambda image: image),
        "list": (List(Image()), lambda image: [image]),
        "old list": (Sequence(Image()), lambda image: [image]),
        "struct": ({"view": Image()}, lambda image: {"view": image}),
    }[form]
    cell = {"bytes": None, "path": None}
    questions = from_hub(tmp_path, {name: kind}, lambda number: {name: wrap({**cell, "bytes": png(number)})})
    assert [question.cluster for question in questions] == [f"q{number}" for number in range(COUNT)]
    assert all(question.slide is None and question.patient is None for question in questions)


def test_texts_and_numbers_of_the_hub_are_patients(tmp_path: Path) -> None:
    questions = from_hub(tmp_path, {"patient": Value("int32")}, lambda number: {"patient": number // 2})
    assert [question.cluster for question in questions] == ["0", "0", "1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("field", "values", "clusters"),
    [
        ("patient_id", ["a", " a ", "b"], ["a", "a", "b"]),
        ("patient_id", [1, 1.0, "1"], ["1", "1", "1"]),
        ("case", [12345678901234567890, 1.5, 0], ["12345678901234567890", "1.5", "0"]),
        ("image", ["x.png", "x.png", "y.png"], ["x.png", "x.png", "y.png"]),
        ("image", [["x.png"], ["x.png"], ["y.png", "z.png"]], ["['x.png']", "['x.png']", "['y.png', 'z.png']"]),
        ("wsi_name", ["TCGA-AA-1234-01Z", "TCGA-AA-1234-02Z", "S"], ["TCGA-AA-1234", "TCGA-AA-1234", "S"]),
        ("patient_id", [None, "", "b"], ["row 1", "row 2", "b"]),
        ("patient_id", [{"bytes": "x"}, None, "b"], ["row 1", "row 2", "b"]),
    ],
)
def test_clusters_of_a_json_file(tmp_path: Path, field: str, values: list[Any], clusters: list[str]) -> None:
    rows = [{"question": "?", "options": ["x", "y"], "answer": "A", field: value} for value in values]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    assert [question.cluster for question in read_questions(tmp_path / "q.json")] == clusters


def test_a_patient_of_another_type_is_named(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    text = {"question": ["?"], "options": [["x", "y"]], "answer": ["A"]}
    pq.write_table(pa.table({**text, "patient_id": [day]}), tmp_path / "q.parquet")
    with pytest.raises(InputError) as caught:
        read_questions(tmp_path / "q.parquet")
    (problem,) = caught.value.problems
    assert problem.location == f"{tmp_path / 'q.parquet'}, row 1"
    assert problem.expected.startswith("a text or a number under one of patient_id")
    assert problem.found == "a value of type datetime"


def test_options_that_are_not_texts_are_named(tmp_path: Path) -> None:
    rows = [{"question": "?", "options": [{"bytes": "a"}, {"bytes": "b"}], "answer": "A"}]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match="an option of type dict"):
        read_questions(tmp_path / "q.json")


@pytest.mark.parametrize("field", ["patient_id", "wsi_name"])
def test_two_unicode_spellings_of_a_name_are_one_cluster(tmp_path: Path, field: str) -> None:
    rows = [
        {"id": str(n), "question": "Which?", "options": list("wxyz"), "answer": "A", field: name}
        for n, name in enumerate(("M\u00fcller-1", "Mu\u0308ller-1", "Muller-1"))
    ]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    first, second, third = (question.cluster for question in read_questions(tmp_path / "q.json"))
    assert first == second != third
