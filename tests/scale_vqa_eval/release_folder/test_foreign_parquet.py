"""Parquet as other programs write it, and as it arrives damaged: read the same, or one error that names the file."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scale_vqa_eval.errors import InputError
from scale_vqa_eval.questions import Question, read_questions
from scale_vqa_eval.release_folder.read import release_configs
from scale_vqa_eval.release_folder.verify import check_columns, release_shards
from scale_vqa_eval.release_folder.write import row_features, write_release
from scale_vqa_eval.schema import ALL_DIMENSIONS

IMAGE = {"bytes": b"\xff\xd8 any bytes: nothing is decoded", "path": "a.jpg"}


def rows(count: int = 8) -> list[dict[str, Any]]:
    return [
        {
            "id": f"s{number}::p::type_A",
            "question": f"Which {number}?",
            "options": [f"{letter}{number}" for letter in "wxyz"],
            "answer": "ABCD"[number % 4],
            "low_mag": IMAGE,
            "dimension": "Diagnosis",
            "wsi_name": f"s{number}",
            "patient_id": f"P{number}",
            "path_id": "p",
            "source": "test",
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("own") / "scale-vqa", {"default": {"test": rows()}}, {})


@pytest.fixture(scope="module")
def table(folder: Path) -> pa.Table:
    return pq.read_table(shard(folder))


def shard(folder: Path) -> Path:
    return next(folder.glob("default/*.parquet"))


def item_named(table: pa.Table) -> pa.Table:
    """Lists whose element is called ``item``, as arrow-rs and older pyarrow name it."""
    for name in ("options", "option_images"):
        index = table.schema.get_field_index(name)
        kind = pa.list_(pa.field("item", table.schema.field(index).type.value_type))
        table = table.set_column(index, name, pa.array(table[name].to_pylist(), type=kind))
    return table.replace_schema_metadata(None)


def cast(**kinds: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        for name, kind in kinds.items():
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, table[name].cast(kind))
        return table.replace_schema_metadata(None)

    return changed


def without_labels(table: pa.Table) -> pa.Table:
    """Class names as texts, as a table is written that knows no ClassLabel."""
    names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["dimension"]["names"]
    index = table.schema.get_field_index("dimension")
    texts = pa.array([names[label] for label in table["dimension"].to_pylist()])
    return table.set_column(index, "dimension", texts.dictionary_encode()).replace_schema_metadata(None)


WRITERS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "list element called item": item_named,
    "large strings and lists": cast(
        id=pa.large_string(), question=pa.large_string(), options=pa.large_list(pa.large_string())
    ),
    "string views": cast(question=pa.string_view()),
    "texts without annotation": cast(question=pa.binary(), patient_id=pa.binary(), options=pa.list_(pa.binary())),
    "fixed size lists": cast(options=pa.list_(pa.string(), 4)),
    "categories": lambda table: table.set_column(
        table.schema.get_field_index("patient_id"), "patient_id", table["patient_id"].dictionary_encode()
    ),
}


def content(questions: list[Question]) -> list[tuple[Any, ...]]:
    return [(q.id, q.question, q.options, q.answer, q.slide, q.patient) for q in questions]


@pytest.mark.parametrize("writer", WRITERS)
def test_other_writers_give_the_same_questions(writer: str, folder: Path, table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(WRITERS[writer](table), tmp_path / "x.parquet", use_compliant_nested_type=False)
    assert content(read_questions(tmp_path / "x.parquet")) == content(read_questions(folder))


def test_class_names_and_texts_are_the_same_dimension(table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(without_labels(table), tmp_path / "x.parquet")
    assert {question.dimension for question in read_questions(tmp_path / "x.parquet")} == {"Diagnosis"}


@pytest.mark.parametrize(
    ("names", "answers"), [(["A", "B", "D"], "ABD"), (["w", "x", "z"], "DAC"), (["first", "second", "third"], "ABC")]
)
def test_classes_of_the_answer_are_read_by_name(names: list[str], answers: str, tmp_path: Path) -> None:
    """``class_encode_column`` numbers only the answers that occur."""
    info = {"info": {"features": {"answer": {"names": names, "_type": "ClassLabel"}}}}
    rows = pa.table({"question": ["a", "b", "c"], "options": [["x", "y", "z", "w"]] * 3, "answer": [0, 1, 2]})
    pq.write_table(rows.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "x.parquet")
    assert "".join(question.letter for question in read_questions(tmp_path / "x.parquet")) == answers


@pytest.mark.parametrize("index", [None, "id"])
def test_rows_picked_with_pandas(folder: Path, tmp_path: Path, index: str | None) -> None:
    """pandas gives lists that are all empty the type null, and may write its index as a column."""
    data = pd.read_parquet(shard(folder))
    picked = data[data["id"].str.contains("s[0-3]::")]
    (picked.set_index(index) if index else picked).to_parquet(tmp_path / "x.parquet")
    assert content(read_questions(tmp_path / "x.parquet")) == content(read_questions(folder))[:4]


def test_whole_numbers_that_pandas_made_floats_stay_whole(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"question": "?", "A": "x", "B": "y", "answer": [0, 1, 0], "patient": [7, None, 7], "id": [1, 2, 3]}
    )
    frame.to_parquet(tmp_path / "x.parquet")
    assert [question.patient for question in read_questions(tmp_path / "x.parquet")] == ["7", None, "7"]


@pytest.mark.parametrize("name", ["image", "images", "picture", "scan"])
def test_an_image_column_of_any_name_is_not_read(name: str, tmp_path: Path) -> None:
    """300 images of 400 kB each: the memory of reading the questions does not grow by them."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.list_(kind) if name == "images" else kind
    schema = pa.schema([("question", pa.string()), ("options", pa.list_(pa.string())), ("answer", pa.string())])
    schema = schema.append(pa.field(name, pa.binary() if name == "scan" else kind))
    with pq.ParquetWriter(tmp_path / "x.parquet", schema) as writer:
        for start in range(0, 300, 100):
            made = []
            for number in range(start, start + 100):
                image: Any = os.urandom(400_000)
                image = image if name == "scan" else {"bytes": image, "path": None}
                image = [image] if name == "images" else image
                made.append({"question": f"Q{number}", "options": ["x", "y"], "answer": "A", name: image})
            writer.write_table(pa.Table.from_pylist(made, schema=schema))
    code = (
        "import resource, sys; from scale_vqa_eval.questions import read_questions\n"
        "import pyarrow.parquet; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "questions = read_questions(sys.argv[1])\n"
        "grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024\n"
        "print(len(questions), len({q.cluster for q in questions}), grown)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.parquet")], capture_output=True, text=True, check=True
    )
    count, clusters, grown = map(int, done.stdout.split())
    assert (count, clusters) == (300, 300)
    assert grown < 60


def test_a_byte_order_mark_in_the_card_and_windows_line_ends(folder: Path, tmp_path: Path) -> None:
    write_release(tmp_path / "d", {"text": {"test": rows(2)}}, {"text": "First account."})
    card = tmp_path / "d" / "README.md"
    card.write_bytes(b"\xef\xbb\xbf" + card.read_bytes().replace(b"\n", b"\r\n"))
    assert set(release_configs(tmp_path / "d")) == {"text"}
    write_release(tmp_path / "d", {"phantom": {"test": rows(2)}}, {})
    assert set(release_configs(tmp_path / "d")) == {"text", "phantom"}
    assert "First account." in card.read_text()


@pytest.mark.parametrize("label", [-1, len(ALL_DIMENSIONS), 10**9])
def test_a_class_index_out_of_range_is_no_class(table: pa.Table, tmp_path: Path, label: int) -> None:
    index = table.schema.get_field_index("dimension")
    labels = [0, 1, label, 3, 4, 5, 6, 7]
    changed = table.set_column(index, table.schema.field("dimension"), pa.array(labels, pa.int64()))
    pq.write_table(changed, tmp_path / "x.parquet")
    with pytest.raises(InputError) as caught:
        read_questions(tmp_path / "x.parquet")
    (problem,) = caught.value.problems
    assert problem.location == f"{tmp_path / 'x.parquet'}, row 3, dimension"
    assert problem.expected == f"a class index from 0 to {len(ALL_DIMENSIONS) - 1}"
    assert problem.found == str(label)


def test_metadata_of_datasets_that_is_broken_is_named(table: pa.Table, tmp_path: Path) -> None:
    pq.write_table(table.replace_schema_metadata({b"huggingface": b'{"info": '}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet, metadata of `datasets`"):
        read_questions(tmp_path / "x.parquet")


def test_flipped_bits_are_found_by_the_checksums_of_the_pages(folder: Path, tmp_path: Path) -> None:
    """200 files with one byte changed: each is read as it was, or is one error; no text is ever silently another."""
    whole, expected = shard(folder).read_bytes(), content(read_questions(folder))
    rng, refused = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (tmp_path / "x.parquet").write_bytes(damaged)
        try:
            assert content(read_questions(tmp_path / "x.parquet")) == expected
        except InputError as error:
            assert all(str(tmp_path / "x.parquet") in problem.location for problem in error.problems)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("kept", [0, 3, 100, -1, -9, -400])
def test_a_file_that_is_cut_is_one_error(folder: Path, tmp_path: Path, kept: int) -> None:
    (tmp_path / "x.parquet").write_bytes(shard(folder).read_bytes()[:kept])
    with pytest.raises(InputError) as caught:
        read_questions(tmp_path / "x.parquet")
    assert caught.value.problems[0].expected == "a Parquet file"


def test_the_builder_names_columns_of_another_writer(table: pa.Table, folder: Path, tmp_path: Path) -> None:
    """``ScaleVQA`` takes the columns as they are written here; another list type is an error, not a guess."""
    copy = write_release(tmp_path / "d", {"default": {"test": rows()}}, {})
    pq.write_table(cast(options=pa.large_list(pa.string()))(table), shard(copy))
    with pytest.raises(InputError, match="column options"):
        check_columns(release_shards(copy)["default"], row_features())
