"""Fuzzes the readers of questions and cards: whatever a file holds, it is read or refused by an ``InputError``.

Seconds here; ``make fuzz`` sets ``SCALE_VQA_FUZZ`` to as many examples of each test as there is time for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_script.authors_release import read_release
from dataset_script.single_image import one_view_row, read_single
from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import read_questions
from scale_vqa_eval.release_folder.card import body, head, marked_sections, own_words
from scale_vqa_eval.release_folder.read import FIELD_NAMES, release_configs
from scale_vqa_eval.release_folder.verify import check_columns, release_shards
from scale_vqa_eval.release_folder.write import row_features, write_release

FUZZ = settings(
    max_examples=int(os.environ.get("SCALE_VQA_FUZZ", "60")),
    deadline=20_000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
ROW = {
    "question": "Which?",
    "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
    "answer": "C",
    "rationale": "Seen.",
    "image_path": {"low_mag": "S/l.jpg", "high_mag": None},
    "extra_info": {"wsi_name": "TCGA-AA-1234-01Z", "path_id": "p", "question_type": "type_C", "split": "test"},
}
CSV = 'id,question,A,B,answer,patient\n1,Which?,x,y,A,P\n2,"Which, then?",x,y,B,P\n'
CARD = """---
license: other
configs:
- config_name: text
  data_files:
  - split: test
    path: text/test-*.parquet
  default: true
---
# Scale-VQA

## Columns
<!-- section audit: written -->
x
<!-- end of section audit -->
"""

INSERTED = [b"", b"{", b"[" * 50, b'"', b"\n", b"&a ", b"*a", b"\xff", b"\xef\xbb\xbf", b"-9999999999"]

names = st.sampled_from(sorted({name for names in FIELD_NAMES.values() for name in names} | {"extra_info", "A", "B"}))
keys = st.one_of(names, st.text(max_size=3))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -1, 2**63, 1e308, float("nan"), float("inf")]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["A", "1", "[1, 2]", "{'A': 'x', 'B': 'y'}", "\ud800", "\x00", "9" * 5000, "[" * 3000]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner)),
    max_leaves=12,
)
rows = st.dictionaries(names, values, max_size=9).map(lambda changes: {**ROW, **changes})


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some bytes changed, put in, taken out or repeated."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        data[start:end] = draw(
            st.one_of(
                st.binary(max_size=8),
                st.just(bytes(data[start:end]) * 3),
                st.sampled_from(INSERTED),
            )
        )
    return bytes(data)


def either(read: Callable[[], Any], file: Path) -> None:
    """Reads, or is refused by an error that names the file and can be printed on few lines."""
    try:
        read()
    except InputError as error:
        for problem in error.problems:
            assert str(file) in problem.location
            assert len(str(problem)) < 5000 and problem.expected and problem.found and problem.hint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    release = [
        {"id": f"s{n}", "question": "?", "options": list("wxyz"), "answer": "A", "dimension": "Diagnosis"}
        for n in range(5)
    ]
    return write_release(place / "whole", {"text": {"test": release}}, {})


@FUZZ
@given(st.lists(rows, max_size=3), st.sampled_from([None, "test", "tset"]))
def test_rows_of_any_values(place: Path, content: list[Any], split: str | None) -> None:
    for name, text in (
        ("q.json", json.dumps(content)),
        ("q.jsonl", "".join(json.dumps(row) + "\n" for row in content)),
    ):
        (place / name).write_text(text)
        either(lambda name=name: read_questions(place / name, split), place / name)


@FUZZ
@given(values)
def test_json_of_any_shape(place: Path, content: Any) -> None:
    file = place / "any.json"
    file.write_text(json.dumps(content))
    either(lambda: read_questions(file), file)
    either(lambda: [one_view_row(row, "mid_mag", None) for row in read_single(file)], file)
    assert all(str(file) in problem.location for problem in read_release({"test": file}).problems)


@FUZZ
@given(damaged(json.dumps([ROW, ROW]).encode()))
def test_json_with_damage(place: Path, content: bytes) -> None:
    for name in ("d.json", "d.jsonl"):
        (place / name).write_bytes(content)
        either(lambda name=name: read_questions(place / name), place / name)
    assert all(str(place) in problem.location for problem in read_release({"test": place / "d.json"}).problems)


@FUZZ
@given(damaged(CSV.encode()))
def test_csv_with_damage(place: Path, content: bytes) -> None:
    for name in ("d.csv", "d.tsv"):
        (place / name).write_bytes(content)
        either(lambda name=name: read_questions(place / name), place / name)


@FUZZ
@given(st.data())
def test_parquet_with_damage(place: Path, folder: Path, data: st.DataObject) -> None:
    shard = next(folder.glob("text/*.parquet"))
    file = place / "d.parquet"
    file.write_bytes(data.draw(damaged(shard.read_bytes())))
    either(lambda: read_questions(file), file)
    either(lambda: check_columns({"test": [file]}, row_features(False)), file)


@FUZZ
@given(damaged(CARD.encode()))
def test_cards_with_damage(place: Path, content: bytes) -> None:
    card = place / "carded" / "README.md"
    (card.parent / "text").mkdir(parents=True, exist_ok=True)
    (card.parent / "text/test-00000-of-00001.parquet").touch()
    card.write_bytes(content)
    either(lambda: release_configs(card.parent), card.parent)
    either(lambda: release_shards(card.parent), card.parent)
    text = content.decode("utf-8", "replace")
    try:
        head(text)
    except InputError as error:
        assert len(str(error)) < 5000
    marked_sections(text)
    own_words(body(text), CARD)
